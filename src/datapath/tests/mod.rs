//! Lanes on ports in memory: what goes in by one far end comes out by another.

mod allocation;
mod coming_and_going;
mod crew;
mod crew_threads;
mod fairness;
mod forward;
mod hand_over;
mod held_up;
mod shields;
mod waiting;
mod world;

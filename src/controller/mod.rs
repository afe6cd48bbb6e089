//! The program `shunt controller`.
pub mod store;

//! A random world, with faults, in which nothing may ever go wrong that [`super::fake`] checks,
//! and which comes to rest as it should once the faults have ended.

use std::collections::BTreeSet;

use super::super::FromHost;
use super::fake::World;
use super::*;
use crate::agent::connection::{Connection, ConntrackEvent, Status};
use crate::agent::core::settings::Revocation;
use crate::agent::core::testing::{LAN, WAN, tcp, udp};
use crate::agent::network::NetworkChange;

/// Worlds, those in which a fault was found once, and how long each goes on before it is left in
/// peace.
const SEEDS: u64 = 48;
const FOUND: [u64; 1] = [99];
const TROUBLE: Duration = seconds(120);

/// xorshift64*, so that a seed means the same everywhere.
struct Dice(u64);

impl Dice {
    const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    const fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// What happens to a world.
struct Fate<'a> {
    dice: Dice,
    stage: &'a Stage,
    next: u32,
    /// Connections that were blocked once: they may be put off for long.
    blocked: BTreeSet<u32>,
}

impl Fate<'_> {
    fn any(&mut self) -> Option<u32> {
        let world = self.stage.world.borrow();
        let count = world.conns.len() as u64;
        let place = if count == 0 {
            0
        } else {
            self.dice.below(count)
        };
        world.conns.keys().nth(place as usize).copied()
    }

    fn begin(&mut self) {
        let client = 1 + self.dice.below(60) as u32;
        let mut connection: Connection = match self.dice.below(2) {
            0 => tcp(client),
            _ => udp(client),
        };
        let taken = (self.stage.world.borrow().conns.values())
            .any(|conn| conn.connection.original == connection.original);
        if taken {
            return;
        }
        // The same addresses come again, in another entry of the table.
        self.next += 1;
        connection.id = self.next;
        let timeouts = [5, 10, 30, 120, 432_000];
        let timeout = timeouts[self.dice.below(5) as usize];
        connection.timeout = Some(seconds(timeout));
        let rate = [self.dice.below(6), self.dice.below(6)];
        self.stage.world.borrow_mut().add(connection, rate);
    }

    fn step(&mut self) {
        let any = self.any();
        let choice = self.dice.below(100);
        let rate = [self.dice.below(6), self.dice.below(6)];
        let mut world = self.stage.world.borrow_mut();
        match (choice, any) {
            (0..50, Some(number)) if choice < 20 => {
                if let Some(conn) = world.conns.get_mut(&number) {
                    conn.rate = rate;
                }
            }
            (20..32, Some(number)) => world.destroy(number),
            (32..36, Some(number)) => {
                world.spoil(number, |connection| {
                    connection.status.0 |= Status::SEQ_ADJUST.0;
                });
            }
            (36..40, Some(number)) => {
                if let Some(conn) = world.conns.get_mut(&number) {
                    conn.is_blocked = !conn.is_blocked;
                    self.blocked.insert(number);
                    world.tell_network(NetworkChange::Ruleset);
                }
            }
            (40..43, _) => world.tell_network(NetworkChange::Routes),
            (43..45, _) => {
                let on = if rate[0] < 3 { LAN } else { WAN };
                let address = "192.0.2.9".parse().unwrap();
                world.tell_network(NetworkChange::Neighbour { on, address });
            }
            (45, _) => world.tell_network(NetworkChange::Links { gone: None }),
            (46..48, Some(number)) => {
                world.faults.deaf = true;
                world.destroy(number);
                world.faults.deaf = false;
                world.tell_conntrack(ConntrackEvent::Lost);
            }
            (48..60, _) => self.begin_later(world, choice),
            _ => {
                drop(world);
                self.begin();
            }
        }
    }

    /// Something goes wrong, or is right again.
    fn begin_later(&self, mut world: std::cell::RefMut<'_, World>, choice: u64) {
        // Pauses after calls that failed grow to 30 s, and then there is a sync.
        let until = tokio::time::Instant::now() + seconds(60);
        match choice {
            48 => world.faults.delay = Duration::from_millis(700),
            49 => drop(world.faults.lost.insert("offload")),
            50 => drop(world.faults.lost.insert("withdraw")),
            51 => drop(world.faults.mute.insert("sync")),
            52 => drop(world.faults.mute.insert("withdraw")),
            53 if world.silent_until.is_none() => {
                let is_up = !world.is_up;
                world.set_line(is_up);
            }
            54 => {
                world.restart_backend();
                world.tell_agent(FromHost::EventsLost);
            }
            55 => world.tell_agent(FromHost::EventsLost),
            _ => calm(&mut world),
        }
        world.faults.until = Some(until);
    }
}

/// Faults end.
fn calm(world: &mut World) {
    world.faults.delay = Duration::ZERO;
    world.faults.lost.clear();
    world.faults.mute.clear();
    if !world.is_up && world.silent_until.is_none() {
        world.set_line(true);
    }
}

/// Busy connections that nothing stands against.
fn wanted(world: &World, blocked: &BTreeSet<u32>) -> usize {
    world
        .conns
        .iter()
        .filter(|(number, conn)| {
            let is_busy = conn.rate.iter().all(|rate| *rate > 1);
            is_busy && conn.forbidden.is_none() && !blocked.contains(number)
        })
        .count()
}

async fn live_through(seed: u64) {
    let revocation = match seed % 3 {
        0 => Revocation::Staged,
        _ => Revocation::Strict,
    };
    let settings = Settings {
        revocation,
        news_rate_max: if seed.is_multiple_of(2) { 3 } else { 200 },
        ..Settings::default()
    };
    story(settings, async |stage| {
        let mut fate = Fate {
            dice: Dice::new(seed),
            stage,
            next: 5000,
            blocked: BTreeSet::new(),
        };
        let end = tokio::time::Instant::now() + TROUBLE;
        while tokio::time::Instant::now() < end {
            fate.step();
            let pause = fate.dice.below(400);
            sleep(Duration::from_millis(pause)).await;
        }
        calm(&mut stage.world.borrow_mut());
        sleep(seconds(90)).await;
        let world = stage.world.borrow();
        let active = world.active();
        assert!(
            active >= wanted(&world, &fate.blocked),
            "{active} are active"
        );
    })
    .await;
}

#[test]
fn a_random_world_with_faults_keeps_every_promise() {
    for seed in (0..SEEDS).chain(FOUND) {
        println!("seed {seed}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(live_through(seed));
    }
}

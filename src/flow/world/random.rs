//! Random stories: a seed decides guest, traffic and requests. A failure prints its seed;
//! [`story`] with that seed repeats it.

use super::*;

/// xorshift64*, so that a seed means the same everywhere.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn per_mille(&mut self, chance: u64) -> bool {
        self.below(1000) < chance
    }
}

/// One direction's sender: what its next packet can be recognised by.
struct Sender {
    tcp: bool,
    sent: u32,
    /// Nothing from before this is sent again: a copy of what was in the guest before the
    /// flow's record began is told from it by nobody, as the machine's docs say.
    since: u32,
}

impl Sender {
    fn marker(&mut self, dice: &mut Dice) -> Marker {
        let back = dice.below(6) as u32;
        let again = dice.per_mille(100) && self.sent > self.since + back;
        let place = if again {
            self.sent - back
        } else {
            self.sent += 1;
            self.sent
        };
        let wraps = u32::MAX - 3000;
        if self.tcp {
            Marker::Tcp {
                seq_end: wraps.wrapping_add(place.wrapping_mul(100)),
                ack: 5,
            }
        } else {
            Marker::Other {
                len: 64,
                hash: place,
            }
        }
    }
}

fn guest_of(dice: &mut Dice, tcp: bool) -> Box<dyn FnMut(&Packet) -> Act> {
    let chance = |dice: &mut Dice, most| {
        // Some kinds of fault are off in a run.
        if dice.per_mille(500) {
            0
        } else {
            dice.below(most)
        }
    };
    let drop = chance(dice, 200);
    let merge = if tcp { chance(dice, 400) } else { 0 };
    let twice = chance(dice, 50);
    let rewrite = chance(dice, 30);
    let route = chance(dice, 30);
    let mut own = Dice::new(dice.below(u64::MAX));
    Box::new(move |_| {
        let kinds = [
            (drop, Act::Drop),
            (merge, Act::Merge),
            (twice, Act::Twice),
            (rewrite, Act::OtherRewrite),
            (route, Act::OtherRoute),
        ];
        let hit = kinds.into_iter().find(|(chance, _)| own.per_mille(*chance));
        hit.map_or(Act::Forward, |(_, act)| act)
    })
}

fn story(seed: u64) -> (u64, u64) {
    let mut dice = Dice::new(seed);
    let forced = dice.per_mille(50);
    let limits = HandOverLimits {
        frames: 1 + dice.below(60) as u32,
        forced,
        flows: 1,
        ..HandOverLimits::default()
    };
    let mut world = World::new(limits);
    let tcp = dice.per_mille(500);
    world.guest.act = guest_of(&mut dice, tcp);
    let bits = 8 + dice.below(8);
    world.guest.transit = Duration::from_micros(50 + dice.below(1 << bits));
    let gap = 1 + dice.below(2 * world.guest.transit.as_micros() as u64);
    let prompt = dice.per_mille(100);
    if prompt {
        world.request.mode = HandOverMode::Prompt;
    }
    let mut senders = [0, 1].map(|_| Sender {
        tcp,
        sent: 0,
        since: 0,
    });
    for _ in 0..600 {
        step(&mut world, &mut dice, &mut senders);
        let direction = dice.below(2) as usize;
        let sender = &mut senders[direction];
        let marker = sender.marker(&mut dice);
        if matches!(world.state(direction), None | Some(FlowState::Closing)) {
            sender.since = sender.sent;
        }
        let fin = dice.per_mille(3);
        world.send_as(direction, marker, fin);
        world.run(Duration::from_micros(dice.below(2 * gap)));
    }
    world.check(!prompt && !forced);
    (world.forwarded, world.hand_over.stats().released_to_egress)
}

/// Perhaps something of the control side.
fn step(world: &mut World, dice: &mut Dice, senders: &mut [Sender; 2]) {
    let now = world.now;
    let asks = match dice.below(1000) {
        0..15 => true,
        15..20 => {
            world.sessions.withdraw("ct-1", now);
            false
        }
        20..24 => {
            let dscp = Some(dice.below(64) as u8);
            world.request.original.as_mut().unwrap().dscp = dscp;
            true
        }
        24..26 => {
            world.request.key = format!("ct-{}", 1 + dice.below(2));
            true
        }
        26 => {
            world.sessions.close_all(CloseCode::LeaseExpired, now);
            false
        }
        27..35 => {
            world.reprove();
            for sender in senders.iter_mut() {
                sender.since = sender.sent;
            }
            false
        }
        _ => false,
    };
    if asks {
        let outcome = world.offload();
        assert!(!matches!(outcome, Outcome::Invalid(_) | Outcome::TableFull));
        for sender in senders {
            sender.since = sender.sent;
        }
    }
    world.check_waiting();
}

/// `SHUNT_SEED=n` repeats one story; `SHUNT_STORIES=n` tells more of them.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SHUNT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SHUNT_STORIES").unwrap_or(1500),
    }
}

#[test]
fn whatever_guest_and_client_do_nothing_is_lost_doubled_or_overtaken() {
    let mut moved = (0, 0);
    for seed in seeds() {
        let told = std::panic::catch_unwind(|| story(seed));
        let Ok((forwarded, released)) = told else {
            panic!("the story with seed {seed} ends badly, see above");
        };
        moved.0 += forwarded;
        moved.1 += released;
    }
    // The stories meet what they are about.
    let stories = seeds().end - seeds().start;
    assert!(
        stories < 1000 || (moved.0 > 50_000 && moved.1 > 1000),
        "{moved:?}"
    );
}

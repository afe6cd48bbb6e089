use super::*;

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

/// Two ends, two pipes, a clock that moves when told, and an oracle: what was written to
/// each pair of epochs.
struct World {
    ends: [Line; 2],
    /// `pipes[0]` leads from end 0 to end 1.
    pipes: [Vec<u8>; 2],
    /// All that ever lay in a pipe.
    past: [Vec<u8>; 2],
    now: Instant,
    seed: u32,
    written: HashMap<(u32, u32), Vec<u8>>,
    read: HashMap<(u32, u32), usize>,
}

impl World {
    #[expect(
        clippy::disallowed_methods,
        reason = "a first moment; the rest is added to it"
    )]
    fn new() -> Self {
        let now = Instant::now();
        Self {
            ends: [line(1, now), line(2, now)],
            pipes: Default::default(),
            past: Default::default(),
            now,
            seed: 2,
            written: HashMap::new(),
            read: HashMap::new(),
        }
    }

    fn open() -> Self {
        let mut world = Self::new();
        world.exchange();
        world.assert_open();
        world
    }

    /// What the end has to send goes into its pipe.
    fn send(&mut self, end: usize) {
        let mut bytes = Vec::new();
        while self.ends[end].transmit(&mut bytes, self.now) {}
        self.pipes[end].extend(&bytes);
        self.past[end].extend(&bytes);
    }

    /// The first `count` bytes in the pipe from `end` arrive.
    fn deliver(&mut self, end: usize, count: usize) {
        let count = count.min(self.pipes[end].len());
        let bytes: Vec<u8> = self.pipes[end].drain(..count).collect();
        self.ends[1 - end].receive(&bytes, self.now);
    }

    /// Both send and hear until nothing is left to say.
    fn exchange(&mut self) {
        for _ in 0..100 {
            for end in 0..2 {
                self.ends[end].on_timeout(self.now);
                self.send(end);
            }
            if self.pipes.iter().all(Vec::is_empty) {
                return;
            }
            for end in 0..2 {
                self.deliver(end, usize::MAX);
            }
        }
        panic!("they never fall silent");
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn restart(&mut self, end: usize) {
        self.seed += 1;
        self.ends[end] = line(self.seed, self.now);
    }

    fn number(&self, end: usize) -> u64 {
        self.ends[end].progress().opened
    }

    fn write(&mut self, end: usize, bytes: &[u8]) -> usize {
        let (number, now) = (self.number(end), self.now);
        let Some(epochs) = self.ends[end].epochs() else {
            return 0;
        };
        let taken = self.ends[end].write(number, bytes, now).unwrap();
        let all = self.written.entry(epochs).or_default();
        all.extend(&bytes[..taken]);
        taken
    }

    /// Reads and compares with what the other end wrote to the same connection.
    fn read(&mut self, end: usize, count: usize) -> usize {
        let number = self.number(end);
        let Some((own, peer)) = self.ends[end].epochs() else {
            return 0;
        };
        let mut out = vec![0; count];
        let taken = self.ends[end].read(number, &mut out).unwrap();
        let from = self.read.entry((peer, own)).or_default();
        let expected = self
            .written
            .get(&(peer, own))
            .map_or(&[][..], Vec::as_slice);
        assert_eq!(expected.get(*from..*from + taken), Some(&out[..taken]));
        *from += taken;
        taken
    }

    fn assert_open(&self) {
        let (a, b) = (
            self.ends[0].epochs().unwrap(),
            self.ends[1].epochs().unwrap(),
        );
        assert_eq!(a, (b.1, b.0));
    }

    /// After all faults: both open, and bytes pass both ways.
    fn assert_recovers(&mut self) {
        for _ in 0..400 {
            self.pass(Duration::from_millis(50));
            self.exchange();
            for end in 0..2 {
                self.read(end, usize::from(u16::MAX));
            }
        }
        self.assert_open();
        for end in 0..2 {
            let text = vec![end as u8; 200_000];
            let mut rest = &text[..];
            let mut received = 0;
            while received < text.len() {
                rest = &rest[self.write(end, rest)..];
                self.exchange();
                received += self.read(1 - end, 30_000);
            }
        }
        self.assert_open();
    }
}

fn line(seed: u32, now: Instant) -> Line {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let epochs = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        NonZeroU32::new(state).unwrap()
    };
    Line::new(Timing::default(), epochs, now)
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize),
    Read(usize, usize),
    Send(usize),
    Deliver(usize, usize),
    Exchange,
    Pass(u64),
    /// Foreign bytes on the line.
    Noise(usize, Vec<u8>),
    /// The last bytes on the line never arrive.
    Truncate(usize, usize),
    /// A byte in the pipe changes.
    Flip(usize, usize),
    /// A piece of the past arrives again.
    Splice(usize, usize, usize),
    Restart(usize),
    Close(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    let end = || 0..2_usize;
    prop_oneof![
        4 => (end(), 1..40_000_usize).prop_map(|(end, n)| Step::Write(end, n)),
        4 => (end(), 1..40_000_usize).prop_map(|(end, n)| Step::Read(end, n)),
        4 => end().prop_map(Step::Send),
        4 => (end(), 1..30_000_usize).prop_map(|(end, n)| Step::Deliver(end, n)),
        2 => Just(Step::Exchange),
        2 => (1..7_000_u64).prop_map(Step::Pass),
        1 => (end(), vec(any::<u8>(), 1..300)).prop_map(|(end, n)| Step::Noise(end, n)),
        1 => (end(), 1..20_000_usize).prop_map(|(end, n)| Step::Truncate(end, n)),
        1 => (end(), any::<usize>()).prop_map(|(end, n)| Step::Flip(end, n)),
        1 => (end(), any::<usize>(), 1..20_000_usize)
            .prop_map(|(end, at, n)| Step::Splice(end, at, n)),
        1 => end().prop_map(Step::Restart),
        1 => end().prop_map(Step::Close),
    ]
}

fn take_step(world: &mut World, step: Step) {
    match step {
        Step::Write(end, count) => {
            let text: Vec<u8> = (0..count).map(|i| (i * 7 + end) as u8).collect();
            world.write(end, &text);
        }
        Step::Read(end, count) => {
            world.read(end, count);
        }
        Step::Send(end) => world.send(end),
        Step::Deliver(end, count) => world.deliver(end, count),
        Step::Exchange => world.exchange(),
        Step::Pass(time) => {
            world.pass(Duration::from_millis(time));
            for end in &mut world.ends {
                end.on_timeout(world.now);
            }
        }
        Step::Noise(end, noise) => world.pipes[end].extend(noise),
        Step::Truncate(end, count) => {
            let pipe = &mut world.pipes[end];
            pipe.truncate(pipe.len().saturating_sub(count));
        }
        Step::Flip(end, at) => {
            let pipe = &mut world.pipes[end];
            let length = pipe.len().max(1);
            if let Some(byte) = pipe.get_mut(at % length) {
                *byte ^= 0x41;
            }
        }
        Step::Splice(end, at, count) => {
            let past = &world.past[end];
            let at = at % (past.len() + 1);
            let piece = past[at..].iter().take(count).copied();
            world.pipes[end].extend(piece.collect::<Vec<_>>());
        }
        Step::Restart(end) => world.restart(end),
        Step::Close(end) => {
            let (number, now) = (world.number(end), world.now);
            world.ends[end].close(number, now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_line_does_a_connection_delivers_what_was_written_to_it(
        steps in vec(steps(), 1..80)
    ) {
        let mut world = World::new();
        for step in steps {
            take_step(&mut world, step);
        }
        world.assert_recovers();
    }
}

#[test]
fn both_ends_open_within_one_exchange() {
    World::open();
}

#[test]
fn an_idle_connection_stays_open_for_an_hour_by_its_beats() {
    let mut world = World::open();
    for _ in 0..7_200 {
        world.pass(Duration::from_millis(500));
        world.exchange();
    }
    assert_eq!((world.number(0), world.number(1)), (1, 1));
    world.assert_open();
}

#[test]
fn a_rebooted_end_and_its_stale_bytes_end_the_connection_and_open_the_next() {
    let mut world = World::open();
    world.write(0, b"a request that is never fini");
    world.send(0);
    let half = world.pipes[0].len() / 2;
    world.pipes[0].truncate(half);
    world.restart(0);
    // The guest's input still holds what the host sent to the old one.
    world.write(1, b"an answer to the old one");
    world.exchange();
    assert_eq!(world.ends[1].progress().end, Some(End::PeerOpened));
    world.assert_open();
    assert_eq!(world.read(0, 100), 0);
    assert_eq!(world.read(1, 100), 0);
    world.assert_recovers();
}

#[test]
fn a_lost_last_frame_is_noticed_by_the_next_beat() {
    let mut world = World::open();
    world.write(0, b"lost");
    world.send(0);
    world.pipes[0].clear();
    world.pass(Duration::from_secs(1));
    world.exchange();
    assert_eq!(world.ends[1].progress().end, Some(End::Gap));
    world.assert_open();
}

#[test]
fn silence_ends_a_connection_after_its_time_and_not_before() {
    let mut world = World::open();
    world.pass(Duration::from_millis(4_999));
    world.ends[0].on_timeout(world.now);
    assert!(world.ends[0].is_open(1));
    world.pass(Duration::from_millis(1));
    world.ends[0].on_timeout(world.now);
    assert_eq!(world.ends[0].progress().end, Some(End::Silence));
}

#[test]
fn a_bye_ends_the_connection_at_once() {
    let mut world = World::open();
    let now = world.now;
    world.ends[0].close(1, now);
    world.send(0);
    world.deliver(0, usize::MAX);
    assert_eq!(world.ends[1].progress().end, Some(End::PeerClosed));
}

#[test]
fn an_end_that_never_reads_is_sent_a_window_and_then_given_up() {
    let mut world = World::open();
    let mut taken = 0;
    // The other end goes on beating: it is there, it only does not read.
    for _ in 0..290 {
        taken += world.write(0, &[1; 10_000]);
        world.pass(Duration::from_millis(100));
        world.exchange();
    }
    assert_eq!(taken, 2 * WINDOW as usize);
    assert!(world.ends[0].is_open(1));
    for _ in 0..20 {
        world.pass(Duration::from_millis(100));
        world.exchange();
    }
    assert_eq!(world.ends[0].progress().end, Some(End::Stall));
}

#[test]
fn more_than_the_window_ends_the_connection() {
    let mut world = World::open();
    let (own, peer) = world.ends[0].epochs().unwrap();
    for count in 0..5 {
        let head = Head {
            kind: Kind::Data,
            from: own,
            to: peer,
            count,
            limit: WINDOW,
        };
        frame::encode(head, &[1; PAYLOAD_MAX], &mut world.pipes[0]);
    }
    world.deliver(0, usize::MAX);
    assert_eq!(world.ends[1].progress().end, Some(End::Overrun));
}

#[test]
fn hellos_become_rare_when_nobody_answers() {
    let mut world = World::new();
    let mut hellos = 0;
    for _ in 0..600 {
        world.pass(Duration::from_millis(100));
        let mut bytes = Vec::new();
        while world.ends[0].transmit(&mut bytes, world.now) {
            hellos += 1;
        }
    }
    assert!((12..=20).contains(&hellos), "{hellos} in a minute");
}

#[test]
fn a_flood_of_hellos_is_answered_once() {
    let mut world = World::new();
    for _ in 0..10_000 {
        let head = Head {
            kind: Kind::Hello,
            from: 7,
            to: 0,
            count: 0,
            limit: WINDOW,
        };
        frame::encode(head, &[], &mut world.pipes[0]);
    }
    world.deliver(0, usize::MAX);
    let mut frames = 0;
    let mut bytes = Vec::new();
    while world.ends[1].transmit(&mut bytes, world.now) {
        frames += 1;
    }
    assert_eq!(frames, 2, "an acknowledgement and the own hello");
}

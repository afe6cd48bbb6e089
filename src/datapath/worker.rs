//! A worker: one thread that polls the lanes of its elements.
//!
//! *Promises*: polls while there is work and within each lane's [`super::budget::Budget`]; then arms
//! notifications and sleeps: an idle backend uses no CPU. Lanes take turns, one burst from
//! every queue a round.
//! *Refuses*: nothing. *Caller's duty*: [`Worker::start`] once. *Standard*: epoll(7).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::clock::Clock;
use super::lane::{Bench, Lane, Reporter};
use super::poller::{BELL, EpollSet};
use crate::flow::Moment;
use crate::port::PollRegistry;

/// While some lanes are awake, sleeping ones are looked after this often.
const LOOK_EVERY: Duration = Duration::from_micros(20);

/// A running worker thread; dropping it stops the thread and its lanes.
#[derive(Debug)]
pub struct Worker {
    set: Arc<EpollSet>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Attaches the lanes' ports and starts the thread.
    pub fn start(
        name: &str,
        clock: Clock,
        mut lanes: Vec<Lane>,
        reporter: Reporter,
    ) -> io::Result<Self> {
        let set = Arc::new(EpollSet::new()?);
        let stop = Arc::new(AtomicBool::new(false));
        for (token, lane) in lanes.iter_mut().enumerate() {
            lane.attach(&set, token as u64)?;
        }
        let mut run = Run {
            set: set.clone(),
            stop: stop.clone(),
            clock,
            lanes,
            bench: Bench::new(reporter),
            looked: Moment::default(),
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run.all())?;
        Ok(Self {
            set,
            stop,
            thread: Some(thread),
        })
    }

    /// Whether the thread still runs. It ends by itself only when epoll fails.
    pub fn is_alive(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.set.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a worker thread had panicked");
        }
    }
}

struct Run {
    set: Arc<EpollSet>,
    stop: Arc<AtomicBool>,
    clock: Clock,
    lanes: Vec<Lane>,
    bench: Bench,
    looked: Moment,
}

impl Run {
    fn all(&mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let awake = self.round();
            let outcome = if awake == 0 {
                self.sleep()
            } else {
                self.look()
            };
            if let Err(error) = outcome {
                log::error!("worker ends: epoll failed: {error}");
                return;
            }
        }
    }

    /// Polls every lane that is awake once; lanes without work and budget fall asleep.
    /// Says how many stay awake.
    fn round(&mut self) -> usize {
        let mut awake = 0;
        let mut now = self.clock.now();
        for lane in &mut self.lanes {
            let due = lane.next_deadline().is_some_and(|deadline| deadline <= now);
            if !lane.awake && !due {
                continue;
            }
            let frames = lane.poll(&mut self.bench, now);
            let end = self.clock.now();
            if frames > 0 {
                let took = end.since(now);
                lane.budget.worked(end, took);
                lane.pipe.counters.busy_ns.add(took.as_nanos() as u64);
            } else if lane.awake && !lane.budget.may_poll(end) && lane.arm() {
                lane.awake = false;
                lane.budget.slept(end);
            }
            awake += usize::from(lane.awake);
            now = end;
        }
        awake
    }

    /// Looks after sleeping lanes without waiting.
    fn look(&mut self) -> io::Result<()> {
        std::hint::spin_loop();
        let now = self.clock.now();
        if now.since(self.looked) < LOOK_EVERY || self.lanes.iter().all(|lane| lane.awake) {
            return Ok(());
        }
        self.looked = now;
        self.wait(Some(Duration::ZERO))
    }

    /// Waits until something comes or is due.
    fn sleep(&mut self) -> io::Result<()> {
        let deadline = self.lanes.iter_mut().filter_map(Lane::next_deadline).min();
        let now = self.clock.now();
        self.wait(deadline.map(|deadline| deadline.since(now)))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let Self {
            set, lanes, clock, ..
        } = self;
        let mut now = None;
        set.wait(timeout, |token| {
            let now = *now.get_or_insert_with(|| clock.now());
            let woken = match usize::try_from(token) {
                Ok(index) if index < lanes.len() => &mut lanes[index..=index],
                // The bell says nothing about which lane: a ring may have started anywhere.
                _ => {
                    debug_assert_eq!(token, BELL);
                    &mut lanes[..]
                }
            };
            for lane in woken.iter_mut().filter(|lane| !lane.awake) {
                lane.awake = true;
                lane.disarm();
                lane.budget.woke(now);
            }
        })
    }
}

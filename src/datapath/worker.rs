//! A worker: one thread that gives the lanes of its elements their turns.
//!
//! *Promises*: polls while there is work; then, as each lane's [`super::pace`] has it, naps
//! with notifications off or arms them and sleeps: an idle backend uses no CPU.
//! *Refuses*: nothing. *Caller's duty*: [`Worker::start`] once. *Standard*: epoll(7).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::clock::Clock;
use super::cpu::Ledger;
use super::lane::{Bench, Lane, Reporter};
use super::lanes::Lanes;
use super::pace::Polling;
use super::poller::EpollSet;
use super::rounds::{Outlook, Rounds};
use super::thread;
use crate::flow::Moment;
use crate::flow::queue::{Receiver, Sender, channel};
use crate::port::PollRegistry;

/// Orders that may wait for a worker.
const ORDERS_MAX: usize = 64;
/// While some lanes are awake, sleeping ones are looked after this often.
const LOOK_EVERY: Duration = Duration::from_micros(20);
/// A sleep with CPU time still to be dealt out is no longer than this.
const SETTLE_WITHIN: Duration = Duration::from_millis(100);

type Order = Box<dyn FnOnce(&mut Lanes) + Send>;

/// A worker has more orders waiting than it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker has {ORDERS_MAX} orders waiting: try again shortly")]
pub struct Busy;

/// A running worker thread; dropping it stops the thread and its lanes.
pub struct Worker {
    set: Arc<EpollSet>,
    orders: Sender<Order>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Attaches the lanes' ports and starts the thread.
    pub fn start(
        name: &str,
        clock: Clock,
        polling: Polling,
        lanes: Vec<Box<Lane>>,
        reporter: Reporter,
    ) -> io::Result<Self> {
        let set = Arc::new(EpollSet::new()?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut admitted = Lanes::new(set.clone());
        for lane in lanes {
            admitted.admit(lane)?;
        }
        let (orders, receiver) = channel(ORDERS_MAX);
        let mut run = Run {
            set: set.clone(),
            orders: receiver,
            stop: stop.clone(),
            rounds: Rounds::new(admitted, Bench::new(reporter), clock, polling),
            looked: Moment::default(),
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run.all())?;
        Ok(Self {
            set,
            orders,
            stop,
            thread: Some(thread),
        })
    }

    /// Queues `order`; it runs on the worker's thread between two rounds, and everything it
    /// drops delays all elements there.
    ///
    /// # Errors
    /// Too many orders wait.
    pub fn submit(&mut self, order: impl FnOnce(&mut Lanes) + Send + 'static) -> Result<(), Busy> {
        let queued = self.orders.try_send(Box::new(order));
        self.set.wake();
        queued.map_err(|_| Busy)
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
    orders: Receiver<Order>,
    stop: Arc<AtomicBool>,
    rounds: Rounds<Clock>,
    looked: Moment,
}

impl Run {
    fn all(&mut self) {
        thread::wake_on_time();
        let mut ledger = Ledger::new(self.rounds.now, thread::cpu_time());
        while !self.stop.load(Ordering::Acquire) {
            while let Some(order) = self.orders.try_recv() {
                order(&mut self.rounds.lanes);
            }
            let outlook = self.rounds.round();
            if ledger.is_due(self.rounds.now) {
                self.rounds.settle(&mut ledger, thread::cpu_time());
            }
            let outcome = match outlook {
                Outlook::Work => {
                    std::hint::spin_loop();
                    self.look()
                }
                Outlook::Nap(span) => {
                    thread::nap(span);
                    self.rounds.nap_ended();
                    self.look()
                }
                Outlook::Sleep => self.sleep(),
            };
            if let Err(error) = outcome {
                log::error!("worker ends: epoll failed: {error}");
                return;
            }
        }
    }

    /// Looks after sleeping lanes without waiting.
    fn look(&mut self) -> io::Result<()> {
        let now = self.rounds.now;
        if now.since(self.looked) < LOOK_EVERY || !self.rounds.any_asleep() {
            return Ok(());
        }
        self.looked = now;
        self.wait(Some(Duration::ZERO))
    }

    /// Waits until something comes or is due.
    fn sleep(&mut self) -> io::Result<()> {
        let lanes = self.rounds.lanes.iter_mut();
        let deadline = lanes.filter_map(Lane::next_deadline).min();
        let now = self.rounds.time.now();
        let due = deadline.map(|deadline| deadline.since(now));
        let settle = self.rounds.any_claim().then_some(SETTLE_WITHIN);
        self.wait(match (due, settle) {
            (Some(due), Some(settle)) => Some(due.min(settle)),
            (due, settle) => due.or(settle),
        })
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let Self { set, rounds, .. } = self;
        set.wait(timeout, |token| rounds.wake(token))
    }
}

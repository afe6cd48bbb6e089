//! The keeper: the one thread that writes sessions.
//!
//! It owns every element's [`Sessions`](crate::flow::Sessions): runs the commands that control sends, takes in what
//! workers report, and lets time pass.
//!
//! *Promises*: commands of one caller run in order; a worker's report is never waited for.
//! *Refuses*: a command when its queue is full ([`Busy`]). *Caller's duty*: commands are short;
//! the keeper serves all elements. *Standard*: none.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::ElementId;
pub use super::books::Books;
use super::clock::Clock;
use super::lane::Reporter;
use super::poller::EpollSet;
use crate::flow::queue::{Receiver, Sender, channel};
use crate::flow::{ClosedSession, FlowEvent, Moment};
use crate::port::PollRegistry;

/// Commands that may wait for the keeper.
const COMMANDS_MAX: usize = 256;
/// Events that may wait, for each worker; beyond them the keeper re-reads all flows.
const EVENTS_MAX: usize = 4096;
/// Commands and events taken in one turn, so that neither starves the other or the timers.
const TURN_MAX: usize = 1024;

type Command = Box<dyn FnOnce(&mut Books, Moment) + Send>;

/// The keeper has more commands waiting than it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the backend has {COMMANDS_MAX} commands waiting: try again shortly, with more sessions in each request"
)]
pub struct Busy;

/// A running keeper; dropping it ends the thread.
pub struct Keeper {
    set: Arc<EpollSet>,
    stop: Arc<AtomicBool>,
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// A keeper that does not run yet: workers get their reporters from it.
pub struct Preparation {
    set: Arc<EpollSet>,
    reports: Vec<Receiver<(ElementId, FlowEvent)>>,
    overflow: Arc<AtomicBool>,
}

impl Preparation {
    /// No reporters yet.
    pub fn new() -> io::Result<Self> {
        let set = Arc::new(EpollSet::new()?);
        Ok(Self {
            set,
            reports: Vec::new(),
            overflow: Arc::new(AtomicBool::new(false)),
        })
    }

    /// A reporter for one worker.
    pub fn reporter(&mut self) -> Reporter {
        let (sender, receiver) = channel(EVENTS_MAX);
        self.reports.push(receiver);
        Reporter::new(sender, self.overflow.clone(), self.set.clone())
    }

    /// Starts the thread over `books`.
    pub fn start(self, clock: Clock, books: Books) -> io::Result<Keeper> {
        let (sender, commands) = channel(COMMANDS_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let Self {
            set,
            reports,
            overflow,
        } = self;
        let mut run = Run {
            set: set.clone(),
            stop: stop.clone(),
            clock,
            books,
            commands,
            reports,
            overflow,
        };
        let thread = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || run.all())?;
        Ok(Keeper {
            set,
            stop,
            commands: sender,
            thread: Some(thread),
        })
    }
}

impl Keeper {
    /// Queues `command`; it runs on the keeper's thread, with the time at which it does.
    pub fn submit(
        &mut self,
        command: impl FnOnce(&mut Books, Moment) + Send + 'static,
    ) -> Result<(), Busy> {
        let queued = self.commands.try_send(Box::new(command));
        self.set.wake();
        queued.map_err(|_| Busy)
    }

    /// Whether the thread still runs. It ends by itself only when epoll fails, or by a panic.
    pub fn is_alive(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.set.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the keeper thread had panicked");
        }
    }
}

struct Run {
    set: Arc<EpollSet>,
    stop: Arc<AtomicBool>,
    clock: Clock,
    books: Books,
    commands: Receiver<Command>,
    reports: Vec<Receiver<(ElementId, FlowEvent)>>,
    overflow: Arc<AtomicBool>,
}

impl Run {
    fn all(&mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let now = self.clock.now();
            let taken = self.take_reports(now) + self.take_commands(now);
            self.pass_time(now);
            if taken == 0
                && let Err(error) = self.sleep()
            {
                log::error!("keeper ends: epoll failed: {error}");
                return;
            }
        }
    }

    fn take_reports(&mut self, now: Moment) -> usize {
        let mut taken = 0;
        for report in &mut self.reports {
            while taken < TURN_MAX
                && let Some((element, event)) = report.try_recv()
            {
                if let Some(book) = self.books.get_mut(&element) {
                    book.event(event, now);
                }
                taken += 1;
            }
        }
        if self.overflow.swap(false, Ordering::AcqRel) {
            log::warn!("workers reported faster than {EVENTS_MAX} events: reading all flows again");
            for book in self.books.values_mut() {
                book.reconcile(now);
            }
        }
        taken
    }

    fn take_commands(&mut self, now: Moment) -> usize {
        let mut taken = 0;
        while taken < TURN_MAX
            && let Some(command) = self.commands.try_recv()
        {
            command(&mut self.books, now);
            taken += 1;
        }
        taken
    }

    fn pass_time(&mut self, now: Moment) {
        self.books.pass_time(now, tell);
    }

    fn sleep(&mut self) -> io::Result<()> {
        let deadline = self.books.next_deadline();
        let now = self.clock.now();
        self.set
            .wait(deadline.map(|deadline| deadline.since(now)), |_| {})
    }
}

/// The record of a session that has ended, for whoever logs at `debug`.
fn tell(ElementId(element): ElementId, closed: &ClosedSession) {
    let [original, reply] = closed.totals;
    log::debug!(
        "element {element}: session {} ended after {:?}, {}: original {} packets {} bytes, \
         reply {} packets {} bytes",
        closed.request.key,
        closed.age,
        closed.code.name(),
        original.packets,
        original.bytes,
        reply.packets,
        reply.bytes,
    );
}

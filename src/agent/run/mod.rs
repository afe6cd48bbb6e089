//! The agent's driver: tells the core what happens, and does what it wants done.
//!
//! *Promises*: what the core wants done is begun at once, and several things of different kinds go
//! on at a time: a long look at the table delays no revocation, and other news none of the
//! network's. Ended by an order, it first takes back what is offloaded, for at most [`END_MAX`].
//! *Refuses*: to go on when the kernel tells no news any more.
//! *Caller's duty*: a tokio runtime with time, in the guest's network namespace.
//! *Standard*: none.

mod seam;
mod wire;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::core::{
    Action, CallError, Core, Element, KernelAnswer, KernelRequest, Mode, Moment, Offered, Snapshot,
};
use super::network::{Hazard, Links, NetworkChange, Route};
use crate::api::SessionKey;
pub(crate) use seam::{ConntrackNews, FromHost, Host, HostNews, Kernel, NetworkNews};
pub(crate) use wire::offload;

/// How long an agent that was told to end takes sessions back.
pub(crate) const END_MAX: Duration = Duration::from_secs(3);
/// After a question to the kernel failed, it is asked again so soon.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the driver is told by people.
#[derive(Debug)]
pub(crate) enum Order {
    /// Show what is known, of so many sessions.
    Show(usize, oneshot::Sender<Box<Snapshot>>),
    /// Change what is done at all; answered when it is.
    Mode(Mode, oneshot::Sender<()>),
    /// Take everything back and end.
    End,
}

/// What the driver works with.
pub(crate) struct Parts<K, H, C, N, F> {
    /// The kernel.
    pub kernel: Rc<K>,
    /// The host.
    pub host: Rc<H>,
    /// News of connections.
    pub conntrack: C,
    /// News of the network.
    pub network: N,
    /// News of the host.
    pub from_host: F,
}

/// Something that the core wanted done is.
enum Done {
    Scanned(bool, Duration),
    Links(Links),
    Hazards(Vec<Hazard>),
    Unread { links: bool, hazards: bool },
    Kernel(Vec<KernelAnswer>),
    Epoch(Result<Option<Duration>, CallError>),
    Element(Result<Element, CallError>),
    Offloaded(Result<Vec<Offered>, CallError>),
    Synced(Result<Vec<Offered>, CallError>),
    Withdrawn(Result<(), CallError>),
    Reproved(Result<Vec<SessionKey>, CallError>),
}

/// Things under way: at most one of each kind.
#[derive(Default)]
struct Works(Vec<Pin<Box<dyn Future<Output = Done>>>>);

impl Works {
    fn add(&mut self, work: impl Future<Output = Done> + 'static) {
        self.0.push(Box::pin(work));
    }

    /// The next that is done; waits for ever while nothing is under way.
    async fn next(&mut self) -> Done {
        poll_fn(|context| {
            for place in 0..self.0.len() {
                if let Poll::Ready(done) = self.0[place].as_mut().poll(context) {
                    drop(self.0.swap_remove(place));
                    return Poll::Ready(done);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Runs an agent until it is told to end, or the kernel tells no news any more.
///
/// # Errors
/// The kernel's.
pub(crate) async fn drive<K, H, C, N, F>(
    core: Core,
    parts: Parts<K, H, C, N, F>,
    mut orders: mpsc::Receiver<Order>,
) -> io::Result<()>
where
    K: Kernel + 'static,
    H: Host + 'static,
    C: ConntrackNews,
    N: NetworkNews,
    F: HostNews,
{
    let clock = Clock(Instant::now());
    let core = Rc::new(RefCell::new(core));
    let Parts {
        kernel,
        host,
        mut conntrack,
        network,
        mut from_host,
    } = parts;
    // Never given up for other news: a look at large sets would begin anew each time.
    let mut heard = pin!(hear(network));
    let mut works = Works::default();
    let mut ends: Option<Instant> = None;
    let mut has_orders = true;
    let mut has_host = true;
    loop {
        for action in core.borrow_mut().act(clock.now()) {
            begin(
                action,
                &core,
                &kernel,
                &host,
                &mut conntrack,
                &mut works,
                clock,
            )?;
        }
        if ends.is_some_and(|at| at <= Instant::now() || !core.borrow().holds_any()) {
            return Ok(());
        }
        let deadline = core.borrow().next_deadline().map(|at| clock.at(at));
        let deadline = [deadline, ends].into_iter().flatten().min();
        tokio::select! {
            event = conntrack.next() => {
                core.borrow_mut().conntrack(event?, clock.now());
            }
            (network, change) = heard.as_mut() => {
                heard.set(hear(network));
                core.borrow_mut().network(&change?, clock.now());
            }
            told = from_host.next(), if has_host => match told {
                Some(told) => tell(&mut core.borrow_mut(), told, clock.now()),
                None => {
                    has_host = false;
                    core.borrow_mut().line(false, clock.now());
                }
            },
            done = works.next() => finish(&mut core.borrow_mut(), done, clock.now()),
            order = orders.recv(), if has_orders => match order {
                Some(Order::Show(sessions, answer)) => {
                    let snapshot = core.borrow().snapshot(sessions, clock.now());
                    // Who asked may have gone.
                    let _gone = answer.send(Box::new(snapshot));
                }
                Some(Order::Mode(mode, done)) => {
                    core.borrow_mut().set_mode(mode, clock.now());
                    let _gone = done.send(());
                }
                Some(Order::End) => {
                    core.borrow_mut().set_mode(Mode::Off, clock.now());
                    ends = Some(Instant::now() + END_MAX);
                }
                None => has_orders = false,
            },
            () = until(deadline) => {}
        }
    }
}

/// The next news of the network, and who tells them.
async fn hear<N: NetworkNews>(mut network: N) -> (N, io::Result<NetworkChange>) {
    let change = network.next().await;
    (network, change)
}

/// The core's clock.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Moment {
        Moment(0) + self.0.elapsed()
    }

    fn at(self, moment: Moment) -> Instant {
        self.0 + moment.since(Moment(0))
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn tell(core: &mut Core, told: FromHost, now: Moment) {
    match told {
        FromHost::Line(is_up) => core.line(is_up, now),
        FromHost::Event(event) => core.told(&event, now),
        FromHost::EventsLost => core.events_lost(),
    }
}

fn finish(core: &mut Core, done: Done, now: Moment) {
    match done {
        Done::Scanned(is_whole, took) => core.scan_ended(is_whole, took, now),
        Done::Links(links) => core.links(links, now),
        Done::Hazards(hazards) => core.hazards(hazards, now),
        Done::Unread { links, hazards } => core.unread(links, hazards),
        Done::Kernel(answers) => core.kernel_answered(answers, now),
        Done::Epoch(result) => core.epoch_opened(result, now),
        Done::Element(result) => core.element_read(result, now),
        Done::Offloaded(result) => core.offloaded(result, now),
        Done::Synced(result) => core.synced(result, now),
        Done::Withdrawn(result) => core.withdrawn(result, now),
        Done::Reproved(result) => core.reproved(result, now),
    }
}

/// Begins what the core wants done.
fn begin<K: Kernel + 'static, H: Host + 'static>(
    action: Action,
    core: &Rc<RefCell<Core>>,
    kernel: &Rc<K>,
    host: &Rc<H>,
    conntrack: &mut impl ConntrackNews,
    works: &mut Works,
    clock: Clock,
) -> io::Result<()> {
    let (kernel, host) = (Rc::clone(kernel), Rc::clone(host));
    match action {
        Action::Scan => works.add(scan(kernel, Rc::clone(core), clock)),
        Action::Follow(follow) => conntrack.follow(follow)?,
        Action::ReadLinks => works.add(read_links(kernel)),
        Action::ReadHazards => works.add(read_hazards(kernel)),
        Action::Kernel(requests) => works.add(ask(kernel, requests)),
        Action::OpenEpoch => works.add(async move { Done::Epoch(host.open_epoch().await) }),
        Action::ReadElement => works.add(async move { Done::Element(host.element().await) }),
        Action::Offload(sessions) => {
            works.add(async move { Done::Offloaded(host.offload(sessions).await) });
        }
        Action::Sync(wanted) => works.add(async move { Done::Synced(host.sync(wanted).await) }),
        Action::Withdraw(keys) => {
            works.add(async move { Done::Withdrawn(host.withdraw(keys).await) });
        }
        Action::Reprove(which) => {
            works.add(async move { Done::Reproved(host.reprove(which).await) });
        }
        Action::FallSilent => host.fall_silent(),
        Action::Tell(session) => match serde_json::to_string(&session) {
            Ok(text) => log::info!("would offload {text}"),
            Err(error) => log::warn!("a session has no JSON form: {error}"),
        },
    }
    Ok(())
}

async fn scan<K: Kernel>(kernel: Rc<K>, core: Rc<RefCell<Core>>, clock: Clock) -> Done {
    let start = Instant::now();
    let each = |connection| core.borrow_mut().scanned(connection, clock.now());
    let ended = kernel.connections(each).await;
    if let Err(error) = &ended {
        log::warn!("cannot read all connections: {error}");
    }
    Done::Scanned(ended.is_ok(), start.elapsed())
}

async fn read_links<K: Kernel>(kernel: Rc<K>) -> Done {
    match kernel.links().await {
        Ok(links) => Done::Links(links),
        Err(error) => {
            log::warn!("cannot read the interfaces: {error}");
            sleep(ASK_AGAIN).await;
            Done::Unread {
                links: true,
                hazards: false,
            }
        }
    }
}

async fn read_hazards<K: Kernel>(kernel: Rc<K>) -> Done {
    match kernel.hazards().await {
        Ok(hazards) => Done::Hazards(hazards),
        Err(error) => {
            log::warn!("cannot read the ruleset: {error}");
            sleep(ASK_AGAIN).await;
            Done::Unread {
                links: false,
                hazards: true,
            }
        }
    }
}

async fn ask<K: Kernel>(kernel: Rc<K>, requests: Vec<KernelRequest>) -> Done {
    let mut answers = Vec::with_capacity(requests.len());
    for request in requests {
        answers.extend(ask_one(&*kernel, request).await);
    }
    Done::Kernel(answers)
}

/// What a failed request leaves unknown is not taken for gone.
async fn ask_one<K: Kernel>(kernel: &K, request: KernelRequest) -> Option<KernelAnswer> {
    let is_there = |result: io::Result<bool>| {
        result.unwrap_or_else(|error| {
            log::debug!("a connection was not changed: {error}");
            true
        })
    };
    match request {
        KernelRequest::Route(id, query) => {
            let route = kernel.route(&query).await.unwrap_or_else(|error| {
                log::debug!("no answer about a route: {error}");
                Route::None
            });
            Some(KernelAnswer::Route(id, route))
        }
        KernelRequest::Look(id, of) => {
            let found = kernel.connection(&of).await.ok().flatten();
            Some(KernelAnswer::Look(id, found.map(Box::new)))
        }
        KernelRequest::Refresh(id, of, timeout) => {
            let is_there = is_there(kernel.refresh(&of, timeout).await);
            Some(KernelAnswer::IsThere(id, is_there))
        }
        KernelRequest::BeLiberal(id, of) => {
            let is_there = is_there(kernel.be_liberal(&of).await);
            Some(KernelAnswer::IsLiberal(id, is_there))
        }
        KernelRequest::UseNeighbour(on, address, bridged) => {
            if let Err(error) = kernel.use_neighbour(on, address, bridged).await {
                log::debug!("{address} could not be kept: {error}");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests;

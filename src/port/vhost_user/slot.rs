//! Where a ring is handed from the protocol thread to its worker and back.
//!
//! *Promises*: a worker never waits: [`Slot::enter`] takes the lock or gives up. The
//! control side ([`Slot::control`]) has a ring to itself once it holds the lock, so a
//! ring is quiet whenever it is started, moved or stopped. A kick descriptor leaves the
//! worker's poller before it is closed. A fault is kept until the ring starts anew.
//! *Refuses*: nothing; what a ring refuses becomes its [`Fault`].
//! *Caller's duty*: control sections are short and never touch another slot.
//! *Standard*: vhost-user "Ring states".
#![expect(
    clippy::disallowed_types,
    reason = "workers only try this lock, once a burst; whoever waits is a control thread"
)]

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use super::eventfd::{EventFd, NotAnEventFd};
use super::ring::{GuestMap, RingConfig, RingFault, RxRing, TxRing};
use crate::port::Poller;

/// Why a ring stands still although its peer wants it to run.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Ring(#[from] RingFault),
    #[error(
        "the frontend took away memory that it had shared (a file shortened, or no huge page \
         left); restart the guest"
    )]
    MemoryLost,
    #[error("queue size {0} is not a power of two; set another queue size in the VMM")]
    Size(u16),
    #[error("the kick descriptor cannot be watched: {0}")]
    Kick(io::Error),
    #[error("{0}")]
    Call(NotAnEventFd),
    #[error("the frontend was disconnected: {0}")]
    Disconnected(Arc<str>),
}

/// What the two kinds of ring have in common.
pub(super) trait Engine: Sized + Send {
    /// Whether the worker sleeps until this ring is kicked.
    const KICKED: bool;
    fn start(map: Arc<GuestMap>, config: RingConfig) -> Result<Self, RingFault>;
    fn stop(self) -> u16;
    fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), RingFault>;
    fn needs_call(&mut self) -> bool;
    fn fault(&self) -> Option<&RingFault>;
}

macro_rules! engine {
    ($ring:ident, $kicked:literal) => {
        impl Engine for $ring {
            const KICKED: bool = $kicked;
            fn start(map: Arc<GuestMap>, config: RingConfig) -> Result<Self, RingFault> {
                $ring::start(map, config)
            }
            fn stop(self) -> u16 {
                $ring::stop(self)
            }
            fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), RingFault> {
                $ring::remap(self, map)
            }
            fn needs_call(&mut self) -> bool {
                $ring::needs_call(self)
            }
            fn fault(&self) -> Option<&RingFault> {
                $ring::fault(self)
            }
        }
    };
}

engine!(RxRing, true);
// A guest that adds receive buffers need not tell: nobody waits for them.
engine!(TxRing, false);

/// One ring's place.
pub(super) struct Slot<E> {
    /// Control sides that wait; workers stand back for them, as the lock is not fair.
    wanted: AtomicU32,
    running: AtomicBool,
    faulted: AtomicBool,
    state: Mutex<State<E>>,
}

/// What the lock protects.
pub(super) struct State<E> {
    ring: Option<E>,
    call: Option<EventFd>,
    error: Option<EventFd>,
    poller: Option<Poller>,
    kick: Option<RawFd>,
    /// The kick descriptor that is in the poller now.
    watched: Option<RawFd>,
    /// The frontend gave no kick descriptor on purpose: look again from time to time.
    polled: bool,
    fault: Option<Fault>,
    reported: bool,
    /// Where a ring that failed stood.
    left_at: Option<u16>,
}

impl<E: Engine> Slot<E> {
    pub(super) fn new() -> Self {
        Self {
            wanted: AtomicU32::new(0),
            running: AtomicBool::new(false),
            faulted: AtomicBool::new(false),
            state: Mutex::new(State {
                ring: None,
                call: None,
                error: None,
                poller: None,
                kick: None,
                watched: None,
                polled: false,
                fault: None,
                reported: false,
                left_at: None,
            }),
        }
    }

    /// Whether the ring runs.
    #[inline]
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// The worker's way in: never waits.
    #[inline]
    pub(super) fn enter(&self) -> Option<Entered<'_, E>> {
        if self.wanted.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Entered { slot: self, state })
    }

    /// The control side's way in: waits for the end of the worker's burst.
    pub(super) fn control(&self) -> Entered<'_, E> {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        // A panic inside leaves a state of whole fields; going on is better than a
        // device that can never be reset.
        let state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        Entered { slot: self, state }
    }

    /// Why the ring stopped, if by fault.
    pub(super) fn fault_text(&self) -> Option<String> {
        if !self.faulted.load(Ordering::Relaxed) {
            return None;
        }
        self.control().fault.as_ref().map(Fault::to_string)
    }

    /// As [`Slot::fault_text`], once per fault.
    pub(super) fn unreported_fault(&self) -> Option<String> {
        if !self.faulted.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.control();
        if std::mem::replace(&mut state.reported, true) {
            return None;
        }
        state.fault.as_ref().map(Fault::to_string)
    }
}

/// A slot whose lock is held.
pub(super) struct Entered<'s, E> {
    slot: &'s Slot<E>,
    state: MutexGuard<'s, State<E>>,
}

impl<E> Deref for Entered<'_, E> {
    type Target = State<E>;
    #[inline]
    fn deref(&self) -> &State<E> {
        &self.state
    }
}

impl<E> DerefMut for Entered<'_, E> {
    #[inline]
    fn deref_mut(&mut self) -> &mut State<E> {
        &mut self.state
    }
}

impl<E: Engine> Entered<'_, E> {
    /// The running ring.
    #[inline]
    pub(super) fn ring(&mut self) -> Option<&mut E> {
        self.state.ring.as_mut()
    }

    /// Whether the worker must look again by itself.
    #[inline]
    pub(super) fn is_polled(&self) -> bool {
        self.state.polled && self.state.ring.is_some()
    }

    /// The worker's poller, once it has one.
    pub(super) fn set_poller(&mut self, poller: Poller) -> io::Result<()> {
        self.state.poller = Some(poller);
        if self.state.ring.is_some() {
            self.watch()?;
        }
        Ok(())
    }

    /// The worker leaves.
    pub(super) fn clear_poller(&mut self) {
        self.unwatch();
        self.state.poller = None;
    }

    /// Starts the ring.
    pub(super) fn start(&mut self, map: Arc<GuestMap>, config: RingConfig) -> Result<(), Fault> {
        self.state.ring = Some(E::start(map, config)?);
        if let Err(error) = self.watch() {
            self.stop();
            return Err(Fault::Kick(error));
        }
        self.slot.running.store(true, Ordering::Relaxed);
        self.wake();
        Ok(())
    }

    /// Stops the ring and says which available entry is the next; `None`: nothing has run
    /// since that was asked last.
    pub(super) fn stop(&mut self) -> Option<u16> {
        self.unwatch();
        self.slot.running.store(false, Ordering::Relaxed);
        let Some(ring) = self.state.ring.take() else {
            return self.state.left_at.take();
        };
        let next = ring.stop();
        // The driver hears of what the last burst completed.
        self.call();
        Some(next)
    }

    /// Moves the running ring to other memory.
    pub(super) fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), Fault> {
        match self.state.ring.as_mut() {
            Some(ring) => Ok(ring.remap(map)?),
            None => Ok(()),
        }
    }

    /// Stops the ring for `fault` and says so on its error descriptor; whoever calls rings
    /// the device's bell.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.state.left_at = self.stop();
        if let Some(error) = &self.state.error {
            error.signal();
        }
        // A disconnection is logged as such, not once more for each ring.
        self.state.reported = matches!(fault, Fault::Disconnected(_));
        self.state.fault = Some(fault);
        self.slot.faulted.store(true, Ordering::Relaxed);
    }

    /// Forgets a fault: the peer starts anew.
    pub(super) fn clear_fault(&mut self) {
        self.state.fault = None;
        self.slot.faulted.store(false, Ordering::Relaxed);
    }

    /// Whether the ring stopped by fault.
    pub(super) fn has_fault(&self) -> bool {
        self.state.fault.is_some()
    }

    /// Notifies the peer if it asked for it; one system call at most.
    #[inline]
    pub(super) fn call_if_needed(&mut self) {
        if self.state.ring.as_mut().is_some_and(E::needs_call) {
            self.call();
        }
    }

    #[inline]
    fn call(&self) {
        if let Some(call) = &self.state.call {
            call.signal();
        }
    }

    /// Another call descriptor. A running ring signals it once: a call meant for the old
    /// one may have been lost, and one too many does no harm.
    pub(super) fn set_call(&mut self, call: Option<EventFd>) {
        self.state.call = call;
        if self.state.ring.is_some() {
            self.call();
        }
    }

    /// Another error descriptor; signalled at once if the ring has failed before.
    pub(super) fn set_error(&mut self, error: Option<EventFd>) {
        self.state.error = error;
        if let (Some(error), Some(_)) = (&self.state.error, &self.state.fault) {
            error.signal();
        }
    }

    /// Another kick descriptor, to be watched while the ring runs. With `None` and
    /// `polled` the frontend never kicks.
    pub(super) fn set_kick(&mut self, kick: Option<RawFd>, polled: bool) {
        self.unwatch();
        self.state.kick = kick;
        self.state.polled = polled;
    }

    fn watch(&mut self) -> io::Result<()> {
        let state = &mut *self.state;
        if let (true, Some(poller), Some(kick)) = (E::KICKED, &state.poller, state.kick) {
            poller.add(kick)?;
            state.watched = Some(kick);
        }
        Ok(())
    }

    fn unwatch(&mut self) {
        let state = &mut *self.state;
        if let (Some(poller), Some(kick)) = (&state.poller, state.watched.take())
            && let Err(error) = poller.remove(kick)
        {
            log::debug!("kick descriptor {kick} was no longer watched: {error}");
        }
    }

    fn wake(&self) {
        if let Some(poller) = &self.state.poller {
            poller.wake();
        }
    }
}

/// What a protocol callback does to a ring, whichever its direction.
pub(super) trait Control: Send + Sync {
    fn start(&self, map: Arc<GuestMap>, config: RingConfig) -> Result<(), Fault>;
    fn stop(&self) -> Option<u16>;
    fn remap(&self, map: Arc<GuestMap>) -> Result<(), Fault>;
    fn fail(&self, fault: Fault);
    fn clear_fault(&self);
    fn has_fault(&self) -> bool;
    fn is_running(&self) -> bool;
    fn set_call(&self, call: Option<EventFd>);
    fn set_error(&self, error: Option<EventFd>);
    fn set_kick(&self, kick: Option<RawFd>, polled: bool);
    fn unreported_fault(&self) -> Option<String>;
}

impl<E: Engine> Control for Slot<E> {
    fn start(&self, map: Arc<GuestMap>, config: RingConfig) -> Result<(), Fault> {
        self.control().start(map, config)
    }
    fn stop(&self) -> Option<u16> {
        self.control().stop()
    }
    fn remap(&self, map: Arc<GuestMap>) -> Result<(), Fault> {
        self.control().remap(map)
    }
    fn fail(&self, fault: Fault) {
        self.control().fail(fault);
    }
    fn clear_fault(&self) {
        self.control().clear_fault();
    }
    fn has_fault(&self) -> bool {
        self.control().has_fault()
    }
    fn is_running(&self) -> bool {
        Slot::is_running(self)
    }
    fn set_call(&self, call: Option<EventFd>) {
        self.control().set_call(call);
    }
    fn set_error(&self, error: Option<EventFd>) {
        self.control().set_error(error);
    }
    fn set_kick(&self, kick: Option<RawFd>, polled: bool) {
        self.control().set_kick(kick, polled);
    }
    fn unreported_fault(&self) -> Option<String> {
        Slot::unreported_fault(self)
    }
}

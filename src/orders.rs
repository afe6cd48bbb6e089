//! What a running program is told from outside.
//!
//! *Promises*: one order after another, none lost; to a program alone in its process by
//! signals, to one of several by who started them.
//! *Refuses*: nothing. *Caller's duty*: a tokio runtime with I/O where signals are taken.
//! *Standard*: signal(7).

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(feature = "host")]
use tokio::sync::mpsc;

/// Orders that wait for a program that is busy with one.
#[cfg(feature = "host")]
const QUEUE: usize = 16;

/// An order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// End in order (SIGTERM, SIGINT).
    End,
    /// Read again what may have changed on disk (SIGHUP).
    Renew,
}

/// Where a program's orders come from.
#[derive(Debug)]
pub(crate) struct Orders(Source);

#[derive(Debug)]
enum Source {
    Signals {
        terminate: Signal,
        interrupt: Signal,
        hangup: Signal,
    },
    #[cfg(feature = "host")]
    Channel(mpsc::Receiver<Order>),
}

impl Orders {
    /// Those that the process gets as signals.
    ///
    /// # Errors
    /// The system refused a handler.
    pub(crate) fn of_signals() -> io::Result<Self> {
        Ok(Self(Source::Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        }))
    }

    /// Those that are sent here.
    #[cfg(feature = "host")]
    pub(crate) fn channel() -> (mpsc::Sender<Order>, Self) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (sender, Self(Source::Channel(receiver)))
    }

    /// The next one; whoever gives them being gone, it is the end.
    pub(crate) async fn next(&mut self) -> Order {
        match &mut self.0 {
            Source::Signals {
                terminate,
                interrupt,
                hangup,
            } => tokio::select! {
                _ = terminate.recv() => Order::End,
                _ = interrupt.recv() => Order::End,
                _ = hangup.recv() => Order::Renew,
            },
            #[cfg(feature = "host")]
            Source::Channel(orders) => orders.recv().await.unwrap_or(Order::End),
        }
    }
}

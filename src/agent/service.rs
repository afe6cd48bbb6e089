//! The agent as a program: its parts around the one that offloads.
//!
//! *Promises*: everything that is configured runs until an order to end; a part that cannot
//! begin ends the program with an error that says what to do.
//! *Refuses*: to run where another agent has the port or the socket.
//! *Caller's duty*: one program in a process.
//! *Standard*: none.

use std::io;
use std::pin::pin;

use tokio::sync::{mpsc, oneshot};

use super::channel::{Channel, FromHost, StartError};
use super::config::{Config, ConfigError};
use super::kernel::KernelError;
use super::local::{Local, LocalError};
use super::proxy;
use super::run::offload;
use super::shields::shields;
use super::status::{self, Ask, Desk};
use crate::orders::{Order, Orders};

/// Mode of the status socket.
const STATUS_MODE: u32 = 0o660;
/// Orders that wait.
const QUEUE: usize = 16;

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The port.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A socket.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The system refused a runtime or a signal handler.
    #[error("cannot start: raise the limit of open files")]
    Runtime(#[source] io::Error),
}

/// What the part that offloads works with.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// The way to the host.
    pub channel: Channel,
    /// What comes from there.
    pub from_host: mpsc::Receiver<FromHost>,
    /// What people ask.
    pub asks: mpsc::Receiver<Ask>,
    /// It is to end.
    pub end: oneshot::Receiver<()>,
}

/// Runs an agent until SIGTERM or SIGINT; one that does not offload is a proxy, and keeps
/// shields. One that does first takes back what is offloaded; a second signal ends it at once.
///
/// # Errors
/// See [`AgentError`].
pub fn run(config: Config, does_offload: bool) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::Runtime)?;
    let ended = runtime.block_on(async {
        let mut orders = Orders::of_signals().map_err(AgentError::Runtime)?;
        let (tell_end, end) = oneshot::channel();
        let mut service = pin!(serve(config, does_offload, end));
        tokio::select! {
            () = until_end(&mut orders) => {}
            ended = &mut service => return ended,
        }
        if !does_offload || tell_end.send(()).is_err() {
            return Ok(());
        }
        tokio::select! {
            () = until_end(&mut orders) => Ok(()),
            ended = &mut service => ended,
        }
    });
    // A look at the sets may be under way.
    runtime.shutdown_background();
    ended
}

/// There is nothing to read again.
async fn until_end(orders: &mut Orders) {
    while orders.next().await == Order::Renew {}
}

async fn serve(
    config: Config,
    does_offload: bool,
    end: oneshot::Receiver<()>,
) -> Result<(), AgentError> {
    // First of all: who runs a second agent is told so at once.
    let status_at = &config.status;
    let local = Local::bind(&status_at.socket, STATUS_MODE, status_at.group.as_ref()).await;
    let status_socket = local?;
    let proxy_socket = match &config.proxy {
        Some(own) => {
            let bound = Local::bind(&own.socket, own.mode, own.group.as_ref()).await;
            Some((bound?, own.requests))
        }
        None => None,
    };
    let (channel, from_host) = Channel::start(config.serial.options()).await?;
    let (shields, keeper) = shields(config.shields.clone(), channel.clone());
    let (sender, asks) = mpsc::channel(QUEUE);
    let desk = Desk {
        offload: does_offload.then_some(sender),
        shields,
        channel: channel.clone(),
    };
    let proxy = async {
        match &proxy_socket {
            Some((local, requests)) => {
                let requests = usize::try_from(*requests).unwrap_or(1);
                proxy::serve(local, channel.clone(), requests).await
            }
            None => std::future::pending().await,
        }
    };
    let offloading = async {
        let parts = Parts {
            config,
            channel: channel.clone(),
            from_host,
            asks,
            end,
        };
        if does_offload {
            return offload(parts).await;
        }
        // Nobody wants to know what comes from the host.
        drop(parts);
        std::future::pending().await
    };
    tokio::select! {
        ended = offloading => ended,
        never = keeper.keep() => match never {},
        never = proxy => match never {},
        never = status::serve(&status_socket, desk) => match never {},
    }
}

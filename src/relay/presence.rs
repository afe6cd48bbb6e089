//! Which guests are there, told to whoever asks on this host.
//!
//! *Promises*: a reader gets a snapshot, then each change, and a beat every [`BEAT`] in
//! which nothing changed: as long as beats come, what was last told is true. A reader that
//! does not read is left behind (the latest state is told, not every one) and after
//! [`PATIENCE`] dropped.
//! *Refuses*: more than [`READERS_MAX`] readers; input.
//! *Caller's duty*: the socket's directory lets only those in who may know.
//! *Standard*: `docs/relay.md`, "Presence".

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::api::ControlSocket;

/// From one line to the next at the latest.
pub const BEAT: Duration = Duration::from_secs(1);
/// How long a reader may take for a line.
const PATIENCE: Duration = Duration::from_secs(5);
/// Readers at a time.
const READERS_MAX: usize = 16;
/// The pause after accepting failed, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is known of a port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortPresence {
    /// The element's name.
    pub name: String,
    /// Whether its guest is heard.
    pub present: bool,
    /// The epoch that the guest chose for its connection; 0 if there was none yet.
    pub epoch: u32,
    /// Number of the connection, the present or the last; 0 if there was none yet.
    pub fence: u64,
    /// Since when this is so, in milliseconds since 1970.
    pub since: u64,
}

/// A line of the socket.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Line<'a> {
    Snapshot {
        host: &'a str,
        ports: &'a [PortPresence],
    },
    Change {
        port: &'a PortPresence,
    },
    Beat,
}

/// The presence of all ports.
#[derive(Debug)]
pub struct Presence {
    host: String,
    ports: watch::Sender<Vec<PortPresence>>,
}

impl Presence {
    /// Nobody is present yet.
    pub fn new(host: &str, names: impl Iterator<Item = String>, now: u64) -> Self {
        let ports = names
            .map(|name| PortPresence {
                name,
                present: false,
                epoch: 0,
                fence: 0,
                since: now,
            })
            .collect();
        Self {
            host: host.to_owned(),
            ports: watch::Sender::new(ports),
        }
    }

    /// The guest of `port` is there: `epoch` is what it chose. Gives the fence, which is
    /// higher than any before, also than those of an earlier relay while the clock is not
    /// set back. `now`: milliseconds since 1970.
    pub fn arrived(&self, port: usize, epoch: u32, now: u64) -> u64 {
        let mut fence = 0;
        self.ports.send_modify(|ports| {
            if let Some(port) = ports.get_mut(port) {
                port.fence = now.max(port.fence + 1);
                fence = port.fence;
                port.present = true;
                port.epoch = epoch;
                port.since = now;
            }
        });
        fence
    }

    /// The guest of `port` is gone, if it was there.
    pub fn left(&self, port: usize, now: u64) {
        self.ports
            .send_if_modified(|ports| match ports.get_mut(port) {
                Some(port) if port.present => {
                    port.present = false;
                    port.since = now;
                    true
                }
                _ => false,
            });
    }
}

/// Tells presence on `socket`, for ever.
pub async fn tell(presence: Arc<Presence>, socket: &ControlSocket) {
    let mut readers = JoinSet::new();
    loop {
        while readers.try_join_next().is_some() {}
        match socket.listener().accept().await {
            Ok((stream, _)) if readers.len() < READERS_MAX => {
                let presence = Arc::clone(&presence);
                readers.spawn(async move {
                    // An error is that the reader went away.
                    let _gone = tell_reader(&presence, stream).await;
                });
            }
            Ok(_) => log::warn!("presence: {READERS_MAX} readers are served, another was refused"),
            Err(error) => {
                log::warn!("presence: cannot accept a reader: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn tell_reader(presence: &Presence, mut stream: UnixStream) -> io::Result<()> {
    let mut changes = presence.ports.subscribe();
    let mut told = changes.borrow_and_update().clone();
    let snapshot = Line::Snapshot {
        host: &presence.host,
        ports: &told,
    };
    say(&mut stream, &[snapshot]).await?;
    let mut input = [0; 1];
    loop {
        let beat = sleep_until(Instant::now() + BEAT);
        tokio::select! {
            changed = changes.changed() => changed.map_err(io::Error::other)?,
            () = beat => {}
            // Its end, or input, which is refused.
            read = stream.read(&mut input) => return read.map(|_| ()),
        }
        let now = changes.borrow_and_update().clone();
        let mut lines: Vec<_> = now
            .iter()
            .zip(&told)
            .filter(|(now, told)| now != told)
            .map(|(port, _)| Line::Change { port })
            .collect();
        if lines.is_empty() {
            lines.push(Line::Beat);
        }
        say(&mut stream, &lines).await?;
        told = now;
    }
}

async fn say(stream: &mut UnixStream, lines: &[Line<'_>]) -> io::Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    timeout(PATIENCE, stream.write_all(&text)).await?
}

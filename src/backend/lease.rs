//! Leases: an element's sessions live while its agent is seen on this host.
//!
//! *Promises*: once an element's presence was neither told nor let stand for the timeout, its
//! sessions are handed back and its epoch ends, also while relay or controller are away; what is
//! heard of a newer connection fences the calls of older ones.
//! *Refuses*: nothing. Names of ports that are no elements' mean nothing here.
//! *Caller's duty*: [`Leases::begin`] for each epoch that is opened.
//! *Standard*: `docs/relay.md`, "Presence"; DESIGN section 6.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::config::LeaseConfig;
use super::running::Backend;
use super::wall_milliseconds;
use crate::api::error::ApiError;
use crate::datapath::told::Told;
use crate::flow::CloseCode;

/// The pause before the relay is asked again.
const AGAIN: Duration = Duration::from_millis(250);
/// The pause before a hand-back is tried again for which the keeper had no time.
const RETRY: Duration = Duration::from_millis(50);
/// The longest line that is read, bytes.
const LINE_MAX: u64 = 16 << 20;
/// Lines that wait.
const LINES_AHEAD: usize = 16;

/// A line of the relay.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Line {
    Snapshot {
        ports: Vec<Port>,
    },
    Change {
        port: Port,
    },
    Beat,
    /// Of a later relay: a sign of life like any other.
    #[serde(other)]
    Other,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
struct Port {
    name: String,
    present: bool,
    fence: u64,
}

/// What follows from a line.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Effect {
    /// The element's agent is there, by a connection of that number that was not known.
    Came(String, u64),
    /// That connection ended.
    Went(String, u64),
}

#[derive(Clone, Copy, Debug, Default)]
struct Lease {
    is_present: bool,
    fence: u64,
    /// When it ends; none if it has not begun.
    ends: Option<Instant>,
}

/// All elements' leases.
#[derive(Debug)]
struct Ledger {
    timeout: Duration,
    leases: HashMap<String, Lease>,
}

impl Ledger {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            leases: HashMap::new(),
        }
    }

    /// The element opened an epoch.
    fn begin(&mut self, element: String, now: Instant) {
        let lease = self.leases.entry(element).or_default();
        lease.ends.get_or_insert(now + self.timeout);
    }

    /// The relay said something.
    fn hear(&mut self, line: Line, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match line {
            Line::Snapshot { ports } => {
                let mut told: HashMap<String, Port> = ports
                    .into_iter()
                    .map(|port| (port.name.clone(), port))
                    .collect();
                for (name, lease) in &self.leases {
                    // A port that is not there any more is an absent one.
                    told.entry(name.clone()).or_insert_with(|| Port {
                        name: name.clone(),
                        present: false,
                        fence: lease.fence,
                    });
                }
                for port in told.into_values() {
                    self.see(port, &mut effects);
                }
            }
            Line::Change { port } => self.see(port, &mut effects),
            Line::Beat | Line::Other => {}
        }
        let ends = now + self.timeout;
        for lease in self.leases.values_mut().filter(|lease| lease.is_present) {
            lease.ends = Some(ends);
        }
        effects
    }

    fn see(&mut self, port: Port, effects: &mut Vec<Effect>) {
        let known = self.leases.get(&port.name).copied().unwrap_or_default();
        if !port.present && !known.is_present {
            return;
        }
        let is_new = port.fence != known.fence || !known.is_present;
        if known.is_present && (!port.present || is_new) {
            effects.push(Effect::Went(port.name.clone(), known.fence));
        }
        if port.present && is_new {
            effects.push(Effect::Came(port.name.clone(), port.fence));
        }
        let lease = Lease {
            is_present: port.present,
            fence: port.fence,
            // Where it is there, this line renews it with all others.
            ends: known.ends,
        };
        self.leases.insert(port.name, lease);
    }

    /// Elements whose lease has ended.
    fn ended(&mut self, now: Instant) -> Vec<String> {
        let mut ended = Vec::new();
        for (name, lease) in &mut self.leases {
            if lease.ends.is_some_and(|ends| ends <= now) {
                lease.ends = None;
                lease.is_present = false;
                ended.push(name.clone());
            }
        }
        ended
    }

    /// That end is to be tried again.
    fn again(&mut self, element: &str, now: Instant) {
        if let Some(lease) = self.leases.get_mut(element) {
            lease.ends.get_or_insert(now + RETRY);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.leases.values().filter_map(|lease| lease.ends).min()
    }
}

/// What the rest of the backend has of leases.
pub(super) struct Leases {
    timeout: Duration,
    begun: mpsc::UnboundedSender<String>,
}

/// Leases that nobody keeps yet.
pub(super) struct Keeping {
    socket: PathBuf,
    ledger: Ledger,
    begun: mpsc::UnboundedReceiver<String>,
}

impl Leases {
    /// As configured.
    pub(super) fn new(config: &LeaseConfig) -> (Self, Keeping) {
        let timeout = Duration::from_millis(config.timeout_ms.into());
        let (sender, begun) = mpsc::unbounded_channel();
        let leases = Self {
            timeout,
            begun: sender,
        };
        let keeping = Keeping {
            socket: config.socket.clone(),
            ledger: Ledger::new(timeout),
            begun,
        };
        (leases, keeping)
    }

    /// The element opened an epoch: its lease begins, if it has none.
    pub(super) fn begin(&self, element: &str) {
        // Who keeps leases ends with the process only.
        let _ending = self.begun.send(element.to_owned());
    }

    /// How long a lease lasts, in whole seconds.
    pub(super) fn seconds(&self) -> u32 {
        (self.timeout.as_secs() as u32).max(1)
    }
}

impl Keeping {
    /// Keeps leases, for ever.
    pub(super) async fn keep(mut self, backend: Arc<Backend>) {
        let (sender, mut lines) = mpsc::channel(LINES_AHEAD);
        let reading = read(self.socket.clone(), sender);
        let keeping = async {
            loop {
                let due = self.ledger.next_deadline();
                let ends = async {
                    match due {
                        Some(due) => sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    Some(line) = lines.recv() => {
                        for effect in self.ledger.hear(line, Instant::now()) {
                            take(&backend, effect).await;
                        }
                    }
                    Some(element) = self.begun.recv() => {
                        self.ledger.begin(element, Instant::now());
                    }
                    () = ends => self.end(&backend).await,
                }
            }
        };
        tokio::join!(reading, keeping);
    }

    async fn end(&mut self, backend: &Backend) {
        for element in self.ledger.ended(Instant::now()) {
            match backend.end_lease(&element).await {
                Ok(0) => {}
                Ok(sessions) => log::warn!(
                    "element {element}: not seen for {:?}; {sessions} sessions are handed back",
                    self.ledger.timeout
                ),
                Err(error) => {
                    log::debug!("element {element}: the end of its lease waits: {error}");
                    self.ledger.again(&element, Instant::now());
                }
            }
        }
    }
}

impl Backend {
    /// Hands back all sessions of an element, and ends its epoch; says how many there were. One
    /// that is not here has none.
    async fn end_lease(&self, element: &str) -> Result<usize, ApiError> {
        let Ok(element) = self.element(element) else {
            return Ok(0);
        };
        let clock = wall_milliseconds();
        self.ask_book(element.id, move |book, now| {
            let sessions = book.len();
            book.open_epoch(CloseCode::LeaseExpired, clock, now);
            sessions
        })
        .await
    }
}

/// What is heard of a connection is told to the element's book and listeners.
async fn take(backend: &Backend, effect: Effect) {
    let (name, fence, told) = match effect {
        Effect::Came(name, fence) => (name, Some(fence), Told::Connected(fence)),
        Effect::Went(name, fence) => (name, None, Told::Disconnected(fence)),
    };
    let Ok(element) = backend.element(&name) else {
        return;
    };
    let id = element.id;
    let outcome = backend.ask(move |books, now| {
        if let (Some(fence), Some(book)) = (fence, books.get_mut(&id)) {
            book.see_fence(fence);
        }
        books.tell(&id, told, now);
    });
    if let Err(error) = outcome.await {
        log::warn!("element {name}: a change of its presence is not told: {error}");
    }
}

/// Reads the relay's lines, for ever.
async fn read(socket: PathBuf, lines: mpsc::Sender<Line>) {
    let mut was_there = true;
    loop {
        let outcome = read_once(&socket, &lines, &mut was_there).await;
        if was_there {
            // Once for each loss.
            let why = outcome.err().map_or_else(
                || "it ended".to_owned(),
                |error: std::io::Error| error.to_string(),
            );
            log::warn!("presence on {}: {why}; leases run out", socket.display());
            was_there = false;
        }
        sleep(AGAIN).await;
    }
}

async fn read_once(
    socket: &Path,
    lines: &mpsc::Sender<Line>,
    was_there: &mut bool,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(UnixStream::connect(socket).await?);
    let mut text = Vec::new();
    loop {
        text.clear();
        let mut bounded = (&mut reader).take(LINE_MAX);
        bounded.read_until(b'\n', &mut text).await?;
        if text.last() != Some(&b'\n') {
            return Ok(());
        }
        let line = serde_json::from_slice(&text)?;
        if !std::mem::replace(was_there, true) {
            log::info!("presence on {}: heard again", socket.display());
        }
        if lines.send(line).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn line(text: &str) -> Line {
        serde_json::from_str(text).unwrap()
    }

    fn port(name: &str, present: bool, fence: u64) -> Port {
        Port {
            name: name.to_owned(),
            present,
            fence,
        }
    }

    fn change(name: &str, present: bool, fence: u64) -> Line {
        Line::Change {
            port: port(name, present, fence),
        }
    }

    #[test]
    fn lines_are_read_as_the_relay_writes_them() {
        let snapshot = line(
            r#"{"type":"snapshot","host":"h","ports":[
            {"name":"r1","present":true,"epoch":2271560481,"fence":7,"since":1}]}"#,
        );
        let ports = vec![port("r1", true, 7)];
        assert_eq!(snapshot, Line::Snapshot { ports });
        assert_eq!(line(r#"{"type":"beat"}"#), Line::Beat);
        assert_eq!(line(r#"{"type":"weather","sun":true}"#), Line::Other);
        let gone = r#"{"type":"change","port":{"name":"r1","present":false,"epoch":1,"fence":7,"since":2}}"#;
        assert_eq!(line(gone), change("r1", false, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_lasts_while_beats_come_and_ends_a_timeout_after_the_last() {
        let (mut ledger, start) = (Ledger::new(TIMEOUT), Instant::now());
        ledger.hear(change("r1", true, 7), start);
        let last = start + 30 * SECOND;
        for second in 1..=30 {
            assert!(ledger.ended(start + second * SECOND).is_empty());
            ledger.hear(Line::Beat, start + second * SECOND);
        }
        assert_eq!(ledger.next_deadline(), Some(last + TIMEOUT));
        assert!(ledger.ended(last + TIMEOUT - SECOND / 100).is_empty());
        assert_eq!(ledger.ended(last + TIMEOUT), ["r1"]);
        // Once.
        assert_eq!(ledger.next_deadline(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn beats_do_not_renew_the_lease_of_an_absent_element() {
        let (mut ledger, start) = (Ledger::new(TIMEOUT), Instant::now());
        ledger.hear(change("r1", true, 7), start);
        ledger.hear(change("r2", true, 8), start);
        let gone = ledger.hear(change("r1", false, 7), start + SECOND);
        assert_eq!(gone, [Effect::Went("r1".to_owned(), 7)]);
        for second in 2..=9 {
            ledger.hear(Line::Beat, start + second * SECOND);
        }
        assert_eq!(ledger.ended(start + TIMEOUT), ["r1"]);
        // It is back, by another connection.
        let back = ledger.hear(change("r1", true, 9), start + 12 * SECOND);
        assert_eq!(back, [Effect::Came("r1".to_owned(), 9)]);
        assert!(ledger.ended(start + 13 * SECOND).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_says_what_there_is_and_what_is_not() {
        let (mut ledger, start) = (Ledger::new(TIMEOUT), Instant::now());
        ledger.hear(change("r1", true, 7), start);
        let ports = vec![port("r2", true, 3), port("r3", false, 0)];
        let mut effects = ledger.hear(Line::Snapshot { ports }, start);
        effects.sort_by_key(|effect| format!("{effect:?}"));
        let (came, went) = (
            Effect::Came("r2".to_owned(), 3),
            Effect::Went("r1".to_owned(), 7),
        );
        assert_eq!(effects, [came, went]);
        // The same again says nothing new.
        let ports = vec![port("r2", true, 3)];
        assert_eq!(ledger.hear(Line::Snapshot { ports }, start), []);
        // A guest that came anew while nobody looked.
        let anew = ledger.hear(change("r2", true, 4), start);
        let (went, came) = (
            Effect::Went("r2".to_owned(), 3),
            Effect::Came("r2".to_owned(), 4),
        );
        assert_eq!(anew, [went, came]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_epoch_begins_a_lease_and_who_has_neither_has_none() {
        let (mut ledger, start) = (Ledger::new(TIMEOUT), Instant::now());
        ledger.hear(change("r3", false, 0), start);
        assert_eq!(ledger.next_deadline(), None);
        ledger.begin("r1".to_owned(), start);
        // Another epoch does not prolong it: only being seen does.
        ledger.begin("r1".to_owned(), start + 5 * SECOND);
        assert_eq!(ledger.ended(start + TIMEOUT), ["r1"]);
        ledger.again("r1", start + TIMEOUT);
        assert_eq!(ledger.next_deadline(), Some(start + TIMEOUT + RETRY));
    }
}

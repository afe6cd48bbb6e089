//! Listening to an element's notifications with curl.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::process::{Process, needs};
use super::{Dir, eventually};

/// How long a stream may take to open.
const OPEN_DEADLINE: Duration = Duration::from_secs(20);

/// A curl that reads a stream for as long as it lives.
#[derive(Debug)]
pub struct Stream {
    process: Process,
}

impl Stream {
    /// Opens the stream of `element` of the backend on `socket`; what happens from now on is heard.
    pub fn open(dir: &Dir, socket: &Path, element: &str) -> Self {
        needs("curl", "curl");
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--fail", "--no-buffer"])
            .args(["--header", "accept: text/event-stream", "--unix-socket"])
            .arg(socket)
            .arg(format!(
                "http://localhost/restconf/streams/shunt-offload/element={element}/json"
            ))
            .stdin(Stdio::null());
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = dir.file(&format!("stream-{number}"));
        let mut stream = Self {
            process: Process::start(command, &log),
        };
        eventually(OPEN_DEADLINE, "the stream is open", || {
            stream.process.assert_running();
            stream.process.log().starts_with(": ")
        });
        stream
    }

    /// All notifications that came, whole, with their envelopes.
    pub fn all(&self) -> Vec<Value> {
        let text = self.process.log();
        let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
        let data = whole.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|json| serde_json::from_str(json).unwrap())
            .collect()
    }

    /// Those of one kind, without envelopes.
    pub fn of(&self, kind: &str) -> Vec<Value> {
        let name = format!("shunt-offload:{kind}");
        let all = self.all().into_iter();
        all.filter_map(|mut one| {
            one["ietf-restconf:notification"]
                .get_mut(&name)
                .map(Value::take)
        })
        .collect()
    }

    /// The entries of the lists of one kind.
    pub fn entries(&self, kind: &str) -> Vec<Value> {
        let entries = |one: &Value| one["session"].as_array().unwrap().clone();
        self.of(kind).iter().flat_map(entries).collect()
    }

    /// Whether curl has ended.
    pub fn has_ended(&mut self) -> bool {
        !self.process.is_running()
    }
}

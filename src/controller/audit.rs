//! The log of what was asked and what became of it.
//!
//! *Promises*: a JSON line for each batch and each edit, of at most [`LINE_MAX`] bytes, texts
//! from outside escaped and cut; of one peer's refusals at most ten a second, the rest is
//! counted in the next line. A request is answered when its line is on its way to the file.
//! *Refuses*: nothing. *Caller's duty*: rotate the file by renaming, then SIGHUP.
//! *Standard*: RFC 8259, RFC 3339.

#![expect(
    clippy::disallowed_types,
    reason = "guards counters for an instant, among control tasks; no worker takes it"
)]

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Longest line, bytes.
pub const LINE_MAX: usize = 4_096;
/// Longest text of one kind in a line, characters.
const TEXT_MAX: usize = 200;
/// Refused entries that a line names.
const REFUSED_MAX: usize = 8;
/// Refusals of one peer: at once, and for each second.
const BURST: f64 = 50.0;
const PER_SECOND: f64 = 10.0;
/// Peers whose refusals are counted; beyond, counting begins anew.
const PEERS_MAX: usize = 65_536;
/// Lines on their way.
const QUEUE: usize = 1_024;

/// What a line says.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// When; filled in here.
    pub time: String,
    /// `operator` or `relay`.
    pub by: &'static str,
    /// The certificate's name, or `local`.
    pub peer: String,
    /// Which role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// The element asked for, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub element: Option<String>,
    /// The method, or the operation's name.
    pub action: String,
    /// The path, for edits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The answer's status.
    pub status: u16,
    /// How many entries had which result.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub results: BTreeMap<&'static str, u64>,
    /// Some of the refused ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// Why the whole was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Lines about refusals that were left out since the last.
    #[serde(skip_serializing_if = "is_zero")]
    pub suppressed: u64,
}

/// A refused entry.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refused {
    /// Its key.
    pub key: String,
    /// The leaf at fault.
    pub leaf: String,
    /// Why.
    pub reason: String,
}

/// Results of entries that changed nothing.
const REFUSALS: [&str; 5] = ["table-full", "invalid", "access-denied", "quota", "absent"];

impl Record {
    fn has_accepted(&self) -> bool {
        self.results.keys().any(|result| !REFUSALS.contains(result))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What the writing thread is told.
enum Told {
    Line(String),
    Reopen,
}

/// The log.
pub struct Audit {
    lines: mpsc::Sender<Told>,
    refusals: Mutex<HashMap<String, Bucket>>,
}

/// How many refusals of a peer may still be told.
struct Bucket {
    left: f64,
    since: Instant,
    suppressed: u64,
}

/// The writing thread; ends with the last [`Audit`].
pub struct Writer(JoinHandle<()>);

impl Writer {
    /// Waits until all lines are written.
    pub fn finish(self) {
        if self.0.join().is_err() {
            log::error!("the audit log's thread has panicked");
        }
    }
}

impl Audit {
    /// Opens `path`, or makes it, for its owner and group.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<(Self, Writer)> {
        let file = open(path)?;
        let (lines, told) = mpsc::channel(QUEUE);
        let path = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || write_all(&path, file, told))?;
        let audit = Self {
            lines,
            refusals: Mutex::default(),
        };
        Ok((audit, Writer(thread)))
    }

    /// Begins a new file where the old one was renamed.
    pub async fn reopen(&self) {
        self.tell(Told::Reopen).await;
    }

    /// Adds a line.
    pub async fn log(&self, mut record: Record) {
        if record.status >= 400 || !record.refused.is_empty() {
            match self.pass(&record, Instant::now()) {
                Some(suppressed) => record.suppressed = suppressed,
                // What was accepted is always told.
                None if record.has_accepted() => record.refused.clear(),
                None => return,
            }
        }
        record.time = time(super::wall_clock());
        self.tell(Told::Line(line(record))).await;
    }

    async fn tell(&self, told: Told) {
        if self.lines.send(told).await.is_err() {
            log::error!("the audit log's thread has ended");
        }
    }

    /// How many lines were left out before this one; `None`: it is left out too.
    fn pass(&self, record: &Record, now: Instant) -> Option<u64> {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() >= PEERS_MAX {
            refusals.clear();
        }
        let who = format!(
            "{}/{}",
            record.peer,
            record.element.as_deref().unwrap_or("")
        );
        let bucket = refusals.entry(who).or_insert(Bucket {
            left: BURST,
            since: now,
            suppressed: 0,
        });
        let gained = now.saturating_duration_since(bucket.since).as_secs_f64() * PER_SECOND;
        bucket.left = (bucket.left + gained).min(BURST);
        bucket.since = now;
        if bucket.left < 1.0 {
            bucket.suppressed += 1;
            return None;
        }
        bucket.left -= 1.0;
        Some(std::mem::take(&mut bucket.suppressed))
    }
}

/// A record as a line of bounded length.
fn line(mut record: Record) -> String {
    cut(&mut record.peer);
    for text in [&mut record.element, &mut record.path, &mut record.error] {
        text.iter_mut().for_each(cut);
    }
    record.refused.truncate(REFUSED_MAX);
    for refused in &mut record.refused {
        cut(&mut refused.key);
        cut(&mut refused.leaf);
        cut(&mut refused.reason);
    }
    let mut text = json(&record);
    if text.len() > LINE_MAX {
        record.refused.clear();
        record.path = None;
        text = json(&record);
    }
    text
}

fn json(record: &Record) -> String {
    // Texts and numbers always have a JSON form.
    let mut text = serde_json::to_string(record).unwrap_or_default();
    text.push('\n');
    text
}

fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(TEXT_MAX) {
        text.truncate(end);
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

fn write_all(path: &Path, mut file: File, mut told: mpsc::Receiver<Told>) {
    while let Some(told) = told.blocking_recv() {
        let outcome = match told {
            Told::Line(line) => file.write_all(line.as_bytes()),
            Told::Reopen => open(path).map(|new| file = new),
        };
        if let Err(error) = outcome {
            log::error!("the audit log {}: {error}", path.display());
        }
    }
}

/// RFC 3339, UTC, milliseconds.
fn time(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

/// Year, month and day of the `days`th day since 1970-01-01 (Gregorian; years counted from
/// March, so that a leap day is a year's last).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_rfc_3339_says() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_800, "2000-03-01T00:00:00.007Z"),
            (1_798_761_599, "2026-12-31T23:59:59.007Z"),
        ] {
            let now = UNIX_EPOCH + Duration::from_millis(seconds * 1_000 + 7);
            assert_eq!(time(now), text);
        }
    }

    #[test]
    fn a_line_is_one_line_and_bounded_whatever_it_is_told() {
        let nasty = "\u{1}\n\"".repeat(1_000);
        let refused = Refused {
            key: nasty.clone(),
            leaf: nasty.clone(),
            reason: nasty.clone(),
        };
        let record = Record {
            peer: nasty.clone(),
            element: Some(nasty.clone()),
            path: Some(nasty.clone()),
            error: Some(nasty),
            refused: vec![refused; 100],
            ..Record::default()
        };
        let text = line(record);
        assert!(text.len() <= LINE_MAX, "{}", text.len());
        assert_eq!(text.matches('\n').count(), 1);
        let _: serde_json::Value = serde_json::from_str(&text).unwrap();
    }

    #[tokio::test]
    async fn what_is_logged_is_in_the_file_when_the_log_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let (audit, writer) = Audit::open(&path).unwrap();
        for number in 0..100 {
            let record = Record {
                action: format!("a{number}"),
                status: 200,
                ..Record::default()
            };
            audit.log(record).await;
            if number == 49 {
                std::fs::rename(&path, dir.path().join("old")).unwrap();
                audit.reopen().await;
            }
        }
        drop(audit);
        writer.finish();
        let lines = |name| {
            let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
            text.lines().count()
        };
        assert_eq!(lines("old") + lines("audit"), 100);
        assert!(lines("audit") >= 50);
    }

    #[tokio::test]
    async fn refusals_beyond_the_rate_are_counted_in_the_next_line() {
        let dir = tempfile::tempdir().unwrap();
        let (audit, _writer) = Audit::open(&dir.path().join("audit")).unwrap();
        let record = |peer: &str| Record {
            peer: peer.to_owned(),
            status: 403,
            ..Record::default()
        };
        let start = Instant::now();
        for _ in 0..50 {
            assert_eq!(audit.pass(&record("a"), start), Some(0));
        }
        for _ in 0..30 {
            assert_eq!(audit.pass(&record("a"), start), None);
        }
        assert_eq!(audit.pass(&record("b"), start), Some(0));
        let later = start + Duration::from_secs(1);
        assert_eq!(audit.pass(&record("a"), later), Some(30));
        assert_eq!(audit.pass(&record("a"), later), Some(0));
    }
}

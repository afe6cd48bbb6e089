//! Backup and restore of a store, whichever it is.
//!
//! *Promises*: a backup is the store at one revision; restored into an empty store, also of
//! another kind, it is the same documents under new revisions.
//! *Refuses*: to restore over what is there; files that are no backup or end too early.
//! *Caller's duty*: a restore that failed half-way leaves a store to be thrown away.
//! *Standard*: JSON lines: a header, a line for each document, a line that ends it.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use super::{Step, Store, StoreError, VALUE_MAX};

const FORMAT: u32 = 1;

/// Why there is no backup, or it cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file cannot be read or written.
    #[error("the backup's file")]
    File(#[from] std::io::Error),
    /// A line is no line of a backup.
    #[error("line {line} is no line of a backup: is the file what `--backup` wrote?")]
    Line {
        /// Which, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A document's text is no UTF-8.
    #[error("document `{0}` is no text; it was not written by a controller")]
    Text(String),
    /// It ends before its end, or goes on after it.
    #[error("the backup has not the documents it says: it was cut, or put together")]
    Incomplete,
    /// It is of another version.
    #[error("the backup has format {0}, this program reads {FORMAT}")]
    Format(u32),
    /// There is something already.
    #[error("the store has documents already: restore into a new one")]
    NotEmpty,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Line {
    ShuntBackup { format: u32 },
    Document { key: String, value: String },
    End { documents: usize },
}

/// Writes all of `store` to `out`; gives how many documents that were.
///
/// # Errors
/// See [`ArchiveError`].
pub async fn backup(store: &dyn Store, mut out: impl Write) -> Result<usize, ArchiveError> {
    let listing = store.list("").await?;
    let documents = listing.documents.len();
    write(&mut out, &Line::ShuntBackup { format: FORMAT })?;
    for document in listing.documents {
        let key = document.key;
        let value =
            String::from_utf8(document.value).map_err(|_| ArchiveError::Text(key.clone()))?;
        write(&mut out, &Line::Document { key, value })?;
    }
    write(&mut out, &Line::End { documents })?;
    out.flush()?;
    Ok(documents)
}

fn write(out: &mut impl Write, line: &Line) -> Result<(), ArchiveError> {
    serde_json::to_writer(&mut *out, line).map_err(std::io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// Fills an empty `store` from `input`; gives how many documents that were. Nothing is
/// written before all of it was read.
///
/// # Errors
/// See [`ArchiveError`].
pub async fn restore(store: &dyn Store, input: impl BufRead) -> Result<usize, ArchiveError> {
    let documents = read(input)?;
    if !store.list("").await?.documents.is_empty() {
        return Err(ArchiveError::NotEmpty);
    }
    let count = documents.len();
    let (mut some, mut bytes) = (Vec::new(), 0);
    for step in documents {
        let size = step.value.as_ref().map_or(0, Vec::len);
        if some.len() == store.steps_max() || (bytes + size > VALUE_MAX && !some.is_empty()) {
            store.commit(std::mem::take(&mut some)).await?;
            bytes = 0;
        }
        bytes += size;
        some.push(step);
    }
    if !some.is_empty() {
        store.commit(some).await?;
    }
    Ok(count)
}

fn read(input: impl BufRead) -> Result<Vec<Step>, ArchiveError> {
    let mut steps = Vec::new();
    let mut is_begun = false;
    let mut is_ended = false;
    for (number, text) in input.lines().enumerate() {
        let line = serde_json::from_str(&text?).map_err(|source| ArchiveError::Line {
            line: number + 1,
            source,
        })?;
        match line {
            Line::ShuntBackup { format: FORMAT } if number == 0 => is_begun = true,
            Line::ShuntBackup { format } if number == 0 => {
                return Err(ArchiveError::Format(format));
            }
            Line::Document { key, value } if is_begun && !is_ended => {
                steps.push(Step::create(key, value.into_bytes()));
            }
            Line::End { documents } if is_begun && !is_ended && documents == steps.len() => {
                is_ended = true;
            }
            _ => return Err(ArchiveError::Incomplete),
        }
    }
    if is_ended {
        Ok(steps)
    } else {
        Err(ArchiveError::Incomplete)
    }
}

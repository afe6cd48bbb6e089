//! Server-sent events: how notifications stand on a connection that stays open.
//!
//! *Promises*: [`Parser`] finds the events that were written in whatever pieces the bytes come.
//! *Refuses*: an event beyond [`EVENT_MAX`].
//! *Caller's duty*: none.
//! *Standard*: RFC 8040 section 6.3; "Server-sent events" of the HTML standard, as far as its
//! `data` fields and comments.

use std::time::Duration;

use super::events::RawEvent;

#[cfg(feature = "host")]
mod answer;

#[cfg(feature = "host")]
pub(crate) use answer::{COMMENT, answer, carry, check_accept, written};

/// The media type of a stream.
pub const MEDIA_TYPE: &str = "text/event-stream";
/// From one sign of life to the next at the latest.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The longest event that is read, bytes.
pub const EVENT_MAX: usize = 4 << 20;

/// An event is longer than [`EVENT_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an event of more than {EVENT_MAX} bytes")]
pub struct TooLong;

/// Finds events in bytes.
#[derive(Debug, Default)]
pub struct Parser {
    /// A line that has not ended.
    line: Vec<u8>,
    /// Data of an event that has not ended.
    data: Option<String>,
}

impl Parser {
    /// Takes some bytes; gives the events that end there.
    ///
    /// # Errors
    /// An event is too long.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Vec<RawEvent>, TooLong> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.hold(&rest[..end])?;
            events.extend(self.end_line());
            rest = &rest[end + 1..];
        }
        self.hold(rest)?;
        Ok(events)
    }

    fn hold(&mut self, part: &[u8]) -> Result<(), TooLong> {
        let known = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if known + part.len() > EVENT_MAX {
            return Err(TooLong);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_line(&mut self) -> Option<RawEvent> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_suffix('\r').unwrap_or(&line);
        if line.is_empty() {
            return self.data.take().map(RawEvent);
        }
        // Comments and other fields say nothing here.
        if let Some(data) = line.strip_prefix("data:") {
            let data = data.strip_prefix(' ').unwrap_or(data);
            match &mut self.data {
                // JSON: a line break between two lines is white space.
                Some(known) => {
                    known.push(' ');
                    known.push_str(data);
                }
                None => self.data = Some(data.to_owned()),
            }
        }
        None
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn events_are_found_in_whatever_pieces_they_come(
            texts in proptest::collection::vec("[ -~äß]{1,40}", 0..8),
            pieces in proptest::collection::vec(1usize..20, 1..60),
        ) {
            let events: Vec<_> = texts.into_iter().map(RawEvent).collect();
            let mut stream = COMMENT.to_vec();
            for event in &events {
                stream.extend(written(std::slice::from_ref(event)).as_bytes());
                stream.extend(COMMENT);
            }
            let (mut parser, mut found) = (Parser::default(), Vec::new());
            let mut rest = stream.as_slice();
            for piece in pieces.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(piece.min(rest.len()));
                found.extend(parser.take(now).unwrap());
                rest = later;
            }
            prop_assert_eq!(found, events);
        }
    }

    #[test]
    fn data_of_several_lines_and_carriage_returns_are_one_event() {
        let text = b"id: 7\r\nevent: x\r\ndata: {\"a\":\r\ndata:1}\r\n\r\n";
        let events = Parser::default().take(text).unwrap();
        assert_eq!(events, [RawEvent("{\"a\": 1}".to_owned())]);
    }

    #[test]
    fn an_event_without_end_is_not_held_for_ever() {
        let mut parser = Parser::default();
        let part = vec![b'x'; EVENT_MAX / 2];
        assert_eq!(parser.take(&part), Ok(Vec::new()));
        assert_eq!(parser.take(&part), Ok(Vec::new()));
        assert_eq!(parser.take(b"x"), Err(TooLong));
    }
}

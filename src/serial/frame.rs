//! Frames on a serial line: a zero byte, the COBS form of head, payload and checksum, a
//! zero byte.
//!
//! *Promises*: what [`encode`] made, [`Decoder`] gives back, whatever came before it on the
//! line; memory stays below [`ENCODED_MAX`] however long the noise is.
//! *Refuses*: damaged, longer and unknown frames, each as [`Damage`].
//! *Caller's duty*: payloads of at most [`PAYLOAD_MAX`] bytes.
//! *Standard*: `docs/serial.md`, "Frames".

use cobs::CobsEncoder;
use crc32c::{crc32c, crc32c_append};

/// Most payload of a frame, bytes.
pub const PAYLOAD_MAX: usize = 16 * 1_024;
/// Head of a frame before it is encoded, bytes.
pub const HEAD: usize = 17;
/// Checksum at its end, bytes.
const CHECK: usize = 4;
/// Most bytes of a frame in its COBS form, without the zeros around it.
pub const ENCODED_MAX: usize = cobs::max_encoding_length(HEAD + PAYLOAD_MAX + CHECK);
/// The format's version, in the upper half of the first byte.
const VERSION: u8 = 1;

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// "I have opened the line, my epoch is `from`."
    Hello = 1,
    /// "I heard your hello."
    Ack = 2,
    /// Bytes of the connection.
    Data = 3,
    /// "I am still here", and how much I take.
    Beat = 4,
    /// "I end this connection."
    Bye = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        if byte >> 4 != VERSION {
            return None;
        }
        [Self::Hello, Self::Ack, Self::Data, Self::Beat, Self::Bye]
            .into_iter()
            .find(|kind| *kind as u8 == byte & 0x0f)
    }
}

/// What every frame says. Numbers count within the connection, from 0, and wrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// What the frame is for.
    pub kind: Kind,
    /// The sender's epoch, never 0.
    pub from: u32,
    /// The receiver's epoch as far as the sender knows it; 0 in a hello.
    pub to: u32,
    /// Data frames sent before this frame.
    pub count: u32,
    /// Payload bytes, from the connection's start, that the sender of this frame takes.
    pub limit: u32,
}

/// A frame as it was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// What it says.
    pub head: Head,
    /// The bytes it carries.
    pub payload: &'a [u8],
}

/// Why bytes between two zeros are no frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// More of them than a frame has.
    TooLong,
    /// No COBS form, or too short.
    Malformed,
    /// The checksum is another.
    Checksum,
    /// A sound frame of another version or kind.
    Unknown,
}

/// Appends a frame to `out`. A payload beyond [`PAYLOAD_MAX`] is cut.
pub fn encode(head: Head, payload: &[u8], out: &mut Vec<u8>) {
    let payload = payload.get(..PAYLOAD_MAX).unwrap_or(payload);
    let mut start = [0; HEAD];
    start[0] = VERSION << 4 | head.kind as u8;
    start[1..5].copy_from_slice(&head.from.to_be_bytes());
    start[5..9].copy_from_slice(&head.to.to_be_bytes());
    start[9..13].copy_from_slice(&head.count.to_be_bytes());
    start[13..17].copy_from_slice(&head.limit.to_be_bytes());
    let check = crc32c_append(crc32c(&start), payload).to_be_bytes();

    out.push(0);
    let begin = out.len();
    out.resize(
        begin + cobs::max_encoding_length(HEAD + payload.len() + CHECK),
        0,
    );
    let mut encoder = CobsEncoder::new(out.get_mut(begin..).unwrap_or_default());
    // There is room for all of it: the encoder can refuse nothing.
    for part in [&start[..], payload, &check] {
        let _room = encoder.push(part);
    }
    let end = begin + encoder.finalize();
    out.truncate(end);
    out.push(0);
}

/// Finds the frames in what comes from a line.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What came since the last zero; a finished frame until the next call.
    bytes: Vec<u8>,
    /// `bytes` has been given out.
    is_given: bool,
    /// More came than a frame has: all up to the next zero is skipped.
    is_skipping: bool,
}

impl Decoder {
    /// The next frame in `input`, which moves behind it; `None` when all is taken.
    pub fn next<'a>(&'a mut self, input: &mut &[u8]) -> Option<Result<Frame<'a>, Damage>> {
        if std::mem::take(&mut self.is_given) {
            self.bytes.clear();
        }
        loop {
            let Some(end) = input.iter().position(|byte| *byte == 0) else {
                self.keep(input);
                *input = &[];
                return None;
            };
            let (part, rest) = input.split_at(end);
            *input = rest.get(1..).unwrap_or_default();
            self.keep(part);
            if std::mem::take(&mut self.is_skipping) {
                return Some(Err(Damage::TooLong));
            }
            if !self.bytes.is_empty() {
                break;
            }
        }
        self.is_given = true;
        Some(parse(&mut self.bytes))
    }

    fn keep(&mut self, part: &[u8]) {
        if self.is_skipping || self.bytes.len() + part.len() > ENCODED_MAX {
            self.is_skipping = true;
            self.bytes.clear();
        } else {
            self.bytes.extend_from_slice(part);
        }
    }
}

fn parse(bytes: &mut [u8]) -> Result<Frame<'_>, Damage> {
    let length = cobs::decode_in_place(bytes).map_err(|_| Damage::Malformed)?;
    let body = bytes.get(..length).ok_or(Damage::Malformed)?;
    let (content, check) = body.split_last_chunk::<CHECK>().ok_or(Damage::Malformed)?;
    if content.len() < HEAD || content.len() > HEAD + PAYLOAD_MAX {
        return Err(Damage::Malformed);
    }
    if crc32c(content) != u32::from_be_bytes(*check) {
        return Err(Damage::Checksum);
    }
    let (start, payload) = content
        .split_first_chunk::<HEAD>()
        .ok_or(Damage::Malformed)?;
    let kind = Kind::from_byte(start[0]).ok_or(Damage::Unknown)?;
    let number =
        |at: usize| u32::from_be_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    Ok(Frame {
        head: Head {
            kind,
            from: number(1),
            to: number(5),
            count: number(9),
            limit: number(13),
        },
        payload,
    })
}

#[cfg(test)]
mod tests;

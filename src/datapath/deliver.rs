//! Handing frames to a port, in a form that its peer takes (DESIGN section 4, offload mismatch).
//!
//! *Promises*: frames leave in order, each told its outcome once; runs of frames that fit
//! go out in one transmit, others are completed or segmented first, a burst at a time.
//! *Refuses*: what the port has no room for, unless the sender waits and the port keeps it; a
//! segmented frame counts as refused when any piece of it was.
//! *Caller's duty*: at most [`Burst::FRAMES_MAX`] frames a call.

use super::mates::{Label, Mates};
use super::vnic::Way;
use crate::packet::segment::{Segments, fits};
use crate::packet::{Burst, DropReason, TxFrame};
use crate::port::{Port, TxReport};

/// Why a port did not take a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Full,
    Absent,
    BufferTooSmall,
    Unsegmentable,
    NotOwn,
}

impl Refusal {
    /// The drop reason when the port is a guest's.
    pub(super) fn by_guest(self) -> DropReason {
        match self {
            Self::Full => DropReason::GuestRingFull,
            Self::Absent => DropReason::GuestAbsent,
            Self::BufferTooSmall => DropReason::GuestBufferTooSmall,
            Self::NotOwn => DropReason::NotOwn,
            Self::Unsegmentable => DropReason::Unsegmentable,
        }
    }

    /// The drop reason when the port is an uplink's.
    pub(super) fn by_uplink(self) -> DropReason {
        match self {
            Self::Full => DropReason::EgressFull,
            Self::Absent => DropReason::UplinkAbsent,
            Self::BufferTooSmall => DropReason::EgressBufferTooSmall,
            Self::NotOwn => DropReason::NotOwn,
            Self::Unsegmentable => DropReason::Unsegmentable,
        }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Delivered,
    /// Its way goes on at another lane, where it counts.
    HandedOn,
    Refused(Refusal),
}

/// What becomes of frames that find no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    /// They are refused.
    None,
    /// A port that keeps such frames for a while may.
    Waits,
}

impl Patience {
    fn transmit(self, port: &mut dyn Port, frames: &[TxFrame<'_>]) -> TxReport {
        match self {
            Self::None => port.transmit(frames),
            Self::Waits => port.transmit_or_keep(frames),
        }
    }
}

/// Sends `frames` a way (`None`: nothing runs there) and tells the outcome of each. `label` says
/// what another lane is to do with a frame, for the queue pair it is given.
#[inline]
pub(super) fn send(
    patience: Patience,
    way: Option<Way<'_>>,
    mates: &mut Option<Mates>,
    frames: &[TxFrame<'_>],
    label: impl Fn(usize, usize) -> Label,
    adapted: &mut Burst,
    mut outcome: impl FnMut(usize, Outcome),
) {
    match (way, mates) {
        (Some(Way::Elsewhere { lane, queue }), Some(mates)) => {
            for (place, frame) in frames.iter().enumerate() {
                let told = match mates.send(lane, frame, label(place, queue)) {
                    true => Outcome::HandedOn,
                    false => Outcome::Refused(Refusal::Full),
                };
                outcome(place, told);
            }
        }
        (Some(Way::Here(port)), _) => {
            deliver(patience, Some(port), frames, adapted, outcome);
        }
        (Some(Way::Elsewhere { .. }) | None, _) => {
            deliver(patience, None, frames, adapted, outcome);
        }
    }
}

/// Hands `frames` to `port` (`None`: it is not running) and tells the outcome of each.
/// `adapted` is scratch space.
pub(super) fn deliver(
    patience: Patience,
    port: Option<&mut dyn Port>,
    frames: &[TxFrame<'_>],
    adapted: &mut Burst,
    mut outcome: impl FnMut(usize, Outcome),
) {
    if frames.is_empty() {
        return;
    }
    let Some(port) = port else {
        (0..frames.len()).for_each(|place| outcome(place, Outcome::Refused(Refusal::Absent)));
        return;
    };
    let peer = port.peer();
    if frames.iter().all(|frame| fits(&frame.offload, &peer)) {
        as_they_are(patience, port, frames, outcome);
        return;
    }
    let mut start = 0;
    while start < frames.len() {
        let rest = &frames[start..];
        let first_fits = fits(&rest[0].offload, &peer);
        let alike = rest
            .iter()
            .take_while(|frame| fits(&frame.offload, &peer) == first_fits)
            .count();
        let run = &rest[..alike];
        let told = |place: usize, what: Outcome| outcome(start + place, what);
        if first_fits {
            as_they_are(patience, port, run, told)
        } else {
            adapt(patience, port, run, adapted, told)
        }
        start += alike;
    }
}

fn as_they_are(
    patience: Patience,
    port: &mut dyn Port,
    frames: &[TxFrame<'_>],
    mut outcome: impl FnMut(usize, Outcome),
) {
    let report = patience.transmit(port, frames);
    if report.consumed == frames.len() && report.too_large | report.refused == 0 {
        (0..frames.len()).for_each(|place| outcome(place, Outcome::Delivered));
        return;
    }
    for place in 0..frames.len() {
        let what = if place >= report.consumed {
            Outcome::Refused(Refusal::Full)
        } else if report.too_large >> place & 1 != 0 {
            Outcome::Refused(Refusal::BufferTooSmall)
        } else if report.refused >> place & 1 != 0 {
            Outcome::Refused(Refusal::NotOwn)
        } else {
            Outcome::Delivered
        };
        outcome(place, what);
    }
}

/// Completes or segments `frames` into `adapted` and sends it whenever it is full.
fn adapt(
    patience: Patience,
    port: &mut dyn Port,
    frames: &[TxFrame<'_>],
    adapted: &mut Burst,
    mut outcome: impl FnMut(usize, Outcome),
) {
    let mut pieces = Pieces {
        patience,
        port,
        origin: [0; Burst::FRAMES_MAX],
        fate: [Outcome::Delivered; _],
    };
    adapted.clear();
    for (place, frame) in frames.iter().enumerate() {
        let Ok(mut segments) = Segments::new(*frame) else {
            pieces.fate[place] = Outcome::Refused(Refusal::Unsegmentable);
            continue;
        };
        while !segments.is_done() {
            let before = adapted.len();
            let made = segments.fill(adapted);
            pieces.origin[before..before + made].fill(place as u8);
            if segments.is_done() {
                break;
            }
            if adapted.is_empty() {
                pieces.fate[place] = Outcome::Refused(Refusal::Unsegmentable);
                break;
            }
            pieces.send(adapted);
        }
    }
    pieces.send(adapted);
    pieces.fate[..frames.len()]
        .iter()
        .enumerate()
        .for_each(|(place, fate)| outcome(place, *fate));
}

/// Pieces of frames on their way, and which frame each is of.
struct Pieces<'a> {
    patience: Patience,
    port: &'a mut dyn Port,
    origin: [u8; Burst::FRAMES_MAX],
    fate: [Outcome; Burst::FRAMES_MAX],
}

impl Pieces<'_> {
    fn send(&mut self, adapted: &mut Burst) {
        let mut frames = [TxFrame::default(); Burst::FRAMES_MAX];
        let count = adapted.len();
        for (place, frame) in frames[..count].iter_mut().enumerate() {
            *frame = adapted.frame(place);
        }
        let Self {
            patience,
            port,
            origin,
            fate,
        } = self;
        if count > 0 {
            as_they_are(*patience, *port, &frames[..count], |place, what| {
                if what != Outcome::Delivered {
                    fate[usize::from(origin[place])] = what;
                }
            });
        }
        adapted.clear();
    }
}

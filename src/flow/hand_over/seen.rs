//! Which markers tell one packet of a flow from all others that may be in the guest.

use crate::packet::Marker;

/// How many markers of a flow without sequence numbers are remembered.
const RECENT: usize = 8;

/// So many equal packets in a row, and they are taken as interchangeable.
const RUN: u32 = 32;

/// What has been seen of a flow since its record began, entering or leaving the guest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// TCP: the highest end of a sequence range and the highest acknowledgement.
    high: Option<(u32, u32)>,
    /// Others: the markers that entered last.
    recent: [(u32, u32); RECENT],
    count: u32,
    /// How often the last of them was repeated.
    run: u32,
}

impl Seen {
    /// A packet goes to the guest (or will, if its drain fails). Whether its leaving the
    /// guest will show that everything before it has left.
    pub(super) fn enters(&mut self, marker: Marker) -> bool {
        match marker {
            Marker::Tcp { seq_end, ack } => {
                let distinct = self
                    .high
                    .is_some_and(|high| high != (seq_end, ack) && is_past((seq_end, ack), high));
                self.raise((seq_end, ack));
                distinct
            }
            Marker::Other { len, hash } => self.other(len, hash),
        }
    }

    /// A packet has left the guest.
    pub(super) fn leaves(&mut self, marker: Marker) {
        if let Marker::Tcp { seq_end, ack } = marker {
            self.raise((seq_end, ack));
        }
    }

    fn raise(&mut self, (seq_end, ack): (u32, u32)) {
        self.high = Some(match self.high {
            None => (seq_end, ack),
            Some((high_seq, high_ack)) => (later(seq_end, high_seq), later(ack, high_ack)),
        });
    }

    fn other(&mut self, len: u32, hash: u32) -> bool {
        let known = self.recent.len().min(self.count as usize);
        let repeated = self.recent[..known].contains(&(len, hash));
        let last = self.count.wrapping_sub(1) as usize % RECENT;
        if known > 0 && self.recent[last] == (len, hash) {
            self.run = self.run.saturating_add(1);
            return self.run >= RUN;
        }
        self.run = 1;
        self.recent[self.count as usize % RECENT] = (len, hash);
        // Stays above `RECENT` when it wraps, so that the ring still counts as full.
        self.count = match self.count.wrapping_add(1) {
            0 => RECENT as u32,
            count => count,
        };
        known > 0 && !repeated
    }
}

/// Whether a packet that leaves the guest is `marker` or lies past it.
pub(super) fn reaches(leaving: Marker, marker: Marker) -> bool {
    match (leaving, marker) {
        (
            Marker::Tcp { seq_end, ack },
            Marker::Tcp {
                seq_end: marker_seq,
                ack: marker_ack,
            },
        ) => is_past((seq_end, ack), (marker_seq, marker_ack)),
        _ => leaving == marker,
    }
}

/// At or past in both numbers (serial arithmetic, RFC 9293 section 3.4).
fn is_past(this: (u32, u32), that: (u32, u32)) -> bool {
    this.0.wrapping_sub(that.0) as i32 >= 0 && this.1.wrapping_sub(that.1) as i32 >= 0
}

fn later(this: u32, that: u32) -> u32 {
    if this.wrapping_sub(that) as i32 > 0 {
        this
    } else {
        that
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(seq_end: u32, ack: u32) -> Marker {
        Marker::Tcp { seq_end, ack }
    }

    fn other(hash: u32) -> Marker {
        Marker::Other { len: 100, hash }
    }

    #[test]
    fn a_first_packet_is_not_told_from_what_was_in_the_guest_before() {
        assert!(!Seen::default().enters(tcp(1000, 5)));
        assert!(!Seen::default().enters(other(1)));
        let mut seen = Seen::default();
        seen.leaves(tcp(900, 5));
        assert!(seen.enters(tcp(1000, 5)));
    }

    #[test]
    fn tcp_retransmissions_and_repeated_acks_are_not_distinct() {
        let mut seen = Seen::default();
        seen.enters(tcp(u32::MAX - 100, 5));
        assert!(seen.enters(tcp(200, 5)), "across the wrap");
        assert!(!seen.enters(tcp(200, 5)), "repeated");
        assert!(!seen.enters(tcp(100, 5)), "retransmitted");
        assert!(!seen.enters(tcp(300, 4)), "an older ack came late");
        assert!(seen.enters(tcp(300, 6)));
    }

    #[test]
    fn alternating_payloads_are_never_distinct_but_a_long_run_of_one_is() {
        let mut seen = Seen::default();
        seen.enters(other(0));
        assert!(seen.enters(other(1)));
        for round in 2..200 {
            assert!(!seen.enters(other(round % 2)));
        }
        let distinct = (0..RUN).filter(|_| seen.enters(other(7))).count();
        assert_eq!(distinct, 2, "when it was new, and at the end of the run");
    }

    #[test]
    fn merged_segments_reach_the_marker_inside_them() {
        assert!(reaches(tcp(3000, 9), tcp(2000, 9)));
        assert!(!reaches(tcp(1999, 9), tcp(2000, 9)));
        assert!(!reaches(tcp(3000, 8), tcp(2000, 9)));
        assert!(reaches(other(1), other(1)));
        assert!(!reaches(other(2), other(1)));
    }
}

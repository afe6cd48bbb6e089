//! Flow numbers: the keys they stand for and the order they are looked up in. The peer in
//! `benches/peers/rte_hash.c` makes the same keys and reads the same numbers from a file.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use shunt::flow::{Direction, FlowSpec, HandOverMode, SessionId};
use shunt::packet::rewrite::Rewrite;
use shunt::packet::{FlowKey, MacAddr, Tuple, VnicId};

/// Marks a number whose key is in no table.
pub const MISS: u32 = 1 << 31;
/// Numbers in a sequence.
pub const LENGTH: usize = 1 << 22;

const SERVER: u32 = 0xc633_6401;
const UDP: u8 = 17;

/// The key of flow `number`: even numbers are originals, the odd one after it the reply. Without a
/// branch on which it is, whose mispredictions would be most of what is measured.
#[inline]
pub fn key_of(number: u32) -> FlowKey {
    let session = (number & !MISS) >> 1;
    let service = 443 + (number >> 31) as u16;
    let reply = number & 1;
    let client = ([0x0a00_0000, 0x6440_0000][reply as usize]) | session;
    let port = (1024 + session % 60_000) as u16 ^ reply as u16;
    // All ones for a reply: exchanges both ends.
    let mask = reply.wrapping_neg();
    let addresses = (client ^ SERVER) & mask;
    let ports = (port ^ service) & mask as u16;
    FlowKey::of_ipv4(
        (VnicId(reply as u16), 0, UDP),
        (client ^ addresses, SERVER ^ addresses),
        (port ^ ports, service ^ ports),
    )
}

/// The tuples of a session: what the original matches and what it becomes.
pub fn tuples(session: u32) -> (Tuple, Tuple) {
    let port = (1024 + session % 60_000) as u16;
    let tuple = |src: u32, src_port| Tuple {
        src: Ipv4Addr::from(src).into(),
        dst: Ipv4Addr::from(SERVER).into(),
        protocol: UDP,
        src_port,
        dst_port: 443,
    };
    (
        tuple(0x0a00_0000 | session, port),
        tuple(0x6440_0000 | session, port ^ 1),
    )
}

/// The two flows of a session behind a source NAT.
pub fn specs(session: u32) -> (FlowSpec, FlowSpec) {
    let (inside, outside) = tuples(session);
    let flow = |from: Tuple, to: Tuple, ingress: u16, direction| {
        let egress = VnicId(1 - ingress);
        let key = FlowKey::new(VnicId(ingress), 0, &from);
        let egress_key = FlowKey::new(egress, 0, &to);
        FlowSpec {
            key,
            egress_key,
            ingress_mac: MacAddr([2, 0, 0, 0, 0, ingress as u8]),
            egress,
            rewrite: Rewrite::new(&key, &egress_key, true, None).expect("a plain NAT"),
            dst_mac: Some(MacAddr([2, 0, 0, 0, 1, ingress as u8])),
            src_mac: Some(MacAddr([2, 0, 0, 0, 2, ingress as u8])),
            l3_mtu: 1500,
            mode: HandOverMode::Prompt,
            session: SessionId(u64::from(session)),
            direction,
        }
    };
    (
        flow(inside, outside, 0, Direction::Original),
        flow(outside.reversed(), inside.reversed(), 1, Direction::Reply),
    )
}

/// How look-ups choose among the flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// All alike.
    Uniform,
    /// The n-th most popular with probability proportional to 1/n.
    Zipf,
}

/// A sequence of flow numbers, here and in a file for the peer.
pub struct Sequence {
    pub numbers: Vec<u32>,
    pub path: PathBuf,
}

impl Sequence {
    /// `LENGTH` numbers below `flows`, a power of two.
    pub fn new(dir: &Path, flows: u32, choice: Choice, hit: bool) -> Self {
        assert!(flows.is_power_of_two());
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let mark = if hit { 0 } else { MISS };
        let numbers: Vec<u32> = match choice {
            Choice::Uniform => (0..LENGTH)
                .map(|_| (dice.next() >> 32) as u32 & (flows - 1) | mark)
                .collect(),
            Choice::Zipf => {
                let weights = zipf(flows);
                let total = weights[weights.len() - 1];
                let pick = |_| {
                    let point = (dice.next() >> 11) as f64 / (1u64 << 53) as f64 * total;
                    let rank = weights.partition_point(|weight| *weight < point) as u32;
                    // Popular flows are scattered over the table.
                    rank.wrapping_mul(0x9e37_79b1) & (flows - 1) | mark
                };
                (0..LENGTH).map(pick).collect()
            }
        };
        let path = dir.join(format!("numbers-{flows}-{choice:?}-{hit}"));
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
        File::create(&path).unwrap().write_all(&bytes).unwrap();
        Self { numbers, path }
    }
}

/// Running sums of 1/n.
fn zipf(flows: u32) -> Vec<f64> {
    let mut sum = 0.0;
    (1..=flows)
        .map(|rank| {
            sum += 1.0 / f64::from(rank);
            sum
        })
        .collect()
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

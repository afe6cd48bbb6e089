//! A router element with two vNICs, without threads: time passes when a test says so.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use crate::datapath::ElementId;
use crate::datapath::counters::{ElementCounters, Snapshot};
use crate::datapath::lane::{Bench, Lane, Reporter, Vnic};
use crate::datapath::poller::EpollSet;
use crate::flow::hand_over::{HandOver, HandOverLimits};
use crate::flow::queue::{Receiver, channel};
use crate::flow::sessions::Sessions;
use crate::flow::{
    DirectionRequest, ElementShape, FlowEvent, HandOverMode, HashSeed, Moment, Outcome,
    SessionRequest, VnicShape, flow_table,
};
use crate::packet::key::protocol;
use crate::packet::{MacAddr, Offload, PeerOffloads, Tuple, VnicId};
use crate::port::testing::{FarEnd, Loose, port};

pub(super) const LAN: VnicId = VnicId(0);
pub(super) const WAN: VnicId = VnicId(1);
pub(super) const LAN_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
pub(super) const WAN_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
pub(super) const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xc]);
pub(super) const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xd]);
pub(super) const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 2), 40000);
pub(super) const OUTSIDE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 1), 61000);
pub(super) const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 9), 5000);

/// The far ends of a vNIC.
pub(super) struct Ends {
    pub(super) uplink: FarEnd,
    pub(super) guest: FarEnd,
    /// Uplink and guest of the second queue pair.
    pub(super) second: (FarEnd, FarEnd),
}

impl Ends {
    /// The far end of an uplink's queue pair.
    pub(super) fn uplink(&self, queue: usize) -> &FarEnd {
        [&self.uplink, &self.second.0][queue]
    }

    /// The far end of a guest's queue pair.
    pub(super) fn guest(&self, queue: usize) -> &FarEnd {
        [&self.guest, &self.second.1][queue]
    }
}

pub(super) struct World {
    pub(super) now: Moment,
    pub(super) lane: Lane,
    pub(super) book: Sessions,
    pub(super) lan: Ends,
    pub(super) wan: Ends,
    bench: Bench,
    events: Receiver<(ElementId, FlowEvent)>,
    counters: Arc<ElementCounters>,
}

pub(super) const ALL_OFFLOADS: PeerOffloads = PeerOffloads::ALL;

impl World {
    pub(super) fn new() -> Self {
        Self::with(ALL_OFFLOADS, HandOverLimits::default())
    }

    /// An element with a punt rate.
    pub(super) fn metered(punt_rate: Option<u32>) -> Self {
        Self::made(ALL_OFFLOADS, HandOverLimits::default(), punt_rate)
    }

    pub(super) fn with(peer: PeerOffloads, limits: HandOverLimits) -> Self {
        Self::made(peer, limits, None)
    }

    fn made(peer: PeerOffloads, limits: HandOverLimits, punt_rate: Option<u32>) -> Self {
        let (writer, mut readers) = flow_table(64, 1, HashSeed::random());
        let shape = ElementShape::new([LAN_MAC, WAN_MAC].map(|mac| VnicShape { mac, mtu: 1500 }));
        let book = Sessions::new(shape, writer, Default::default());
        let (lan, lan_vnic) = vnic(LAN_MAC, peer);
        let (wan, wan_vnic) = vnic(WAN_MAC, peer);
        let counters = Arc::new(ElementCounters::default());
        let lane = Lane::new(
            ElementId(0),
            readers.pop().unwrap(),
            HandOver::new(limits),
            vec![lan_vnic, wan_vnic],
            counters.clone(),
            book.signals(),
            punt_rate,
        );
        let (sender, events) = channel(1024);
        let keeper = Arc::new(EpollSet::new().unwrap());
        let bench = Bench::new(Reporter::new(sender, Arc::default(), keeper));
        Self {
            now: Moment(1_000_000_000),
            lane,
            book,
            lan,
            wan,
            bench,
            events,
            counters,
        }
    }

    /// Lets a moment pass and polls until nothing moves, then lets the keeper's side catch up.
    pub(super) fn run(&mut self) {
        self.pass(Duration::from_micros(10));
    }

    pub(super) fn pass(&mut self, span: Duration) {
        self.now = self.now + span;
        while self.round() > 0 {}
        while let Some((_, event)) = self.events.try_recv() {
            self.book.event(event, self.now);
        }
        self.book.advance(self.now);
    }

    /// One burst from every queue of the lane. Says how many frames were received or released.
    pub(super) fn round(&mut self) -> usize {
        let released = self.lane.prepare(&mut self.bench, self.now);
        let received: usize = (0..self.lane.queues())
            .map(|_| {
                let place = self.lane.step();
                self.lane.poll(place, &mut self.bench, self.now)
            })
            .sum();
        released + received
    }

    pub(super) fn offload(&mut self, request: SessionRequest) -> Outcome {
        let outcome = self.book.offload(request, self.now);
        self.run();
        outcome
    }

    /// The lane, with the ports `vnics` instead of its own, the counters, and what a worker lends.
    pub(super) fn into_lane(mut self, vnics: Vec<Vnic>) -> (Lane, Arc<ElementCounters>, Bench) {
        self.lane.pipe.vnics = vnics;
        (self.lane, self.counters, self.bench)
    }

    pub(super) fn counters(&self) -> Snapshot {
        self.counters.snapshot()
    }

    pub(super) fn assert_conserved(&self) {
        let counters = self.counters();
        assert!(counters.is_conserved(), "{counters:?}");
    }

    /// The router's own work, done here by hand: what the guest received on `from` it sends on
    /// the other vNIC, translated.
    pub(super) fn guest_forwards(&mut self, from: VnicId) -> usize {
        self.guest_forwards_some(from, usize::MAX)
    }

    /// The same for the oldest `count` frames only.
    pub(super) fn guest_forwards_some(&mut self, from: VnicId, count: usize) -> usize {
        let (source, target) = if from == LAN {
            (&self.lan, &self.wan)
        } else {
            (&self.wan, &self.lan)
        };
        let frames = source.guest.take_some(count);
        for frame in &frames {
            target.guest.send(&routed(from, frame).data, frame.offload);
        }
        frames.len()
    }

    /// The router sends what it received on `LAN` by the second queue pair of `WAN`.
    pub(super) fn guest_forwards_by_second_queue(&mut self) {
        for frame in &self.lan.guest.take() {
            self.wan
                .second
                .1
                .send(&routed(LAN, frame).data, frame.offload);
        }
    }
}

pub(super) fn vnic(mac: MacAddr, peer: PeerOffloads) -> (Ends, Vnic) {
    let (uplink_port, uplink) = port(peer);
    let (guest_port, guest) = port(peer);
    let (second_uplink_port, second_uplink) = port(peer);
    let (second_guest_port, second_guest) = port(peer);
    let second = (second_uplink, second_guest);
    let vnic = Vnic::new(
        mac,
        vec![Box::new(guest_port), Box::new(second_guest_port)],
        vec![Box::new(uplink_port), Box::new(second_uplink_port)],
    );
    (
        Ends {
            uplink,
            guest,
            second,
        },
        vnic,
    )
}

/// A masqueraded session from CLIENT to SERVER, both directions, MACs left to be learned.
pub(super) fn session(key: &str, protocol: u8) -> SessionRequest {
    let tuple = Tuple {
        src: CLIENT.0.into(),
        dst: SERVER.0.into(),
        protocol,
        src_port: CLIENT.1,
        dst_port: SERVER.1,
    };
    let translation = Tuple {
        src: OUTSIDE.0.into(),
        src_port: OUTSIDE.1,
        ..tuple
    };
    let direction = |ingress, egress, tuple, translation| DirectionRequest {
        ingress,
        ingress_vlan: None,
        ingress_mac: None,
        tuple,
        translation,
        egress,
        egress_vlan: None,
        dst_mac: None,
        src_mac: None,
        l3_mtu: None,
        decrement_ttl: true,
        dscp: None,
    };
    SessionRequest {
        key: key.to_owned(),
        protocol,
        idle_timeout: Duration::from_secs(60),
        hard_timeout: None,
        mode: HandOverMode::Ordered,
        vouched: false,
        original: Some(direction(LAN, WAN, tuple, translation)),
        reply: Some(direction(
            WAN,
            LAN,
            translation.reversed(),
            tuple.reversed(),
        )),
    }
}

/// The same, vouched for, so that it is active at once.
pub(super) fn vouched(key: &str, protocol: u8) -> SessionRequest {
    let mut request = session(key, protocol);
    request.vouched = true;
    if let Some(original) = &mut request.original {
        (original.dst_mac, original.src_mac) = (Some(SERVER_MAC), Some(WAN_MAC));
    }
    if let Some(reply) = &mut request.reply {
        (reply.dst_mac, reply.src_mac) = (Some(CLIENT_MAC), Some(LAN_MAC));
    }
    request
}

type End = (Ipv4Addr, u16);

pub(super) fn udp(
    macs: (MacAddr, MacAddr),
    src: End,
    dst: End,
    ttl: u8,
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs.0.0, macs.1.0)
        .ipv4(src.0.octets(), dst.0.octets(), ttl)
        .udp(src.1, dst.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A datagram of the client with `number` in it, as it comes in by the lan uplink.
pub(super) fn datagram(number: u32) -> Vec<u8> {
    udp(
        (CLIENT_MAC, LAN_MAC),
        CLIENT,
        SERVER,
        64,
        &number.to_be_bytes(),
    )
}

/// A TCP segment of the client.
pub(super) fn segment(
    seq: u32,
    flags: impl Fn(
        etherparse::PacketBuilderStep<etherparse::TcpHeader>,
    ) -> etherparse::PacketBuilderStep<etherparse::TcpHeader>,
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC.0, LAN_MAC.0)
        .ipv4(CLIENT.0.octets(), SERVER.0.octets(), 64)
        .tcp(CLIENT.1, SERVER.1, seq, 512);
    let mut frame = Vec::new();
    flags(builder).write(&mut frame, payload).unwrap();
    frame
}

/// Source and destination of a frame, and its payload, read by an independent parser.
pub(super) fn seen(frame: &[u8]) -> (End, End, u8, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
        panic!("not IPv4: {frame:02x?}")
    };
    let header = ip.header();
    assert_eq!(
        header.to_header().calc_header_checksum(),
        header.header_checksum()
    );
    let (src_port, dst_port, payload) = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => {
            let sum = udp
                .to_header()
                .calc_checksum_ipv4(&header.to_header(), udp.payload());
            assert_eq!(sum.unwrap(), udp.checksum(), "UDP checksum");
            (
                udp.source_port(),
                udp.destination_port(),
                udp.payload().to_vec(),
            )
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let sum = tcp
                .to_header()
                .calc_checksum_ipv4(&header.to_header(), tcp.payload());
            assert_eq!(sum.unwrap(), tcp.checksum(), "TCP checksum");
            (
                tcp.source_port(),
                tcp.destination_port(),
                tcp.payload().to_vec(),
            )
        }
        other => panic!("unexpected transport {other:?}"),
    };
    let src = (header.source_addr(), src_port);
    let dst = (header.destination_addr(), dst_port);
    (src, dst, header.ttl(), payload)
}

pub(super) fn macs(frame: &[u8]) -> (MacAddr, MacAddr) {
    let at = |start: usize| MacAddr(frame[start..start + 6].try_into().unwrap());
    (at(0), at(6))
}

/// What a masquerading router makes of a frame.
pub(super) fn routed(from: VnicId, frame: &Loose) -> Loose {
    let sliced = SlicedPacket::from_ethernet(&frame.data).unwrap();
    let Some(NetSlice::Ipv4(ip)) = sliced.net else {
        panic!("not IPv4")
    };
    let mut ip = ip.header().to_header();
    ip.time_to_live -= 1;
    let (dst_mac, src_mac) = if from == LAN {
        (SERVER_MAC, WAN_MAC)
    } else {
        (CLIENT_MAC, LAN_MAC)
    };
    let (src, dst) = if from == LAN {
        ip.source = OUTSIDE.0.octets();
        (Some(OUTSIDE.1), None)
    } else {
        ip.destination = CLIENT.0.octets();
        (None, Some(CLIENT.1))
    };
    let builder = PacketBuilder::ethernet2(src_mac.0, dst_mac.0).ip(etherparse::IpHeaders::Ipv4(
        ip,
        etherparse::Ipv4Extensions::default(),
    ));
    let mut data = Vec::new();
    match sliced.transport {
        Some(TransportSlice::Udp(udp)) => builder
            .udp(
                src.unwrap_or(udp.source_port()),
                dst.unwrap_or(udp.destination_port()),
            )
            .write(&mut data, udp.payload())
            .unwrap(),
        Some(TransportSlice::Tcp(tcp)) => {
            let mut header = tcp.to_header();
            header.source_port = src.unwrap_or(header.source_port);
            header.destination_port = dst.unwrap_or(header.destination_port);
            builder
                .tcp_header(header)
                .write(&mut data, tcp.payload())
                .unwrap();
        }
        other => panic!("unexpected transport {other:?}"),
    }
    Loose {
        data,
        offload: Offload::default(),
    }
}

pub(super) const UDP: u8 = protocol::UDP;
pub(super) const TCP: u8 = protocol::TCP;

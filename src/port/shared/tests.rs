use std::collections::HashMap;
use std::os::fd::RawFd;

use proptest::prelude::*;

use super::*;
use crate::packet::{Burst, Checksum, MacAddr, Offload, PeerOffloads, TxFrame, VlanId};
use crate::port::testing::{FarEnd, TestDevice, port};
use crate::port::{Armed, PollRegistry, Poller, TxReport};

const BROADCAST: MacAddr = MacAddr([0xff; 6]);
const OUTSIDE: MacAddr = MacAddr([2, 0, 0, 0, 9, 9]);

/// An epoll set that only remembers.
#[derive(Default)]
#[expect(clippy::disallowed_types, reason = "a test's own")]
struct Watched(std::sync::Mutex<Vec<RawFd>>);

impl PollRegistry for Watched {
    fn add(&self, fd: RawFd, _: u64) -> std::io::Result<()> {
        self.0.lock().unwrap().push(fd);
        Ok(())
    }

    fn remove(&self, fd: RawFd) -> std::io::Result<()> {
        self.0.lock().unwrap().retain(|own| *own != fd);
        Ok(())
    }

    fn wake(&self) {}
}

impl Watched {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Whether a descriptor here has been rung.
    fn is_rung(&self) -> bool {
        let fds = self.0.lock().unwrap();
        let mut polled: Vec<libc::pollfd> = fds
            .iter()
            .map(|fd| libc::pollfd {
                fd: *fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        // SAFETY: the pointer and the length are the vector's.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 0) > 0 }
    }
}

struct Member {
    port: Box<dyn Port>,
    device: Arc<dyn Device>,
    watched: Arc<Watched>,
}

impl Member {
    fn received(&mut self) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        let mut all = Vec::new();
        while self.port.receive(&mut burst) > 0 {
            all.extend((0..burst.len()).map(|index| burst.frame(index).data.to_vec()));
            burst.clear();
        }
        all
    }

    fn send(&mut self, frames: &[Vec<u8>]) -> TxReport {
        let frames: Vec<TxFrame<'_>> = frames
            .iter()
            .map(|data| TxFrame {
                data,
                offload: Offload::default(),
            })
            .collect();
        self.port.transmit(&frames)
    }
}

/// A shared device and its far end.
fn device() -> (SharedDevice, FarEnd) {
    let (own, far) = port(PeerOffloads::ALL);
    let opened: Opened = (Arc::new(TestDevice), vec![Box::new(own)]);
    (SharedDevice::new(opened), far)
}

fn selector(vlan: u16, mac: MacAddr) -> Selector {
    Selector {
        vlan: VlanId::try_from(vlan).ok(),
        macs: vec![mac],
    }
}

fn join(shared: &SharedDevice, vlan: u16, mac: MacAddr) -> Member {
    let (device, mut ports) = shared.join(&selector(vlan, mac)).unwrap();
    let watched = Arc::new(Watched::default());
    let mut port = ports.pop().unwrap();
    port.attach(Poller::new(watched.clone(), 0)).unwrap();
    Member {
        port,
        device,
        watched,
    }
}

fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}

/// A frame with `content` that tells it from others.
fn frame(dst: MacAddr, src: MacAddr, vlan: u16, content: u16) -> Vec<u8> {
    let mut all = [dst.0, src.0].concat();
    if vlan != 0 {
        all.extend([0x81, 0x00]);
        all.extend(vlan.to_be_bytes());
    }
    all.extend([0x08, 0x00]);
    all.extend(content.to_be_bytes());
    all.extend([0; 40]);
    all
}

#[test]
fn a_member_s_frames_leave_with_its_tag_and_the_checksum_s_place_moves_along() {
    let (shared, far) = device();
    let mut tagged = join(&shared, 20, mac(1));
    let mut plain = join(&shared, 0, mac(1));
    let sent = frame(OUTSIDE, mac(1), 0, 7);
    let offload = Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 6,
        },
        ..Offload::default()
    };
    let one = [TxFrame {
        data: &sent,
        offload,
    }];
    for member in [&mut tagged, &mut plain] {
        assert_eq!(member.port.transmit(&one).consumed, 1);
    }
    let left = far.take();
    assert_eq!(left[0].data, frame(OUTSIDE, mac(1), 20, 7));
    let start = |at: usize| match left[at].offload.checksum {
        Checksum::Partial { start, .. } => start,
        other => panic!("{other:?}"),
    };
    assert_eq!((start(0), start(1)), (38, 34));
    assert_eq!(left[1].data, sent);

    // And back.
    far.send(
        &frame(mac(1), OUTSIDE, 20, 8),
        Offload {
            checksum: Checksum::Partial {
                start: 38,
                offset: 6,
            },
            ..Offload::default()
        },
    );
    let mut burst = Burst::new();
    assert_eq!(tagged.port.receive(&mut burst), 1);
    assert_eq!(burst.frame(0).data, frame(mac(1), OUTSIDE, 0, 8));
    assert_eq!(burst.frame(0).offload, offload);
}

#[test]
fn a_member_cannot_pretend_to_another_s_address_or_vlan() {
    let (shared, far) = device();
    let mut one = join(&shared, 20, mac(1));
    let mut plain = join(&shared, 0, mac(3));
    let _other = join(&shared, 30, mac(2));
    let stacked = [
        &frame(OUTSIDE, mac(1), 0, 3)[..12],
        &[0x88, 0xa8, 0, 30, 8, 0],
    ]
    .concat();
    let report = one.send(&[
        frame(OUTSIDE, mac(2), 0, 1),
        frame(OUTSIDE, mac(1), 30, 2),
        stacked,
        frame(OUTSIDE, mac(1), 0, 4),
        vec![1, 2, 3],
        vec![],
    ]);
    assert_eq!((report.consumed, report.refused), (6, 0b11_0111));
    // Also where no tag of its own would cover it.
    let report = plain.send(&[frame(mac(2), mac(3), 30, 5), frame(mac(2), mac(3), 0, 6)]);
    assert_eq!((report.consumed, report.refused), (2, 0b01));
    let left: Vec<_> = far.take().into_iter().map(|loose| loose.data).collect();
    assert_eq!(
        left,
        [frame(OUTSIDE, mac(1), 20, 4), frame(mac(2), mac(3), 0, 6)]
    );
}

#[test]
fn members_of_a_vlan_reach_each_other_and_group_frames_reach_all_but_the_sender() {
    let (shared, far) = device();
    let mut a = join(&shared, 20, mac(1));
    let mut b = join(&shared, 20, mac(2));
    let mut c = join(&shared, 20, mac(3));
    let mut elsewhere = join(&shared, 30, mac(4));
    a.send(&[
        frame(mac(2), mac(1), 0, 1),
        frame(BROADCAST, mac(1), 0, 2),
        frame(mac(4), mac(1), 0, 3),
    ]);
    let (one, two) = (frame(mac(2), mac(1), 0, 1), frame(BROADCAST, mac(1), 0, 2));
    assert_eq!(b.received(), [one, two.clone()]);
    assert_eq!(c.received(), [two]);
    assert_eq!(a.received(), Vec::<Vec<u8>>::new());
    assert_eq!(elsewhere.received(), Vec::<Vec<u8>>::new());
    let left: Vec<_> = far.take().into_iter().map(|loose| loose.data).collect();
    // What is for a member here does not leave; the other VLAN is beyond the wire.
    assert_eq!(
        left,
        [
            frame(BROADCAST, mac(1), 20, 2),
            frame(mac(4), mac(1), 20, 3)
        ]
    );
}

#[test]
fn a_full_device_takes_a_prefix_and_nothing_behind_it_is_delivered() {
    let (shared, far) = device();
    for vlan in [0, 20] {
        let mut a = join(&shared, vlan, mac(1));
        let mut b = join(&shared, vlan, mac(2));
        far.set_room(1);
        let report = a.send(&[
            frame(OUTSIDE, mac(1), 0, 1),
            frame(mac(2), mac(1), 0, 2),
            frame(OUTSIDE, mac(1), 0, 3),
            frame(mac(2), mac(1), 0, 4),
        ]);
        assert_eq!(report.consumed, 2);
        assert_eq!(b.received(), [frame(mac(2), mac(1), 0, 2)]);
        assert_eq!(far.take().len(), 1);
        far.set_room(usize::MAX);
    }
}

#[test]
fn a_frame_too_long_with_its_tag_is_told_and_holds_up_nothing() {
    let (shared, far) = device();
    let mut a = join(&shared, 20, mac(1));
    let mut long = frame(OUTSIDE, mac(1), 0, 1);
    long.resize(crate::packet::FRAME_MAX, 0);
    let report = a.send(&[long, frame(OUTSIDE, mac(1), 0, 2)]);
    assert_eq!((report.consumed, report.too_large), (2, 1));
    assert_eq!(far.take().len(), 1);
}

#[test]
fn a_member_that_fetches_nothing_loses_its_own_frames_only() {
    let (shared, far) = device();
    let mut busy = join(&shared, 20, mac(1));
    let mut lazy = join(&shared, 20, mac(2));
    let many = 3_000;
    for number in 0..many {
        far.send(&frame(mac(2), OUTSIDE, 20, number), Offload::default());
        far.send(&frame(mac(1), OUTSIDE, 20, number), Offload::default());
        if number % 20 == 0 {
            far.send(&frame(mac(9), OUTSIDE, 20, number), Offload::default());
        }
    }
    let expected: Vec<_> = (0..many)
        .map(|number| frame(mac(1), OUTSIDE, 0, number))
        .collect();
    let mut got = Vec::new();
    // A receive may find others' frames only.
    while got.len() < expected.len() {
        let more = busy.received();
        got.extend(more);
    }
    assert_eq!(got, expected);
    let kept = lazy.received();
    assert!((256..many as usize).contains(&kept.len()), "{}", kept.len());
    assert_eq!(
        kept,
        (0..kept.len() as u16)
            .map(|n| frame(mac(2), OUTSIDE, 0, n))
            .collect::<Vec<_>>()
    );
    assert_eq!(busy.device.status().unclaimed, u64::from(many) / 20);
}

#[test]
fn a_sleeping_member_is_rung_by_whoever_takes_its_frame() {
    let (shared, far) = device();
    let mut a = join(&shared, 20, mac(1));
    let mut b = join(&shared, 20, mac(2));
    assert_eq!(b.port.arm(), Armed::Asleep);
    far.send(&frame(mac(2), OUTSIDE, 20, 1), Offload::default());
    assert!(!b.watched.is_rung());
    assert_eq!(a.received().len(), 0);
    assert!(b.watched.is_rung());
    assert_eq!(b.port.arm(), Armed::Ready);
    b.port.disarm();
    assert_eq!(b.received(), [frame(mac(2), OUTSIDE, 0, 1)]);
    assert_eq!(b.port.arm(), Armed::Asleep);
    a.send(&[frame(mac(2), mac(1), 0, 2)]);
    assert_eq!(b.port.arm(), Armed::Ready);
}

#[test]
fn the_device_wakes_one_member_and_another_one_after_that_has_left() {
    let (shared, far) = device();
    let mut a = join(&shared, 20, mac(1));
    let mut b = join(&shared, 20, mac(2));
    // Its own bell, and the device's descriptor.
    assert_eq!((a.watched.count(), b.watched.count()), (2, 1));
    assert_eq!((a.port.arm(), b.port.arm()), (Armed::Asleep, Armed::Asleep));
    let left = a.watched.clone();
    drop(a);
    assert_eq!((left.count(), b.watched.count()), (0, 2));
    // It must ask the device for notifications now.
    assert!(b.watched.is_rung());
    b.port.disarm();
    assert_eq!(b.port.arm(), Armed::Asleep);
    far.send(&frame(mac(1), OUTSIDE, 20, 1), Offload::default());
    assert_eq!(b.received().len(), 0);
    assert_eq!(b.device.status().unclaimed, 1);
    // The place and the address are free again, and the last to leave can be followed.
    drop(b);
    let mut c = join(&shared, 20, mac(1));
    assert_eq!(c.watched.count(), 2);
    far.send(&frame(mac(1), OUTSIDE, 20, 2), Offload::default());
    assert_eq!(c.received(), [frame(mac(1), OUTSIDE, 0, 2)]);
}

#[test]
fn an_address_that_is_taken_is_refused_and_nothing_stays_behind() {
    let (shared, _far) = device();
    let _a = join(&shared, 20, mac(1));
    let refused = shared.join(&selector(20, mac(1)));
    assert!(matches!(refused, Err(JoinError::Taken(taken)) if taken.mac == mac(1)));
    join(&shared, 21, mac(1));
}

proptest! {
    /// Whatever comes, and whoever looks when: each member gets exactly its own, in order.
    #[test]
    fn every_frame_reaches_exactly_those_whose_it_is(
        steps in prop::collection::vec((0u8..6, 0u16..3, 0usize..4), 1..150)
    ) {
        let (shared, far) = device();
        let places = [(0, 1), (20, 1), (20, 2), (2, 3)];
        let mut members = places.map(|(vlan, number)| join(&shared, vlan, mac(number)));
        let mut expected: HashMap<usize, Vec<Vec<u8>>> = HashMap::new();
        let mut got: HashMap<usize, Vec<Vec<u8>>> = HashMap::new();
        for (content, (dst, vlan, looks)) in (0u16..).zip(steps) {
            let vlan = vlan * 10;
            let dst = if dst == 0 { BROADCAST } else { mac(dst) };
            far.send(&frame(dst, OUTSIDE, vlan, content), Offload::default());
            for (place, (own_vlan, own_mac)) in places.iter().enumerate() {
                if *own_vlan == vlan && (dst == BROADCAST || dst == mac(*own_mac)) {
                    let bare = frame(dst, OUTSIDE, 0, content);
                    expected.entry(place).or_default().push(bare);
                }
            }
            got.entry(looks).or_default().extend(members[looks].received());
        }
        for (place, member) in members.iter_mut().enumerate() {
            got.entry(place).or_default().extend(member.received());
            prop_assert_eq!(
                got.get(&place).cloned().unwrap_or_default(),
                expected.remove(&place).unwrap_or_default()
            );
        }
    }
}

//! What a device offers, and what an answer means.
//!
//! *Promises*: pure functions of feature words.
//! *Refuses*: nothing here: a frontend that acknowledges what was not offered is
//! disconnected by the protocol crate.
//! *Caller's duty*: none.
//! *Standard*: virtio 1.2 sections 5.1.3 and 6; vhost-user "Feature bits" and "Protocol
//! features".
//!
//! Left out on purpose:
//! - `VHOST_USER_PROTOCOL_F_CONFIG`: QEMU's vhost-user-net owns its configuration space
//!   (it warns, and masks the bit), and DPDK's virtio-user does without.
//! - `VHOST_USER_PROTOCOL_F_MTU`, RARP, INFLIGHT_SHMFD, STATUS: the protocol crate cannot
//!   receive them. QEMU passes its `host_mtu=` to the guest without.
//! - Packed rings, `VIRTIO_F_ACCESS_PLATFORM` (no IOTLB), UFO (nobody sends it any more).
//!
//! The control queue is always the VMM's own. Its bit is offered all the same, because
//! cloud-hypervisor gives its guest one only then; the queue is not counted by us.

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use super::{DeviceConfig, Side};
use crate::packet::PeerOffloads;

macro_rules! features {
    ($($name:ident = $bit:expr, $text:literal;)*) => {
        $(pub(super) const $name: u64 = 1 << $bit;)*

        /// Each feature with its name in the standard, lowest bit first.
        const NAMES: &[(u64, &str)] = &[$(($name, $text)),*];
    };
}

features! {
    CSUM = 0, "csum";
    GUEST_CSUM = 1, "guest-csum";
    MTU = 3, "mtu";
    MAC = 5, "mac";
    GUEST_TSO4 = 7, "guest-tso4";
    GUEST_TSO6 = 8, "guest-tso6";
    GUEST_ECN = 9, "guest-ecn";
    HOST_TSO4 = 11, "host-tso4";
    HOST_TSO6 = 12, "host-tso6";
    HOST_ECN = 13, "host-ecn";
    MRG_RXBUF = 15, "mrg-rxbuf";
    STATUS = 16, "status";
    CTRL_VQ = 17, "ctrl-vq";
    GUEST_ANNOUNCE = 21, "guest-announce";
    MQ = 22, "mq";
    LOG_ALL = 26, "log-all";
    INDIRECT_DESC = VIRTIO_RING_F_INDIRECT_DESC, "indirect-desc";
    EVENT_IDX = VIRTIO_RING_F_EVENT_IDX, "event-idx";
    PROTOCOL_FEATURES = 30, "protocol-features";
    VERSION_1 = VIRTIO_F_VERSION_1, "version-1";
    IN_ORDER = VIRTIO_F_IN_ORDER, "in-order";
    GUEST_USO4 = 54, "guest-uso4";
    GUEST_USO6 = 55, "guest-uso6";
    HOST_USO = 56, "host-uso";
}

/// The features that shape a ring or its buffers; a change restarts it.
pub(super) const RING: u64 = VERSION_1 | MRG_RXBUF | INDIRECT_DESC | EVENT_IDX | IN_ORDER;

/// What a device offers.
pub(super) fn offered(config: &DeviceConfig) -> u64 {
    let mut bits = VERSION_1 | IN_ORDER | EVENT_IDX | INDIRECT_DESC | MRG_RXBUF;
    bits |= CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
    bits |= GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
    bits |= STATUS | CTRL_VQ | LOG_ALL | PROTOCOL_FEATURES;
    if config.queue_pairs > 1 {
        bits |= MQ;
    }
    if config.mac.is_some() {
        bits |= MAC;
    }
    if config.mtu != 0 {
        bits |= MTU;
    }
    if config.side == Side::Vnic {
        // After a migration the element tells its neighbours itself.
        bits |= GUEST_ANNOUNCE;
    }
    bits
}

/// The protocol features a device offers.
pub(super) fn protocol() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
}

/// What the peer takes unfinished. Segmentation means nothing without checksums
/// (virtio 1.2 section 5.1.3.1), and one flag here stands for both families of USO.
pub(super) fn peer(acked: u64) -> PeerOffloads {
    let checksum = acked & GUEST_CSUM != 0;
    let has = |bits: u64| checksum && acked & bits == bits;
    PeerOffloads {
        checksum,
        tso4: has(GUEST_TSO4),
        tso6: has(GUEST_TSO6),
        ecn: has(GUEST_ECN),
        uso: has(GUEST_USO4 | GUEST_USO6),
    }
}

/// Bytes of the virtio-net header before each frame (virtio 1.2 section 5.1.6.1).
pub(super) fn header_len(acked: u64) -> u8 {
    if acked & (VERSION_1 | MRG_RXBUF) != 0 {
        12
    } else {
        10
    }
}

/// The names of the features in `acked`; a bit without a name is left out.
pub(super) fn names(acked: u64) -> Vec<String> {
    NAMES
        .iter()
        .filter(|(bit, _)| acked & bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

const _: () = assert!(LOG_ALL == VhostUserVirtioFeatures::LOG_ALL.bits());
const _: () = assert!(PROTOCOL_FEATURES == VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits());

#[cfg(test)]
mod tests {
    use super::*;

    fn config(queue_pairs: u16, side: Side) -> DeviceConfig {
        DeviceConfig {
            queue_pairs,
            side,
            ..DeviceConfig::new("unused")
        }
    }

    #[test]
    fn every_offered_feature_has_a_name() {
        let bits = offered(&DeviceConfig {
            mac: Some(crate::packet::MacAddr([2, 0, 0, 0, 0, 1])),
            mtu: 1500,
            ..config(8, Side::Vnic)
        });
        assert_eq!(names(bits).len(), bits.count_ones() as usize);
    }

    #[test]
    fn several_queues_are_offered_only_with_several_pairs() {
        assert_eq!(offered(&config(1, Side::Vnic)) & MQ, 0);
        assert_ne!(offered(&config(2, Side::Vnic)) & MQ, 0);
    }

    #[test]
    fn segmentation_without_checksums_is_no_segmentation() {
        assert_eq!(
            peer(GUEST_TSO4 | GUEST_USO4 | GUEST_USO6),
            PeerOffloads::default()
        );
        let all = peer(GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6);
        assert!(all.checksum && all.tso4 && all.tso6 && all.ecn && all.uso);
        assert!(!peer(GUEST_CSUM | GUEST_USO4).uso);
    }

    #[test]
    fn the_header_is_short_only_without_version_1_and_merging() {
        assert_eq!(header_len(0), 10);
        assert_eq!(header_len(MRG_RXBUF), 12);
        assert_eq!(header_len(VERSION_1), 12);
    }
}

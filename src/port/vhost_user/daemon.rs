//! The protocol's callbacks for a whole device; those for one vring are in `vring.rs`.
//!
//! *Promises*: nothing here is on the packet path; each callback ends with the rings in
//! the state the peer asked for.
//! *Refuses*: memory tables that `memory.rs` refuses; the peer is disconnected.
//! *Caller's duty*: none beyond the protocol crate's.
//! *Standard*: vhost-user "Front-end message types". RESET_OWNER is ignored, as the
//! specification recommends; frontends stop rings with GET_VRING_BASE.

use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;

use super::device::Shared;
use super::features;
use super::memory::{GuestMemory, RegionLog};
use super::ring::RING_SIZE_MAX;
use super::vring::{Memory, Vring, make_for};

/// A device, as the protocol crate calls it.
#[derive(Clone)]
pub(super) struct Backend {
    device: Arc<Shared>,
}

/// The daemon of one connection.
pub(super) type Daemon = VhostUserDaemon<Backend>;

/// A daemon for the next connection of `device`.
pub(super) fn daemon(device: &Arc<Shared>) -> Result<Daemon, vhost_user_backend::Error> {
    let backend = Backend {
        device: Arc::clone(device),
    };
    let memory = GuestMemoryAtomic::new(GuestMemory::new());
    let (daemon, vrings) = make_for(device, || {
        VhostUserDaemon::new("vhost-user".to_owned(), backend, memory)
    });
    let daemon = daemon?;
    device.begin_session(vrings);
    Ok(daemon)
}

impl VhostUserBackend for Backend {
    type Bitmap = RegionLog;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        usize::from(self.device.config().queue_pairs) * 2
    }

    fn max_queue_size(&self) -> usize {
        usize::from(RING_SIZE_MAX)
    }

    fn features(&self) -> u64 {
        features::offered(self.device.config())
    }

    fn acked_features(&self, features: u64) {
        self.device.set_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        features::protocol()
    }

    fn reset_device(&self) {
        self.device.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // Part of what `acked_features` says.
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.device
            .set_memory(memory.memory().into_inner())
            .map_err(io::Error::other)
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // No thread of the crate: rings are served by Shunt's workers.
        Vec::new()
    }

    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        _vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        // Called by the crate's threads, of which there are none.
        Ok(())
    }
}

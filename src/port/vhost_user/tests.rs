//! The device against a real frontend over a real socket.

mod peer;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::packet::{Burst, Offload, PeerOffloads, TxFrame};
use crate::port::{Armed, Device};
use peer::{Guest, Registry, Vmm, eventually, memfd, open_descriptors, poller};

const RX: usize = 0;
const TX: usize = 1;

struct Fixture {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    device: Arc<VhostUserDevice>,
    ports: Vec<Box<dyn Port>>,
    registry: Arc<Registry>,
}

impl Fixture {
    fn new(pairs: u16) -> Self {
        Self::with(|config| config.queue_pairs = pairs)
    }

    fn with(change: impl FnOnce(&mut DeviceConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vnic");
        let mut config = DeviceConfig::new(&socket);
        change(&mut config);
        let (device, mut ports) = open(config).unwrap();
        let (registry, poller) = poller();
        for port in &mut ports {
            port.attach(poller.clone()).unwrap();
        }
        Self {
            _dir: dir,
            socket,
            device,
            ports,
            registry,
        }
    }

    fn up(&self, guest: &Guest) -> Vmm {
        Vmm::bring_up(&self.socket, guest)
    }

    fn gone(&self, vmm: Vmm) {
        drop(vmm);
        eventually("the device notices", || !self.device.status().connected);
    }

    fn fault(&self, pair: usize) -> Option<String> {
        self.device.status().queues[pair].fault.clone()
    }

    fn received(&mut self, pair: usize) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        let count = self.ports[pair].receive(&mut burst);
        assert_eq!(count, burst.len());
        (0..count).map(|n| burst.frame(n).data.to_vec()).collect()
    }

    fn transmit(&mut self, pair: usize, data: &[u8]) -> usize {
        let frame = TxFrame {
            data,
            offload: Offload::default(),
        };
        self.ports[pair].transmit(&[frame]).consumed
    }

    /// A frame each way through `pair`.
    fn exchange(&mut self, guest: &mut Guest, pair: usize, mark: u8) {
        guest.send(pair * 2 + TX, &[mark; 60]);
        assert_eq!(self.received(pair), [vec![mark; 60]]);
        guest.post(pair * 2 + RX);
        assert_eq!(self.transmit(pair, &[mark ^ 0xff; 70]), 1);
        assert_eq!(guest.take(pair * 2 + RX), Some(vec![mark ^ 0xff; 70]));
    }
}

#[test]
fn a_frame_goes_each_way_and_is_counted() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    assert_eq!(f.ports[0].peer(), PeerOffloads::default());
    assert!(!f.ports[0].is_running());
    let _vmm = f.up(&guest);
    assert!(f.ports[0].is_running() && f.ports[0].peer().tso4 && f.ports[0].peer().uso);
    f.exchange(&mut guest, 0, 1);
    guest.rings[TX].call.read().unwrap();
    guest.rings[RX].call.read().unwrap();
    let status = f.device.status();
    assert!(status.connected && status.features.contains(&"in-order".to_owned()));
    let queue = &status.queues[0];
    assert_eq!((queue.rx_frames, queue.rx_bytes), (1, 60));
    assert_eq!((queue.tx_frames, queue.tx_bytes), (1, 70));
    assert!(queue.running && status.faults == 0);
}

#[test]
fn a_full_or_absent_peer_leaves_frames_unconsumed() {
    let mut f = Fixture::new(1);
    assert_eq!(f.transmit(0, &[0; 60]), 0);
    let guest = Guest::new(1);
    let _vmm = f.up(&guest);
    assert_eq!(f.transmit(0, &[0; 60]), 0);
}

#[test]
fn arming_sleeps_until_something_comes_and_a_start_wakes() {
    use std::sync::atomic::Ordering;
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    assert_eq!(f.ports[0].arm(), Armed::Asleep);
    let _vmm = f.up(&guest);
    assert!(f.registry.wakes.load(Ordering::SeqCst) >= 2);
    // The timer for peers that never kick, and the transmit queue's kick descriptor.
    assert_eq!(f.registry.watched.lock().unwrap().len(), 2);
    assert_eq!(f.ports[0].arm(), Armed::Asleep);
    guest.send(TX, &[1; 60]);
    assert_eq!(f.ports[0].arm(), Armed::Ready);
    f.ports[0].disarm();
    assert_eq!(f.received(0).len(), 1);
}

#[test]
fn stopping_a_ring_answers_its_used_index_and_forgets_its_kick() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let vmm = f.up(&guest);
    for mark in 0..3 {
        f.exchange(&mut guest, 0, mark);
    }
    assert_eq!(vmm.frontend.get_vring_base(TX).unwrap(), 3);
    assert_eq!(vmm.frontend.get_vring_base(RX).unwrap(), 3);
    assert!(!f.ports[0].is_running());
    assert_eq!(f.registry.watched.lock().unwrap().len(), 1);
    guest.send(TX, &[9; 60]);
    assert!(f.received(0).is_empty());
}

#[test]
fn a_disabled_ring_rests_and_goes_on_where_it_was() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let mut vmm = f.up(&guest);
    f.exchange(&mut guest, 0, 1);
    vmm.frontend.set_vring_enable(TX, false).unwrap();
    guest.send(TX, &[2; 60]);
    assert!(f.received(0).is_empty());
    vmm.frontend.set_vring_enable(TX, true).unwrap();
    assert_eq!(f.received(0), [[2; 60]]);
}

#[test]
fn after_a_reconnect_rings_resume_at_their_used_index_whatever_the_base() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let vmm = f.up(&guest);
    f.exchange(&mut guest, 0, 1);
    f.exchange(&mut guest, 0, 2);
    f.gone(vmm);
    assert!(!f.ports[0].is_running() && f.ports[0].peer() == PeerOffloads::default());
    // Sent while the backend was away; the base says it was taken already.
    guest.send(TX, &[3; 60]);
    let mut vmm = Vmm::connect(&f.socket, 1, 0);
    vmm.share(&guest);
    vmm.start(&guest, TX, guest.rings[TX].avail);
    vmm.start(&guest, RX, 0);
    assert_eq!(f.received(0), [[3; 60]]);
    f.exchange(&mut guest, 0, 4);
    assert_eq!(f.device.status().connections, 2);
    assert_eq!(f.device.status().faults, 0);
}

#[test]
fn a_new_guest_on_the_same_socket_starts_from_nothing() {
    let mut f = Fixture::new(1);
    for mark in 0..3 {
        let mut guest = Guest::new(1);
        let vmm = f.up(&guest);
        f.exchange(&mut guest, 0, mark);
        f.gone(vmm);
    }
    assert_eq!(f.device.status().connections, 3);
}

#[test]
fn client_mode_waits_for_the_frontend_and_finds_it_again() {
    let mut f = Fixture::with(|config| config.mode = SocketMode::Client);
    for mark in 1..3 {
        let listener = UnixListener::bind(&f.socket).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut guest = Guest::new(1);
        let mut vmm = Vmm::negotiate(Frontend::from_stream(stream, 2), 0);
        vmm.share(&guest);
        vmm.start(&guest, RX, 0);
        vmm.start(&guest, TX, 0);
        f.exchange(&mut guest, 0, mark);
        drop(listener);
        std::fs::remove_file(&f.socket).unwrap();
        f.gone(vmm);
    }
}

#[test]
fn eight_queue_pairs_run_side_by_side() {
    let mut f = Fixture::new(8);
    let mut guest = Guest::new(8);
    let vmm = f.up(&guest);
    for pair in 0..8 {
        f.exchange(&mut guest, pair, pair as u8);
    }
    assert!(f.device.status().queues.iter().all(|queue| queue.running));
    f.gone(vmm);
}

/// Breaks the transmit ring with what `break_it` writes; its neighbour goes on.
fn hostile(expected: &str, break_it: impl FnOnce(&mut Guest)) {
    let (mut f, mut neighbour) = (Fixture::new(1), Fixture::new(1));
    let (mut guest, mut other) = (Guest::new(1), Guest::new(1));
    let (_vmm, _other_vmm) = (f.up(&guest), neighbour.up(&other));
    f.exchange(&mut guest, 0, 1);
    break_it(&mut guest);
    assert!(f.received(0).is_empty());
    assert!(f.received(0).is_empty());
    let fault = f.fault(0).expect("the ring should have stopped");
    assert!(fault.contains(expected), "{fault}");
    assert!(!f.ports[0].is_running());
    assert_eq!(f.ports[0].arm(), Armed::Asleep);
    assert_eq!(f.device.status().faults, 1);
    assert_eq!(guest.rings[TX].error.read().unwrap(), 1);
    // The other direction and the other device have nothing to do with it.
    guest.post(RX);
    assert_eq!(f.transmit(0, &[5; 60]), 1);
    neighbour.exchange(&mut other, 0, 2);
    assert_eq!(neighbour.device.status().faults, 0);
}

#[test]
fn a_descriptor_chain_out_of_range_stops_its_ring() {
    hostile("outside a table", |guest| {
        guest.describe(TX, 5, 0x10_0000, 64, 1, 4711);
        guest.offer(TX, 5);
    });
}

#[test]
fn a_descriptor_loop_stops_its_ring() {
    hostile("loops", |guest| {
        guest.describe(TX, 5, 0x10_0000, 64, 1, 5);
        guest.offer(TX, 5);
    });
}

#[test]
fn a_buffer_of_no_bytes_stops_its_ring() {
    hostile("0 bytes", |guest| {
        guest.describe(TX, 5, 0x10_0000, 0, 0, 0);
        guest.offer(TX, 5);
    });
}

#[test]
fn an_unmapped_buffer_stops_its_ring() {
    hostile("not in the guest's memory", |guest| {
        guest.describe(TX, 5, 1 << 40, 64, 0, 0);
        guest.offer(TX, 5);
    });
}

#[test]
fn an_odd_indirect_table_stops_its_ring() {
    hostile("indirect table of 17 bytes", |guest| {
        guest.describe(TX, 5, 0x10_0000, 17, 4, 0);
        guest.offer(TX, 5);
    });
}

#[test]
fn a_ring_that_broke_runs_again_once_its_peer_starts_it_anew() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let mut vmm = f.up(&guest);
    f.exchange(&mut guest, 0, 1);
    guest.describe(TX, 5, 0, 0, 0, 0);
    guest.offer(TX, 5);
    assert!(f.received(0).is_empty() && f.fault(0).is_some());
    let stopped_at = vmm.frontend.get_vring_base(TX).unwrap();
    assert_eq!(stopped_at, 1);
    // The driver takes its broken chain back and goes on.
    guest.rings[TX].avail = 1;
    guest.send(TX, &[2; 60]);
    vmm.start(&guest, TX, 1);
    assert_eq!(f.received(0), [[2; 60]]);
    assert_eq!(f.fault(0), None);
}

#[test]
fn a_queue_size_that_is_no_power_of_two_stops_that_ring_only() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let mut vmm = Vmm::connect(&f.socket, 1, 0);
    vmm.share(&guest);
    vmm.start(&guest, RX, 0);
    vmm.frontend.set_vring_num(TX, 100).unwrap();
    vmm.address(&guest, TX);
    vmm.frontend
        .set_vring_kick(TX, &guest.rings[TX].kick)
        .unwrap();
    vmm.frontend.set_vring_enable(TX, true).unwrap();
    assert!(f.fault(0).unwrap().contains("queue size 100"));
    guest.post(RX);
    assert_eq!(f.transmit(0, &[1; 60]), 1);
    assert_eq!(guest.take(RX), Some(vec![1; 60]));
    vmm.start(&guest, TX, 0);
    f.exchange(&mut guest, 0, 3);
}

#[test]
fn a_region_longer_than_its_file_is_refused_in_words() {
    let f = Fixture::new(1);
    let vmm = Vmm::connect(&f.socket, 1, 0);
    let file = memfd(4096);
    let region = VhostUserMemoryRegionInfo {
        memory_size: 2 << 20,
        userspace_addr: 0x1000_0000,
        mmap_handle: peer::raw(&file),
        ..Default::default()
    };
    vmm.frontend.set_mem_table(&[region]).unwrap_err();
    eventually("the peer is sent away", || !f.device.status().connected);
    let fault = f.fault(0).unwrap();
    assert!(fault.contains("which has only 4096"), "{fault}");
    // The next one is welcome.
    let guest = Guest::new(1);
    let _vmm = f.up(&guest);
    assert_eq!(f.fault(0), None);
}

#[test]
fn a_file_shortened_while_rings_run_costs_that_device_only() {
    let (mut f, mut neighbour) = (Fixture::new(1), Fixture::new(1));
    let (mut guest, mut other) = (Guest::new(1), Guest::new(1));
    let (vmm, _other_vmm) = (f.up(&guest), neighbour.up(&other));
    f.exchange(&mut guest, 0, 1);
    guest.send(TX, &[2; 60]);
    guest.file.set_len(0x1000).unwrap();
    f.received(0);
    assert!(f.fault(0).unwrap().contains("took away memory"));
    assert_eq!(f.transmit(0, &[1; 60]), 0);
    neighbour.exchange(&mut other, 0, 2);
    assert!(neighbour.ports[0].is_running());
    f.gone(vmm);
    // A guest with sound memory gets a sound device.
    let mut guest = Guest::new(1);
    let _vmm = f.up(&guest);
    f.exchange(&mut guest, 0, 3);
}

#[test]
fn memory_removed_while_rings_run_stops_them_with_a_reason() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let vmm = f.up(&guest);
    f.exchange(&mut guest, 0, 1);
    let elsewhere = Guest::new(1);
    let mut region = VhostUserMemoryRegionInfo::from_guest_region(elsewhere.region()).unwrap();
    region.guest_phys_addr = 1 << 32;
    vmm.frontend.set_mem_table(&[region]).unwrap();
    assert!(f.fault(0).unwrap().contains("not inside one memory region"));
    assert!(f.received(0).is_empty());
    assert_eq!(f.device.status().faults, 2);
}

#[test]
fn memory_added_and_removed_beside_the_rings_leaves_them_running() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let mut vmm = f.up(&guest);
    let extra = memfd(0x10000);
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 1 << 32,
        memory_size: 0x10000,
        userspace_addr: 1 << 33,
        mmap_offset: 0,
        mmap_handle: peer::raw(&extra),
    };
    vmm.frontend.add_mem_region(&region).unwrap();
    f.exchange(&mut guest, 0, 1);
    vmm.frontend.remove_mem_region(&region).unwrap();
    f.exchange(&mut guest, 0, 2);
}

#[test]
fn resetting_the_device_stops_its_rings_until_they_are_set_up_anew() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let mut vmm = f.up(&guest);
    f.exchange(&mut guest, 0, 1);
    vmm.frontend.reset_device().unwrap();
    assert!(!f.ports[0].is_running());
    let offered = vmm.frontend.get_features().unwrap();
    vmm.frontend.set_features(offered).unwrap();
    vmm.start(&guest, RX, 0);
    vmm.start(&guest, TX, 0);
    f.exchange(&mut guest, 0, 2);
}

#[test]
fn pages_written_during_a_migration_are_logged_and_only_then() {
    use std::os::unix::fs::FileExt;
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let vmm = f.up(&guest);
    let log = memfd(4096);
    let region = VhostUserDirtyLogRegion {
        mmap_size: 4096,
        mmap_offset: 0,
        mmap_handle: peer::raw(&log),
    };
    let marked = || {
        let mut bytes = [0u8; 4096];
        log.read_exact_at(&mut bytes, 0).unwrap();
        bytes.iter().map(|byte| byte.count_ones()).sum::<u32>()
    };
    vmm.frontend.set_log_base(0, Some(region)).unwrap();
    f.exchange(&mut guest, 0, 1);
    assert_eq!(marked(), 0);
    let offered = vmm.frontend.get_features().unwrap();
    vmm.frontend.set_features(offered).unwrap();
    f.exchange(&mut guest, 0, 2);
    // The receive buffer and both used rings.
    assert_eq!(marked(), 3);
    vmm.frontend
        .set_features(offered & !features::LOG_ALL)
        .unwrap();
    log.set_len(0).unwrap();
    f.exchange(&mut guest, 0, 3);
    assert_eq!(f.fault(0), None);
}

#[test]
fn a_log_shortened_during_a_migration_costs_that_device_only() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let vmm = f.up(&guest);
    let log = memfd(4096);
    let region = VhostUserDirtyLogRegion {
        mmap_size: 4096,
        mmap_offset: 0,
        mmap_handle: peer::raw(&log),
    };
    vmm.frontend.set_log_base(0, Some(region)).unwrap();
    let offered = vmm.frontend.get_features().unwrap();
    vmm.frontend.set_features(offered).unwrap();
    log.set_len(0).unwrap();
    guest.send(TX, &[1; 60]);
    f.received(0);
    assert!(f.fault(0).unwrap().contains("took away memory"));
}

#[test]
fn a_flood_of_messages_leaks_no_descriptor() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let mut vmm = f.up(&guest);
    let mut again = |count: usize| {
        for _ in 0..count {
            vmm.share(&guest);
            vmm.start(&guest, TX, 0);
        }
    };
    again(2);
    let before = open_descriptors();
    again(200);
    // Other tests of this process open and close theirs meanwhile.
    assert!(open_descriptors() < before + 200);
    f.exchange(&mut guest, 0, 1);
}

#[test]
fn a_call_descriptor_that_could_block_a_worker_is_refused() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let vmm = f.up(&guest);
    let (_reader, writer) = std::io::pipe().unwrap();
    let pipe = {
        use std::os::fd::{FromRawFd, IntoRawFd};
        // SAFETY: the descriptor's owner has just been dissolved.
        unsafe { EventFd::from_raw_fd(writer.into_raw_fd()) }
    };
    vmm.frontend.set_vring_call(TX, &pipe).unwrap();
    assert!(f.fault(0).unwrap().contains("not an eventfd"));
    guest.send(TX, &[1; 60]);
    assert!(f.received(0).is_empty());
}

#[test]
fn a_ring_whose_peer_never_kicks_is_looked_at_by_timer() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let vmm = f.up(&guest);
    let timer = f.registry.watched.lock().unwrap()[0];
    peer::send_no_kick(&vmm.frontend, TX as u64);
    assert!(f.ports[0].is_running());
    assert_eq!(*f.registry.watched.lock().unwrap(), [timer]);
    assert_eq!(f.ports[0].arm(), Armed::Asleep);
    guest.send(TX, &[1; 60]);
    assert!(peer::becomes_readable(timer));
    assert_eq!(f.received(0), [[1; 60]]);
}

#[test]
fn a_busy_worker_never_keeps_the_protocol_out_and_loses_nothing() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let mut vmm = f.up(&guest);
    let mut port = f.ports.remove(0);
    let (stop, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut burst = Burst::new();
            while !stop.load(Ordering::Relaxed) {
                burst.clear();
                seen.fetch_add(port.receive(&mut burst), Ordering::Relaxed);
            }
        });
        for round in 0..500usize {
            guest.send(TX, &[1; 60]);
            match round % 3 {
                0 => vmm.frontend.set_vring_enable(TX, false).unwrap(),
                1 => vmm.share(&guest),
                _ => drop(vmm.frontend.get_vring_base(TX).unwrap()),
            }
            vmm.start(&guest, TX, 0);
            eventually("the frame arrives", || {
                seen.load(Ordering::Relaxed) == round + 1
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(f.fault(0), None);
}

#[test]
fn rings_may_be_enabled_before_features_are_set() {
    // As QEMU does when it makes a device, and after a guest's reset.
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let frontend = Frontend::connect(&f.socket, 2).unwrap();
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    peer::send_enable(&frontend, 0);
    peer::send_enable(&frontend, 1);
    assert!(!f.ports[0].is_running() && f.device.status().features.is_empty());
    let mut vmm = Vmm::set_features(frontend, 0);
    vmm.share(&guest);
    vmm.start(&guest, RX, 0);
    vmm.start(&guest, TX, 0);
    f.exchange(&mut guest, 0, 1);
    vmm.frontend.reset_device().unwrap();
    peer::send_enable(&vmm.frontend, 1);
    vmm.frontend.set_features(offered).unwrap();
    vmm.start(&guest, RX, 0);
    vmm.start(&guest, TX, 0);
    f.exchange(&mut guest, 0, 2);
}

#[test]
fn a_vring_index_out_of_range_disconnects_and_hurts_nobody() {
    let f = Fixture::new(1);
    let vmm = Vmm::connect(&f.socket, 8, 0);
    vmm.frontend.set_vring_num(2, 64).unwrap_err();
    eventually("the peer is sent away", || !f.device.status().connected);
    let _vmm = f.up(&Guest::new(1));
}

#[test]
fn a_live_socket_is_refused_and_a_dead_one_replaced() {
    let f = Fixture::new(1);
    let again = open(DeviceConfig::new(&f.socket)).err().unwrap();
    assert!(matches!(again, OpenError::InUse(_)), "{again}");
    let dead = f.socket.with_extension("dead");
    drop(UnixListener::bind(&dead).unwrap());
    let (device, _ports) = open(DeviceConfig::new(&dead)).unwrap();
    let _vmm = Vmm::connect(&dead, 1, 0);
    drop(device);
    assert!(!dead.exists());
    let file = f.socket.with_extension("file");
    std::fs::write(&file, "precious").unwrap();
    let error = open(DeviceConfig::new(&file)).err().unwrap();
    assert!(matches!(error, OpenError::NotASocket(_)) && file.exists());
    let error = open(DeviceConfig::new(f.socket.join("x/y"))).err().unwrap();
    assert!(error.to_string().contains("create it"));
}

#[test]
fn dropping_the_device_disconnects_its_peer_and_leaves_ports_idle() {
    let mut f = Fixture::new(1);
    let mut guest = Guest::new(1);
    let vmm = f.up(&guest);
    drop(std::mem::replace(&mut f.device, Fixture::new(1).device));
    vmm.frontend.get_features().unwrap_err();
    guest.send(TX, &[1; 60]);
    assert!(f.received(0).is_empty() && !f.ports[0].is_running());
    assert!(!f.socket.exists());
}

#[test]
fn a_port_that_leaves_takes_its_descriptors_out_of_the_poller() {
    let mut f = Fixture::new(2);
    let guest = Guest::new(2);
    let _vmm = f.up(&guest);
    assert_eq!(f.registry.watched.lock().unwrap().len(), 4);
    f.ports.clear();
    assert!(f.registry.watched.lock().unwrap().is_empty());
}

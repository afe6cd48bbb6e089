//! Several queues: a flow stays in one, whatever its ends do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use super::refuse::without;
use super::*;

const QUEUES: u16 = 3;

/// Moves this thread to one of the CPUs that it may use.
fn move_to_cpu(number: usize) {
    // SAFETY: a set of CPUs is plain bits; both calls get its size, and sets are bounded by it.
    unsafe {
        let mut may: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        assert_eq!(libc::sched_getaffinity(0, size, &raw mut may), 0);
        let cpus: Vec<_> = (0..libc::CPU_SETSIZE as usize)
            .filter(|cpu| libc::CPU_ISSET(*cpu, &may))
            .collect();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpus[number % cpus.len()], &mut one);
        // Elsewhere if it may not be moved: then CPUs are not what is tested.
        let _moved = libc::sched_setaffinity(0, size, &raw const one);
    }
}

/// A frame of one of many flows, and the answer to it, with `number` at their ends.
fn exchange(flow: u16, number: u8) -> [Vec<u8>; 2] {
    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let ports = |from: u16, to: u16| [from.to_be_bytes(), to.to_be_bytes()].concat();
    let (from, to) = (4000 + flow, 53);
    let protocol = [6, 17, 132][usize::from(flow) % 3];
    let packet = |there: bool| {
        let l4 = match there {
            true => ports(from, to),
            false => ports(to, from),
        };
        let payload = [&l4[..], &[number; 16]].concat();
        let ends = match there {
            true => [1, 2],
            false => [2, 1],
        };
        match flow % 4 {
            0 => [&[0x86, 0xdd][..], &ipv6(protocol, ends, &payload)].concat(),
            1 => [&[0x81, 0, 0, 7, 8, 0][..], &ipv4(protocol, ends, &payload)].concat(),
            _ => [&[8, 0][..], &ipv4(protocol, ends, &payload)].concat(),
        }
    };
    [true, false].map(|there| [&MACS[..], &packet(there)].concat())
}

fn ipv4(protocol: u8, ends: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 20 + payload.len() as u8, 0, 1, 0, 0, 64];
    ip.extend([protocol, 0, 0]);
    ends.iter().for_each(|end| ip.extend([10, 0, 0, *end]));
    let sum = !ones_sum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&ip, payload].concat()
}

fn ipv6(protocol: u8, ends: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0, 0, payload.len() as u8, protocol, 64];
    for end in ends {
        ip.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, end]);
    }
    [&ip, payload].concat()
}

/// Sends of 48 flows, by turns, eight frames each, from one CPU after the other; answers are
/// written by one queue after the other. Says in which queues each flow's frames were, and
/// checks that they came in order in each.
fn stream(host: &Host, ports: &mut [Box<dyn Port>]) -> BTreeMap<Vec<u8>, BTreeSet<usize>> {
    for number in 0..8 {
        move_to_cpu(number.into());
        for flow in 0..48 {
            let [there, back] = exchange(flow, number);
            host.send(&there);
            let by = usize::from(number) + usize::from(flow);
            let queue = by % ports.len();
            assert_eq!(ports[queue].transmit(&[plain(&back)]).consumed, 1);
        }
    }
    let mut queues: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut last: BTreeMap<_, u8> = BTreeMap::new();
    let mut burst = Burst::new();
    for (queue, port) in ports.iter_mut().enumerate() {
        while port.receive(&mut burst) > 0 {
            for index in 0..burst.len() {
                let data = burst.frame(index).data;
                let (flow, number) = data.split_at(data.len() - 16);
                queues.entry(flow.to_vec()).or_default().insert(queue);
                let before = last.insert((flow.to_vec(), queue), number[0]);
                assert!(before.is_none_or(|before| before < number[0]));
            }
            burst.clear();
        }
    }
    queues
}

/// The driver's end of the device of that name, whoever of this process opened it.
fn descriptor_of(name: &str) -> File {
    let ours = |number: &str| {
        let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
        let mut lines = told.lines();
        lines.find(|line| line.split_whitespace().eq(["iff:", name]))?;
        let fd = number.parse().ok()?;
        // SAFETY: dup takes an integer; what it makes is nobody else's.
        let copy = unsafe { libc::dup(fd) };
        // SAFETY: as above.
        (copy >= 0).then(|| unsafe { std::os::fd::FromRawFd::from_raw_fd(copy) })
    };
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| ours(entry.ok()?.file_name().to_str()?))
        .next()
        .unwrap()
}

#[test]
fn a_flow_keeps_its_queue_wherever_it_is_sent_and_its_answers_are_written() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    // No other test's device is called that.
    let config = TapConfig {
        name: "order-kept".to_owned(),
        ..netns.config(QUEUES)
    };
    let (_device, mut ports) = open(&config).unwrap();
    let host = netns.run(|| Host::on(c"order-kept"));
    let queues = stream(&host, &mut ports);
    assert_eq!(queues.len(), 48);
    assert!(queues.values().all(|queues| queues.len() == 1));
    let used: BTreeSet<_> = queues.values().flatten().collect();
    assert_eq!(used.len(), usize::from(QUEUES), "flows spread");
    // The kernel's own choice does what is guarded against here.
    super::super::sys::set_steering(&descriptor_of("order-kept"), -1).unwrap();
    let queues = stream(&host, &mut ports);
    assert!(queues.values().any(|queues| queues.len() > 1));
}

#[test]
fn fragments_of_a_packet_share_a_queue_and_odd_frames_arrive() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (_device, mut ports) = open(&netns.config(QUEUES)).unwrap();
    let host = netns.host();
    for number in 0..32u8 {
        for (more, offset) in [(0x20, 0), (0x20, 2), (0, 4)] {
            let mut packet = ipv4(17, [number, 200], &[number, 1, 2, 3, 4, 5, 6, 7]);
            packet[6..8].copy_from_slice(&[more, offset]);
            host.send(&[&[2; 12][..], &[8, 0], &packet].concat());
        }
    }
    // Headers that end too soon, and what is no IP: all to the first queue.
    host.send(&[&[3; 12][..], &[8, 0], &[0x45; 9]].concat());
    host.send(&[&[3; 12][..], &[8, 6], &[3; 28]].concat());
    let mut fragments: BTreeMap<u8, BTreeSet<usize>> = BTreeMap::new();
    let mut odd = 0;
    let mut burst = Burst::new();
    for (queue, port) in ports.iter_mut().enumerate() {
        while port.receive(&mut burst) > 0 {
            for index in 0..burst.len() {
                let data = burst.frame(index).data;
                if data[0] == 3 {
                    assert_eq!(queue, 0);
                    odd += 1;
                } else {
                    fragments.entry(data[29]).or_default().insert(queue);
                }
            }
            burst.clear();
        }
    }
    assert_eq!((fragments.len(), odd), (32, 2));
    assert!(fragments.values().all(|queues| queues.len() == 1));
    let used: BTreeSet<_> = fragments.values().flatten().collect();
    assert_eq!(used.len(), usize::from(QUEUES));
}

#[test]
fn where_the_kernel_pins_no_flow_there_is_one_queue() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, mut ports) = without(&[libc::SYS_bpf], libc::EPERM, || {
        open(&netns.config(QUEUES)).unwrap()
    });
    assert_eq!((ports.len(), device.status().queues.len()), (1, 1));
    let queues = stream(&netns.host(), &mut ports);
    assert_eq!(queues.len(), 48);
}

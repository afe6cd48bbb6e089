//! Creating, attaching, and every refusal.

use super::*;

#[test]
fn a_tap_is_made_in_the_namespace_and_the_caller_stays_in_its_own() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = own();
    let config = TapConfig {
        name: "shunt-placed".to_owned(),
        mtu: Some(1400),
        ..netns.config(1)
    };
    let opened = open(&config).unwrap();
    assert_eq!(own(), before);
    assert_eq!(super::super::link::lookup(&config.name).unwrap(), None);
    let link = netns.link(&config.name).unwrap();
    assert_eq!((link.up, link.mtu), (true, 1400));
    assert!(opened.0.status().connected);
    drop(opened);
    eventually(|| netns.link(&config.name).is_none());
}

#[test]
fn each_queue_is_a_port_and_all_reach_the_host() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, mut ports) = open(&netns.config(4)).unwrap();
    let tun = netns.link("tap0").unwrap().tun.unwrap();
    assert_eq!(
        (ports.len(), tun.queues_held, tun.multi_queue),
        (4, 4, true)
    );
    let host = netns.host();
    for (number, port) in (1..).zip(&mut ports) {
        let data = frame(number, 64);
        assert_eq!(port.transmit(&[plain(&data)]).consumed, 1);
        assert_eq!(host.recv_starting(&data), data);
    }
    let status = device.status();
    assert!(status.queues.iter().all(|queue| queue.tx_frames == 1));
    assert_eq!(status.queues[3].queue, 3);
}

#[test]
fn an_existing_tap_is_attached_and_keeps_its_state() {
    if !is_root() {
        return;
    }
    for (mode, queues) in [("", 1), ("multi_queue", 1), ("multi_queue", 2)] {
        let netns = Netns::new();
        netns.ip(&format!("tuntap add dev tap0 mode tap vnet_hdr {mode}"));
        netns.ip("link set tap0 mtu 1450");
        let config = TapConfig {
            mtu: Some(1300),
            ..netns.config(queues)
        };
        let opened = open(&config).unwrap();
        assert_eq!(opened.1.len(), usize::from(queues));
        assert!(!opened.1[0].is_running(), "it was down");
        let link = netns.link("tap0").unwrap();
        assert_eq!((link.up, link.mtu), (false, 1450));
        netns.ip("link set tap0 up");
        assert!(opened.1[0].is_running());
        drop(opened);
        assert!(netns.link("tap0").is_some(), "it is its maker's");
        eventually(|| open(&config).is_ok());
    }
}

#[test]
fn a_single_queue_tap_refuses_two_queues_and_says_how_to_mend_it() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    netns.ip("tuntap add dev tap0 mode tap");
    let error = refusal(&netns.config(2));
    assert!(matches!(error, TapError::SingleQueue { queues: 2, .. }));
    let ns = &netns.0;
    let mend = format!(
        "`ip -n {ns} link del tap0 && ip -n {ns} tuntap add dev tap0 mode tap \
         user $(id -un) multi_queue vnet_hdr`"
    );
    assert!(error.to_string().contains(&mend), "{error}");
}

#[test]
fn a_device_of_another_kind_is_named() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    netns.ip("tuntap add dev tap0 mode tun");
    let error = refusal(&netns.config(1)).to_string();
    assert!(error.contains("a tun device"), "{error}");
    netns.ip("link del tap0");
    netns.ip("link add tap0 type veth peer name other");
    let error = refusal(&netns.config(1)).to_string();
    assert!(error.contains("a veth device"), "{error}");
    assert!(error.contains("link del tap0"), "{error}");
}

#[test]
fn a_tap_that_is_held_is_busy_with_one_queue_and_with_several() {
    if !is_root() {
        return;
    }
    for (first, second) in [(1, 1), (2, 2), (2, 1)] {
        let netns = Netns::new();
        let held = open(&netns.config(first)).unwrap();
        let error = refusal(&netns.config(second));
        assert!(matches!(error, TapError::Busy { .. }), "{error}");
        drop(held);
        eventually(|| open(&netns.config(second)).is_ok());
    }
}

/// Takes all capabilities from the calling thread; the others keep theirs.
fn drop_capabilities() {
    let header = [0x2008_0522u32, 0];
    let none = [0u32; 6];
    // SAFETY: header and data are of version 3's sizes, both alive.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(done, 0);
}

/// Opens `tap0` inside the namespace without any capability.
fn open_unprivileged(netns: &Netns, queues: u16) -> Result<Opened, TapError> {
    let config = TapConfig {
        netns: None,
        ..netns.config(queues)
    };
    netns.run(|| {
        drop_capabilities();
        open(&config)
    })
}

#[test]
fn without_the_capability_the_error_names_the_mend() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let text = match open_unprivileged(&netns, 2) {
        Err(error @ TapError::MayNotCreate { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("opened"),
    };
    assert!(text.contains("as root or with CAP_NET_ADMIN"), "{text}");
    let mend = "`ip tuntap add dev tap0 mode tap user $(id -un) multi_queue vnet_hdr`";
    assert!(text.contains(mend), "{text}");
    assert_eq!(netns.link("tap0"), None);
}

#[test]
fn the_owner_of_a_tap_needs_no_capability_and_others_do() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    netns.ip("tuntap add dev tap0 mode tap user 0 multi_queue vnet_hdr");
    assert!(open_unprivileged(&netns, 2).is_ok());
    netns.ip("link del tap0");
    netns.ip("tuntap add dev tap0 mode tap user 12345");
    let refused = open_unprivileged(&netns, 1);
    assert!(matches!(refused, Err(TapError::MayNotAttach { .. })));
}

#[test]
fn entering_a_namespace_without_the_capability_names_the_mend() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let config = netns.config(1);
    let error = std::thread::spawn(move || {
        drop_capabilities();
        refusal(&config)
    });
    let error = error.join().unwrap();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    let mend = format!("`ip netns exec {} shunt ...`", netns.0);
    assert!(
        cause.contains(&mend) && cause.contains("CAP_SYS_ADMIN"),
        "{cause}"
    );
}

#[test]
fn settings_out_of_range_are_refused_before_anything_is_made() {
    let good = TapConfig {
        name: "shunt-range".to_owned(),
        netns: Some("shunt-no-such-netns".to_owned()),
        queues: 1,
        mtu: None,
        send_buffer: None,
    };
    for name in [
        "",
        ".",
        "sixteen-letters-",
        "a b",
        "a/b",
        "tap%d",
        "a:1",
        "ä",
    ] {
        let config = TapConfig {
            name: name.to_owned(),
            ..good.clone()
        };
        assert!(
            matches!(refusal(&config), TapError::InvalidName(_)),
            "{name}"
        );
    }
    for queues in [0, 257] {
        let config = TapConfig {
            queues,
            ..good.clone()
        };
        assert!(matches!(refusal(&config), TapError::InvalidQueues { .. }));
    }
    for mtu in [Some(67), Some(65_522)] {
        let config = TapConfig {
            mtu,
            ..good.clone()
        };
        assert!(matches!(refusal(&config), TapError::InvalidMtu { .. }));
    }
    assert!(matches!(refusal(&good), TapError::Netns { .. }));
}

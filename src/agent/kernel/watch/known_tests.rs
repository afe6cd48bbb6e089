use proptest::prelude::*;

use super::*;
use crate::agent::kernel::wire::messages;
use crate::packet::MacAddr;

const FAILED: u16 = 0x20;
const STALE: u16 = 0x04;
const REACHABLE: u16 = 0x02;
const INCOMPLETE: u16 = 0x01;

/// What a message changes.
fn told(known: &mut Known, request: Request) -> Vec<NetworkChange> {
    let bytes = request.numbered(0, 0);
    messages(&bytes)
        .flat_map(|message| known.take(message))
        .collect()
}

fn neighbour(kind: u16, host: u8, state: u16, mac: Option<u8>) -> Request {
    let mut header = [0; 12];
    header[0] = libc::AF_INET as u8;
    header[4..8].copy_from_slice(&3_u32.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    Request::new(kind, &header)
        .with(1, &[10, 0, 0, host])
        .with_some(2, mac.map(|last| [2, 0, 0, 0, 0, last]))
}

fn change(host: u8) -> NetworkChange {
    NetworkChange::Neighbour {
        on: IfIndex(3),
        address: [10, 0, 0, host].into(),
    }
}

#[test]
fn a_failure_is_told_once_and_becoming_stale_never() {
    let mut known = Known::default();
    let mut tell = |kind, state, mac| told(&mut known, neighbour(kind, 9, state, mac));
    assert!(tell(RTM_NEWNEIGH, FAILED, None).is_empty());
    assert!(tell(RTM_NEWNEIGH, REACHABLE, Some(1)).is_empty());
    assert!(tell(RTM_NEWNEIGH, STALE, Some(1)).is_empty());
    assert!(tell(RTM_NEWNEIGH, REACHABLE, Some(1)).is_empty());
    assert!(tell(RTM_NEWNEIGH, INCOMPLETE, None).is_empty());
    assert_eq!(tell(RTM_NEWNEIGH, FAILED, Some(1)), [change(9)]);
    assert!(tell(RTM_NEWNEIGH, FAILED, None).is_empty());
    assert!(tell(RTM_DELNEIGH, FAILED, None).is_empty());
}

#[test]
fn another_mac_and_the_end_of_a_valid_entry_are_told_once() {
    let mut known = Known::default();
    let mut tell = |kind, mac| told(&mut known, neighbour(kind, 9, STALE, Some(mac)));
    assert!(tell(RTM_NEWNEIGH, 1).is_empty());
    assert_eq!(tell(RTM_NEWNEIGH, 2), [change(9)]);
    assert!(tell(RTM_NEWNEIGH, 2).is_empty());
    assert_eq!(tell(RTM_DELNEIGH, 2), [change(9)]);
    assert!(tell(RTM_DELNEIGH, 2).is_empty());
}

#[test]
fn groups_are_no_neighbours() {
    let mut known = Known::default();
    let group = |kind| {
        let mut header = [0; 12];
        header[0] = libc::AF_INET as u8;
        header[8] = 0x40;
        Request::new(kind, &header)
            .with(1, &[224, 0, 0, 22])
            .with(2, &[1, 0, 0x5e, 0, 0, 22])
    };
    assert!(told(&mut known, group(RTM_NEWNEIGH)).is_empty());
    assert!(told(&mut known, group(RTM_DELNEIGH)).is_empty());
}

#[test]
fn a_mac_that_moves_to_another_port_is_a_change_of_the_neighbours_that_have_it() {
    let mut known = Known::default();
    let entry = |kind, port: u32| {
        let mut header = [0; 12];
        header[0] = libc::AF_BRIDGE as u8;
        header[4..8].copy_from_slice(&port.to_ne_bytes());
        header[8..10].copy_from_slice(&REACHABLE.to_ne_bytes());
        Request::new(kind, &header).with(2, &[2, 0, 0, 0, 0, 1])
    };
    for (host, mac) in [(8, 2), (9, 1)] {
        told(
            &mut known,
            neighbour(RTM_NEWNEIGH, host, REACHABLE, Some(mac)),
        );
    }
    assert!(told(&mut known, entry(RTM_NEWNEIGH, 5)).is_empty());
    assert!(told(&mut known, entry(RTM_NEWNEIGH, 5)).is_empty());
    assert_eq!(told(&mut known, entry(RTM_NEWNEIGH, 6)), [change(9)]);
    // It ages, and is learned anew: the bridge floods meanwhile.
    assert!(told(&mut known, entry(RTM_DELNEIGH, 6)).is_empty());
    assert!(told(&mut known, entry(RTM_NEWNEIGH, 5)).is_empty());
}

fn link(kind: u16, flags: i32, mtu: u32) -> Request {
    let mut header = [0; 16];
    header[2] = 1;
    header[4] = 4;
    header[8..12].copy_from_slice(&(flags as u32).to_ne_bytes());
    Request::new(kind, &header)
        .with(3, b"eth0\0")
        .with(4, &mtu.to_ne_bytes())
}

#[test]
fn a_link_is_told_when_it_is_other_than_it_was_and_gone_when_down() {
    const UP: i32 = libc::IFF_UP | libc::IFF_LOWER_UP;
    let mut known = Known::default();
    let mut tell = |kind, flags, mtu| told(&mut known, link(kind, flags, mtu));
    let other = NetworkChange::Links { gone: None };
    let gone = NetworkChange::Links {
        gone: Some(IfIndex(4)),
    };
    assert_eq!(tell(RTM_NEWLINK, UP, 1500), std::slice::from_ref(&other));
    assert!(tell(RTM_NEWLINK, UP, 1500).is_empty());
    assert!(tell(RTM_NEWLINK, UP | libc::IFF_PROMISC, 1500).is_empty());
    assert_eq!(tell(RTM_NEWLINK, UP, 1400), std::slice::from_ref(&other));
    assert_eq!(
        tell(RTM_NEWLINK, libc::IFF_UP, 1400),
        std::slice::from_ref(&gone)
    );
    assert_eq!(tell(RTM_NEWLINK, UP, 1400), [other]);
    assert_eq!(tell(RTM_DELLINK, UP, 1400), [gone]);
    assert!(tell(RTM_DELLINK, UP, 1400).is_empty());
}

#[test]
fn an_address_that_is_only_renewed_is_no_change() {
    let address = |kind, seconds: u32| {
        Request::new(kind, &[2, 24, 0, 0, 4, 0, 0, 0])
            .with(2, &[10, 0, 0, 1])
            .with(6, &seconds.to_ne_bytes())
    };
    let mut known = Known::default();
    let mut tell = |kind, seconds| told(&mut known, address(kind, seconds));
    let change = NetworkChange::Addresses(IfIndex(4));
    assert_eq!(tell(RTM_NEWADDR, 10), std::slice::from_ref(&change));
    assert!(tell(RTM_NEWADDR, 20).is_empty());
    assert_eq!(tell(RTM_DELADDR, 0), [change]);
}

#[test]
fn routes_are_changes_and_their_copies_for_one_destination_are_none() {
    let route = |flags: u32| {
        let mut header = [0; 12];
        header[8..].copy_from_slice(&flags.to_ne_bytes());
        Request::new(RTM_NEWROUTE, &header)
    };
    let mut known = Known::default();
    assert_eq!(told(&mut known, route(0)), [NetworkChange::Routes]);
    assert!(told(&mut known, route(CLONED)).is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_a_change_or_none(kind in 16_u16..120, bytes: Vec<u8>) {
        let message = Message { kind, flags: 0, sequence: 0, payload: &bytes };
        Known::default().take(message);
    }

    /// The model: what was last said of each neighbour.
    #[test]
    fn neighbours_changes_are_those_of_a_model(
        messages in prop::collection::vec(
            (any::<bool>(), 1_u8..4, prop::sample::select(vec![REACHABLE, STALE, FAILED, INCOMPLETE]), 1_u8..3),
            0..60,
        ),
    ) {
        let mut known = Known::default();
        let mut model: [Option<u8>; 4] = [None; 4];
        for (is_new, host, state, mac) in messages {
            let kind = if is_new { RTM_NEWNEIGH } else { RTM_DELNEIGH };
            let has_mac = [REACHABLE, STALE].contains(&state);
            let told = told(&mut known, neighbour(kind, host, state, has_mac.then_some(mac)));
            let before = model[usize::from(host)];
            let after = match (is_new, state) {
                (false, _) | (true, FAILED) => None,
                (true, INCOMPLETE) => before,
                (true, _) => Some(mac),
            };
            model[usize::from(host)] = after;
            let is_change = before.is_some() && before != after;
            prop_assert_eq!(told, if is_change { vec![change(host)] } else { vec![] });
        }
    }
}

#[test]
fn macs_are_compared_whole() {
    let mut known = Known::default();
    let key = (IfIndex(3), IpAddr::from([10, 0, 0, 9]));
    known.neighbours.insert(key, MacAddr([3, 0, 0, 0, 0, 1]));
    let same_end = neighbour(RTM_NEWNEIGH, 9, REACHABLE, Some(1));
    assert_eq!(told(&mut known, same_end), [change(9)]);
}

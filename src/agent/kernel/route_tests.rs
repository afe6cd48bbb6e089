use proptest::prelude::*;

use super::*;

fn answer(kind: u8, attributes: impl FnOnce(Request) -> Request) -> Option<Route> {
    let mut header = [0; 12];
    header[0] = 2;
    header[7] = kind;
    read(&attributes(Request::new(RTM_NEWROUTE, &header)).numbered(0, 0)[16..])
}

#[test]
fn a_route_through_a_gateway_is_read_with_its_mtu() {
    let found = answer(RTN_UNICAST, |request| {
        request
            .with(RTA_OIF, &4_u32.to_ne_bytes())
            .with(RTA_GATEWAY, &[10, 0, 0, 1])
            .with_nest(RTA_METRICS, |metrics| {
                metrics.with(RTAX_MTU, &1400_u32.to_ne_bytes())
            })
    });
    assert_eq!(
        found,
        Some(Route::Unicast {
            by: IfIndex(4),
            gateway: Some("10.0.0.1".parse().unwrap()),
            mtu: Some(1400),
            is_encapsulated: false,
        })
    );
}

#[test]
fn a_gateway_of_the_other_family_and_an_encapsulation_are_seen() {
    let address: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
    let mut via = vec![10, 0];
    via.extend(address.octets());
    let found = answer(RTN_UNICAST, |request| {
        request
            .with(RTA_OIF, &4_u32.to_ne_bytes())
            .with(RTA_VIA, &via)
            .with(RTA_ENCAP_TYPE, &5_u16.to_ne_bytes())
    });
    assert_eq!(
        found,
        Some(Route::Unicast {
            by: IfIndex(4),
            gateway: Some(address.into()),
            mtu: None,
            is_encapsulated: true,
        })
    );
}

#[test]
fn what_goes_to_the_element_or_nowhere_is_told() {
    let of = |kind| answer(kind, |request| request.with(RTA_OIF, &1_u32.to_ne_bytes()));
    assert_eq!(of(RTN_LOCAL), Some(Route::Local));
    assert_eq!(of(RTN_ANYCAST), Some(Route::Local));
    // Broadcast, multicast, blackhole, unreachable, prohibit, throw.
    for kind in [3, 5, 6, 7, 8, 9] {
        assert_eq!(of(kind), Some(Route::None), "{kind}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_route_or_none(bytes: Vec<u8>) {
        read(&bytes);
    }
}

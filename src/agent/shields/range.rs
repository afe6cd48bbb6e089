//! Ranges of addresses, as prefixes.
//!
//! *Promises*: the fewest prefixes that together are exactly the range, in order.
//! *Refuses*: ranges of two families, or from higher to lower: they are nothing.
//! *Caller's duty*: none. *Standard*: RFC 4632 section 3.1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::api::Prefix;

/// The prefixes of the addresses from `first` to `last`, at most `most` of them.
pub fn prefixes(first: IpAddr, last: IpAddr, most: usize) -> Vec<Prefix> {
    let (bits, mut at, last) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (32, u128::from(first.to_bits()), u128::from(last.to_bits()))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => (128, first.to_bits(), last.to_bits()),
        _ => return Vec::new(),
    };
    let mut found = Vec::new();
    while at <= last && found.len() < most {
        // As large as its first address allows, and no further than to the last.
        let mut free = at.trailing_zeros().min(bits);
        while free > 0 && last_of(at, free) > last {
            free -= 1;
        }
        let length = u8::try_from(bits - free).unwrap_or(u8::MAX);
        found.extend(Prefix::new(address(bits, at), length));
        match last_of(at, free).checked_add(1) {
            Some(next) => at = next,
            None => break,
        }
    }
    found
}

/// The last address of the prefix that begins `at` and leaves `free` bits.
fn last_of(at: u128, free: u32) -> u128 {
    at | 1u128.checked_shl(free).map_or(u128::MAX, |size| size - 1)
}

/// The address of these bits.
pub fn address(bits: u32, number: u128) -> IpAddr {
    if bits == 32 {
        Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into()
    } else {
        Ipv6Addr::from_bits(number).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(first: &str, last: &str) -> Vec<String> {
        let found = prefixes(first.parse().unwrap(), last.parse().unwrap(), 1_000);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_range_is_the_fewest_prefixes() {
        assert_eq!(texts("10.0.0.1", "10.0.0.1"), ["10.0.0.1/32"]);
        assert_eq!(texts("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(
            texts("10.0.0.5", "10.0.0.8"),
            ["10.0.0.5/32", "10.0.0.6/31", "10.0.0.8/32"]
        );
        let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(texts("::", all), ["::/0"]);
        assert_eq!(texts("2001:db8::", "2001:db8::ffff"), ["2001:db8::/112"]);
        assert_eq!(texts("10.0.0.2", "10.0.0.1"), [""; 0]);
        assert_eq!(texts("10.0.0.2", "::1"), [""; 0]);
        let cut = prefixes(
            "0.0.0.1".parse().unwrap(),
            "255.255.255.254".parse().unwrap(),
            5,
        );
        assert_eq!(cut.len(), 5);
    }

    proptest! {
        #[test]
        fn exactly_the_addresses_of_a_range_are_in_its_prefixes(
            first in any::<u32>(), length in 0u32..5_000, probes in prop::collection::vec(any::<u32>(), 8),
        ) {
            let last = first.saturating_add(length);
            let found = prefixes(
                Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(last).into(), usize::MAX,
            );
            let near = [first, last, first.wrapping_sub(1), last.wrapping_add(1)];
            for probe in near.into_iter().chain(probes) {
                let address = Ipv4Addr::from_bits(probe).into();
                let times = found.iter().filter(|prefix| prefix.contains(address)).count();
                prop_assert_eq!(times, usize::from((first..=last).contains(&probe)));
            }
        }
    }
}

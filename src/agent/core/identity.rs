//! Which connection is meant: the same name in every run of the agent.
//!
//! *Promises*: equal for the same entry of conntrack's table, also after the agent has
//! restarted, so that a `sync` finds the sessions that are there unchanged; different, but for
//! accidents of 2⁻¹²⁸, for another entry of the same addresses.
//! *Refuses*: keys that are not ours: they name sessions that somebody else asked for.
//! *Caller's duty*: who can choose addresses could make two of their own connections look the
//! same; the book notices by comparing tuples.
//! *Standard*: FNV-1a with 128 bits (draft-eastlake-fnv): it is the same on every machine and
//! in every release, which the standard library's hash does not promise.

use std::net::IpAddr;

use crate::agent::connection::{Connection, Ports, Tuple};
use crate::api::SessionKey;

/// A connection's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id(u128);

/// What our keys begin with.
const PREFIX: &str = "ct-";
/// Hexadecimal digits of a name.
const DIGITS: usize = 32;

impl Id {
    /// The name of `connection`.
    pub fn of(connection: &Connection) -> Self {
        let mut hash = Fnv::new();
        hash.add(&connection.zone.to_be_bytes());
        hash.add(&connection.id.to_be_bytes());
        hash.tuple(&connection.original);
        Self(hash.0)
    }

    /// The key of its session.
    pub fn key(self) -> Option<SessionKey> {
        SessionKey::try_from(format!("{PREFIX}{:0DIGITS$x}", self.0)).ok()
    }

    /// The connection that a key names, if it is one of ours.
    pub fn from_key(key: &SessionKey) -> Option<Self> {
        let digits = key.as_str().strip_prefix(PREFIX)?;
        if digits.len() != DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(digits, 16).ok().map(Self)
    }

    /// A number below `span` that stays the same for this connection and is spread evenly over
    /// all of them.
    pub fn share_of(self, span: u64) -> u64 {
        let folded = (self.0 ^ (self.0 >> 64)) as u64;
        folded.checked_rem(span).unwrap_or(0)
    }
}

struct Fnv(u128);

impl Fnv {
    const fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 ^= u128::from(*byte);
            self.0 = self
                .0
                .wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.add(&v4.octets()),
            IpAddr::V6(v6) => self.add(&v6.octets()),
        }
    }

    fn tuple(&mut self, tuple: &Tuple) {
        self.address(tuple.source);
        self.address(tuple.destination);
        self.add(&[tuple.protocol]);
        match tuple.ports {
            Ports::Ports(source, destination) => {
                self.add(&source.to_be_bytes());
                self.add(&destination.to_be_bytes());
            }
            Ports::Icmp { kind, code, id } => {
                self.add(&[kind, code]);
                self.add(&id.to_be_bytes());
            }
            Ports::None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::core::testing::tcp;

    #[test]
    fn a_key_names_the_same_connection_in_every_release() {
        let mut connection = tcp(1);
        connection.id = 7;
        // Written down once: a change of this text would end all sessions at an upgrade.
        let key = Id::of(&connection).key().unwrap();
        assert_eq!(key.as_str(), "ct-22a266d73db3332e97df5a40cf93505e");
        assert_eq!(Id::from_key(&key), Some(Id::of(&connection)));
    }

    #[test]
    fn another_entry_of_the_same_tuple_or_another_zone_has_another_name() {
        let one = tcp(1);
        let mut later = one.clone();
        later.id += 1;
        let mut elsewhere = one.clone();
        elsewhere.zone = 9;
        assert_ne!(Id::of(&one), Id::of(&later));
        assert_ne!(Id::of(&one), Id::of(&elsewhere));
    }

    #[test]
    fn what_changes_in_a_connections_life_does_not_change_its_name() {
        let one = tcp(1);
        let mut later = one.clone();
        later.mark = 5;
        later.timeout = None;
        later.counters = None;
        assert_eq!(Id::of(&one), Id::of(&later));
    }

    #[test]
    fn keys_of_others_are_nobodys() {
        for key in [
            "c1",
            "ct-",
            "ct-36ac",
            "ct-+6ac30b4fcf5fbd73ab95c76b3b2a9f9",
        ] {
            assert_eq!(Id::from_key(&key.parse().unwrap()), None, "{key}");
        }
    }
}

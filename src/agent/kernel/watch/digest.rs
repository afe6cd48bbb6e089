//! What tells no event: iptables of the older way, and ipset.
//!
//! *Promises*: two digests are equal if rules and elements are (but for a collision of 64
//! bits). What cannot be read is part of it: that becoming so is a change.
//! *Refuses*: nothing.
//! *Caller's duty*: to look again; while neither is used a look costs some microseconds.
//! *Standard*: see [`iptables`] and [`ipset`].

use std::io;

use crate::agent::kernel::ipset;
use crate::agent::kernel::rules::iptables::{self, Family};

/// A number, or why there is none.
type Number = Result<u64, Option<i32>>;

/// What there was at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Digest {
    tables: Vec<(Family, String, Number)>,
    sets: Option<Number>,
}

impl Digest {
    /// Looks.
    pub(super) async fn read() -> Self {
        let tables = Family::ALL
            .into_iter()
            .flat_map(|family| {
                iptables::names(family)
                    .into_iter()
                    .map(move |name| (family, name))
            })
            .map(|(family, name)| {
                let table = iptables::read(family, &name);
                let number = number(table.map(iptables::Table::digest));
                (family, name, number)
            })
            .collect();
        let sets = match ipset::is_present() {
            true => Some(number(ipset::digest().await)),
            false => None,
        };
        Self { tables, sets }
    }
}

fn number(digest: io::Result<u64>) -> Number {
    digest.map_err(|error| error.raw_os_error())
}

//! Whether ebtables of the older way (not through nftables) has rules: they tell no event, and
//! see every frame of a bridge.
//!
//! *Promises*: only tables that are there are asked for: a question for another would make it.
//! *Refuses*: to say which rules.
//! *Caller's duty*: CAP_NET_ADMIN, without which there seem to be none; to look again.
//! *Standard*: include/uapi/linux/netfilter_bridge/ebtables.h.

use std::path::Path;

use super::options;
use super::wire::native32;

/// Tables, each of a module of its own.
const TABLES: [&str; 3] = ["filter", "nat", "broute"];
/// Bytes of a table's name, and where the number of its rules stands, in `struct ebt_replace`.
const NAME: usize = 32;
const RULES: usize = NAME + 4;
/// Bytes of it: name, three numbers, six pointers, a number, two pointers, each where its size
/// has it.
const INFO: usize = if size_of::<usize>() == 8 { 120 } else { 80 };
/// `EBT_SO_GET_INFO`
const SO_GET_INFO: i32 = 128;

/// Whether any table has a rule.
pub(super) fn has_rules() -> bool {
    TABLES.into_iter().any(|table| {
        let is_there = Path::new("/sys/module").join(format!("ebtable_{table}"));
        is_there.exists() && rules(table).is_some_and(|count| count > 0)
    })
}

fn rules(table: &str) -> Option<u32> {
    let socket = options::plain_socket(libc::AF_INET).ok()?;
    let mut info = [0; INFO];
    info[..table.len()].copy_from_slice(table.as_bytes());
    options::get(&socket, libc::SOL_IP, SO_GET_INFO, &mut info).ok()?;
    native32(info.get(RULES..RULES + 4)?)
}

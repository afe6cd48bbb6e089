//! What the kernel tells about an existing link, before it is touched.
//!
//! *Promises*: [`lookup`] changes nothing and waits for nothing but the kernel's answer.
//! *Refuses*: answers whose lengths do not fit, as `InvalidData`.
//! *Caller's duty*: to be in the link's network namespace.
//! *Standard*: rtnetlink(7): RTM_GETLINK, IFLA_LINKINFO, IFLA_TUN_*.

use std::io::{self, Read, Write};

use super::sys;

/// A link by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Link {
    /// The driver's name, such as `tun` or `veth`; empty for hardware.
    pub(super) kind: String,
    /// Whether it is set up.
    pub(super) up: bool,
    /// L3 MTU in bytes.
    pub(super) mtu: u32,
    /// What a tun or tap tells (kernel 4.20 and later).
    pub(super) tun: Option<Tun>,
}

/// The mode and use of a tun or tap device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tun {
    /// Ethernet frames (tap), not IP packets (tun).
    pub(super) tap: bool,
    /// Whether it takes several queues.
    pub(super) multi_queue: bool,
    /// Queues that processes hold, in use or disabled; told for multi-queue devices only.
    pub(super) queues_held: u32,
}

const HEADER: usize = 16;
const IFINFOMSG: usize = 16;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;
/// Longer than any answer for one link without its virtual functions.
const ANSWER_MAX: usize = 64 * 1024;

/// The link called `name` in the calling thread's namespace, or `None`.
pub(super) fn lookup(name: &str) -> io::Result<Option<Link>> {
    let mut socket = sys::route_socket()?;
    socket.write_all(&request(name))?;
    let mut answer = vec![0; ANSWER_MAX];
    let len = socket.read(&mut answer)?;
    answer.truncate(len);
    parse(&answer)
}

fn request(name: &str) -> Vec<u8> {
    let attribute = 4 + name.len() + 1;
    let total = HEADER + IFINFOMSG + attribute.next_multiple_of(4);
    let mut message = Vec::with_capacity(total);
    message.extend_from_slice(&(total as u32).to_ne_bytes());
    message.extend_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    message.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.resize(HEADER + IFINFOMSG, 0);
    message.extend_from_slice(&(attribute as u16).to_ne_bytes());
    message.extend_from_slice(&libc::IFLA_IFNAME.to_ne_bytes());
    message.extend_from_slice(name.as_bytes());
    message.resize(total, 0);
    message
}

fn parse(answer: &[u8]) -> io::Result<Option<Link>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed netlink answer");
    let total = read_u32(answer, 0).ok_or_else(malformed)? as usize;
    let message = answer.get(..total).ok_or_else(malformed)?;
    let kind = read_u16(message, 4).ok_or_else(malformed)?;
    if kind == libc::NLMSG_ERROR as u16 {
        let code = read_u32(message, HEADER).ok_or_else(malformed)? as i32;
        return match code.checked_neg() {
            Some(libc::ENODEV) => Ok(None),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(malformed()),
        };
    }
    if kind != libc::RTM_NEWLINK {
        return Err(malformed());
    }
    let flags = read_u32(message, HEADER + 8).ok_or_else(malformed)?;
    let mut link = Link {
        up: flags & libc::IFF_UP as u32 != 0,
        ..Link::default()
    };
    let body = message.get(HEADER + IFINFOMSG..).ok_or_else(malformed)?;
    for (kind, value) in attributes(body) {
        match kind {
            libc::IFLA_MTU => link.mtu = read_u32(value, 0).unwrap_or(0),
            libc::IFLA_LINKINFO => read_link_info(value, &mut link),
            _ => {}
        }
    }
    Ok(Some(link))
}

fn read_link_info(info: &[u8], link: &mut Link) {
    let mut data = None;
    for (kind, value) in attributes(info) {
        match kind {
            libc::IFLA_INFO_KIND => {
                let text = value.split(|byte| *byte == 0).next().unwrap_or(value);
                link.kind = String::from_utf8_lossy(text).into_owned();
            }
            libc::IFLA_INFO_DATA => data = Some(value),
            _ => {}
        }
    }
    if let (Some(data), "tun") = (data, link.kind.as_str()) {
        link.tun = Some(read_tun(data));
    }
}

fn read_tun(data: &[u8]) -> Tun {
    let mut tun = Tun::default();
    for (kind, value) in attributes(data) {
        let byte = value.first().copied().unwrap_or(0);
        match kind {
            IFLA_TUN_TYPE => tun.tap = i32::from(byte) == libc::IFF_TAP,
            IFLA_TUN_MULTI_QUEUE => tun.multi_queue = byte != 0,
            IFLA_TUN_NUM_QUEUES | IFLA_TUN_NUM_DISABLED_QUEUES => {
                let held = read_u32(value, 0).unwrap_or(0);
                tun.queues_held = tun.queues_held.saturating_add(held);
            }
            _ => {}
        }
    }
    tun
}

/// The attributes in `bytes`, up to the first whose length does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const NESTED: u16 = libc::NLA_F_NESTED as u16;
    std::iter::from_fn(move || {
        let len = usize::from(read_u16(bytes, 0)?);
        let kind = read_u16(bytes, 2)? & !NESTED;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_and_is_no_tun() {
        let link = lookup("lo").unwrap().unwrap();
        assert_eq!((link.kind.as_str(), link.tun), ("", None));
        assert!(link.mtu > 0);
    }

    #[test]
    fn a_name_nobody_has_is_none() {
        assert_eq!(lookup("shunt-nobody").unwrap(), None);
    }

    #[test]
    fn a_cut_answer_is_refused_at_every_length() {
        let mut socket = sys::route_socket().unwrap();
        socket.write_all(&request("lo")).unwrap();
        let mut answer = vec![0; ANSWER_MAX];
        let len = socket.read(&mut answer).unwrap();
        assert!(parse(&answer[..len]).unwrap().is_some());
        for cut in 0..len {
            assert!(parse(&answer[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn an_attribute_that_lies_about_its_length_ends_the_list() {
        for lie in [0u16, 3, 9, u16::MAX] {
            let mut bytes = lie.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[1, 0, 7, 7, 7, 7]);
            assert_eq!(attributes(&bytes).count(), 0, "length {lie}");
        }
    }
}

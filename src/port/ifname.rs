//! An interface's name, as requests to the kernel carry it (netdevice(7)).

/// An interface name as the kernel takes it: 1 to 15 bytes and a NUL.
#[derive(Clone, Copy, Debug)]
pub(super) struct IfName([libc::c_char; libc::IFNAMSIZ]);

impl IfName {
    /// The name, if an interface can have it.
    pub(super) fn new(name: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
        if name.is_empty()
            || name.len() >= libc::IFNAMSIZ
            || matches!(name, "." | "..")
            || !name.bytes().all(allowed)
        {
            return None;
        }
        let mut bytes = [0; libc::IFNAMSIZ];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Some(Self(bytes))
    }

    /// A request about it.
    pub(super) fn request(&self) -> libc::ifreq {
        Self::request_of(self.0)
    }

    /// A request about no interface in particular.
    pub(super) fn no_request() -> libc::ifreq {
        Self::request_of([0; libc::IFNAMSIZ])
    }

    fn request_of(ifr_name: [libc::c_char; libc::IFNAMSIZ]) -> libc::ifreq {
        libc::ifreq {
            ifr_name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 },
        }
    }
}

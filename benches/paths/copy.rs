//! The peer `tap-copy`: reads one tap, writes the other, and knows nothing of frames.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::support::netns::Netns;

/// Frames read of one tap before it is the other's turn.
const BURST: usize = 64;
/// How long an idle loop waits before it looks whether to stop, in milliseconds.
const TICK: libc::c_int = 100;
/// Longer than any frame with its virtio-net header of 10 bytes.
const FRAME_MAX: usize = 66_000;

/// A running loop; it ends when dropped, and its taps with it.
#[derive(Debug)]
pub struct TapCopy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TapCopy {
    /// Makes both taps and copies between them.
    pub fn start(one: (&Netns, &str), other: (&Netns, &str)) -> Self {
        let taps = [one, other].map(|(netns, name)| netns.run(|| open(name)));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = stop.clone();
            std::thread::spawn(move || copy(&taps, &stop))
        };
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for TapCopy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // What went wrong in it was told there.
            let _ = thread.join();
        }
    }
}

fn copy(taps: &[File; 2], stop: &AtomicBool) {
    let mut frame = vec![0; FRAME_MAX];
    let mut waiting = taps.each_ref().map(|tap| libc::pollfd {
        fd: tap.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    while !stop.load(Ordering::Acquire) {
        // SAFETY: two entries, both borrowed for the call.
        let ready = unsafe { libc::poll(waiting.as_mut_ptr(), 2, TICK) };
        assert!(ready >= 0, "poll: {}", std::io::Error::last_os_error());
        for (from, to) in [(0, 1), (1, 0)] {
            if waiting[from].revents != 0 {
                move_some(&taps[from], &taps[to], &mut frame);
            }
        }
    }
}

fn move_some(mut from: &File, mut to: &File, frame: &mut [u8]) {
    for _ in 0..BURST {
        match from.read(frame) {
            // A tap refuses what it cannot take; a plain loop does not care.
            Ok(len) => drop(to.write(&frame[..len])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("tap-copy: {error}"),
        }
    }
}

/// A tap called `name` in the thread's namespace, with all offloads.
fn open(name: &str) -> File {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: a struct ifreq of zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    let offloads = libc::TUN_F_CSUM
        | libc::TUN_F_TSO4
        | libc::TUN_F_TSO6
        | libc::TUN_F_TSO_ECN
        | libc::TUN_F_USO4
        | libc::TUN_F_USO6;
    // SAFETY: TUNSETIFF takes a struct ifreq, borrowed for the call; TUNSETOFFLOAD a number.
    let results = unsafe {
        [
            libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request),
            libc::ioctl(
                tap.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            ),
        ]
    };
    assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
    tap
}

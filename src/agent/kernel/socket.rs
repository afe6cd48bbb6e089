//! A netlink socket: questions and their answers, dumps, and what comes unasked.
//!
//! *Promises*: answers belong to the question that was asked, also after one whose asker went
//! away; a dump is given message by message, with a turn for others after each datagram; only
//! the kernel is heard.
//! *Refuses*: messages longer than [`ROOM`], which the kernel makes for nothing here.
//! *Caller's duty*: one question at a time; a dump has a socket of its own.
//! *Standard*: netlink(7).

use std::io;

use netlink_sys::SocketAddr;
use tokio::io::unix::AsyncFd;
use tokio::task;

use super::options;
use super::wire::{Message, Request, messages, native32};

/// The longest datagram. Dumps come in pieces of at most 32 KiB.
const ROOM: usize = 1 << 16;

const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// More datagrams than a receive buffer holds.
const MOST: usize = 1 << 17;

/// How often a dump is taken anew because its table changed meanwhile.
const TRIES: usize = 10;

/// How a dump went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dump {
    /// The table stood still.
    Whole,
    /// The table changed meanwhile: something may be missing, or be there twice.
    Interrupted,
}

/// A socket, and room for what it receives.
#[derive(Debug)]
pub(super) struct Socket {
    inner: AsyncFd<netlink_sys::Socket>,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one of that protocol (`NETLINK_…`) in the thread's network namespace.
    pub(super) fn open(protocol: i32) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(protocol as isize)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        // From now on other programs' messages are refused.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            inner: options::watch(socket)?,
            sequence: 0,
            buffer: vec![0; ROOM],
        })
    }

    /// Hears a multicast group.
    pub(super) fn join(&self, group: u32) -> io::Result<()> {
        self.inner.get_ref().add_membership(group)
    }

    /// Hears it no longer.
    pub(super) fn leave(&self, group: u32) -> io::Result<()> {
        self.inner.get_ref().drop_membership(group)
    }

    /// Room for that many bytes of messages, the kernel's overhead included.
    pub(super) fn set_receive_buffer(&self, bytes: u32) -> io::Result<()> {
        options::set_receive_buffer(self.inner.get_ref(), bytes)
    }

    /// Hears only what the program lets in.
    pub(super) fn attach_filter(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        options::attach_filter(self.inner.get_ref(), program)
    }

    /// Asks, and gives each message of the answer to `answer`.
    pub(super) async fn ask(
        &mut self,
        request: Request,
        mut answer: impl FnMut(Message<'_>),
    ) -> io::Result<()> {
        let sequence = self.send(request, NLM_F_REQUEST | NLM_F_ACK)?;
        loop {
            for message in messages(self.receive().await?) {
                match message {
                    Message { sequence: of, .. } if of != sequence => {}
                    Message {
                        kind: NLMSG_ERROR,
                        payload,
                        ..
                    } => return outcome(payload),
                    message => answer(message),
                }
            }
        }
    }

    /// Asks for a table, and gives each of its messages to `entry`.
    pub(super) async fn dump(
        &mut self,
        request: Request,
        mut entry: impl FnMut(Message<'_>),
    ) -> io::Result<Dump> {
        let sequence = self.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut flags = 0;
        loop {
            for message in messages(self.receive().await?) {
                if message.sequence != sequence {
                    continue;
                }
                flags |= message.flags;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return outcome(message.payload).map(|()| match flags & NLM_F_DUMP_INTR {
                            0 => Dump::Whole,
                            _ => Dump::Interrupted,
                        });
                    }
                    _ => entry(message),
                }
            }
            task::yield_now().await;
        }
    }

    /// The next datagram, also of a group. Nothing is lost if the caller stops waiting.
    pub(super) async fn receive(&mut self) -> io::Result<&[u8]> {
        task::coop::consume_budget().await;
        // An answer is there when its question is sent: the reactor need not be asked.
        let first = read(self.inner.get_ref(), &mut self.buffer);
        let length = match first {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => loop {
                let mut ready = self.inner.readable().await?;
                if let Ok(result) = ready.try_io(|inner| read(inner.get_ref(), &mut self.buffer)) {
                    break result?;
                }
            },
            first => first?,
        };
        self.buffer
            .get(..length)
            .ok_or_else(|| io::Error::other("a netlink message is longer than there is room for"))
    }

    /// A datagram that is there already.
    pub(super) fn receive_now(&mut self) -> io::Result<Option<&[u8]>> {
        match read(self.inner.get_ref(), &mut self.buffer) {
            Ok(length) => Ok(self.buffer.get(..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Throws away what waits. After a loss that must be done before anything is asked anew: until
    /// all is read the kernel adds nothing, and does not say so again.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        for _ in 0..MOST {
            match self.receive_now() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) if is_overrun(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(&mut self, request: Request, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = request.numbered(self.sequence, flags);
        self.inner.get_ref().send(&message, 0)?;
        Ok(self.sequence)
    }
}

/// A table, whole: taken anew while it changes under the dump. `None` of `entry` leaves a
/// message out.
pub(super) async fn table<T>(
    protocol: i32,
    request: &Request,
    mut entry: impl FnMut(Message<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut socket = Socket::open(protocol)?;
    for _ in 0..TRIES {
        let mut entries = Vec::new();
        let went = socket
            .dump(request.clone(), |message| entries.extend(entry(message)))
            .await?;
        if went == Dump::Whole {
            return Ok(entries);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::Interrupted,
        format!("a table of the kernel changed during each of {TRIES} readings"),
    ))
}

/// Whether an error is that of messages lost because they came faster than they were read.
pub(super) fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

fn read(socket: &netlink_sys::Socket, buffer: &mut [u8]) -> io::Result<usize> {
    let mut room = buffer;
    socket.recv(&mut room, libc::MSG_TRUNC)
}

/// What an acknowledgement says: 0, or an error's number below it.
fn outcome(payload: &[u8]) -> io::Result<()> {
    let number = payload.get(..4).and_then(native32).unwrap_or_default() as i32;
    match number {
        0.. => Ok(()),
        _ => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
    }
}

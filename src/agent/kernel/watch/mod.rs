//! What changes under the connections, as it happens.
//!
//! | module | what |
//! |---|---|
//! | [`known`] | what is known of links, addresses and neighbours, so that only changes are told |
//! | [`digest`] | what of rulesets tells no event: iptables of the older way, and ipset |
//!
//! *Promises*: each change at least once; what only repeats what is known is not told; several
//! changes that come together and mean the same are told as one. Messages that were lost are
//! told as [`NetworkChange::Lost`], after which only what happens later is told.
//! *Refuses*: neighbours that become stale, or are confirmed; entries of bridges that age.
//! *Caller's duty*: after `Lost`, to take anything for changed; to go on waiting for
//! [`NetworkEvents::next`], as a look at large sets begins anew whenever the caller stops.
//! *Standard*: rtnetlink(7); include/uapi/linux/rtnetlink.h (groups).

mod digest;
mod known;

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use self::digest::Digest;
use self::known::Known;
use super::filter;
use super::rules::nft::NEWGEN;
use super::socket::{Socket, is_overrun};
use super::wire::messages;
use crate::agent::network::NetworkChange;

/// Groups of rtnetlink: links, neighbours, queueing disciplines, addresses, routes and rules of
/// both families, forwarding's switches of both, next-hop objects.
const ROUTE_GROUPS: [u32; 12] = [1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25, 32];
/// `NFNLGRP_NFTABLES`
const NFT_GROUP: u32 = 7;
/// `XFRMNLGRP_POLICY`
const XFRM_GROUP: u32 = 4;

/// Room for bursts of messages.
const BUFFER: u32 = 4 << 20;

/// Datagrams that are taken together, at most.
const TOGETHER: usize = 1 << 12;

/// How often what tells no event is looked at, and how many times longer than the look itself
/// the pause is at least.
const PERIOD: Duration = Duration::from_millis(500);
const PAUSE: u32 = 20;

/// Hears what changes.
#[derive(Debug)]
pub struct NetworkEvents {
    route: Socket,
    nft: Socket,
    /// Some kernels have no IPsec.
    xfrm: Option<Socket>,
    known: Known,
    digest: Digest,
    next_digest: Instant,
    changes: VecDeque<NetworkChange>,
}

/// What woke us.
enum Woken {
    Route(io::Result<()>),
    Nft(io::Result<()>),
    Xfrm(io::Result<()>),
    Digest,
}

impl NetworkEvents {
    /// Hears the thread's network namespace from now on.
    ///
    /// # Errors
    ///
    /// The kernel's: without CAP_NET_ADMIN, or without netfilter's netlink.
    pub async fn open() -> io::Result<Self> {
        let route = Socket::open(libc::NETLINK_ROUTE)?;
        route.set_receive_buffer(BUFFER)?;
        for group in ROUTE_GROUPS {
            match route.join(group) {
                // The kernel is older than the group, or has not that family.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                joined => joined?,
            }
        }
        let nft = Socket::open(libc::NETLINK_NETFILTER)?;
        nft.attach_filter(&filter::only(NEWGEN))?;
        nft.join(NFT_GROUP)?;
        let xfrm = match Socket::open(libc::NETLINK_XFRM) {
            Ok(xfrm) => {
                xfrm.join(XFRM_GROUP)?;
                Some(xfrm)
            }
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            route,
            nft,
            xfrm,
            known: Known::read().await?,
            digest: Digest::read().await,
            next_digest: Instant::now() + PERIOD,
            changes: VecDeque::new(),
        })
    }

    /// The next change. Nothing is lost if the caller stops waiting.
    ///
    /// # Errors
    ///
    /// The sockets', but for the loss of messages, which is a change.
    pub async fn next(&mut self) -> io::Result<NetworkChange> {
        loop {
            // A reading that the caller did not wait for, or that failed, is due still.
            if let Some(change) = self.known.renew().await? {
                push(&mut self.changes, change);
            }
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            match self.wait().await {
                Woken::Route(heard) => self.gather(heard)?,
                Woken::Nft(heard) => {
                    empty(&mut self.nft, heard)?;
                    push(&mut self.changes, NetworkChange::Ruleset);
                }
                Woken::Xfrm(heard) => {
                    if let Some(xfrm) = &mut self.xfrm {
                        empty(xfrm, heard)?;
                        push(&mut self.changes, NetworkChange::Xfrm);
                    }
                }
                Woken::Digest => self.look().await,
            }
        }
    }

    async fn wait(&mut self) -> Woken {
        let xfrm = async {
            match &mut self.xfrm {
                Some(xfrm) => xfrm.receive().await.map(drop),
                None => std::future::pending().await,
            }
        };
        let (known, changes) = (&mut self.known, &mut self.changes);
        let route = async {
            let datagram = self.route.receive().await?;
            take(datagram, known, changes);
            Ok(())
        };
        tokio::select! {
            heard = route => Woken::Route(heard),
            heard = self.nft.receive() => Woken::Nft(heard.map(drop)),
            heard = xfrm => Woken::Xfrm(heard),
            () = sleep_until(self.next_digest) => Woken::Digest,
        }
    }

    /// What else came with a datagram of rtnetlink, which is taken in already.
    fn gather(&mut self, mut heard: io::Result<()>) -> io::Result<()> {
        for _ in 0..TOGETHER {
            match heard {
                Ok(()) => {}
                Err(error) if is_overrun(&error) => return self.lose(),
                Err(error) => return Err(error),
            }
            heard = match self.route.receive_now() {
                Ok(Some(datagram)) => {
                    take(datagram, &mut self.known, &mut self.changes);
                    Ok(())
                }
                Ok(None) => break,
                Err(error) => Err(error),
            };
        }
        Ok(())
    }

    /// All is read anew, so what waits is of no use.
    fn lose(&mut self) -> io::Result<()> {
        self.route.drain()?;
        self.known.forget();
        push(&mut self.changes, NetworkChange::Lost);
        Ok(())
    }

    async fn look(&mut self) {
        let begin = Instant::now();
        self.known.look();
        let digest = Digest::read().await;
        self.next_digest = begin + PERIOD.max(begin.elapsed() * PAUSE);
        if digest != self.digest {
            self.digest = digest;
            push(&mut self.changes, NetworkChange::Ruleset);
        }
    }
}

fn take(datagram: &[u8], known: &mut Known, changes: &mut VecDeque<NetworkChange>) {
    for message in messages(datagram) {
        for change in known.take(message) {
            push(changes, change);
        }
    }
}

/// What is told already, and not yet heard, need not be told twice.
fn push(changes: &mut VecDeque<NetworkChange>, change: NetworkChange) {
    if !changes.contains(&change) {
        changes.push_back(change);
    }
}

/// Reads what else came to a socket whose messages all mean the same, lost ones too.
fn empty(socket: &mut Socket, heard: io::Result<()>) -> io::Result<()> {
    match heard {
        Err(error) if !is_overrun(&error) => Err(error),
        _ => socket.drain(),
    }
}

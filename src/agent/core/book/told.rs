//! What the host tells of sessions, and what keeps the guest's own view of them true.

use std::net::IpAddr;
use std::time::Duration;

use super::kernel::is_tcp;
use super::{After, Core, Id, KernelRequest, Moment, Reason, Stage};
use crate::agent::network::IfIndex;
use crate::api::events::{Active, Closed, Direction, Event, HandedOver, Level};

/// How often the host tells of movement.
const ACTIVITY_EVERY: Duration = Duration::from_secs(10);
/// A session of which no movement is told for so long is idle: its timeout is set to what is left.
const TRAILING: Duration = Duration::from_secs(12);
/// A neighbour in use is confirmed so often: sooner than it would become stale (Linux's
/// `base_reachable_time`, 30 s, times one half to three halves).
const USE_HOP_EVERY: Duration = Duration::from_secs(15);

impl Core {
    /// Takes a notification.
    pub fn told(&mut self, event: &Event, now: Moment) {
        match event {
            Event::SessionHandedOver(of) => {
                for session in &of.session {
                    self.handed_over(session, now);
                }
            }
            Event::SessionActivity(of) => {
                for session in &of.session {
                    self.active(session, now);
                }
            }
            Event::SessionClosed(of) => {
                for session in &of.session {
                    self.closed(session, now);
                }
            }
            Event::TablePressure(of) => self.is_pressed = of.level == Level::High,
            Event::EventsLost(_) => self.events_lost(),
            Event::ShieldHit(_) | Event::ElementConnected(_) | Event::ElementDisconnected(_) => {}
        }
    }

    fn handed_over(&mut self, told: &HandedOver, now: Moment) {
        let Some(id) = Id::from_key(&told.key) else {
            return;
        };
        self.statistics.hand_over.count(told);
        let every = self.settings.reprove_every;
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        let way = match told.direction {
            Direction::Original => 0,
            Direction::Reply => 1,
        };
        let is_first = held.is_over == [false; 2];
        held.is_over[way] = true;
        let is_all = held.is_over == [true; 2];
        held.moved[way] = now;
        held.transit = told.transit.or(held.transit);
        let history = &mut held.history;
        history.hand_overs = history.hand_overs.saturating_add(1);
        history.forced = history.forced.saturating_add(u32::from(told.forced));
        history.failures = 0;
        // Until now the guest set the timeout itself, also if this is not the first direction that
        // is told of: an older proof's may have been told after the new one was asked for.
        let is_news = held.refreshed.0 < now;
        // It need not be the full one: one of TCP whose segments were taken away before they were
        // acknowledged stands at a shorter one (`nf_conntrack_tcp_timeout_unacknowledged`).
        let is_to_be_set = held.full < 3 * ACTIVITY_EVERY || is_tcp(held);
        if is_news {
            held.refreshed = (now, held.full);
        }
        if is_first {
            held.reprove = now + first_reprove(id, every);
            let due = held.reprove.min(held.asked + self.settings.proof_timeout);
            self.set_deadline(id, due.max(now));
        }
        if is_news && is_to_be_set {
            let timeout = self.timeout_of(id, Duration::ZERO);
            self.refresh(id, timeout, now);
        }
        if is_all {
            self.be_liberal(id);
        }
    }

    fn active(&mut self, told: &Active, now: Moment) {
        let Some(id) = Id::from_key(&told.key) else {
            return;
        };
        let Some(held) = self.held.get_mut(&id).filter(|held| held.is_offered) else {
            return;
        };
        let moved = held.count([told.original, told.reply]);
        if moved == [false; 2] {
            return;
        }
        let at = Moment(now.0.saturating_sub(u64::from(told.idle) * 1000));
        for (way, _) in moved.into_iter().enumerate().filter(|(_, moved)| *moved) {
            // It moves, so it was handed over, even if that was not heard.
            held.is_over[way] = true;
            held.moved[way] = held.moved[way].max(at);
        }
        let (refreshed, given) = held.refreshed;
        let full = held.full;
        let span = now.since(refreshed);
        let left = given.saturating_sub(span);
        let is_due = span >= Duration::from_secs(1).max(full / 3);
        let is_short = left < (self.lease * 2).min(full) && span >= Duration::from_secs(1);
        if held.stage != Stage::Leaving(After::Forget) && (is_due || is_short) {
            let timeout = self.timeout_of(id, Duration::from_secs(u64::from(told.idle)));
            self.refresh(id, timeout, now);
        } else {
            let at = now + TRAILING;
            held.trailing = Some(at);
            let deadline = held.deadline.min(at);
            self.set_deadline(id, deadline);
        }
        self.use_hops(id, now);
    }

    /// The timeout of a session that has been idle so long: what is left of it, but at least two
    /// leases, so that the entry outlives a session that nobody tells of any more.
    pub(super) fn timeout_of(&self, id: Id, idle: Duration) -> Duration {
        let full = self.held.get(&id).map_or(Duration::ZERO, |held| held.full);
        full.saturating_sub(idle).max(self.lease * 2)
    }

    /// The guest sends nothing to these neighbours, and would forget them.
    fn use_hops(&mut self, id: Id, now: Moment) {
        let path = self.held.get(&id).and_then(|held| held.path);
        for (on, address) in path.iter().flat_map(|path| path.next_hops()) {
            self.use_hop(on, address, now);
        }
    }

    pub(super) fn use_hop(&mut self, on: IfIndex, address: IpAddr, now: Moment) {
        let Some(hop) = self.hops.get_mut(&(on, address)) else {
            return;
        };
        if hop.used.is_none_or(|used| now.since(used) >= USE_HOP_EVERY) {
            hop.used = Some(now);
            let bridged = self.ports.get(on).ok().and_then(|port| port.bridged);
            self.requests
                .push_back(KernelRequest::UseNeighbour(on, address, bridged));
        }
    }

    fn closed(&mut self, told: &Closed, now: Moment) {
        self.statistics.close(&told.close_code);
        let Some(id) = Id::from_key(&told.key) else {
            return;
        };
        let Some(mut held) = self.held.remove(&id) else {
            return;
        };
        let was_active = held.is_offered && held.is_over.contains(&true);
        let totals = [&told.original, &told.reply].map(|of| of.as_ref().map(|of| of.traffic));
        let has_moved = held.count(totals).contains(&true);
        let moved = match told.close_code.as_str() {
            "idle-timeout" => Moment(now.0.saturating_sub(millis(held.full))),
            // It moved since it was last told of: when, is not known.
            _ if has_moved => now,
            _ => held.moved[0].max(held.moved[1]),
        };
        let is_the_guests = matches!(told.close_code.as_str(), "fin" | "rst" | "reopened");
        let is_gone = matches!(held.stage, Stage::Leaving(After::Forget));
        if was_active && !is_the_guests && !is_gone {
            self.settle(id, &held, moved);
            held.is_over = [false; 2];
        }
        let stage = held.stage.clone();
        self.held.insert(id, held);
        let after = match told.close_code.as_str() {
            "withdrawn" | "superseded" => After::PutOff(Reason::Ended),
            "egress-lost" => After::PutOff(Reason::Down),
            _ => After::Watch,
        };
        match stage {
            Stage::Live => self.finish(id, after, now),
            // Of an earlier session of this key, or of the one that the answer will be about.
            Stage::Asked => self.leave(id, After::Watch, now),
            // Its own call will be answered.
            _ => {}
        }
    }
}

/// The first time comes between half and all of the time that is between the later ones, spread
/// over all sessions.
fn first_reprove(id: Id, every: Duration) -> Duration {
    let half = millis(every / 2);
    Duration::from_millis(half + id.share_of(half.max(1)))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

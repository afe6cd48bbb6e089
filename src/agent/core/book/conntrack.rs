//! What conntrack tells: news of single connections, and looks at the whole table.

use std::sync::Arc;
use std::time::Duration;

use super::{Action, After, Core, Held, Id, Mode, Moment, Reason, Reasons, Stage};
use crate::agent::connection::{Connection, ConntrackEvent, TcpState};
use crate::agent::core::eligible::judge;
use crate::agent::core::watch::{Look, Thresholds};
use crate::packet::key::protocol;

/// Looks at the table in which an offloaded direction had packets in the guest, before its way is
/// taken for a wrong one, …
const STRAYS_MAX: u8 = 3;
/// … if none went around the guest for so long: the host tells of movement every 10 s.
const STRAY_AFTER: Duration = Duration::from_secs(15);

impl Core {
    /// Takes news of a connection.
    pub fn conntrack(&mut self, event: ConntrackEvent, now: Moment) {
        match event {
            ConntrackEvent::Changed(connection) => {
                self.statistics.news += 1;
                self.news.count(now);
                self.changed(connection, now);
            }
            ConntrackEvent::Gone(connection) => self.gone(Id::of(&connection), now),
            ConntrackEvent::Lost => {
                self.statistics.news_lost += 1;
                self.pace.hurry();
            }
        }
    }

    /// Takes a connection as the look at the table that runs found it.
    pub fn scanned(&mut self, connection: Connection, now: Moment) {
        let id = Id::of(&connection);
        // Read before it was destroyed, and told after.
        if self.gone_meanwhile.contains(&id) {
            return;
        }
        if self.held.contains_key(&id) {
            self.has_moved |= self.look_at_held(id, &connection, now);
            self.seen_again(id, connection, now);
            return;
        }
        if let Err(reason) = judge(&connection, &self.settings, &self.rules) {
            self.reasons.add(reason);
            return;
        }
        let (scan, world) = (self.scan, self.world);
        let least = self.thresholds_now();
        match (self.watches).look(id, &connection, scan, least, world, now) {
            Look::Wait { has_moved, put_off } => {
                self.has_moved |= has_moved;
                if let Some(reason) = put_off {
                    self.reasons.add(reason);
                }
            }
            Look::Due(known) => {
                self.has_moved = true;
                self.hold(id, connection, known, now);
            }
        }
    }

    /// The look at the table is over; whether it saw all of it, and how long it worked.
    pub fn scan_ended(&mut self, is_whole: bool, took: Duration, now: Moment) {
        self.statistics.scans += 1;
        self.statistics.scan_ms += u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.gone_meanwhile.clear();
        self.gone_meanwhile.shrink_to(1024);
        // Of those only the table tells the end.
        let has_unheard = self.held.values().any(|held| !held.is_heard);
        let has_moved = std::mem::take(&mut self.has_moved) || has_unheard;
        self.pace.end(now, took, has_moved);
        let reasons = std::mem::take(&mut self.reasons);
        if !is_whole {
            self.statistics.scans_failed += 1;
            self.pace.hurry();
            return;
        }
        self.reasons_last = reasons;
        self.scans_whole = self.scans_whole.saturating_add(1);
        let scan = self.scan;
        self.watches.sweep(scan);
        self.leave_all(|held| held.scan != scan, After::Forget, now);
    }

    /// How many connections have which reason, as the last whole look at the table found it.
    pub const fn last_reasons(&self) -> &Reasons {
        &self.reasons_last
    }

    pub(super) fn act_on_table(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.news.turn(now);
        if let Some(follow) = self.news.take_change() {
            actions.push(Action::Follow(follow));
            match follow {
                // What was missed since the last look, also if nothing is known that would be
                // looked for.
                true => self.pace.hurry(),
                // What is to be missed.
                false => self.pace.wake(),
            }
        }
        self.pace.want(self.wants_scan());
        if self.pace.due().is_some_and(|due| due <= now) {
            self.pace.start(now);
            self.scan = self.scan.wrapping_add(1);
            actions.push(Action::Scan);
        }
    }

    pub(super) fn table_deadline(&self) -> Option<Moment> {
        let scan = self.pace.due().filter(|_| self.wants_scan());
        [scan, self.news.due()].into_iter().flatten().min()
    }

    fn wants_scan(&self) -> bool {
        if self.pace.is_urgent() || !self.held.is_empty() {
            return true;
        }
        let may_ask = matches!(self.settings.mode, Mode::On | Mode::Observe);
        may_ask && (self.watches.count() > 0 || !self.news.are_followed())
    }

    /// Nothing is due while nothing may be asked for, or too little is known to ask.
    fn thresholds_now(&self) -> Thresholds {
        let may_ask = matches!(self.settings.mode, Mode::On | Mode::Observe);
        if may_ask && self.is_informed() {
            return self.thresholds();
        }
        Thresholds {
            age_min: Duration::MAX,
            ..self.thresholds()
        }
    }

    fn changed(&mut self, mut connection: Connection, now: Moment) {
        let id = Id::of(&connection);
        if let Some(held) = self.held.get_mut(&id) {
            held.is_heard = true;
            return self.seen_again(id, connection, now);
        }
        // Some other thing changed, as when one that was taken up in the middle becomes assured:
        // its state is not told, and the next look at the table judges it.
        let is_stateless =
            connection.original.protocol == protocol::TCP && connection.tcp.is_none();
        if is_stateless {
            connection.tcp = Some(TcpState::ESTABLISHED);
        }
        if judge(&connection, &self.settings, &self.rules).is_err() {
            return self.watches.forget(id);
        }
        if self.scans_whole == 0 {
            return;
        }
        let scan = self.scan;
        match is_stateless {
            true => self.watches.notice(id, scan, now),
            false => self.watches.begin(id, &connection, scan, now),
        }
        self.pace.wake();
    }

    fn gone(&mut self, id: Id, now: Moment) {
        if self.pace.started().is_some() {
            self.gone_meanwhile.insert(id);
        }
        self.watches.forget(id);
        self.settling.remove(&id);
        self.leave(id, After::Forget, now);
    }

    /// A held connection was seen: it may have become another kind.
    fn seen_again(&mut self, id: Id, mut connection: Connection, now: Moment) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        let before = &held.connection;
        connection.tcp = connection.tcp.or(before.tcp);
        connection.timeout = connection.timeout.or(before.timeout);
        connection.counters = connection.counters.or(before.counters);
        if connection.reply != before.reply {
            // Another translation, of the same entry: it is another session.
            self.leave(id, After::Watch, now);
            return;
        }
        // Rules may route by it.
        let is_remarked = connection.mark != before.mark;
        if held.history.hand_overs == 0 {
            held.full = held.full.max(connection.timeout.unwrap_or_default());
        }
        held.scan = self.scan;
        let verdict = judge(&connection, &self.settings, &self.rules);
        held.connection = Arc::new(connection);
        match verdict {
            Err(_) => self.leave(id, After::Watch, now),
            Ok(()) if is_remarked => self.remarked(id, now),
            Ok(()) => {}
        }
    }

    /// Another mark may mean another way: a session is proved again, a search begins anew.
    fn remarked(&mut self, id: Id, now: Moment) {
        let Some(held) = self.held.get(&id) else {
            return;
        };
        match held.stage {
            Stage::Live => self.reprove_one(id),
            Stage::Leaving(_) => {}
            _ => self.leave(id, After::Watch, now),
        }
    }

    /// Compares what the guest has counted of a held connection with what it should see of it.
    /// Whether it moved in the guest.
    fn look_at_held(&mut self, id: Id, seen: &Connection, now: Moment) -> bool {
        let per_look = u64::from(self.settings.rate_min.max(10));
        let Some(held) = self.held.get_mut(&id) else {
            return false;
        };
        held.doubt_timeout(seen.timeout, now);
        let Some(counters) = seen.counters else {
            return false;
        };
        let before = held.guest();
        let moved = [0, 1].map(|way| counters[way].packets.saturating_sub(before[way]));
        let strays = (0..2).any(|way| {
            let since = held.asked.max(held.moved[way]);
            held.is_over[way] && moved[way] >= per_look && now.since(since) >= STRAY_AFTER
        });
        held.strays = if strays && held.stage == Stage::Live {
            held.strays.saturating_add(1)
        } else {
            0
        };
        if held.strays >= STRAYS_MAX {
            self.statistics.strayed += 1;
            self.leave(id, After::NextWay(Reason::Stays), now);
        }
        moved.iter().any(|packets| *packets > 0)
    }

    /// Judges all that are held anew: the ruleset is another.
    pub(super) fn judge_held(&mut self, now: Moment) {
        let (settings, rules) = (&self.settings, &self.rules);
        let is_out = |held: &Held| judge(&held.connection, settings, rules).is_err();
        let out: Vec<Id> = (self.held.iter())
            .filter(|(_, held)| is_out(held))
            .map(|(id, _)| *id)
            .collect();
        for id in out {
            self.leave(id, After::Watch, now);
        }
    }
}

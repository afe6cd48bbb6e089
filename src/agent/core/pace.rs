//! How often, and how much at once: looking at the table, following news, asking, revoking in
//! stages.
//!
//! *Promises*: cost follows load. The table is looked at for no more than the given share of time,
//! and the less often the less moves; news are left while they cost more than looking.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: none.

use std::time::Duration;

use super::moment::Moment;

/// The table is not looked at more often than this, …
const SCAN_EVERY_MIN: Duration = Duration::from_secs(1);
/// … and if nothing moves, not less often than this.
const SCAN_EVERY_QUIET: Duration = Duration::from_secs(8);
/// After a loss of news the table is looked at so soon.
const SCAN_URGENT: Duration = Duration::from_millis(250);

/// When the table is looked at.
#[derive(Debug)]
pub struct ScanPace {
    share_permille: u32,
    /// When the one that runs began.
    started: Option<Moment>,
    ended: Moment,
    took: Duration,
    every: Duration,
    is_urgent: bool,
    is_wanted: bool,
}

impl ScanPace {
    /// The first one is due at once.
    pub fn new(share_permille: u32) -> Self {
        Self {
            share_permille: share_permille.clamp(1, 1000),
            started: None,
            ended: Moment(0),
            took: Duration::ZERO,
            every: Duration::ZERO,
            is_urgent: true,
            is_wanted: true,
        }
    }

    /// When the next one is due; none while one runs, or nobody wants one.
    pub fn due(&self) -> Option<Moment> {
        if self.started.is_some() || !self.is_wanted {
            return None;
        }
        let rest = self.took * (1000 / self.share_permille);
        let pause = match self.is_urgent {
            // The first one, and after a loss: nothing else tells what there is.
            true if self.took.is_zero() => Duration::ZERO,
            true => SCAN_URGENT.max(self.took * 3),
            false => self.every.max(rest),
        };
        Some(self.ended + pause)
    }

    /// Whether there is something to look for.
    pub const fn want(&mut self, is_wanted: bool) {
        self.is_wanted = is_wanted;
    }

    /// What there is is not known: look soon, whether something else is wanted or not.
    pub const fn hurry(&mut self) {
        self.is_urgent = true;
        self.is_wanted = true;
    }

    /// Whether what there is is not known, and no look has begun since.
    pub const fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    /// Something new is there: the next one is not put off for quietness.
    pub fn wake(&mut self) {
        self.every = self.every.min(SCAN_EVERY_MIN);
    }

    /// One begins.
    pub const fn start(&mut self, now: Moment) {
        self.started = Some(now);
        self.is_urgent = false;
    }

    /// When the one that runs began.
    pub const fn started(&self) -> Option<Moment> {
        self.started
    }

    /// It ended, having worked for `took`; whether anything had moved.
    pub fn end(&mut self, now: Moment, took: Duration, has_moved: bool) {
        self.started = None;
        self.ended = now;
        self.took = took.max(Duration::from_micros(1));
        self.every = match has_moved {
            true => SCAN_EVERY_MIN,
            false => (self.every * 2).clamp(SCAN_EVERY_MIN, SCAN_EVERY_QUIET),
        };
    }
}

/// While news are left: how long at first, and at most.
const LEAVE_FIRST: Duration = Duration::from_secs(10);
const LEAVE_MAX: Duration = Duration::from_secs(300);
/// News are counted over this long.
const WINDOW: Duration = Duration::from_secs(1);

/// Whether news of new and changed connections are followed. Those of ended ones always are.
#[derive(Debug)]
pub struct News {
    rate_max: u32,
    window: Moment,
    count: u32,
    /// While they are left: until when.
    until: Option<Moment>,
    leave: Duration,
    has_changed: bool,
}

impl News {
    /// They are followed at first.
    pub const fn new(rate_max: u32) -> Self {
        Self {
            rate_max,
            window: Moment(0),
            count: 0,
            until: None,
            leave: LEAVE_FIRST,
            has_changed: false,
        }
    }

    /// One came.
    pub fn count(&mut self, now: Moment) {
        self.turn(now);
        self.count = self.count.saturating_add(1);
        if self.until.is_none() && self.count > self.rate_max {
            self.until = Some(now + self.leave);
            self.leave = (self.leave * 2).min(LEAVE_MAX);
            self.has_changed = true;
        }
    }

    /// Takes note of the time.
    pub fn turn(&mut self, now: Moment) {
        if now.since(self.window) >= WINDOW {
            let was_quiet = self.until.is_none() && self.count * 2 < self.rate_max;
            if was_quiet && now.since(self.window) < LEAVE_FIRST {
                self.leave = (self.leave / 2).max(LEAVE_FIRST);
            }
            self.window = now;
            self.count = 0;
        }
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
            self.window = now;
            self.count = 0;
            self.has_changed = true;
        }
    }

    /// Whether they are followed.
    pub const fn are_followed(&self) -> bool {
        self.until.is_none()
    }

    /// When they will be followed again.
    pub const fn due(&self) -> Option<Moment> {
        self.until
    }

    /// What the kernel is to be told, once.
    pub fn take_change(&mut self) -> Option<bool> {
        std::mem::take(&mut self.has_changed).then_some(self.are_followed())
    }
}

/// Sessions of one call at most; less after refusals.
const BATCH_MAX: usize = 256;
/// Pauses after the host said that there is no room.
const PAUSE_FIRST: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// How much is asked for at once, by what became of it before.
#[derive(Debug)]
pub struct AskPace {
    batch: usize,
    pause: Duration,
    until: Moment,
}

impl Default for AskPace {
    fn default() -> Self {
        Self {
            batch: BATCH_MAX,
            pause: PAUSE_FIRST,
            until: Moment(0),
        }
    }
}

impl AskPace {
    /// How many may be asked for now.
    pub fn room(&self, now: Moment) -> usize {
        if now < self.until { 0 } else { self.batch }
    }

    /// When there is room again.
    pub const fn due(&self) -> Moment {
        self.until
    }

    /// The answers of a call: how many were taken, and how many found no room.
    pub fn answered(&mut self, taken: usize, refused: usize, no_room: usize, now: Moment) {
        if no_room > 0 {
            self.until = now + self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        } else if taken > 0 {
            self.pause = PAUSE_FIRST;
        }
        self.batch = match refused + no_room > taken {
            true => (self.batch / 2).max(1),
            false => (self.batch * 2).min(BATCH_MAX),
        };
        if refused > taken {
            self.until = self.until.max(now + Duration::from_millis(250));
        }
    }
}

/// Lets a number of things a second through.
#[derive(Debug)]
pub struct Meter {
    rate: u32,
    /// Thousandths of a thing that were saved up.
    saved: u64,
    at: Moment,
}

impl Meter {
    /// `rate` a second.
    pub const fn new(rate: u32) -> Self {
        Self {
            rate: if rate == 0 { 1 } else { rate },
            saved: 0,
            at: Moment(0),
        }
    }

    /// How many may pass now, at most `wanted`.
    pub fn take(&mut self, wanted: usize, now: Moment) -> usize {
        let span = now.0.saturating_sub(self.at.0).min(1000);
        self.at = self.at.max(now);
        // Never more than a tenth of a second at once: what is metered is not to come in bursts.
        let most = (u64::from(self.rate) * 100).max(1000);
        self.saved = (self.saved + span * u64::from(self.rate)).min(most);
        let passed = wanted.min((self.saved / 1000) as usize);
        self.saved -= passed as u64 * 1000;
        passed
    }

    /// When the next may pass.
    pub fn due(&self) -> Moment {
        let missing = 1000_u64.saturating_sub(self.saved);
        Moment(self.at.0 + missing.div_ceil(u64::from(self.rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Moment {
        Moment(millis)
    }

    fn span(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Scans for `span` of time, each taking `took`; how many there were.
    fn scans(pace: &mut ScanPace, until: u64, took: u64, has_moved: bool) -> u64 {
        let mut count = 0;
        while let Some(due) = pace.due().filter(|due| due.0 < until) {
            pace.start(due);
            pace.end(due + span(took), span(took), has_moved);
            count += 1;
        }
        count
    }

    #[test]
    fn looking_takes_no_more_than_its_share_of_time() {
        for took in [1, 40, 300, 2_000] {
            let mut pace = ScanPace::new(30);
            let count = scans(&mut pace, 1_000_000, took, true);
            assert!(count * took <= 31_000 + took, "{count} of {took} ms");
            assert!(count <= 1_001);
        }
    }

    #[test]
    fn a_quiet_table_is_looked_at_less_often_until_something_comes() {
        let mut pace = ScanPace::new(30);
        let count = scans(&mut pace, 100_000, 1, false);
        assert!((12..=17).contains(&count), "{count}");
        let before = pace.due().unwrap();
        pace.wake();
        assert!(pace.due().unwrap() < before);
    }

    #[test]
    fn who_wants_nothing_looks_at_nothing_and_a_loss_is_looked_after_soon() {
        let mut pace = ScanPace::new(30);
        pace.start(at(0));
        pace.end(at(20), span(20), true);
        pace.want(false);
        assert_eq!(pace.due(), None);
        pace.hurry();
        assert_eq!(pace.due(), Some(at(270)));
        pace.start(at(270));
        assert_eq!(pace.due(), None);
    }

    #[test]
    fn news_are_left_above_the_budget_and_taken_up_again_later_and_later() {
        let mut news = News::new(100);
        let mut left = Vec::new();
        let mut now = 0;
        while left.len() < 4 {
            news.turn(at(now));
            if news.are_followed() {
                (0..101).for_each(|_| news.count(at(now)));
                left.push(news.due().unwrap().0 - now);
                assert_eq!(news.take_change(), Some(false));
            }
            assert_eq!(news.take_change(), None);
            now = news.due().unwrap().0;
            news.turn(at(now));
            assert_eq!(news.take_change(), Some(true));
        }
        assert_eq!(left, [10_000, 20_000, 40_000, 80_000]);
    }

    #[test]
    fn news_below_the_budget_are_followed_for_ever() {
        let mut news = News::new(100);
        for second in 0..1000 {
            (0..100).for_each(|_| news.count(at(second * 1000)));
        }
        assert!(news.are_followed());
        assert_eq!(news.take_change(), None);
    }

    #[test]
    fn refusals_make_asking_slower_and_success_fast_again() {
        let mut pace = AskPace::default();
        let mut now = at(0);
        for _ in 0..10 {
            let room = pace.room(now);
            assert!(room > 0);
            pace.answered(0, 0, room, now);
            assert_eq!(pace.room(now), 0);
            now = pace.due();
        }
        assert_eq!(pace.room(now), 1);
        assert!(now.0 >= 600_000, "pauses grow");
        for _ in 0..10 {
            pace.answered(pace.room(now), 0, 0, now);
        }
        assert_eq!(pace.room(now), BATCH_MAX);
    }

    #[test]
    fn a_meter_lets_its_rate_through_and_no_burst() {
        let mut meter = Meter::new(50);
        let mut passed = 0;
        let mut now = at(100_000);
        meter.take(0, now);
        while now < at(110_000) {
            let some = meter.take(1000, now);
            assert!(some <= 5);
            passed += some;
            now = meter.due().max(Moment(now.0 + 1));
        }
        assert!((495..=506).contains(&passed), "{passed}");
        // Also a slow one lets single things through.
        let mut slow = Meter::new(1);
        slow.take(0, at(0));
        assert_eq!(slow.take(5, at(999)), 0);
        assert_eq!(slow.take(5, at(1000)), 1);
    }
}

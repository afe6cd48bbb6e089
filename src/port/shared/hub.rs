//! One queue of a shared device, and what its members are owed of it.
//!
//! *Promises*: a frame from the device goes to the members whose it is, without the tag of
//! their VLAN; a frame of a member leaves with the tag of its VLAN, and goes to other
//! members in it as well where it is theirs. What a member does not fetch costs that member.
//! *Refuses*: frames with a source address that is not the member's own, or with a tag of
//! the member's making.
//! *Caller's duty*: one call at a time ([`super::member`] locks).
//! *Standard*: IEEE 802.1Q.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::super::counters::{Counters, Tally};
use super::super::{Armed, Poller, Port, TxReport};
use super::inbox::Inbox;
use super::selector::{MACS, Selector, Selectors, TAG, Taken, Whose, has_tag, moved};
use super::wiring::Wiring;
use crate::packet::{Burst, MacAddr, Offload, TxFrame, VlanId};

/// A member's place in its hub.
pub(super) type Place = u16;

/// A member as the hub knows it.
struct Member {
    selector: Selector,
    inbox: Inbox,
    counters: Arc<Counters>,
    /// Its worker's, once it is attached.
    poller: Option<Poller>,
    /// Rings at its worker when the inbox is no longer empty and the member sleeps.
    bell: EventFd,
    asleep: bool,
}

impl Member {
    fn vlan(&self) -> u16 {
        self.selector.vlan.map_or(0, u16::from)
    }

    /// A frame for it found no room.
    fn lose(&self) {
        self.counters.rx.add(Tally {
            discarded: 1,
            ..Tally::default()
        });
    }

    fn take_in(&mut self, parts: Parts<'_>, offload: Offload) {
        if !self.inbox.push(parts, offload) {
            self.lose();
            return;
        }
        if std::mem::take(&mut self.asleep) {
            // A count that is full is already ringing.
            let _ringing = self.bell.write(1);
        }
    }
}

/// A queue of the device.
pub(super) struct Hub {
    port: Box<dyn Port>,
    wiring: Arc<Wiring>,
    is_wired: bool,
    members: Vec<Option<Member>>,
    selectors: Selectors,
    /// The member whose worker the device wakes.
    driver: Option<Place>,
    received: Burst,
    tagged: Burst,
    /// Frames that no member's selector takes.
    pub(super) unclaimed: u64,
}

/// Where a member's frame goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    /// To the device.
    Wire,
    /// To another member.
    Local(Place),
    /// To the device and all other members in the VLAN.
    Flood,
    /// Nowhere: it is not the member's to send.
    Refused,
}

/// A frame in two parts.
type Parts<'a> = (&'a [u8], &'a [u8]);

/// A frame without the tag in front of its type, and its offload.
fn untagged<'a>(frame: &TxFrame<'a>) -> Option<(Parts<'a>, Offload)> {
    let front = frame.data.get(..MACS)?;
    let rest = frame.data.get(MACS + TAG..)?;
    Some(((front, rest), moved(frame.offload, -(TAG as i32))?))
}

impl Hub {
    pub(super) fn new(port: Box<dyn Port>) -> Self {
        Self {
            port,
            wiring: Arc::default(),
            is_wired: false,
            members: Vec::new(),
            selectors: Selectors::default(),
            driver: None,
            received: Burst::new(),
            tagged: Burst::new(),
            unclaimed: 0,
        }
    }

    pub(super) fn port(&self) -> &dyn Port {
        &*self.port
    }

    /// Takes a member in; `bell` is one that its worker will watch.
    pub(super) fn join(
        &mut self,
        selector: Selector,
        counters: Arc<Counters>,
        bell: EventFd,
    ) -> Result<Place, Taken> {
        let free = self.members.iter().position(Option::is_none);
        let place = free.unwrap_or(self.members.len());
        self.selectors.join(place as Place, &selector)?;
        let member = Member {
            selector,
            inbox: Inbox::new(),
            counters,
            poller: None,
            bell,
            asleep: false,
        };
        match self.members.get_mut(place) {
            Some(empty) => *empty = Some(member),
            None => self.members.push(Some(member)),
        }
        Ok(place as Place)
    }

    /// A member goes, and what waits for it is lost. Another one drives, if it did.
    pub(super) fn leave(&mut self, place: Place) {
        self.selectors.leave(place);
        if let Some(member) = self.members.get_mut(usize::from(place)) {
            *member = None;
        }
        if self.driver == Some(place) {
            self.driver = None;
            self.choose_driver();
        }
    }

    /// A member has got its worker.
    pub(super) fn attach(&mut self, place: Place, poller: Poller) -> std::io::Result<()> {
        if let Some(member) = self.member(place) {
            member.poller = Some(poller.clone());
        }
        if self.driver.is_some() {
            return Ok(());
        }
        self.wiring.drive(Some(poller.clone()))?;
        self.driver = Some(place);
        if !std::mem::replace(&mut self.is_wired, true) {
            // The device's own token is never seen: descriptors carry the driver's.
            self.port.attach(Poller::new(self.wiring.clone(), 0))?;
        }
        Ok(())
    }

    fn choose_driver(&mut self) {
        let attached = |member: &Option<Member>| {
            let member = member.as_ref()?;
            Some((member.poller.clone()?, member.bell.try_clone().ok()?))
        };
        let next = self.members.iter().enumerate();
        let next = next.map(|(place, member)| (place, attached(member)));
        for (place, found) in next {
            let Some((poller, bell)) = found else {
                continue;
            };
            if self.wiring.drive(Some(poller)).is_ok() {
                self.driver = Some(place as Place);
                // It may sleep without having armed the device.
                let _ringing = bell.write(1);
                return;
            }
        }
        if self.wiring.drive(None).is_err() {
            log::warn!("a shared uplink without members could not be set aside");
        }
    }

    fn member(&mut self, place: Place) -> Option<&mut Member> {
        self.members.get_mut(usize::from(place))?.as_mut()
    }

    /// The device's port leaves the calling thread; the next that looks at it has it.
    pub(super) fn detach(&mut self) {
        self.port.detach();
    }

    /// Appends to `burst` what waits for a member; looks at the device if nothing did.
    pub(super) fn receive(&mut self, place: Place, burst: &mut Burst) -> usize {
        let Some(member) = self.member(place) else {
            return 0;
        };
        let waiting = member.inbox.move_to(burst);
        if !member.inbox.is_empty() || burst.room() == 0 {
            return waiting;
        }
        waiting + self.take_from_device(place, burst)
    }

    /// Takes one burst from the device. What is `place`'s own goes straight to `burst`.
    fn take_from_device(&mut self, place: Place, burst: &mut Burst) -> usize {
        let Self {
            port,
            members,
            selectors,
            received,
            unclaimed,
            ..
        } = self;
        received.clear();
        let mut direct = 0;
        for index in 0..port.receive(received) {
            let frame = received.frame(index);
            match selectors.whose(frame.data) {
                Whose::Nobody => *unclaimed += 1,
                Whose::Member(whose) => {
                    let own = (whose == place).then_some(&mut *burst);
                    direct += usize::from(hand(members, whose, &frame, own));
                }
                Whose::Group(all) => {
                    for whose in all {
                        let own = (*whose == place).then_some(&mut *burst);
                        direct += usize::from(hand(members, *whose, &frame, own));
                    }
                }
            }
        }
        direct
    }

    /// Sends a member's frames.
    pub(super) fn transmit(&mut self, place: Place, frames: &[TxFrame<'_>]) -> TxReport {
        let frames = &frames[..frames.len().min(Burst::FRAMES_MAX)];
        let Some(sender) = self
            .members
            .get(usize::from(place))
            .and_then(Option::as_ref)
        else {
            return TxReport::default();
        };
        let (vlan, tag) = (sender.vlan(), sender.selector.vlan);
        let mut routes = [Route::Refused; Burst::FRAMES_MAX];
        let mut report = TxReport::default();
        for (index, (route, frame)) in routes.iter_mut().zip(frames).enumerate() {
            *route = self.route(place, sender, vlan, frame.data);
            report.refused |= u64::from(*route == Route::Refused) << index;
        }
        report.consumed = frames.len();
        self.send_out(frames, &routes, tag, &mut report);
        for (route, frame) in routes.iter().zip(&frames[..report.consumed]) {
            self.hand_around(place, vlan, *route, frame);
        }
        report
    }

    fn route(&self, place: Place, sender: &Member, vlan: u16, frame: &[u8]) -> Route {
        let source = frame.get(6..MACS).and_then(|mac| mac.first_chunk::<6>());
        let is_own = source.is_some_and(|mac| sender.selector.macs.contains(&MacAddr(*mac)));
        if !is_own || has_tag(frame) {
            return Route::Refused;
        }
        match self.selectors.in_vlan(vlan, frame) {
            // To itself: a switch would not send it back either.
            Whose::Member(whose) if whose == place => Route::Wire,
            Whose::Member(whose) => Route::Local(whose),
            Whose::Group(_) => Route::Flood,
            Whose::Nobody => Route::Wire,
        }
    }

    /// Sends what goes to the device; `report` then says where that was full.
    fn send_out(
        &mut self,
        frames: &[TxFrame<'_>],
        routes: &[Route],
        tag: Option<VlanId>,
        report: &mut TxReport,
    ) {
        let goes = |route: &Route| matches!(route, Route::Wire | Route::Flood);
        let Some(tag) = tag else {
            let mut wire = Wire::new(&mut *self.port);
            for (index, frame) in frames.iter().enumerate() {
                if goes(&routes[index]) {
                    wire.add(index, *frame);
                }
            }
            wire.send(report);
            return;
        };
        let mut next = 0;
        while next < frames.len() && next < report.consumed {
            let begun = next;
            let mut places = [0; Burst::FRAMES_MAX];
            self.tagged.clear();
            while next < frames.len() {
                if goes(&routes[next]) {
                    if !push_tagged(&mut self.tagged, &frames[next], tag) {
                        break;
                    }
                    places[self.tagged.len() - 1] = next;
                }
                next += 1;
            }
            let mut wire = Wire::new(&mut *self.port);
            for (place, index) in places[..self.tagged.len()].iter().enumerate() {
                wire.add(*index, self.tagged.frame(place));
            }
            wire.send(report);
            if next == begun {
                // With its tag it fits no burst.
                report.too_large |= 1 << next;
                next += 1;
            }
        }
    }

    /// Hands a frame that a member sent to the others whose it is.
    fn hand_around(&mut self, sender: Place, vlan: u16, route: Route, frame: &TxFrame<'_>) {
        let Self {
            members, selectors, ..
        } = self;
        let whole = (frame.data, &[][..]);
        let mut give = |whose: Place| {
            if let Some(Some(member)) = members.get_mut(usize::from(whose)) {
                member.take_in(whole, frame.offload);
            }
        };
        match route {
            Route::Local(whose) => give(whose),
            Route::Flood => {
                if let Whose::Group(all) = selectors.in_vlan(vlan, frame.data) {
                    all.iter()
                        .filter(|whose| **whose != sender)
                        .for_each(|whose| give(*whose));
                }
            }
            Route::Wire | Route::Refused => {}
        }
    }

    /// A member is about to sleep.
    pub(super) fn arm(&mut self, place: Place) -> Armed {
        let drives = self.driver == Some(place);
        let Some(member) = self.member(place) else {
            return Armed::Asleep;
        };
        if !member.inbox.is_empty() {
            return Armed::Ready;
        }
        member.asleep = true;
        if drives && self.port.arm() == Armed::Ready {
            return Armed::Ready;
        }
        Armed::Asleep
    }

    /// A member polls again.
    pub(super) fn disarm(&mut self, place: Place) {
        if let Some(member) = self.member(place) {
            member.asleep = false;
        }
        if self.driver == Some(place) {
            self.port.disarm();
        }
    }
}

/// Gives a frame from the device to a member: straight to its burst, or into its inbox.
/// Says whether it went straight.
fn hand(
    members: &mut [Option<Member>],
    whose: Place,
    frame: &TxFrame<'_>,
    burst: Option<&mut Burst>,
) -> bool {
    let Some(Some(member)) = members.get_mut(usize::from(whose)) else {
        return false;
    };
    let whole = ((frame.data, &[][..]), frame.offload);
    let (parts, offload) = match member.selector.vlan {
        None => whole,
        Some(_) => match untagged(frame) {
            Some(bare) => bare,
            None => {
                member.lose();
                return false;
            }
        },
    };
    if let Some(burst) = burst
        && member.inbox.is_empty()
        && push_parts(burst, parts, offload)
    {
        return true;
    }
    member.take_in(parts, offload);
    false
}

fn push_parts(burst: &mut Burst, (front, rest): Parts<'_>, offload: Offload) -> bool {
    let len = front.len() + rest.len();
    let Some(space) = burst.reserve(len) else {
        return false;
    };
    space[..front.len()].copy_from_slice(front);
    space[front.len()..].copy_from_slice(rest);
    burst.commit(len, offload);
    true
}

fn push_tagged(burst: &mut Burst, frame: &TxFrame<'_>, vlan: VlanId) -> bool {
    let (Some((macs, rest)), Some(offload)) = (
        frame.data.split_at_checked(MACS),
        moved(frame.offload, TAG as i32),
    ) else {
        return false;
    };
    let len = frame.data.len() + TAG;
    let Some(space) = burst.reserve(len) else {
        return false;
    };
    let [high, low] = u16::from(vlan).to_be_bytes();
    space[..MACS].copy_from_slice(macs);
    space[MACS..MACS + TAG].copy_from_slice(&[0x81, 0x00, high, low]);
    space[MACS + TAG..].copy_from_slice(rest);
    burst.commit(len, offload);
    true
}

/// Frames on their way to the device, and which of the member's each is.
struct Wire<'a, 'f> {
    port: &'a mut dyn Port,
    frames: [TxFrame<'f>; Burst::FRAMES_MAX],
    places: [usize; Burst::FRAMES_MAX],
    count: usize,
}

impl<'a, 'f> Wire<'a, 'f> {
    fn new(port: &'a mut dyn Port) -> Self {
        Self {
            port,
            frames: [TxFrame::default(); Burst::FRAMES_MAX],
            places: [0; Burst::FRAMES_MAX],
            count: 0,
        }
    }

    fn add(&mut self, place: usize, frame: TxFrame<'f>) {
        self.frames[self.count] = frame;
        self.places[self.count] = place;
        self.count += 1;
    }

    /// Transmits them; the member's frames count as consumed up to the first that was not.
    fn send(self, report: &mut TxReport) {
        if self.count == 0 {
            return;
        }
        let sent = self.port.transmit(&self.frames[..self.count]);
        for (at, place) in self.places[..self.count].iter().enumerate() {
            if at < sent.consumed {
                report.too_large |= (sent.too_large >> at & 1) << place;
            } else {
                report.consumed = report.consumed.min(*place);
            }
        }
    }
}

//! From what an element's feed tells to the notifications of a stream.
//!
//! *Promises*: a reader that does not take its notifications holds up nobody: what it does not
//! hear is counted on the keeper's side ([`crate::datapath::told`]).
//! *Refuses*: elements that are not there.
//! *Caller's duty*: none. *Standard*: see [`crate::api::events`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc};

use super::running::Backend;
use super::wall_clock;
use crate::api::error::ApiError;
use crate::api::events::{
    Active, Closed, Connection, Direction, Event, EventFeed, EventsLost, Final, HandedOver, Hit,
    Level, RawEvent, Sessions, ShieldHit, TablePressure, TcpSegment,
};
use crate::api::session::SessionKey;
use crate::api::state::Traffic;
use crate::datapath::clock::Clock;
use crate::datapath::told::{Ended, Heard, Listener, Told, listening};
use crate::flow::shield::Hits;
use crate::flow::{self, Moment, Moved, Totals};

/// Notifications that wait for a reader, besides those on the keeper's side.
const AHEAD: usize = 4;

impl Backend {
    pub(super) async fn do_events(&self, element: &str) -> Result<EventFeed, ApiError> {
        let element = self.element(element)?;
        let (id, name) = (element.id, element.name.clone());
        let bell = Arc::new(Notify::new());
        let ring = Arc::clone(&bell);
        let (teller, listener) = listening(move || ring.notify_one());
        self.ask(move |books, now| books.listen(&id, teller, now))
            .await?;
        let (sender, feed) = mpsc::channel(AHEAD);
        let scribe = Scribe {
            element: name,
            clock: self.clock,
            listener,
        };
        tokio::spawn(scribe.write(bell, sender));
        Ok(feed)
    }
}

/// Writes down what a listener hears.
struct Scribe {
    element: String,
    clock: Clock,
    listener: Listener,
}

impl Scribe {
    /// Until the reader goes away, or there will be no more.
    async fn write(mut self, bell: Arc<Notify>, reader: mpsc::Sender<RawEvent>) {
        loop {
            let (then, event) = match self.listener.hear() {
                Heard::Told(then, told) => (then, self.event(&told)),
                Heard::Lost(count) => (self.clock.now(), self.lost(count)),
                Heard::Nothing => {
                    tokio::select! {
                        () = bell.notified() => continue,
                        () = reader.closed() => return,
                    }
                }
                Heard::End => return,
            };
            match RawEvent::new(self.wall(then), event) {
                Ok(event) => {
                    if reader.send(event).await.is_err() {
                        return;
                    }
                }
                Err(error) => log::error!("a notification has no JSON form: {error}"),
            }
        }
    }

    fn wall(&self, then: Moment) -> SystemTime {
        let now = wall_clock();
        now.checked_sub(self.clock.now().since(then)).unwrap_or(now)
    }

    fn lost(&self, count: u64) -> Event {
        Event::EventsLost(EventsLost {
            element: self.element.clone(),
            count,
        })
    }

    fn event(&self, told: &Told) -> Event {
        let element = self.element.clone();
        match told {
            Told::HandedOver(all) => Event::SessionHandedOver(Sessions {
                element,
                session: all.iter().filter_map(handed_over).collect(),
            }),
            Told::Ended(all) => Event::SessionClosed(Sessions {
                element,
                session: all.iter().filter_map(closed).collect(),
            }),
            Told::Activity(all) => Event::SessionActivity(Sessions {
                element,
                session: all.iter().filter_map(active).collect(),
            }),
            Told::Hit(all) => Event::ShieldHit(ShieldHit {
                element,
                shield: all.iter().filter_map(hit).collect(),
            }),
            Told::Pressure(pressure) => Event::TablePressure(TablePressure {
                element,
                level: if pressure.is_high {
                    Level::High
                } else {
                    Level::Normal
                },
                sessions: pressure.sessions,
                sessions_max: pressure.sessions_max,
            }),
            Told::Connected(fence) => Event::ElementConnected(Connection {
                element,
                fence: *fence,
            }),
            Told::Disconnected(fence) => Event::ElementDisconnected(Connection {
                element,
                fence: *fence,
            }),
        }
    }
}

/// A key that went in by the API also goes out by it.
fn key(text: &str) -> Option<SessionKey> {
    SessionKey::try_from(text.to_owned()).ok()
}

fn handed_over(one: &flow::HandedOver) -> Option<HandedOver> {
    Some(HandedOver {
        key: key(&one.key)?,
        id: one.session.0,
        direction: match one.direction {
            flow::Direction::Original => Direction::Original,
            flow::Direction::Reply => Direction::Reply,
        },
        transit: one
            .transit
            .map(|transit| u32::try_from(transit.as_micros()).unwrap_or(u32::MAX)),
        forced: one.forced,
        overtaken: one.toll.overtaken,
        lost: one.toll.lost,
    })
}

fn closed(one: &Ended) -> Option<Closed> {
    let came_to = |totals: &Totals| Final {
        traffic: traffic(totals),
        tcp: totals
            .tcp
            .map(|(sequence, acknowledgement, window)| TcpSegment {
                sequence_number: sequence,
                acknowledgement_number: acknowledgement,
                window_size: window,
            }),
    };
    Some(Closed {
        key: key(&one.key)?,
        id: one.session.0,
        close_code: one.code.name().to_owned(),
        age: seconds(one.age),
        original: one.totals[0].as_ref().map(came_to),
        reply: one.totals[1].as_ref().map(came_to),
    })
}

fn active(one: &Moved) -> Option<Active> {
    let [original, reply] = &one.totals;
    Some(Active {
        key: key(&one.key)?,
        id: one.session.0,
        idle: seconds(one.idle),
        original: original.as_ref().map(traffic),
        reply: reply.as_ref().map(traffic),
    })
}

fn hit(one: &Hits) -> Option<Hit> {
    Some(Hit {
        origin: one.origin.into(),
        name: key(&one.name)?,
        packets: one.count.packets,
        octets: one.count.octets,
        dropped: one.count.dropped,
    })
}

fn traffic(totals: &Totals) -> Traffic {
    Traffic {
        packets: totals.packets,
        octets: totals.bytes,
    }
}

fn seconds(span: Duration) -> u32 {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX)
}

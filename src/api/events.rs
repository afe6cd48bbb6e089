//! The notifications of `shunt-offload`, and how they are told.
//!
//! *Promises*: a notification is about one element. What is lost is told as `events-lost`,
//! where it is missing.
//! *Refuses*: nothing; readers ignore leaves they do not know.
//! *Caller's duty*: who is told `events-lost` syncs. The text of a [`RawEvent`] has no line
//! breaks.
//! *Standard*: RFC 8040 section 6.4, RFC 5277 section 4 (the envelope), RFC 3339.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::session::SessionKey;
use super::shield::SetBy;
use super::state::Traffic;
use super::wire::u64_text;

/// Notifications of one element as they come; it ends when there will be no more.
pub type EventFeed = mpsc::Receiver<RawEvent>;

/// A notification as it goes over the wire: its JSON text, in one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawEvent(pub String);

impl RawEvent {
    /// The notification `event` of `time`.
    ///
    /// # Errors
    /// It has no JSON form, which none of ours lacks.
    pub fn new(time: SystemTime, event: Event) -> Result<Self, serde_json::Error> {
        let notification = Notification {
            event_time: date_and_time(time),
            event,
        };
        serde_json::to_string(&Envelope { notification }).map(Self)
    }

    /// What it says.
    ///
    /// # Errors
    /// It is not of the model, or of a later one that says more.
    pub fn read(&self) -> Result<Notification, serde_json::Error> {
        serde_json::from_str(&self.0).map(|envelope: Envelope| envelope.notification)
    }
}

/// The message (RFC 8040 section 6.4).
#[derive(Serialize, Deserialize)]
struct Envelope {
    #[serde(rename = "ietf-restconf:notification")]
    notification: Notification,
}

/// A notification.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Notification {
    /// When it happened, `date-and-time` of RFC 6991.
    #[serde(rename = "eventTime")]
    pub event_time: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Event {
    /// Directions of sessions moved to the fast path.
    #[serde(rename = "shunt-offload:session-handed-over")]
    SessionHandedOver(Sessions<HandedOver>),
    /// Sessions ended.
    #[serde(rename = "shunt-offload:session-closed")]
    SessionClosed(Sessions<Closed>),
    /// Sessions moved packets.
    #[serde(rename = "shunt-offload:session-activity")]
    SessionActivity(Sessions<Active>),
    /// Shields matched packets.
    #[serde(rename = "shunt-offload:shield-hit")]
    ShieldHit(ShieldHit),
    /// The table became nearly full, or is not any more.
    #[serde(rename = "shunt-offload:table-pressure")]
    TablePressure(TablePressure),
    /// Notifications are missing here.
    #[serde(rename = "shunt-offload:events-lost")]
    EventsLost(EventsLost),
    /// The host hears the element's agent.
    #[serde(rename = "shunt-offload:element-connected")]
    ElementConnected(Connection),
    /// It does not any more.
    #[serde(rename = "shunt-offload:element-disconnected")]
    ElementDisconnected(Connection),
}

/// What is told of several sessions of an element.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sessions<T> {
    /// Whose.
    pub element: String,
    /// What of each.
    pub session: Vec<T>,
}

/// A direction that moved to the fast path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HandedOver {
    /// The session's key.
    pub key: SessionKey,
    /// The backend's number for it.
    #[serde(with = "u64_text")]
    pub id: u64,
    /// Which direction.
    pub direction: Direction,
    /// The guest's transit time, microseconds, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit: Option<u32>,
    /// At a bound, so that packets may have been reordered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// Packets that may have been overtaken.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub overtaken: u32,
    /// Parked packets that found no room when they were released.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A direction of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// As the first packet went.
    Original,
    /// The answers.
    Reply,
}

/// A session that ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Closed {
    /// Its key.
    pub key: SessionKey,
    /// The backend's number for it.
    #[serde(with = "u64_text")]
    pub id: u64,
    /// Why it ended.
    pub close_code: String,
    /// Seconds since it was offloaded.
    pub age: u32,
    /// What the original direction came to, if it was offloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Final>,
    /// The same of the reply direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Final>,
}

/// What a direction came to on the fast path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Final {
    /// Packets and bytes.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// The last TCP segment that was forwarded, if any was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpSegment>,
}

/// What a TCP header says of where the connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TcpSegment {
    /// Sequence number.
    pub sequence_number: u32,
    /// Acknowledgment number.
    pub acknowledgement_number: u32,
    /// Window, not scaled.
    pub window_size: u16,
}

/// A session that moved packets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Active {
    /// Its key.
    pub key: SessionKey,
    /// The backend's number for it.
    #[serde(with = "u64_text")]
    pub id: u64,
    /// Seconds since either direction moved.
    pub idle: u32,
    /// Totals of the original direction, if it is offloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Traffic>,
    /// Totals of the reply direction, if it is offloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Traffic>,
}

/// What is told of several shields of an element.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShieldHit {
    /// Whose.
    pub element: String,
    /// What of each.
    pub shield: Vec<Hit>,
}

/// A shield that matched packets since it was told last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Hit {
    /// Whose it is.
    pub origin: SetBy,
    /// Its name.
    pub name: SessionKey,
    /// Packets that it matched.
    #[serde(with = "u64_text")]
    pub packets: u64,
    /// Their bytes, from the network layer on.
    #[serde(with = "u64_text")]
    pub octets: u64,
    /// Of the packets, those that are gone.
    #[serde(with = "u64_text")]
    pub dropped: u64,
}

/// How full a table is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TablePressure {
    /// Whose.
    pub element: String,
    /// Whether it is nearly full.
    pub level: Level,
    /// Sessions in it.
    pub sessions: u32,
    /// Room.
    pub sessions_max: u32,
}

/// Whether a table is nearly full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// It is.
    High,
    /// It is not any more.
    Normal,
}

/// Entries that were dropped.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EventsLost {
    /// Whose.
    pub element: String,
    /// How many.
    #[serde(with = "u64_text")]
    pub count: u64,
}

/// A connection of an element's agent to its host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Connection {
    /// Whose.
    pub element: String,
    /// Its number.
    #[serde(with = "u64_text")]
    pub fence: u64,
}

/// `2026-11-24T10:20:30.004Z`.
fn date_and_time(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01: years are counted from March, so that
/// the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_is_written_as_rfc_3339_says() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (1_795_515_630_004, "2026-11-24T10:20:30.004Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(date_and_time(time), text);
        }
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let event = Event::SessionClosed(Sessions {
            element: "r1".to_owned(),
            session: vec![Closed {
                key: "a".parse().unwrap(),
                id: u64::MAX,
                close_code: "fin".to_owned(),
                age: 3,
                original: Some(Final {
                    traffic: Traffic {
                        packets: 7,
                        octets: 9,
                    },
                    tcp: Some(TcpSegment {
                        sequence_number: 1,
                        acknowledgement_number: 2,
                        window_size: 3,
                    }),
                }),
                reply: None,
            }],
        });
        let raw = RawEvent::new(UNIX_EPOCH, event.clone()).unwrap();
        assert_eq!(
            raw.0,
            concat!(
                r#"{"ietf-restconf:notification":{"eventTime":"1970-01-01T00:00:00.000Z","#,
                r#""shunt-offload:session-closed":{"element":"r1","session":[{"key":"a","#,
                r#""id":"18446744073709551615","close-code":"fin","age":3,"#,
                r#""original":{"packets":"7","octets":"9","tcp":{"sequence-number":1,"#,
                r#""acknowledgement-number":2,"window-size":3}}}]}}}"#
            )
        );
        assert_eq!(raw.read().unwrap().event, event);
    }
}

//! An element's notifications, from its backend to its stream.
//!
//! *Promises*: one queue for each element that reads, filled by a stream of the backend for that
//! element alone, so that nobody else's notifications can be in it. A stream ends when its token
//! expires, the element moves or goes, or a newer connection takes its place; the next stream of
//! the same connection goes on where it ended, if it comes within [`PAUSE_MAX`]. Where
//! something may be missing the stream says `events-lost`.
//! *Refuses*: to hold more than [`EVENTS_MAX`] notifications or [`BYTES_MAX`] bytes for an
//! element: the newest are dropped and counted.
//! *Caller's duty*: the element's identity was verified; [`Feeds::fence`] is told of newer
//! connections.
//! *Standard*: RFC 8040 section 6; `shunt-offload`.

#![expect(
    clippy::disallowed_types,
    reason = "guard queues for an instant, among control tasks; no worker takes them"
)]

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::Frame;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::backends::Backends;
use super::registry::{Placed, Registry};
use super::view::of_backend;
use crate::api::client::EventStream;
use crate::api::error::ApiError;
use crate::api::events::{Event, EventsLost, RawEvent};
use crate::api::sse;

/// How long the queue of an element that does not read is filled further.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long an operator watches at most; then their role is looked at again.
const WATCHED_MAX: Duration = Duration::from_secs(3_600);
/// Notifications that wait.
pub const EVENTS_MAX: usize = 1_024;
/// Bytes of them.
pub const BYTES_MAX: usize = 4 << 20;
/// Notifications that are written at a time.
const TOGETHER: usize = 32;

/// The queues of all elements that read.
pub struct Feeds {
    registry: Arc<Registry>,
    backends: Arc<Backends>,
    all: Mutex<HashMap<String, Arc<Feed>>>,
}

/// One element's.
struct Feed {
    element: String,
    /// The connection of the element that it belongs to.
    fence: u64,
    queue: Mutex<Queue>,
    /// Becomes true when nobody reads it any more.
    over: watch::Sender<bool>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<RawEvent>,
    bytes: usize,
    /// Dropped since the last that was queued; `Some(0)`: nobody knows how many.
    lost: Option<u64>,
    /// No more will come.
    has_ended: bool,
    /// The number of the newest reader.
    reader: u64,
    /// Since when it is gone.
    unread_since: Option<Instant>,
    waker: Option<Waker>,
}

impl Feeds {
    /// None yet.
    pub fn new(registry: Arc<Registry>, backends: Arc<Backends>) -> Self {
        Self {
            registry,
            backends,
            all: Mutex::default(),
        }
    }

    /// The notifications of an element, by its connection `fence`, until `until`.
    ///
    /// # Errors
    /// The backend's, or its silence.
    pub async fn open(
        self: &Arc<Self>,
        placed: &Placed,
        fence: u64,
        until: Instant,
    ) -> Result<Reader, ApiError> {
        if let Some(feed) = self.present(&placed.element.name, fence) {
            return Ok(Reader::new(feed, until));
        }
        let name = &placed.element.name;
        let backend = self.backends.client(&placed.host.backend);
        let events = backend.events(name).await.map_err(of_backend)?;
        // Nobody knows what happened before.
        let feed = Arc::new(Feed::new(name.clone(), fence, Some(0)));
        let reader = Reader::new(feed.clone(), until);
        let older = locked(&self.all).insert(name.clone(), feed.clone());
        if let Some(older) = older {
            older.end();
        }
        let (feeds, placed) = (self.clone(), placed.clone());
        tokio::spawn(async move { feeds.keep(feed, placed, events).await });
        Ok(reader)
    }

    /// The notifications of an element for an operator, from now on.
    ///
    /// # Errors
    /// The backend's, or its silence.
    pub async fn watch(self: &Arc<Self>, placed: &Placed) -> Result<Reader, ApiError> {
        let name = &placed.element.name;
        let backend = self.backends.client(&placed.host.backend);
        let events = backend.events(name).await.map_err(of_backend)?;
        let feed = Arc::new(Feed::new(name.clone(), 0, None));
        let reader = Reader::new(feed.clone(), Instant::now() + WATCHED_MAX);
        let (feeds, placed) = (self.clone(), placed.clone());
        tokio::spawn(async move { feeds.keep(feed, placed, events).await });
        Ok(reader)
    }

    /// The queue of that connection, if it is filled.
    fn present(&self, element: &str, fence: u64) -> Option<Arc<Feed>> {
        let feed = locked(&self.all).get(element).cloned()?;
        let is_whole = feed.fence == fence && !feed.queue().has_ended;
        is_whole.then_some(feed)
    }

    /// Ends what older connections of `element` than `fence` read.
    pub fn fence(&self, element: &str, fence: u64) {
        let all = locked(&self.all);
        if let Some(feed) = all.get(element)
            && feed.fence < fence
        {
            feed.end();
        }
    }

    /// Fills a queue, as long as somebody may read it.
    async fn keep(&self, feed: Arc<Feed>, placed: Placed, mut events: EventStream) {
        let mut changes = self.registry.changes();
        let mut over = feed.over.subscribe();
        loop {
            let unread = feed.unread_until();
            tokio::select! {
                event = events.next() => match event {
                    Ok(Some(event)) => feed.add(event),
                    Ok(None) => break,
                    Err(error) => {
                        log::info!("the stream of {} broke: {error}", feed.element);
                        break;
                    }
                },
                changed = changes.changed() => {
                    if changed.is_err() || !self.registry.is_still(&placed) {
                        break;
                    }
                }
                _ = over.wait_for(|over| *over) => break,
                () = sleep_until(unread) => {
                    if feed.unread_until() <= Instant::now() {
                        break;
                    }
                }
            }
        }
        feed.end();
        let mut all = locked(&self.all);
        if all
            .get(&feed.element)
            .is_some_and(|one| Arc::ptr_eq(one, &feed))
        {
            all.remove(&feed.element);
        }
    }
}

impl Feed {
    fn new(element: String, fence: u64, lost: Option<u64>) -> Self {
        let queue = Queue {
            lost,
            ..Queue::default()
        };
        Self {
            element,
            fence,
            queue: Mutex::new(queue),
            over: watch::Sender::new(false),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        locked(&self.queue)
    }

    fn add(&self, event: RawEvent) {
        let mut queue = self.queue();
        let is_full = queue.events.len() >= EVENTS_MAX || queue.bytes >= BYTES_MAX;
        // In a gap everything is dropped until the gap was told.
        if is_full || queue.lost.is_some_and(|lost| lost > 0) {
            queue.lost = Some(queue.lost.unwrap_or(0) + 1);
        } else {
            queue.bytes += event.0.len();
            queue.events.push_back(event);
        }
        queue.wake();
    }

    fn end(&self) {
        let mut queue = self.queue();
        queue.has_ended = true;
        queue.wake();
        drop(queue);
        self.over.send_replace(true);
    }

    /// Until when it is filled, if nobody reads.
    fn unread_until(&self) -> Instant {
        let since = self.queue().unread_since.unwrap_or_else(Instant::now);
        since + PAUSE_MAX
    }
}

impl Queue {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Some notifications of `element` as they are written; `None`: there are none.
    fn take(&mut self, element: &str) -> Option<Bytes> {
        let mut taken = Vec::new();
        // Of a gap before all others, or behind them.
        if self.lost == Some(0) {
            taken.extend(lost(element, 0));
            self.lost = None;
        }
        let count = self.events.len().min(TOGETHER);
        taken.extend(self.events.drain(..count));
        self.bytes = self.events.iter().map(|event| event.0.len()).sum();
        if self.events.is_empty()
            && let Some(count) = self.lost.take()
        {
            taken.extend(lost(element, count));
        }
        (!taken.is_empty()).then(|| sse::written(&taken).into())
    }
}

fn lost(element: &str, count: u64) -> Option<RawEvent> {
    let event = Event::EventsLost(EventsLost {
        element: element.to_owned(),
        count,
    });
    RawEvent::new(super::wall_clock(), event)
        .map_err(|error| log::error!("a notification has no JSON form: {error}"))
        .ok()
}

/// What a stream carries: a body.
pub struct Reader {
    feed: Arc<Feed>,
    number: u64,
    until: Pin<Box<Sleep>>,
    quiet: Pin<Box<Sleep>>,
    has_begun: bool,
}

impl Reader {
    /// The newest reader of `feed`; the one before ends.
    fn new(feed: Arc<Feed>, until: Instant) -> Self {
        let mut queue = feed.queue();
        queue.reader += 1;
        queue.unread_since = None;
        queue.wake();
        let number = queue.reader;
        drop(queue);
        Self {
            feed,
            number,
            until: Box::pin(sleep_until(until)),
            quiet: Box::pin(sleep(sse::KEEP_ALIVE)),
            has_begun: false,
        }
    }

    /// What is to be written now; `Ready(None)`: nothing any more.
    fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let feed = self.feed.clone();
        let mut queue = feed.queue();
        if queue.reader != self.number || self.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        if !std::mem::replace(&mut self.has_begun, true) {
            // That the stream is there is told before anything happens on it.
            return Poll::Ready(Some(Bytes::from_static(sse::COMMENT)));
        }
        if let Some(bytes) = queue.take(&feed.element) {
            return Poll::Ready(Some(bytes));
        }
        if queue.has_ended {
            return Poll::Ready(None);
        }
        queue.waker = Some(context.waker().clone());
        self.quiet
            .as_mut()
            .poll(context)
            .map(|()| Some(Bytes::from_static(sse::COMMENT)))
    }
}

impl hyper::body::Body for Reader {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let own = self.get_mut();
        let written = own.poll_written(context);
        if written.is_ready() {
            own.quiet.as_mut().reset(Instant::now() + sse::KEEP_ALIVE);
        }
        written.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut queue = self.feed.queue();
        if queue.reader == self.number {
            queue.unread_since = Some(Instant::now());
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

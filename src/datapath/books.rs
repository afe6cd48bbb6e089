//! All elements' sessions, each with those who listen to what happens to it.
//!
//! *Promises*: none of its own. *Refuses*: nothing. *Caller's duty*: none. *Standard*: none.

use std::collections::BTreeMap;

use super::ElementId;
use super::feed::Feed;
use super::told::{Teller, Told};
use crate::flow::{ClosedSession, Moment, Sessions};

/// See the module.
#[derive(Default)]
pub struct Books(BTreeMap<ElementId, Book>);

struct Book {
    sessions: Sessions,
    feed: Feed,
}

impl Books {
    /// No elements.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an element in.
    pub fn insert(&mut self, element: ElementId, sessions: Sessions) {
        let feed = Feed::default();
        self.0.insert(element, Book { sessions, feed });
    }

    /// Takes an element out, and ends what its listeners hear.
    pub fn remove(&mut self, element: &ElementId) -> Option<Sessions> {
        self.0.remove(element).map(|book| book.sessions)
    }

    /// An element's sessions.
    pub fn get_mut(&mut self, element: &ElementId) -> Option<&mut Sessions> {
        self.0.get_mut(element).map(|book| &mut book.sessions)
    }

    /// All elements' sessions.
    pub fn iter(&self) -> impl Iterator<Item = (&ElementId, &Sessions)> {
        self.0
            .iter()
            .map(|(element, book)| (element, &book.sessions))
    }

    /// All elements' sessions, to change them.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Sessions> {
        self.0.values_mut().map(|book| &mut book.sessions)
    }

    /// Tells a listener what happens to an element from now on; if there is no such element, it
    /// hears the end.
    pub fn listen(&mut self, element: &ElementId, listener: Teller, now: Moment) {
        if let Some(Book { sessions, feed }) = self.0.get_mut(element) {
            feed.add(listener, sessions, now);
        }
    }

    /// Tells an element's listeners something that is not about sessions.
    pub fn tell(&mut self, element: &ElementId, told: Told, now: Moment) {
        if let Some(book) = self.0.get_mut(element) {
            book.feed.tell(now, told);
        }
    }

    /// Lets time pass; `ended` gets every session that has ended.
    pub(super) fn pass_time(
        &mut self,
        now: Moment,
        mut ended: impl FnMut(ElementId, &ClosedSession),
    ) {
        for (element, Book { sessions, feed }) in &mut self.0 {
            if sessions.next_deadline().is_some_and(|due| due <= now) {
                sessions.advance(now);
            }
            feed.pass(sessions, now, |closed| ended(*element, closed));
        }
    }

    /// When time is to pass at the latest.
    pub(super) fn next_deadline(&self) -> Option<Moment> {
        let books = self.0.values();
        let due = books.flat_map(|book| [book.sessions.next_deadline(), book.feed.next_deadline()]);
        due.flatten().min()
    }
}

//! What runs, and how control reaches it.
//!
//! *Promises*: control waits for no worker's packets; questions about sessions run on the
//! keeper's thread, orders on the worker's, between two rounds.
//! *Refuses*: elements that are not there; work when a queue is full.
//! *Caller's duty*: what workers give back is dropped elsewhere than on the runtime's thread
//! ([`let_go`]): closing a device may wait. *Standard*: none.

#![expect(
    clippy::disallowed_types,
    reason = "guard the sending ends of command queues among control tasks; no worker takes them"
)]

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot};

use super::lease::Leases;
use super::open::{ElementInfo, Running, worker_of};
use super::reload::Wish;
use crate::api::error::ApiError;
use crate::api::reload::ReloadOutput;
use crate::datapath::ElementId;
use crate::datapath::clock::Clock;
use crate::datapath::keeper::{Books, Keeper};
use crate::datapath::lanes::Lanes;
use crate::datapath::worker::Worker;
use crate::flow::{Moment, Sessions};

/// The elements, as they were when asked for.
pub(super) type Elements = Arc<Vec<Arc<ElementInfo>>>;

/// A running backend.
pub(super) struct Backend {
    // Fields drop in this order: workers end before the keeper and the devices they use.
    workers: Vec<Mutex<Worker>>,
    keeper: Mutex<Keeper>,
    elements: RwLock<Elements>,
    pub(super) clock: Clock,
    /// Where the program takes wishes to read its configuration again.
    reloads: mpsc::Sender<Wish>,
    /// Elements' leases, where there are any.
    pub(super) leases: Option<Leases>,
}

impl Backend {
    /// What `open` opened; wishes to read the configuration again go to `reloads`.
    pub(super) fn new(
        running: Running,
        reloads: mpsc::Sender<Wish>,
        leases: Option<Leases>,
    ) -> Self {
        let Running {
            workers,
            keeper,
            elements,
            clock,
        } = running;
        Self {
            workers: workers.into_iter().map(Mutex::new).collect(),
            keeper: Mutex::new(keeper),
            elements: RwLock::new(Arc::new(elements)),
            clock,
            reloads,
            leases,
        }
    }

    /// Has the configuration read again.
    pub(super) async fn reload(&self) -> Result<ReloadOutput, ApiError> {
        let (answer, answered) = oneshot::channel();
        let asked = self.reloads.try_send(Wish(answer));
        asked.map_err(|_full_or_ending| ApiError::busy())?;
        answered.await.map_err(|_| ending())?
    }

    /// Whether the keeper and all workers run.
    pub(super) fn is_sound(&self) -> bool {
        let is_alive = |worker: &Mutex<Worker>| locked(worker).is_alive();
        locked(&self.keeper).is_alive() && self.workers.iter().all(is_alive)
    }

    /// Runs `question` on the keeper's thread.
    pub(super) async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Books, Moment) -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        let (answer, answered) = oneshot::channel();
        locked(&self.keeper)
            .submit(move |books, now| {
                // Whoever asked may have gone away meanwhile.
                let _gone = answer.send(question(books, now));
            })
            .map_err(|_busy| ApiError::busy())?;
        answered.await.map_err(|_| ending())
    }

    /// The same for one element's book.
    pub(super) async fn ask_book<R: Send + 'static>(
        &self,
        element: ElementId,
        question: impl FnOnce(&mut Sessions, Moment) -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        let asked =
            move |books: &mut Books, now| books.get_mut(&element).map(|book| question(book, now));
        self.ask(asked)
            .await?
            .ok_or_else(|| ApiError::failed("the element is gone"))
    }

    /// How many workers there are.
    pub(super) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Runs an order for each lane of an element on the thread of the worker that has it, one
    /// after the other, and says what came of each.
    pub(super) async fn order_all<R: Send + 'static, O>(
        &self,
        element: ElementId,
        orders: impl IntoIterator<Item = O>,
    ) -> Result<Vec<R>, ApiError>
    where
        O: FnOnce(&mut Lanes) -> R + Send + 'static,
    {
        let mut outcomes = Vec::new();
        for (lane, order) in orders.into_iter().enumerate() {
            outcomes.push(self.order(element, lane, order).await?);
        }
        Ok(outcomes)
    }

    async fn order<R: Send + 'static>(
        &self,
        element: ElementId,
        lane: usize,
        order: impl FnOnce(&mut Lanes) -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        let (answer, answered) = oneshot::channel();
        let worker = self
            .workers
            .get(worker_of(element, lane, self.workers.len()));
        let worker = worker.ok_or_else(ending)?;
        locked(worker)
            .submit(move |lanes| {
                let _gone = answer.send(order(lanes));
            })
            .map_err(|_busy| ApiError::busy())?;
        answered.await.map_err(|_| ending())
    }

    /// The elements now.
    pub(super) fn elements(&self) -> Elements {
        let elements = self.elements.read();
        elements.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on these are the elements.
    pub(super) fn set_elements(&self, elements: Vec<Arc<ElementInfo>>) {
        let old = self.elements.write();
        *old.unwrap_or_else(PoisonError::into_inner) = Arc::new(elements);
    }

    /// The element of that name.
    pub(super) fn element(&self, name: &str) -> Result<Arc<ElementInfo>, ApiError> {
        let elements = self.elements();
        let found = elements.iter().find(|element| element.name == name);
        found
            .cloned()
            .ok_or_else(|| ApiError::unknown_element(name))
    }

    /// The element that a request means: the one it names, or the only one.
    pub(super) fn meant(&self, name: Option<&str>) -> Result<Arc<ElementInfo>, ApiError> {
        match (name, self.elements().as_slice()) {
            (Some(name), _) => self.element(name),
            (None, [only]) => Ok(only.clone()),
            (None, _) => Err(ApiError::element_needed()),
        }
    }
}

/// Drops what may take its time to go, and waits until it has.
pub(super) async fn let_go<T: Send + 'static>(what: T) {
    if tokio::task::spawn_blocking(move || drop(what))
        .await
        .is_err()
    {
        log::error!("closing a device panicked");
    }
}

fn ending() -> ApiError {
    ApiError::failed("the backend is ending")
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The parts of one process, and their common end.
//!
//! *Promises*: when one part ends, or the process is told to, all end: in order, each
//! waited for. The first error is the outcome, later ones are logged.
//! *Refuses*: nothing. *Caller's duty*: parts that end when they are told.
//! *Standard*: none.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

use super::UpError;
use crate::orders::{Order, Orders};

/// A part that runs, or has ended.
pub struct Part {
    name: &'static str,
    orders: mpsc::Sender<Order>,
    /// None once its outcome was taken.
    work: Option<JoinHandle<Result<(), UpError>>>,
}

impl Part {
    /// Starts `work` with orders of its own.
    pub fn start<F>(name: &'static str, work: impl FnOnce(Orders) -> F) -> Self
    where
        F: Future<Output = Result<(), UpError>> + Send + 'static,
    {
        let (sender, orders) = Orders::channel();
        Self {
            name,
            orders: sender,
            work: Some(tokio::spawn(work(orders))),
        }
    }

    /// Tells it something. One that has ended needs to hear nothing.
    async fn tell(&self, order: Order) {
        let _ended = self.orders.send(order).await;
    }

    /// What came of it.
    fn judge(&mut self, outcome: Result<Result<(), UpError>, JoinError>) -> Result<(), UpError> {
        self.work = None;
        let name = self.name;
        outcome.unwrap_or_else(|source| Err(UpError::Broke { name, source }))
    }

    /// Has it end, and waits.
    async fn end(&mut self) -> Result<(), UpError> {
        self.tell(Order::End).await;
        match &mut self.work {
            Some(work) => {
                let outcome = work.await;
                self.judge(outcome)
            }
            None => Ok(()),
        }
    }
}

/// Waits for the end, and ends `parts` in their order.
pub async fn oversee(mut parts: Vec<Part>, mut orders: Orders) -> Result<(), UpError> {
    let mut outcome = loop {
        tokio::select! {
            order = orders.next() => match order {
                Order::End => break Ok(()),
                Order::Renew => for part in &parts {
                    part.tell(Order::Renew).await;
                },
            },
            ended = first_end(&mut parts) => break ended,
        }
    };
    for part in &mut parts {
        let ended = part.end().await;
        if outcome.is_ok() {
            outcome = ended;
        } else if let Err(error) = ended {
            log::error!("the {}: {}", part.name, crate::backend::chain_of(&error));
        }
    }
    outcome
}

/// The outcome of the part that ends first; one that ends untold is an error.
async fn first_end(parts: &mut [Part]) -> Result<(), UpError> {
    poll_fn(|context| {
        for part in &mut *parts {
            let Some(work) = &mut part.work else { continue };
            if let Poll::Ready(outcome) = Pin::new(work).poll(context) {
                let outcome = part.judge(outcome);
                return Poll::Ready(outcome.and(Err(UpError::Ended(part.name))));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the parts of a test have noted.
    type Diary = mpsc::UnboundedReceiver<&'static str>;

    /// A part that notes its end, after `until`.
    fn part(
        name: &'static str,
        diary: &mpsc::UnboundedSender<&'static str>,
        until: impl Future<Output = Result<(), UpError>> + Send + 'static,
    ) -> Part {
        let diary = diary.clone();
        Part::start(name, |mut orders| async move {
            let told = async {
                while orders.next().await == Order::Renew {
                    diary.send("renewed").unwrap();
                }
                Ok(())
            };
            let outcome = tokio::select! {
                outcome = told => outcome,
                outcome = until => outcome,
            };
            diary.send(name).unwrap();
            outcome
        })
    }

    fn words(mut diary: Diary) -> Vec<&'static str> {
        std::iter::from_fn(|| diary.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn parts_end_in_order_when_told() {
        let (pen, diary) = mpsc::unbounded_channel();
        let parts = vec![
            part("first", &pen, std::future::pending()),
            part("second", &pen, std::future::pending()),
        ];
        let (sender, orders) = Orders::channel();
        sender.send(Order::Renew).await.unwrap();
        sender.send(Order::End).await.unwrap();
        oversee(parts, orders).await.unwrap();
        let (renewed, ended): (Vec<_>, Vec<_>) = words(diary)
            .into_iter()
            .partition(|word| *word == "renewed");
        assert_eq!((renewed.len(), ended), (2, vec!["first", "second"]));
    }

    #[tokio::test]
    async fn one_that_fails_ends_all_and_is_the_outcome() {
        let (pen, diary) = mpsc::unbounded_channel();
        let parts = vec![
            part("first", &pen, std::future::pending()),
            part("second", &pen, async { Err(UpError::NoPorts) }),
        ];
        let (_sender, orders) = Orders::channel();
        let outcome = oversee(parts, orders).await;
        assert!(matches!(outcome, Err(UpError::NoPorts)), "{outcome:?}");
        assert_eq!(words(diary), ["second", "first"]);
    }

    #[tokio::test]
    async fn one_that_ends_untold_or_panics_is_an_error_that_names_it() {
        let (_sender, orders) = Orders::channel();
        let idle = Part::start("idle", |_| async { Ok(()) });
        let outcome = oversee(vec![idle], orders).await;
        assert!(
            matches!(outcome, Err(UpError::Ended("idle"))),
            "{outcome:?}"
        );
        let (_sender, orders) = Orders::channel();
        let broken = Part::start("broken", |_| async { panic!("as it should") });
        let outcome = oversee(vec![broken], orders).await;
        let name = match outcome {
            Err(UpError::Broke { name, .. }) => name,
            outcome => panic!("{outcome:?}"),
        };
        assert_eq!(name, "broken");
    }
}

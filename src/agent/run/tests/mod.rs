//! A whole agent against a guest and a host that are played, on a clock of their own.

mod fake;
mod random;
mod revocations;
mod stories;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::{NetworkNews, Order, drive};
use crate::agent::core::{Core, Mode, Settings, Snapshot};
use fake::{Shared, World};

/// A story's stage: the world, and orders to the agent in it.
struct Stage {
    world: Shared,
    orders: mpsc::Sender<Order>,
}

impl Stage {
    async fn show(&self) -> Box<Snapshot> {
        let (answer, shown) = oneshot::channel();
        self.orders.send(Order::Show(1000, answer)).await.unwrap();
        shown.await.unwrap()
    }

    async fn set_mode(&self, mode: Mode) {
        let (done, is_done) = oneshot::channel();
        self.orders.send(Order::Mode(mode, done)).await.unwrap();
        is_done.await.unwrap();
    }

    /// Waits until it is so; fails after `most`.
    async fn until(&self, most: Duration, what: &str, is_so: impl Fn(&World) -> bool) {
        let waited = timeout(most, async {
            while !is_so(&self.world.borrow()) {
                sleep(Duration::from_millis(10)).await;
            }
        });
        if waited.await.is_err() {
            panic!("not within {most:?}: {what}; {:#?}", self.show().await);
        }
    }

    async fn until_active(&self, count: usize) {
        let most = Duration::from_secs(20);
        let what = format!("{count} are active");
        self.until(most, &what, |world| world.active() == count)
            .await;
    }
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Plays a story with an agent in `world`, until the script has ended.
async fn play(world: &Shared, settings: Settings, script: impl AsyncFnOnce(&Stage)) {
    play_with(world, settings, fake::parts(world), script).await;
}

/// The same with other parts.
async fn play_with<N: NetworkNews>(
    world: &Shared,
    settings: Settings,
    parts: fake::FakeParts<N>,
    script: impl AsyncFnOnce(&Stage),
) {
    let (orders, received) = mpsc::channel(4);
    let stage = Stage {
        world: world.clone(),
        orders,
    };
    tokio::select! {
        ended = drive(Core::new(settings), parts, received) => {
            panic!("the agent ended: {ended:?}")
        }
        () = fake::run(world.clone()) => {}
        () = script(&stage) => {}
    }
}

/// The same in a new world.
async fn story(settings: Settings, script: impl AsyncFnOnce(&Stage)) {
    play(&World::new(), settings, script).await;
}

//! Connections to backends.
//!
//! *Promises*: one kept connection for each backend, shared by all who ask it something.
//! *Refuses*: nothing. *Caller's duty*: none. *Standard*: none.

#![expect(
    clippy::disallowed_types,
    reason = "guards a map for an instant, among control tasks; no worker takes it"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::Client;
use crate::api::link::{Address, Credentials, Link};

/// A backend that nobody has asked anything for so long is forgotten, connection and all.
const UNUSED: Duration = Duration::from_secs(600);

/// See the module.
pub struct Backends {
    credentials: Option<Credentials>,
    links: Mutex<HashMap<Address, Held>>,
}

struct Held {
    link: Arc<Link>,
    used: Instant,
}

impl Backends {
    /// Backends on other machines are reached with `credentials`.
    pub fn new(credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            links: Mutex::default(),
        }
    }

    /// A client of the backend at `address`.
    pub fn client(&self, address: &Address) -> Client {
        let now = Instant::now();
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = links.get_mut(address) {
            held.used = now;
            return Client::over(held.link.clone());
        }
        links.retain(|_, held| now.saturating_duration_since(held.used) < UNUSED);
        let link = Arc::new(Link::new(address.clone(), self.credentials.clone()));
        let held = Held {
            link: link.clone(),
            used: now,
        };
        links.insert(address.clone(), held);
        Client::over(link)
    }
}

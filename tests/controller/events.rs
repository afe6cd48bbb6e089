//! Notifications on their way to the element that they are of.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::guest::{Http, request};
use crate::world::{SOON, World, call, results, session};

const OWN: &str = "/restconf/streams/shunt-offload/json";

/// A stream of notifications.
struct Stream {
    body: Incoming,
    text: String,
}

impl Stream {
    async fn open(guest: &Http, path: &str) -> Self {
        let mut ask = request("GET", path, "");
        let accept = "text/event-stream".parse().unwrap();
        ask.headers_mut().insert("accept", accept);
        let response = guest.send(ask).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body(),
            text: String::new(),
        }
    }

    /// The next notification, without its envelope; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.strip_prefix("data: ").map(|data| {
                    let message: Value = serde_json::from_str(data).unwrap();
                    message["ietf-restconf:notification"].clone()
                });
                self.text = rest.to_owned();
                match event {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let frame = tokio::time::timeout(SOON, self.body.frame()).await;
            let frame = frame.expect("the stream is silent")?;
            let bytes = frame.ok()?.into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// The next one that says that sessions ended: their keys.
    async fn closed(&mut self) -> Option<Vec<String>> {
        loop {
            let event = self.next().await?;
            let of = &event["shunt-offload:session-closed"];
            if let Some(sessions) = of["session"].as_array() {
                let key = |one: &Value| one["key"].as_str().unwrap().to_owned();
                return Some(sessions.iter().map(key).collect());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_element_is_told_what_happens_to_its_own_sessions_only() {
    let world = World::start();
    let (_guest_a, a) = world.guest(0).await;
    let (_guest_b, b) = world.guest(1).await;
    let mut of_a = Stream::open(&a, OWN).await;
    let mut of_b = Stream::open(&b, "/restconf/streams/shunt-offload/element=b/json").await;
    // What was before is not known.
    for stream in [&mut of_a, &mut of_b] {
        let first = stream.next().await.unwrap();
        assert_eq!(first["shunt-offload:events-lost"]["count"], "0", "{first}");
    }
    for (guest, element) in [(&a, "a"), (&b, "b")] {
        let own = session(element, &format!("of-{element}"), 7);
        let offered = call(guest, "offload", json!({ "session": [own] })).await;
        assert_eq!(results(&offered)[0].0, "offloaded");
    }
    for (guest, element) in [(&b, "b"), (&a, "a")] {
        let key = json!({ "key": [format!("of-{element}")] });
        let withdrawn = call(guest, "withdraw", key).await;
        assert_eq!(results(&withdrawn)[0].0, "withdrawn");
    }
    assert_eq!(of_a.closed().await.unwrap(), ["of-a"]);
    assert_eq!(of_b.closed().await.unwrap(), ["of-b"]);

    // A newer stream of the same connection goes on with the same queue; the older ends.
    let mut newer = Stream::open(&a, OWN).await;
    while of_a.next().await.is_some() {}
    let offered = call(
        &a,
        "offload",
        json!({ "session": [session("a", "next", 8)] }),
    )
    .await;
    assert_eq!(results(&offered)[0].0, "offloaded");
    call(&a, "withdraw", json!({ "all": true })).await;
    // Nothing was lost meanwhile: this is the first that it hears.
    let event = newer.next().await.unwrap();
    let closed = &event["shunt-offload:session-closed"]["session"];
    assert_eq!(closed[0]["key"], "next", "{event}");

    // An element that is gone is told no more.
    world
        .controller
        .set("DELETE", &crate::at("/element=a"), &Value::Null);
    while newer.next().await.is_some() {}
    // Its neighbour's stream goes on.
    let offered = call(
        &b,
        "offload",
        json!({ "session": [session("b", "late", 9)] }),
    )
    .await;
    assert_eq!(results(&offered)[0].0, "offloaded");
    call(&b, "withdraw", json!({ "key": ["late"] })).await;
    assert_eq!(of_b.closed().await.unwrap(), ["late"]);
}

//! Queues and their readers, on a virtual clock.

use http_body_util::BodyExt;
use serde_json::Value;

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn event(text: &str) -> RawEvent {
    RawEvent(format!("{{\"text\":\"{text}\"}}"))
}

fn reader(feed: &Arc<Feed>) -> Reader {
    Reader::new(feed.clone(), Instant::now() + LONG)
}

/// The next notification that is no sign of life: its text, or how many were lost.
async fn next(reader: &mut Reader) -> Option<String> {
    loop {
        let bytes = reader.frame().await?.unwrap().into_data().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        let Some(data) = text.strip_prefix("data: ") else {
            continue;
        };
        let shown: Vec<String> = data
            .split("data: ")
            .map(|data| {
                let event: Value = serde_json::from_str(data).unwrap();
                let lost = &event["ietf-restconf:notification"]["shunt-offload:events-lost"];
                match lost["count"].as_str() {
                    Some(count) => format!("lost {count} of {}", lost["element"]),
                    None => event["text"].as_str().unwrap().to_owned(),
                }
            })
            .collect();
        return Some(shown.join(" "));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_with_a_loss_unless_it_goes_on() {
    let feed = Arc::new(Feed::new("r1".to_owned(), 1, Some(0)));
    let mut first = reader(&feed);
    feed.add(event("a"));
    assert_eq!(next(&mut first).await.unwrap(), "lost 0 of \"r1\" a");
    drop(first);
    feed.add(event("b"));
    let mut second = reader(&feed);
    feed.add(event("c"));
    assert_eq!(next(&mut second).await.unwrap(), "b c");
    // Woken where it waits.
    let waiting = tokio::spawn(async move { next(&mut second).await });
    tokio::task::yield_now().await;
    feed.add(event("d"));
    assert_eq!(waiting.await.unwrap().unwrap(), "d");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_too_slow_is_told_how_many_it_lost_and_where() {
    let feed = Arc::new(Feed::new("r1".to_owned(), 1, None));
    let mut slow = reader(&feed);
    for number in 0..EVENTS_MAX + 7 {
        feed.add(event(&number.to_string()));
    }
    let mut told = String::new();
    while !told.contains("lost") {
        told.push(' ');
        told.push_str(&next(&mut slow).await.unwrap());
    }
    let expected: Vec<String> = (0..EVENTS_MAX).map(|number| number.to_string()).collect();
    assert_eq!(
        told.trim(),
        format!("{} lost 7 of \"r1\"", expected.join(" "))
    );
    feed.add(event("after"));
    assert_eq!(next(&mut slow).await.unwrap(), "after");
    // The same for few that are large.
    let large = event(&"x".repeat(BYTES_MAX));
    feed.add(large.clone());
    feed.add(large);
    assert!(
        next(&mut slow)
            .await
            .unwrap()
            .ends_with("x lost 1 of \"r1\"")
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_token_with_a_newer_one_and_with_its_queue() {
    let feed = Arc::new(Feed::new("r1".to_owned(), 1, None));
    let begun = Instant::now();
    let mut expiring = reader(&feed);
    assert_eq!(next(&mut expiring).await, None);
    let lasted = begun.elapsed();
    assert!(
        (LONG..LONG + sse::KEEP_ALIVE).contains(&lasted),
        "{lasted:?}"
    );
    let (mut older, mut newer) = (reader(&feed), reader(&feed));
    feed.add(event("a"));
    assert_eq!(next(&mut older).await, None);
    assert_eq!(next(&mut newer).await.unwrap(), "a");
    // What is there is told first.
    feed.add(event("b"));
    feed.end();
    assert_eq!(next(&mut newer).await.unwrap(), "b");
    assert_eq!(next(&mut newer).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_newer_connection_ends_the_queue_of_an_older_one() {
    let backends = Arc::new(Backends::new(None));
    let feeds = Feeds::new(Arc::new(Registry::default()), backends);
    let feed = Arc::new(Feed::new("r1".to_owned(), 5, None));
    locked(&feeds.all).insert("r1".to_owned(), feed.clone());
    for (element, fence) in [("r1", 4), ("r1", 5), ("r2", 9)] {
        feeds.fence(element, fence);
        assert!(feeds.present("r1", 5).is_some());
    }
    assert!(feeds.present("r1", 4).is_none());
    feeds.fence("r1", 6);
    assert!(feeds.present("r1", 5).is_none());
    assert_eq!(next(&mut reader(&feed)).await, None);
}

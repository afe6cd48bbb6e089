//! One suite for all stores.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::etcd::tests::{server, store as etcd_store};
use super::*;

fn value(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn keys(listing: &Listing) -> Vec<&str> {
    listing.documents.iter().map(|d| d.key.as_str()).collect()
}

async fn is_at(store: &dyn Store, key: &str, revision: Revision, text: &str) {
    let found = store.get(key).await.unwrap().unwrap();
    assert_eq!((found.revision, found.value), (revision, value(text)));
}

fn is_conflict(outcome: Result<Revision, StoreError>, at: &str) {
    match outcome {
        Err(StoreError::Conflict { key }) => assert_eq!(key, at),
        other => panic!("{other:?}"),
    }
}

async fn a_document_is_written_only_at_the_revision_that_is_named(store: &dyn Store) {
    assert!(store.get("a").await.unwrap().is_none());
    let first = store
        .commit(vec![Step::create("a", value("1"))])
        .await
        .unwrap();
    is_at(store, "a", first, "1").await;
    is_conflict(store.commit(vec![Step::create("a", value("2"))]).await, "a");
    let second = store
        .commit(vec![Step::replace("a", first, value("2"))])
        .await
        .unwrap();
    assert!(second > first);
    is_conflict(
        store
            .commit(vec![Step::replace("a", first, value("3"))])
            .await,
        "a",
    );
    is_conflict(store.commit(vec![Step::delete("a", first)]).await, "a");
    is_at(store, "a", second, "2").await;
    store.commit(vec![Step::delete("a", second)]).await.unwrap();
    assert!(store.get("a").await.unwrap().is_none());
    is_conflict(store.commit(vec![Step::delete("a", second)]).await, "a");
}

async fn a_commit_is_whole_or_nothing(store: &dyn Store) {
    let first = store
        .commit(vec![
            Step::create("w/1", value("1")),
            Step::create("w/2", value("2")),
        ])
        .await
        .unwrap();
    let steps = vec![
        Step::replace("w/1", first, value("new")),
        Step::create("w/3", value("3")),
        Step::create("w/2", value("taken")),
    ];
    is_conflict(store.commit(steps).await, "w/2");
    is_at(store, "w/1", first, "1").await;
    assert_eq!(keys(&store.list("w/").await.unwrap()), ["w/1", "w/2"]);
    let moved = vec![Step::delete("w/1", first), Step::create("w/4", value("1"))];
    store.commit(moved).await.unwrap();
    assert_eq!(keys(&store.list("w/").await.unwrap()), ["w/2", "w/4"]);
}

async fn a_listing_has_what_begins_with_its_prefix_by_key(store: &dyn Store) {
    let steps = ["p/b", "p/a", "p", "q/a", "p0", "p/a/x"]
        .map(|key| Step::create(key, value(key)))
        .to_vec();
    let revision = store.commit(steps).await.unwrap();
    let listing = store.list("p/").await.unwrap();
    assert_eq!(keys(&listing), ["p/a", "p/a/x", "p/b"]);
    assert_eq!(listing.revision, revision);
    assert!(store.list("nothing").await.unwrap().documents.is_empty());
}

async fn a_watch_tells_what_there_is_and_then_each_change(store: &dyn Store) {
    let first = store
        .commit(vec![Step::create("v/1", value("1"))])
        .await
        .unwrap();
    let mut watch = store.watch("v/").await.unwrap();
    match watch.next().await.unwrap() {
        Event::Everything(listing) => assert_eq!(keys(&listing), ["v/1"]),
        other => panic!("{other:?}"),
    }
    store
        .commit(vec![Step::create("elsewhere", value(""))])
        .await
        .unwrap();
    let second = store
        .commit(vec![
            Step::delete("v/1", first),
            Step::create("v/2", value("2")),
        ])
        .await
        .unwrap();
    let Event::Changed(mut changes) = watch.next().await.unwrap() else {
        panic!("it begins anew");
    };
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    let document = Document {
        key: "v/2".to_owned(),
        revision: second,
        value: value("2"),
    };
    assert_eq!(
        changes,
        [
            Change {
                key: "v/1".to_owned(),
                document: None
            },
            Change {
                key: "v/2".to_owned(),
                document: Some(document)
            },
        ]
    );
}

/// A watch that is not read misses changes, and what it tells is right all the same.
async fn a_watch_that_falls_behind_ends_up_right(store: &dyn Store) {
    let mut watch = store.watch("s/").await.unwrap();
    let mut revision = store
        .commit(vec![Step::create("s/1", value("0"))])
        .await
        .unwrap();
    let last = 1_000.to_string();
    for number in 1..=1_000 {
        let step = Step::replace("s/1", revision, value(&number.to_string()));
        revision = store.commit(vec![step]).await.unwrap();
    }
    loop {
        let documents = match watch.next().await.unwrap() {
            Event::Everything(listing) => listing.documents,
            Event::Changed(changes) => changes.into_iter().filter_map(|c| c.document).collect(),
        };
        if documents
            .iter()
            .any(|d| d.value == value(&last) && d.revision == revision)
        {
            return;
        }
    }
}

async fn of_two_writers_one_wins_each_round(store: &dyn Store) {
    let mut revision = store
        .commit(vec![Step::create("race", value(""))])
        .await
        .unwrap();
    for _ in 0..20 {
        let step = |text| vec![Step::replace("race", revision, value(text))];
        let (one, other) = tokio::join!(store.commit(step("one")), store.commit(step("other")));
        let winners = [(one, "one"), (other, "other")];
        let mut won = winners
            .into_iter()
            .filter_map(|(outcome, text)| match outcome {
                Ok(revision) => Some((revision, text)),
                Err(StoreError::Conflict { .. }) => None,
                Err(error) => panic!("{error}"),
            });
        let (at, text) = won.next().unwrap();
        assert!(won.next().is_none(), "both won");
        is_at(store, "race", at, text).await;
        revision = at;
    }
}

async fn what_is_too_big_is_refused(store: &dyn Store) {
    let many = (0..=store.steps_max()).map(|n| Step::create(format!("m/{n}"), Vec::new()));
    let large = Step::create("large", vec![b'x'; VALUE_MAX + 1]);
    for steps in [many.collect(), vec![large]] {
        let refused = store.commit(steps).await;
        assert!(
            matches!(refused, Err(StoreError::TooBig { .. })),
            "{refused:?}"
        );
    }
    let most = Step::create("most", vec![b'x'; VALUE_MAX]);
    let at = store.commit(vec![most]).await.unwrap();
    store.commit(vec![Step::delete("most", at)]).await.unwrap();
}

async fn a_backup_restores_to_the_same_documents(store: &dyn Store, empty: &dyn Store) {
    let step = Step::create("b/1", value("{\"a\":\"\\n\u{e4}\"}"));
    store.commit(vec![step]).await.unwrap();
    is_restored(store, empty).await;
}

/// A backup of `store` restores into `empty`, once, and what is no backup does not.
async fn is_restored(store: &dyn Store, empty: &dyn Store) {
    let mut file = Vec::new();
    let count = backup(store, &mut file).await.unwrap();
    let content = |listing: Listing| -> Vec<(String, Vec<u8>)> {
        listing
            .documents
            .into_iter()
            .map(|d| (d.key, d.value))
            .collect()
    };
    let text = String::from_utf8(file.clone()).unwrap();
    let cut = &text[..text.trim_end().rfind('\n').unwrap() + 1];
    for wrong in ["", "{}\n", cut, &format!("{text}{text}")] {
        assert!(restore(empty, Cursor::new(wrong)).await.is_err(), "{wrong}");
        assert!(empty.list("").await.unwrap().documents.is_empty());
    }
    assert_eq!(restore(empty, Cursor::new(&file)).await.unwrap(), count);
    assert_eq!(
        content(empty.list("").await.unwrap()),
        content(store.list("").await.unwrap())
    );
    let again = restore(empty, Cursor::new(&file)).await;
    assert!(matches!(again, Err(ArchiveError::NotEmpty)), "{again:?}");
}

/// All of the above; `store` and `empty` are two empty stores.
async fn suite(store: &dyn Store, empty: &dyn Store) {
    a_document_is_written_only_at_the_revision_that_is_named(store).await;
    a_commit_is_whole_or_nothing(store).await;
    a_listing_has_what_begins_with_its_prefix_by_key(store).await;
    a_watch_tells_what_there_is_and_then_each_change(store).await;
    a_watch_that_falls_behind_ends_up_right(store).await;
    of_two_writers_one_wins_each_round(store).await;
    what_is_too_big_is_refused(store).await;
    a_backup_restores_to_the_same_documents(store, empty).await;
}

fn open(dir: &Path, name: &str) -> Embedded {
    Embedded::open(&dir.join(name)).unwrap()
}

/// One thing that a store is asked for: which key, whether the revision that is named is
/// right, and what is written, if anything.
type Asked = (u8, bool, Option<u8>);

/// A revision that no document has.
const NEVER: Revision = Revision(1 << 60);

/// Commits of one to three steps on different keys.
fn any_commits() -> impl Strategy<Value = Vec<BTreeMap<u8, (bool, Option<u8>)>>> {
    let step = (prop::bool::weighted(0.9), any::<Option<u8>>());
    prop::collection::vec(prop::collection::btree_map(0..6_u8, step, 1..4), 1..30)
}

/// Whatever is asked for, a store holds what a map in its place does; a watch from before
/// and one from the middle tell how it came to that.
async fn a_store_is_as_a_map(store: &dyn Store, commits: Vec<BTreeMap<u8, (bool, Option<u8>)>>) {
    let mut map: BTreeMap<String, Document> = BTreeMap::new();
    let mut watches = vec![store.watch("k").await.unwrap()];
    let half = commits.len() / 2;
    for (number, commit) in commits.into_iter().enumerate() {
        if number == half {
            watches.push(store.watch("k").await.unwrap());
        }
        let asked = commit.into_iter();
        let asked: Vec<Asked> = asked
            .map(|(key, (fits, value))| (key, fits, value))
            .collect();
        let mut is_right = true;
        let steps = asked.iter().map(|(key, fits, value)| {
            let key = format!("k{key}");
            let there = map.get(&key).map(|one| one.revision);
            let expected = match (there, fits) {
                (there, true) => there,
                (Some(_), false) => None,
                (None, false) => Some(NEVER),
            };
            // To delete what is not there is nothing to ask for.
            is_right &= *fits && (value.is_some() || there.is_some());
            let value = value.map(|value| vec![value]);
            match (expected, value) {
                (None, None) => Step::delete(key, NEVER),
                (expected, value) => Step {
                    key,
                    expected,
                    value,
                },
            }
        });
        let steps: Vec<Step> = steps.collect();
        match store.commit(steps.clone()).await {
            Ok(revision) => {
                assert!(is_right, "{steps:?}");
                for Step { key, value, .. } in steps {
                    map.remove(&key);
                    if let Some(value) = value {
                        let document = Document {
                            key: key.clone(),
                            revision,
                            value,
                        };
                        map.insert(key, document);
                    }
                }
            }
            Err(StoreError::Conflict { .. }) => assert!(!is_right, "{steps:?}"),
            Err(error) => panic!("{error}"),
        }
    }
    let there: Vec<Document> = map.values().cloned().collect();
    assert_eq!(store.list("k").await.unwrap().documents, there);
    for mut watch in watches {
        let mut told = BTreeMap::new();
        loop {
            match watch.next().await.unwrap() {
                Event::Everything(listing) => {
                    let all = listing.documents.into_iter();
                    told = all.map(|one| (one.key.clone(), one)).collect();
                }
                Event::Changed(changes) => {
                    for Change { key, document } in changes {
                        match document {
                            Some(document) => told.insert(key, document),
                            None => told.remove(&key),
                        };
                    }
                }
            }
            if told == map {
                break;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_embedded_store_is_as_a_map(commits in any_commits()) {
        // In memory: what is tested is not how fast the disk syncs.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            a_store_is_as_a_map(&open(dir.path(), "store"), commits).await;
        });
    }
}

#[test]
fn the_etcd_store_is_as_a_map() {
    let server = server::Etcd::start(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let number = Cell::new(0);
    let outcome = runner.run(&any_commits(), |commits| {
        number.set(number.get() + 1);
        runtime.block_on(async {
            let store = etcd_store(&server.urls(), &format!("/{}/", number.get()));
            a_store_is_as_a_map(&store, commits).await;
        });
        Ok(())
    });
    outcome.unwrap();
}

#[tokio::test]
async fn the_etcd_store_keeps_all_promises() {
    let server = server::Etcd::start(1);
    let (one, other) = (
        etcd_store(&server.urls(), "/one/"),
        etcd_store(&server.urls(), "/other/"),
    );
    suite(&one, &other).await;
    let mut watch = one.watch("").await.unwrap();
    drop(one);
    watch.next().await.unwrap();
    assert!(watch.next().await.is_none());
}

/// From a file to etcd: as when a second controller is added.
#[tokio::test]
async fn a_backup_of_one_kind_restores_into_the_other() {
    let server = server::Etcd::start(1);
    let dir = tempfile::tempdir().unwrap();
    let from = open(dir.path(), "from");
    // More than a transaction of etcd takes, in number and in bytes.
    for number in 0..10 {
        let step = Step::create(format!("large/{number}"), vec![b'x'; 400_000]);
        from.commit(vec![step]).await.unwrap();
    }
    let many = (0..1_000).map(|number| Step::create(format!("n/{number}"), value("{}")));
    from.commit(many.collect()).await.unwrap();
    let to = etcd_store(&server.urls(), "/shunt/");
    a_backup_restores_to_the_same_documents(&from, &to).await;
    is_restored(&to, &open(dir.path(), "back")).await;
}

#[tokio::test]
async fn the_embedded_store_keeps_all_promises() {
    let dir = tempfile::tempdir().unwrap();
    suite(&open(dir.path(), "one"), &open(dir.path(), "other")).await;
}

#[tokio::test]
async fn the_embedded_store_is_the_same_after_it_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "store");
    let at = store
        .commit(vec![Step::create("a", value("1"))])
        .await
        .unwrap();
    let in_use = Embedded::open(&dir.path().join("store"));
    assert!(matches!(in_use, Err(StoreError::Open { .. })));
    let mut watch = store.watch("").await.unwrap();
    drop(store);
    watch.next().await.unwrap();
    assert!(watch.next().await.is_none());
    let store = open(dir.path(), "store");
    is_at(&store, "a", at, "1").await;
    assert!(
        store
            .commit(vec![Step::create("b", value("2"))])
            .await
            .unwrap()
            > at
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(dir.path().join("store"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes");
    std::fs::write(&path, "not a store").unwrap();
    assert!(Embedded::open(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"not a store");
}

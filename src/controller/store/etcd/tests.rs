//! What etcd's store has beyond the suite of all stores: a cluster whose members die.

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::time::{Instant, timeout};

use super::*;
use crate::controller::store::Change;

#[path = "../../../../tests/support/etcd.rs"]
pub mod server;

use server::Etcd as Server;

/// How long what must happen may take: an election, and then some.
const DEADLINE: Duration = Duration::from_secs(30);

/// A store under `prefix` of the cluster of `members`.
pub fn store(members: &[String], prefix: &str) -> Etcd {
    Etcd::new(settings(members, prefix)).unwrap()
}

fn settings(members: &[String], prefix: &str) -> Settings {
    Settings {
        members: members.to_vec(),
        files: None,
        prefix: prefix.to_owned(),
        operations_max: 128,
    }
}

async fn next(watch: &mut Watch) -> Event {
    timeout(DEADLINE, watch.next()).await.unwrap().unwrap()
}

/// Waits for `key` to be told as written at `revision`, and as nothing before.
async fn is_told(watch: &mut Watch, key: &str, revision: Revision) {
    match next(watch).await {
        Event::Changed(changes) => match changes.as_slice() {
            [
                Change {
                    document: Some(one),
                    ..
                },
            ] if one.key == key => {
                assert_eq!(one.revision, revision);
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

async fn create(store: &dyn Store, key: &str) -> Revision {
    let begun = Instant::now();
    loop {
        match store.commit(vec![Step::create(key, b"1".to_vec())]).await {
            Ok(revision) => return revision,
            // Without a leader, or not known whether it was carried out.
            Err(StoreError::Unavailable(_)) if begun.elapsed() < DEADLINE => {}
            Err(StoreError::Conflict { .. }) => {
                return store.get(key).await.unwrap().unwrap().revision;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn whichever_member_dies_edits_through_one_store_are_told_by_the_other() {
    let mut server = Server::start(3);
    let urls = server.urls();
    let mut turned = urls.clone();
    turned.rotate_left(1);
    let (one, other) = (store(&urls, "/t/"), store(&turned, "/t/"));
    let mut watch = one.watch("").await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Everything(_)));
    let at = create(&other, "a").await;
    is_told(&mut watch, "a", at).await;
    let leader = server.leader();
    for number in [(leader + 1) % 3, leader, (leader + 2) % 3] {
        server.kill9(number);
        let key = format!("without-{number}");
        let at = create(&other, &key).await;
        is_told(&mut watch, &key, at).await;
        assert_eq!(one.get(&key).await.unwrap().unwrap().revision, at);
        server.spawn(number);
        server.wait_healthy(number);
    }
}

#[tokio::test]
async fn a_watch_whose_changes_were_compacted_away_begins_anew() {
    let mut server = Server::start(3);
    let urls = server.urls();
    let (behind, other) = (store(&urls[..1], "/t/"), store(&urls[1..], "/t/"));
    let mut watch = behind.watch("d/").await.unwrap();
    assert!(matches!(next(&mut watch).await, Event::Everything(_)));
    server.kill9(0);
    let mut last = create(&other, "d/1").await;
    for _ in 0..3 {
        let step = Step::replace("d/1", last, b"2".to_vec());
        last = other.commit(vec![step]).await.unwrap();
    }
    let compacted = i64::try_from(last.0).unwrap();
    other
        .shared
        .cluster
        .ask(|mut kv| async move { kv.compact(compacted, None).await })
        .await
        .unwrap();
    server.spawn(0);
    match next(&mut watch).await {
        Event::Everything(listing) => {
            assert_eq!(listing.prefix, "d/");
            assert_eq!(listing.documents[0].revision, last);
        }
        other => panic!("{other:?}"),
    }
    let at = create(&other, "d/2").await;
    is_told(&mut watch, "d/2", at).await;
}

#[tokio::test]
async fn while_etcd_is_away_reads_are_as_last_told_and_a_commit_is_refused_in_time() {
    let mut server = Server::start(1);
    let store = store(&server.urls(), "/t/");
    let mut watch = store.watch("").await.unwrap();
    next(&mut watch).await;
    let at = create(&store, "a").await;
    is_told(&mut watch, "a", at).await;
    let unwatched = self::store(&server.urls(), "/t/");
    server.kill9(0);
    let begun = Instant::now();
    let refused = store.commit(vec![Step::delete("a", at)]).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
    assert_eq!(store.get("a").await.unwrap().unwrap().revision, at);
    assert!(store.get("b").await.unwrap().is_none());
    assert_eq!(store.list("").await.unwrap().documents.len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(20));
    // Known to be away: said at once.
    let begun = Instant::now();
    store.get("a").await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500));
    // What no watch has told is not made up.
    let refused = unwatched.get("a").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
    server.spawn(0);
    server.wait_healthy(0);
    store.commit(vec![Step::delete("a", at)]).await.unwrap();
    let Event::Changed(changes) = next(&mut watch).await else {
        panic!("it began anew");
    };
    assert_eq!(
        (changes[0].key.as_str(), &changes[0].document),
        ("a", &None)
    );
    assert!(store.get("a").await.unwrap().is_none());
}

#[test]
fn a_copy_never_answers_with_what_is_older_than_what_was_seen() {
    let document = |key: &str| Document {
        key: key.to_owned(),
        revision: Revision(5),
        value: Vec::new(),
    };
    let copies = Copies::default();
    copies.replace(&Listing {
        prefix: "e/".to_owned(),
        documents: vec![document("e/1")],
        revision: Revision(5),
    });
    assert_eq!(copies.get("e/1", Revision(5)), Some(Some(document("e/1"))));
    assert_eq!(copies.get("e/2", Revision(5)), Some(None));
    assert_eq!(copies.get("e/1", Revision(6)), None);
    assert_eq!(copies.get("f", Revision(5)), None);
    assert!(copies.list("e", Revision(5)).is_none());
    let gone = Change {
        key: "e/1".to_owned(),
        document: None,
    };
    copies.apply("e/", Revision(6), &[gone]);
    assert_eq!(copies.get("e/1", Revision(6)), Some(None));
    copies.forget("e/");
    assert_eq!(copies.get("e/1", Revision(0)), None);
}

#[test]
fn a_prefix_ends_where_the_next_begins() {
    assert_eq!(end_of(b"a/".to_vec()), b"a0");
    assert_eq!(end_of(vec![b'a', 255]), b"b");
    assert_eq!(end_of(vec![255]), [0]);
}

/// Writes an authority and a certificate that it issued for `address`.
fn issue(dir: &std::path::Path, address: &str) -> [std::path::PathBuf; 3] {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![address.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    [
        write("ca.pem", &ca),
        write("own.crt", &certificate),
        write("own.key", &key.serialize_pem()),
    ]
}

#[tokio::test]
async fn members_with_mutual_tls_are_served_with_a_certificate_only() {
    let dir = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = issue(dir.path(), &server::own_address().to_string());
    let argument = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    let server = Server::start_with(
        1,
        "https",
        &[
            "--client-cert-auth".to_owned(),
            argument("trusted-ca-file", &ca),
            argument("cert-file", &certificate),
            argument("key-file", &key),
        ],
    );
    let with = |own| {
        let files = Some(Files {
            ca: ca.clone(),
            own,
        });
        let settings = settings(&server.urls(), "/t/");
        Etcd::new(Settings { files, ..settings })
    };
    let store = with(Some((certificate, key.clone()))).unwrap();
    create(&store, "a").await;
    let refused = with(None).unwrap().get("a").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
    let missing = with(Some((dir.path().join("none"), key)));
    assert!(matches!(missing, Err(StoreError::Open { .. })));
}

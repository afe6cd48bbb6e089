//! References, ports and moves, over the embedded store.

use serde_json::json;

use super::*;
use crate::controller::store::Embedded;

struct Bench {
    inventory: Inventory,
    store: Arc<dyn Store>,
    _dir: tempfile::TempDir,
}

fn id(list: &'static str, key: &str) -> DocumentId {
    DocumentId {
        list,
        key: key.to_owned(),
    }
}

fn element(name: &str, host: &str, port: &str) -> (DocumentId, Option<Value>) {
    let content = json!({ "name": name, "tenant": "t", "host": host, "port": port });
    (id(ELEMENT, name), Some(content))
}

impl Bench {
    /// With a tenant `t` and hosts `h1`, `h2`.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
        let bench = Self {
            inventory: Inventory::open(store.clone()).await.unwrap(),
            store,
            _dir: dir,
        };
        let named = |list, name: &str| (id(list, name), Some(json!({ "name": name })));
        bench
            .edit(vec![
                named(TENANT, "t"),
                named(HOST, "h1"),
                named(HOST, "h2"),
            ])
            .await
            .unwrap();
        bench
    }

    async fn changes(&self, edits: Vec<(DocumentId, Option<Value>)>) -> (Tag, Vec<Change>) {
        let ids = edits.iter().map(|(id, _)| id.clone()).collect();
        let mut loaded = self.inventory.load(Scope::Some(ids)).await.unwrap();
        let change = |(id, after)| Change {
            before: loaded.documents.remove(&id),
            id,
            after,
        };
        let changes = edits.into_iter().map(change).collect();
        (loaded.generation, changes)
    }

    async fn edit(&self, edits: Vec<(DocumentId, Option<Value>)>) -> Result<Committed, ApiError> {
        let (base, changes) = self.changes(edits).await;
        self.inventory.commit(base, changes).await
    }

    async fn refuses(&self, edits: Vec<(DocumentId, Option<Value>)>, app_tag: &str, leaf: &str) {
        let before = self.store.list("").await.unwrap();
        let error = self.edit(edits).await.unwrap_err();
        assert_eq!(error.status, StatusCode::CONFLICT);
        assert_eq!(error.entry.error_app_tag.as_deref(), Some(app_tag));
        let path = error.entry.error_path.unwrap();
        assert!(path.ends_with(leaf), "{path}");
        assert_eq!(self.store.list("").await.unwrap(), before);
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let listing = self.store.list(prefix).await.unwrap();
        listing
            .documents
            .into_iter()
            .map(|found| found.key)
            .collect()
    }
}

#[tokio::test]
async fn an_element_moves_with_its_index_and_leaves_nothing_behind() {
    let bench = Bench::new().await;
    bench.edit(vec![element("e", "h1", "p")]).await.unwrap();
    assert_eq!(bench.keys("element/").await, ["element/h1/e"]);
    bench.edit(vec![element("e", "h2", "p")]).await.unwrap();
    assert_eq!(bench.keys("element/").await, ["element/h2/e"]);
    let loaded = bench
        .inventory
        .load(Scope::Some(vec![id(ELEMENT, "e")]))
        .await
        .unwrap();
    assert_eq!(loaded.documents[&id(ELEMENT, "e")].content["host"], "h2");
    assert_eq!(
        bench
            .inventory
            .load(Scope::All)
            .await
            .unwrap()
            .documents
            .len(),
        4
    );
    bench.edit(vec![(id(ELEMENT, "e"), None)]).await.unwrap();
    assert!(bench.keys("element/").await.is_empty());
    assert!(bench.keys("index/").await.is_empty());
}

#[tokio::test]
async fn no_reference_dangles() {
    let bench = Bench::new().await;
    bench
        .refuses(
            vec![element("e", "h3", "p")],
            "instance-required",
            "[name='e']/host",
        )
        .await;
    bench.edit(vec![element("e", "h1", "p")]).await.unwrap();
    for (list, name) in [(TENANT, "t"), (HOST, "h1")] {
        let gone = vec![(id(list, name), None)];
        bench
            .refuses(gone, "instance-required", &format!("[name='e']/{list}"))
            .await;
    }
    bench.edit(vec![(id(HOST, "h2"), None)]).await.unwrap();
    // Together they may go.
    let all = vec![
        (id(ELEMENT, "e"), None),
        (id(HOST, "h1"), None),
        (id(TENANT, "t"), None),
    ];
    bench.edit(all).await.unwrap();
    assert_eq!(bench.keys("").await, [GENERATION]);
}

#[tokio::test]
async fn a_port_of_a_host_is_one_element_s() {
    let bench = Bench::new().await;
    bench
        .edit(vec![element("a", "h1", "p1"), element("b", "h1", "p2")])
        .await
        .unwrap();
    bench
        .refuses(
            vec![element("c", "h1", "p1")],
            "data-not-unique",
            "[name='c']",
        )
        .await;
    let two = vec![element("c", "h2", "p1"), element("d", "h2", "p1")];
    bench.refuses(two, "data-not-unique", "[name='d']").await;
    // Exchanged in one step.
    bench
        .edit(vec![element("a", "h1", "p2"), element("b", "h1", "p1")])
        .await
        .unwrap();
    bench.edit(vec![element("c", "h2", "p1")]).await.unwrap();
}

#[tokio::test]
async fn a_commit_on_an_old_state_changes_nothing() {
    let bench = Bench::new().await;
    let (base, changes) = bench.changes(vec![element("e", "h1", "p")]).await;
    bench
        .edit(vec![(id(TENANT, "u"), Some(json!({ "name": "u" })))])
        .await
        .unwrap();
    let late = bench.inventory.commit(base, changes).await.unwrap();
    assert_eq!(late, Committed::Raced);
    assert!(bench.keys("element/").await.is_empty());
    assert!(bench.keys("index/").await.is_empty());
}

#[test]
fn what_is_watched_is_all_or_what_concerns_some_hosts() {
    assert_eq!(watched(&[]), [""]);
    let hosts = ["r7-".to_owned(), "r8-".to_owned()];
    let expected = [
        "tenant/",
        "host/r7-",
        "host/r8-",
        "element/r7-",
        "element/r8-",
    ];
    assert_eq!(watched(&hosts), expected);
}

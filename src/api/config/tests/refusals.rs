//! What is refused changes nothing.

use super::*;

#[tokio::test]
async fn a_body_that_is_not_of_the_model_is_refused_and_its_leaf_named() {
    let client = Client::filled().await;
    let before = client.documents();
    let element = "/shunt-inventory:inventory/element[name='e1']";
    let vnic = |vnic: Value| json!({ "shunt-inventory:vnic": [vnic] });
    let cases = [
        (
            "PUT",
            "/element=e1/policy",
            json!({ "shunt-inventory:policy": { "sesions": 1 } }),
            "unknown-element",
            "/policy/sesions",
        ),
        (
            "PUT",
            "/element=e1/policy",
            json!({ "shunt-inventory:policy": { "sessions": "1" } }),
            "bad-element",
            "/policy/sessions",
        ),
        (
            "PATCH",
            "/element=e1/policy",
            json!({ "shunt-inventory:policy": { "sessions": 4194305 } }),
            "invalid-value",
            "/policy/sessions",
        ),
        (
            "PATCH",
            "/element=e1/policy",
            json!({ "shunt-inventory:policy": { "source-prefix": ["::/0", "10.0.0.0/33"] } }),
            "invalid-value",
            "/policy/source-prefix[2]",
        ),
        (
            "PATCH",
            "/element=e1/policy",
            json!({ "shunt-inventory:policy": { "source-prefix": ["10.0.0.0/8", "10.1.0.0/8"] } }),
            "invalid-value",
            "/policy/source-prefix[2]",
        ),
        (
            "PUT",
            "/element=e1/vnic=lan",
            vnic(json!({ "name": "lan" })),
            "missing-element",
            "/vnic[name='lan']/mac",
        ),
        (
            "PUT",
            "/element=e1/vnic=lan",
            vnic(json!({ "name": "wan", "mac": "52:54:00:00:00:0a" })),
            "invalid-value",
            "/vnic[name='lan']/name",
        ),
        (
            "POST",
            "/element=e1",
            vnic(json!({ "mac": "52:54:00:00:00:0a" })),
            "missing-element",
            "/vnic",
        ),
        (
            "POST",
            "/element=e1",
            vnic(json!({ "name": "w", "mac": "52:54:00:00:00" })),
            "invalid-value",
            "/vnic[name='w']/mac",
        ),
        (
            "PUT",
            "/element=e1/name",
            json!({ "shunt-inventory:name": "e2" }),
            "invalid-value",
            "/name",
        ),
        (
            "DELETE",
            "/element=e1/name",
            Value::Null,
            "invalid-value",
            "/name",
        ),
        (
            "DELETE",
            "/element=e1/tenant",
            Value::Null,
            "missing-element",
            "/tenant",
        ),
    ];
    for (method, path, body, tag, leaf) in cases {
        let reply = client.ask(method, &at(path), &body).await;
        let expected = format!("{element}{leaf}");
        assert_eq!(
            reply.error(),
            (400, tag, expected.as_str()),
            "{method} {path} {body}"
        );
    }
    for body in [
        "",
        "{",
        "[]",
        "{}",
        "null",
        r#"{"policy":{}}"#,
        r#"{"shunt-inventory:vnic":[]}"#,
        r#"{"shunt-inventory:policy":{},"shunt-inventory:vnic":[]}"#,
    ] {
        let reply = client
            .send("PUT", &at("/element=e1/policy"), &[], body.to_owned())
            .await;
        assert_eq!(reply.status, 400, "{body}");
    }
    assert_eq!(client.documents(), before);
}

#[tokio::test]
async fn entries_that_must_differ_do() {
    let client = Client::filled().await;
    let path = at("/element=e1/vnic=lan");
    let vlan = json!({ "shunt-inventory:vlan": 5 });
    assert_eq!(
        client
            .ask("PUT", &format!("{path}/vlan"), &vlan)
            .await
            .status,
        201
    );
    let same = json!({ "shunt-inventory:vnic": [
        { "name": "wan", "mac": "52:54:00:00:00:0A", "vlan": 5 }
    ]});
    let reply = client.ask("POST", &at("/element=e1"), &same).await;
    let place = "/shunt-inventory:inventory/element[name='e1']/vnic[name='wan']";
    assert_eq!(reply.error(), (409, "operation-failed", place));
}

#[tokio::test]
async fn a_method_or_parameter_that_is_not_served_is_refused() {
    let client = Client::filled().await;
    let leaf = at("/element=e1/host");
    assert_eq!(client.ask("POST", &leaf, &json!({})).await.status, 405);
    assert_eq!(
        client
            .ask("DELETE", "/restconf/data", &Value::Null)
            .await
            .status,
        405
    );
    let library = "/restconf/data/ietf-yang-library:yang-library";
    assert_eq!(client.ask("PUT", library, &json!({})).await.status, 405);
    let tenant = json!({ "shunt-inventory:tenant": [{ "name": "t9" }] });
    for query in ["insert=first", "point=/a", "depth=1", "x"] {
        let reply = client.ask("POST", &format!("{TOP}?{query}"), &tenant).await;
        assert_eq!(reply.status, 400, "{query}");
    }
    let options = client.ask("OPTIONS", &leaf, &Value::Null).await;
    assert_eq!(options.status, 200);
    let fields = [("content-type", "application/yang-patch+json")];
    // Two fields of one name: the first counts.
    let request = Request::builder()
        .method(Method::PATCH)
        .uri(TOP)
        .header(fields[0].0, fields[0].1)
        .body(Body::from("{}"))
        .unwrap();
    let reply = client.routes.clone().oneshot(request).await.unwrap();
    assert_eq!(reply.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

proptest::proptest! {
    /// No body breaks the server, and none that is refused changes anything.
    #[test]
    fn whatever_is_sent_is_answered(
        method in "POST|PUT|PATCH|DELETE",
        path in "(/(element|tenant|host|policy|vnic|name|kill|source-prefix)(=[a-e1./%]{1,4})?){0,4}",
        node in "(shunt-inventory:)?(tenant|host|element|inventory|policy|vnic|kill)",
        value in "(\\[\\{\"name\":\"[a-c]\"\\}\\]|\\{\\}|true|\\[\\]|\\[1\\]|\"a\"|null)",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let client = Client::filled().await;
            let before = client.documents();
            let body = format!("{{\"{node}\":{value}}}");
            let reply = client.send(&method, &at(&path), &[], body).await;
            if reply.status >= 300 {
                assert!(reply.status < 500, "{}", reply.status);
                assert_eq!(client.documents(), before);
            }
        });
    }
}

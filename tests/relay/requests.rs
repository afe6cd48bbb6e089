//! What passes, as whose, and what does not.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::{Body, Bytes, Frame};

use super::guest::{Guest, GuestBody, Http, Wire, request, whole};
use super::pki::{HOST, Pki};
use super::rig::{Rig, config, eventually, start};
use super::run;
use super::support::Dir;
use super::support::process::output;
use super::upstream::{Upstream, free_address};

/// A body given in pieces, whose length nobody says.
struct Pieces(VecDeque<Frame<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn pieces(frames: impl IntoIterator<Item = Frame<Bytes>>) -> GuestBody {
    Pieces(frames.into_iter().collect()).boxed_unsync()
}

#[test]
fn a_request_arrives_as_its_elements_and_forged_headers_do_not() {
    run(async {
        let rig = Rig::start().await;
        let (_guest, http) = rig.guest("a").await;
        let mut forged = request("POST", "/restconf/data?x=1", "hello");
        *forged.uri_mut() = "http://other-host:99/restconf/data?x=1".parse().unwrap();
        for (name, value) in [
            ("authorization", "Bearer forged"),
            ("proxy-authorization", "Basic YTpi"),
            ("forwarded", "for=10.0.0.1;by=relay"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-client-cert", "By=relay;Subject=\"CN=b\""),
            ("x-real-ip", "10.0.0.1"),
            ("x-shunt-element", "b"),
            ("via", "2 b"),
            ("cookie", "session=b"),
            ("content-type", "text/plain"),
            ("if-match", "\"7\""),
        ] {
            forged
                .headers_mut()
                .append(name, HeaderValue::from_static(value));
        }
        let answer = http.ask(forged).await;
        assert_eq!(
            (answer.status, &*answer.text),
            (StatusCode::OK, "a POST hello")
        );
        // Nor does the answer tell what the guest need not know.
        assert_eq!(answer.headers["location"], "/restconf/made?x");
        assert!(
            !answer.headers.contains_key("server") && !answer.headers.contains_key("set-cookie")
        );

        let [seen] = &rig.upstream.seen()[..] else {
            panic!("one request was sent");
        };
        let identity = seen.identity.clone().unwrap();
        assert_eq!((&*identity.element, &*identity.host), ("a", HOST));
        assert_eq!(seen.uri.path_and_query().unwrap(), "/restconf/data?x=1");
        assert_eq!(seen.uri.host(), Some("localhost"));
        assert_eq!(seen.method, "POST");
        let names: HashSet<_> = seen.headers.keys().map(|name| name.as_str()).collect();
        let expected = [
            "authorization",
            "content-length",
            "content-type",
            "if-match",
        ];
        assert_eq!(names, HashSet::from(expected));
    });
}

#[test]
fn two_elements_never_cross_over() {
    run(async {
        let rig = Rig::start().await;
        let (_one, a) = rig.guest("a").await;
        let (_two, b) = rig.guest("b").await;
        let ask = async |http: &Http, name: &str| {
            for number in 0..100 {
                let body = format!("{name}{number}");
                let answer = http.call("PUT", "/restconf/x", &body).await;
                assert_eq!(answer.text, format!("{name} PUT {body}"));
            }
        };
        tokio::join!(ask(&a, "a"), ask(&b, "b"), ask(&a, "a"), ask(&b, "b"));
        let seen = rig.upstream.seen();
        assert_eq!(seen.len(), 400);
        let mut fences = HashSet::new();
        for request in seen {
            let identity = request.identity.unwrap();
            assert!(request.body.starts_with(identity.element.as_bytes()));
            fences.insert((identity.element, identity.fence, request.connection));
        }
        assert_eq!(
            fences.len(),
            2,
            "one connection and one fence each: {fences:?}"
        );
        assert_eq!(rig.upstream.connections(), 2);
    });
}

#[test]
fn what_is_not_carried_gets_a_clear_answer_and_reaches_nobody() {
    run(async {
        let rig = Rig::start_with(&[("streams = 100", "body-bytes = 1000")]).await;
        let (_guest, http) = rig.guest("a").await;
        for (method, path, status) in [
            ("TRACE", "/restconf", StatusCode::METHOD_NOT_ALLOWED),
            ("PROPFIND", "/restconf", StatusCode::METHOD_NOT_ALLOWED),
            ("GET", "/", StatusCode::FORBIDDEN),
            ("GET", "/restconfidential", StatusCode::FORBIDDEN),
            ("GET", "/metrics", StatusCode::FORBIDDEN),
            ("GET", "/restconf/../metrics", StatusCode::BAD_REQUEST),
            ("GET", "/restconf/%2e%2e/metrics", StatusCode::BAD_REQUEST),
            ("GET", "/restconf/..%2fmetrics", StatusCode::BAD_REQUEST),
            ("GET", "/restconf//metrics", StatusCode::BAD_REQUEST),
            ("GET", "/restconf/a%252fb", StatusCode::BAD_REQUEST),
            ("GET", "/restconf/a%2Fb", StatusCode::BAD_REQUEST),
            (
                "GET",
                "/restconf/x=1%2F..%2F..%2Fmetrics",
                StatusCode::BAD_REQUEST,
            ),
            ("GET", "/restconf%2Fdata/x=1", StatusCode::BAD_REQUEST),
            ("GET", "/restconf/..%3Bx/metrics", StatusCode::BAD_REQUEST),
        ] {
            let answer = http.call(method, path, "").await;
            assert_eq!(answer.status, status, "{method} {path}");
            assert_eq!(answer.problem()["side"], "guest");
            assert_eq!(answer.problem()["applied"], "no");
        }
        let tunnel = Request::connect("restconf:443").body(whole("")).unwrap();
        assert_eq!(
            http.ask(tunnel).await.status,
            StatusCode::METHOD_NOT_ALLOWED
        );

        let large = http.call("POST", "/restconf/x", &"x".repeat(1_001)).await;
        assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
        let growing = (0..11).map(|_| Frame::data(Bytes::from(vec![b'x'; 100])));
        let mut growing_request = request("POST", "/restconf/x", "");
        *growing_request.body_mut() = pieces(growing);
        let answer = http.ask(growing_request).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        let mut trailers = HeaderMap::new();
        trailers.insert("authorization", HeaderValue::from_static("Bearer forged"));
        let mut trailing = request("POST", "/restconf/x", "");
        *trailing.body_mut() = pieces([
            Frame::data(Bytes::from_static(b"x")),
            Frame::trailers(trailers),
        ]);
        let answer = http.ask(trailing).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.text.contains("trailers"), "{}", answer.text);

        let mut long = request("GET", "/restconf/x", "");
        let value = HeaderValue::try_from("x".repeat(20_000)).unwrap();
        long.headers_mut().insert("accept", value);
        let refused = http.ask(long).await;
        assert_eq!(refused.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);

        // None of it arrived whole, and the connection still works.
        let answer = http.call("POST", "/restconf/x", &"x".repeat(1_000)).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(rig.upstream.seen().len(), 1);
    });
}

#[test]
fn keys_with_slashes_arrive_as_they_were_sent() {
    run(async {
        let rig = Rig::start().await;
        let (_guest, http) = rig.guest("a").await;
        let path = "/restconf/data/a:b/interface=eth0%2F1,10.0.0.0%2F8/mtu";
        assert_eq!(http.call("GET", path, "").await.status, StatusCode::OK);
        assert_eq!(rig.upstream.seen()[0].uri.path(), path);
    });
}

#[test]
fn more_requests_than_allowed_are_told_to_wait_and_the_neighbour_is_not() {
    run(async {
        let limits = ("streams = 100", "requests-per-second = 1\nburst = 10");
        let rig = Rig::start_with(&[limits]).await;
        let (_one, a) = rig.guest("a").await;
        let (_two, b) = rig.guest("b").await;
        let mut refused = 0;
        for _ in 0..40 {
            let answer = a.call("GET", "/restconf/x", "").await;
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                assert!(answer.headers.contains_key("retry-after"));
                refused += 1;
            }
        }
        assert!((10..=30).contains(&refused), "{refused} of 40");
        assert_eq!(
            b.call("GET", "/restconf/x", "").await.status,
            StatusCode::OK
        );
    });
}

#[test]
fn an_unrelated_api_is_carried_as_well_also_to_a_unix_socket() {
    run(async {
        let (dir, pki) = (Dir::new(), Pki::new());
        pki.write(dir.path());
        let pem = std::fs::read_to_string(dir.file("relay.pem")).unwrap();
        let certificate = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes());
        let certificate: rustls::pki_types::CertificateDer<'_> = certificate.unwrap();
        let upstream = Upstream::unix(&dir.file("upstream"), certificate.to_vec());
        let config = config(
            &dir,
            0,
            &[
                ("https://localhost:{port}", "unix:{dir}/upstream"),
                ("ca = \"{dir}/ca.pem\"", ""),
                (
                    "paths = [\"/restconf\"]",
                    "paths = [\"/api/v2\"]\nrequest-headers = [\"x-api-key\"]",
                ),
            ],
        );
        let _relay = start(&config, &dir);
        let mut guest = Guest::boot(&Wire::connect(&dir.file("b")).await);
        let http = guest.http().await;

        let mut call = request("PUT", "/api/v2/weather/today", "rain");
        let key = HeaderValue::from_static("k");
        call.headers_mut().insert("x-api-key", key);
        assert_eq!(http.ask(call).await.text, "b PUT rain");
        let seen = &upstream.seen()[0];
        assert_eq!(seen.headers["x-api-key"], "k");
        assert_eq!(seen.identity.clone().unwrap().element, "b");
        let created = http.call("POST", "/api/v2/created", "x").await;
        assert_eq!(created.status, StatusCode::CREATED);

        // A stream of events comes as it is made.
        let mut events = http
            .send(request("GET", "/api/v2/events", ""))
            .await
            .unwrap()
            .into_body();
        let first = events.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "data: first\n\n");
    });
}

#[test]
fn a_renewed_certificate_is_used_without_a_restart() {
    run(async {
        let rig = Rig::start().await;
        let (_guest, http) = rig.guest("a").await;
        assert_eq!(
            http.call("GET", "/restconf/x", "").await.status,
            StatusCode::OK
        );
        rig.pki.write(rig.dir.path());
        // The old authority still stands: `write` only issues again.
        let mut relay = rig.relay;
        relay.signal(libc::SIGHUP);
        eventually(|| relay.log().contains("read again")).await;
        assert_eq!(
            http.call("GET", "/restconf/x", "").await.status,
            StatusCode::OK
        );
        let seen = rig.upstream.seen();
        assert!(
            seen.iter().all(|request| request.identity.is_ok()),
            "{seen:?}"
        );
        assert_eq!(
            seen[1].connection, 1,
            "a new connection shows the new certificate"
        );
        assert_ne!(
            seen[0].headers["authorization"],
            seen[1].headers["authorization"]
        );
    });
}

#[test]
fn check_judges_configuration_and_certificates() {
    let (dir, pki) = (Dir::new(), Pki::new());
    pki.write(dir.path());
    let check = |changes: &[(&str, &str)]| {
        let config = config(&dir, free_address().port(), changes);
        let program = env!("CARGO_BIN_EXE_shunt");
        let output = output(&[
            program,
            "relay",
            "--check",
            "--config",
            config.to_str().unwrap(),
        ]);
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(check(&[]), (true, String::new()));
    for (from, to, expected) in [
        ("{host}", "host2.example.net", "does not name the host"),
        ("relay.key", "ca.pem", "cannot read a private key"),
        ("relay.pem", "none.pem", "none.pem"),
        ("uid = 0", "uid = -1", "uid"),
        ("name = \"b\"", "name = \"a\"", "two ports are named `a`"),
    ] {
        let (is_sound, error) = check(&[(from, to)]);
        assert!(!is_sound && error.contains(expected), "{to}: {error}");
    }
    assert!(!dir.file("a").exists(), "it opens nothing");
}

#[test]
fn another_users_process_is_refused_and_the_socket_belongs_to_the_named_one() {
    run(async {
        let rig = Rig::start_with(&[("uid = 0", "uid = 65534")]).await;
        let mut guest = Guest::boot(&rig.wire("a").await);
        assert!(guest.is_cut_off().await, "the relay talks to root");
        let found = std::fs::metadata(rig.dir.file("a")).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (65_534, 0o660));
        eventually(|| rig.relay.log().contains("user 0 is at the other end")).await;

        // The named user's process is served.
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(rig.dir.path(), permissions).unwrap();
        let mut presence = rig.presence().await;
        let socket = rig.dir.file("a");
        let script = "import socket,sys,time\n\
                      s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
                      assert s.recv(1)";
        let mut python = Command::new("python3");
        python.args(["-c", script]).arg(&socket);
        std::os::unix::process::CommandExt::uid(&mut python, 65_534);
        let mut child = python.spawn().unwrap();
        let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
        assert!(ended.await.unwrap().success(), "it gets a hello");
        assert_eq!(presence.line().await["ports"][0]["present"], false);
    });
}

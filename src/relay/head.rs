//! The heads of requests and answers: what of them passes.
//!
//! *Promises*: the upstream sees the method, the path and query, the listed headers and
//! what the relay itself says; nothing else of what the guest sent. The guest sees the
//! status and the listed headers.
//! *Refuses*: CONNECT, TRACE and unknown methods; targets that are not canonical or not
//! listed. *Caller's duty*: the body is judged elsewhere ([`super::body`]).
//! *Standard*: RFC 9110 sections 7.4, 7.6 and 9, RFC 9113 section 8.

use axum::http::uri::{Authority, PathAndQuery, Scheme, Uri};
use axum::http::{HeaderMap, HeaderValue, Method, header, request, response};
use hyper::Request;

use super::config::{AllowConfig, Headers};
use super::path;
use super::refusal::Refusal;

/// Whether a request may pass by its head, but for the headers.
///
/// # Errors
/// Why not.
pub fn judge(head: &request::Parts, allow: &AllowConfig) -> Result<(), Refusal> {
    let is_carried = matches!(
        head.method,
        Method::DELETE
            | Method::GET
            | Method::HEAD
            | Method::OPTIONS
            | Method::PATCH
            | Method::POST
            | Method::PUT
    );
    if !is_carried {
        return Err(Refusal::Method);
    }
    let path = head.uri.path();
    if !path::is_canonical(path) || !head.uri.query().is_none_or(path::is_query) {
        return Err(Refusal::Target);
    }
    if !allow.paths.iter().any(|prefix| prefix.covers(path)) {
        return Err(Refusal::Path);
    }
    Ok(())
}

/// The head that the upstream gets.
///
/// # Errors
/// The target cannot be written for this upstream.
pub fn outward(
    head: &request::Parts,
    allow: &AllowConfig,
    (scheme, authority): (Scheme, Authority),
    authorization: HeaderValue,
) -> Result<request::Parts, Refusal> {
    let target = head.uri.path_and_query().cloned();
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(target.unwrap_or_else(|| PathAndQuery::from_static("/")))
        .build()
        .map_err(|_| Refusal::Target)?;
    let (mut made, ()) = Request::new(()).into_parts();
    made.method = head.method.clone();
    made.uri = uri;
    made.headers = listed(&head.headers, &allow.request_headers);
    made.headers.insert(header::AUTHORIZATION, authorization);
    Ok(made)
}

/// The head that the guest gets.
pub fn inward(head: &response::Parts, allow: &AllowConfig) -> response::Parts {
    let (mut made, ()) = hyper::Response::new(()).into_parts();
    made.status = head.status;
    made.headers = listed(&head.headers, &allow.response_headers);
    // Where the upstream is, is none of the guest's business.
    if let Some(location) = made.headers.get_mut(header::LOCATION) {
        match local(location) {
            Some(path) => *location = path,
            None => {
                made.headers.remove(header::LOCATION);
            }
        }
    }
    made
}

fn listed(headers: &HeaderMap, list: &Headers) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for name in list.iter() {
        for value in headers.get_all(name) {
            passed.append(name, value.clone());
        }
    }
    passed
}

/// The path and query of a location.
fn local(location: &HeaderValue) -> Option<HeaderValue> {
    let uri: Uri = location.to_str().ok()?.parse().ok()?;
    HeaderValue::from_str(uri.path_and_query()?.as_str()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    use hyper::Response;

    fn allow() -> AllowConfig {
        toml::from_str("paths = ['/restconf', '/api/v1']").unwrap()
    }

    fn request(method: &str, target: &str) -> request::Parts {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("accept", "a/b")
            .header("accept", "c/d")
            .header("content-type", "x/y")
            .header("authorization", "Bearer forged")
            .header("forwarded", "for=1.2.3.4")
            .header("x-forwarded-for", "1.2.3.4")
            .header("x-shunt-element", "other")
            .header("cookie", "a=b")
            .header("via", "2 me");
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn methods_and_paths_are_judged() {
        let outcome = |method, target: &str| judge(&request(method, target), &allow());
        for target in [
            "/restconf",
            "/restconf/data?x=1",
            "/api/v1/",
            "http://a/api/v1/b",
        ] {
            assert_eq!(outcome("GET", target), Ok(()), "{target}");
        }
        for target in [
            "/",
            "/restconfx",
            "/api",
            "/api/v2",
            "/xrestconf",
            "/Restconf",
        ] {
            assert_eq!(outcome("GET", target), Err(Refusal::Path), "{target}");
        }
        for target in ["/restconf/../api", "/restconf//data", "/restconf/%2e%2e"] {
            assert_eq!(outcome("GET", target), Err(Refusal::Target), "{target}");
        }
        for method in ["CONNECT", "TRACE", "PROPFIND", "get"] {
            assert_eq!(
                outcome(method, "/restconf"),
                Err(Refusal::Method),
                "{method}"
            );
        }
    }

    #[test]
    fn only_listed_headers_and_the_relays_own_pass() {
        let to = (Scheme::HTTPS, Authority::from_static("controller:8443"));
        let token = HeaderValue::from_static("Bearer true");
        let head = request("POST", "http://forged/restconf/data?x=1");
        let made = outward(&head, &allow(), to, token).unwrap();
        assert_eq!(made.uri, "https://controller:8443/restconf/data?x=1");
        assert_eq!(made.method, Method::POST);
        let mut all: Vec<_> = made
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        all.sort_unstable();
        assert_eq!(
            all,
            [
                ("accept", "a/b"),
                ("accept", "c/d"),
                ("authorization", "Bearer true"),
                ("content-type", "x/y"),
            ]
        );
    }

    #[test]
    fn an_answer_does_not_tell_where_the_upstream_is() {
        let inward_of = |location: &str| {
            let response = Response::builder()
                .status(201)
                .header("location", location)
                .header("server", "secret")
                .header("set-cookie", "a=b")
                .header("etag", "\"1\"");
            let head = response.body(()).unwrap().into_parts().0;
            inward(&head, &allow())
        };
        let made = inward_of("https://controller:8443/restconf/data/x?y");
        assert_eq!(made.status, 201);
        assert_eq!(made.headers.len(), 2);
        assert_eq!(made.headers["location"], "/restconf/data/x?y");
        assert_eq!(inward_of("/a/b").headers["location"], "/a/b");
        assert!(inward_of("http://[").headers.get("location").is_none());
    }
}

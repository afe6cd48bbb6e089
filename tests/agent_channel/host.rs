//! A host that is played: the far end of a port, and an HTTP/2 server that answers as it is told.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use shunt::serial::{Timing, link};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep};

use super::support::Dir;

/// What a host answers.
#[derive(Clone)]
pub enum Answer {
    /// Nothing, ever.
    Never,
    /// These pieces of a stream, and then its end.
    Stream(&'static [&'static str]),
    /// A status and a body.
    Whole(u16, String),
}

impl Answer {
    pub fn json(body: &str) -> Self {
        Self::Whole(200, body.to_owned())
    }

    pub fn status(status: u16) -> Self {
        Self::Whole(status, String::new())
    }

    pub fn refusal(status: u16, app_tag: &str) -> Self {
        let body = format!(
            r#"{{"ietf-restconf:errors":{{"error":[{{"error-type":"protocol",
                "error-tag":"access-denied","error-app-tag":"{app_tag}","error-message":"no"}}]}}}}"#
        );
        Self::Whole(status, body)
    }
}

#[derive(Default)]
struct Seen {
    asked: Mutex<Vec<String>>,
    streams: AtomicUsize,
    breaks: AtomicBool,
}

/// See the module.
pub struct Host {
    path: PathBuf,
    seen: Arc<Seen>,
    served: JoinHandle<()>,
}

impl Host {
    /// A host that answers the operation of that name, or `streams`, or any other path.
    pub async fn start(dir: &Dir, answer: fn(&str) -> Answer) -> Self {
        let path = dir.file("played");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Seen::default());
        let own = Arc::clone(&seen);
        let served = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (driver, mut connections) = link(stream, Timing::default());
                let serve_all = async {
                    while let Some(stream) = connections.next().await {
                        let service = service_fn(|request| give(request, answer, own.clone()));
                        let _ended = http2::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    }
                };
                tokio::select! {
                    _ = driver => {}
                    () = serve_all => {}
                }
            }
        });
        Self { path, seen, served }
    }

    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Bodies of requests.
    pub fn asked(&self) -> Vec<String> {
        self.seen.asked.lock().unwrap().clone()
    }

    /// Streams that were opened.
    pub fn streams(&self) -> usize {
        self.seen.streams.load(Ordering::SeqCst)
    }

    /// Whether streams break off, or end in order.
    pub fn break_streams(&self, breaks: bool) {
        self.seen.breaks.store(breaks, Ordering::SeqCst);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn give(
    request: Request<Incoming>,
    answer: fn(&str) -> Answer,
    seen: Arc<Seen>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    seen.asked
        .lock()
        .unwrap()
        .push(String::from_utf8(body.to_vec()).unwrap());
    let name = if path.starts_with("/restconf/streams/") {
        "streams"
    } else {
        path.rsplit(':').next().unwrap_or_default()
    };
    let mut response = Response::new(Body::empty());
    match answer(name) {
        Answer::Never => std::future::pending().await,
        Answer::Whole(status, body) => {
            *response.status_mut() = status.try_into().unwrap();
            *response.body_mut() = Body::from(body);
        }
        Answer::Stream(pieces) => {
            seen.streams.fetch_add(1, Ordering::SeqCst);
            let breaks = seen.breaks.load(Ordering::SeqCst);
            let breaks = breaks.then(|| Box::pin(sleep(BREAKS_AFTER)));
            *response.body_mut() = Body::new(Pieces(pieces, breaks));
        }
    }
    Ok(response)
}

/// A stream that breaks off does so this late: a reset takes with it what is not sent yet.
const BREAKS_AFTER: Duration = Duration::from_millis(200);

/// A stream in pieces; when it breaks off behind them, if it does.
struct Pieces(&'static [&'static str], Option<Pin<Box<Sleep>>>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let Some((first, rest)) = self.0.split_first() else {
            let Some(breaks) = &mut self.1 else {
                return Poll::Ready(None);
            };
            let broken = Err(std::io::ErrorKind::BrokenPipe.into());
            return breaks.as_mut().poll(context).map(|()| Some(broken));
        };
        self.0 = rest;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(first.as_bytes())))))
    }
}

//! The bodies of requests and answers on their way.
//!
//! *Promises*: bodies are passed on piece by piece, never collected. A request's body that
//! grows beyond its limit, has trailers or breaks off ends as an error, so that the
//! upstream does not take it for whole, and the reason is told.
//! *Refuses*: see above; the trailers of an answer are left out.
//! *Caller's duty*: none. *Standard*: RFC 9110 section 6.5, RFC 9113 section 8.1.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;

use super::refusal::Refusal;

/// A request's body, watched.
pub struct Guarded<B = Incoming> {
    inner: B,
    left: u64,
    fault: Option<oneshot::Sender<Refusal>>,
}

impl<B: Body> Guarded<B> {
    /// `inner`, of at most `limit` bytes; what is wrong with it comes out of the receiver.
    ///
    /// # Errors
    /// It says itself that it is longer.
    pub fn new(inner: B, limit: u64) -> Result<(Self, oneshot::Receiver<Refusal>), Refusal> {
        if inner.size_hint().lower() > limit {
            return Err(Refusal::Body);
        }
        let (fault, told) = oneshot::channel();
        let guarded = Self {
            inner,
            left: limit,
            fault: Some(fault),
        };
        Ok((guarded, told))
    }

    fn fail(&mut self, refusal: Refusal) -> Refusal {
        if let Some(fault) = self.fault.take() {
            // Whoever asked may have gone.
            let _gone = fault.send(refusal);
        }
        refusal
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Guarded<B> {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let body = self.get_mut();
        let Some(frame) = ready!(Pin::new(&mut body.inner).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let outcome = match frame.map(Frame::into_data) {
            Ok(Ok(data)) => match body.left.checked_sub(data.len() as u64) {
                Some(left) => {
                    body.left = left;
                    Ok(Frame::data(data))
                }
                None => Err(body.fail(Refusal::Body)),
            },
            Ok(Err(_)) => Err(body.fail(Refusal::Trailers)),
            Err(_) => Err(body.fail(Refusal::Broken)),
        };
        Poll::Ready(Some(outcome))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body without its trailers.
pub struct Trimmed<B = Incoming>(pub B);

impl<B: Body<Data = Bytes> + Unpin> Body for Trimmed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.get_mut().0).poll_frame(cx));
        Poll::Ready(frame.filter(|frame| !matches!(frame, Ok(frame) if frame.is_trailers())))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::VecDeque;

    use axum::http::HeaderMap;
    use http_body_util::BodyExt as _;

    struct Pieces(VecDeque<Result<Frame<Bytes>, ()>>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = ();

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
            Poll::Ready(self.get_mut().0.pop_front())
        }
    }

    fn data(size: usize) -> Result<Frame<Bytes>, ()> {
        Ok(Frame::data(Bytes::from(vec![1; size])))
    }

    fn trailers() -> Result<Frame<Bytes>, ()> {
        Ok(Frame::trailers(HeaderMap::new()))
    }

    /// What comes out: the length, or the reason, which was told as well.
    async fn outcome(
        frames: impl IntoIterator<Item = Result<Frame<Bytes>, ()>>,
    ) -> Result<usize, Refusal> {
        let pieces = Pieces(frames.into_iter().collect());
        let (body, mut told) = Guarded::new(pieces, 100)?;
        match body.collect().await {
            Ok(all) => {
                assert!(told.try_recv().is_err());
                Ok(all.to_bytes().len())
            }
            Err(refusal) => {
                assert_eq!(told.try_recv(), Ok(refusal));
                Err(refusal)
            }
        }
    }

    #[tokio::test]
    async fn a_body_passes_up_to_its_limit_and_whole() {
        assert_eq!(outcome([]).await, Ok(0));
        assert_eq!(outcome([data(60), data(40)]).await, Ok(100));
        assert_eq!(outcome([data(60), data(41)]).await, Err(Refusal::Body));
        assert_eq!(
            outcome([data(60), trailers()]).await,
            Err(Refusal::Trailers)
        );
        assert_eq!(outcome([data(60), Err(())]).await, Err(Refusal::Broken));
    }

    #[test]
    fn a_body_that_says_it_is_too_long_is_refused_at_once() {
        let body = http_body_util::Full::new(Bytes::from_static(b"12345"));
        assert_eq!(Guarded::new(body, 4).err(), Some(Refusal::Body));
    }

    #[tokio::test]
    async fn trailers_of_an_answer_are_left_out() {
        let body = Trimmed(Pieces([data(7), trailers()].into()));
        let all = body.collect().await.unwrap();
        assert!(all.trailers().is_none());
        assert_eq!(all.to_bytes().len(), 7);
    }
}

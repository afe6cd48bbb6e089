//! Which HTTP a connection speaks.
//!
//! *Promises*: what was read to know it is read again by whoever serves the connection.
//! *Refuses*: to wait longer than [`PATIENCE`] for the first bytes.
//! *Caller's duty*: bound what comes after them.
//! *Standard*: RFC 9113 section 3.4 (the preface of HTTP/2).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// How long a client may take for its first bytes.
const PATIENCE: Duration = Duration::from_secs(10);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether `stream` begins as HTTP/2 does, and the stream from its beginning.
///
/// # Errors
/// It ended or broke, or nothing that decides came in time.
pub(super) async fn look<S: AsyncRead + Unpin>(stream: S) -> io::Result<(bool, Rewound<S>)> {
    timeout(PATIENCE, read(stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(bool, Rewound<S>)> {
    let mut head = [0; PREFACE.len()];
    let mut filled = 0;
    while filled < head.len() && PREFACE.starts_with(&head[..filled]) {
        match stream.read(&mut head[filled..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    let is_two = head[..filled] == *PREFACE;
    let rewound = Rewound {
        head,
        next: 0,
        filled,
        stream,
    };
    Ok((is_two, rewound))
}

/// A stream whose first bytes were put back.
pub(super) struct Rewound<S> {
    head: [u8; PREFACE.len()],
    next: usize,
    filled: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.next < self.filled {
            let count = buffer.remaining().min(self.filled - self.next);
            buffer.put_slice(&self.head[self.next..self.next + count]);
            self.next += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(work)
    }

    proptest! {
        #[test]
        fn the_version_is_told_by_the_first_bytes_and_none_of_them_is_lost(
            common in 0..=PREFACE.len(),
            rest in proptest::collection::vec(any::<u8>(), 1..40),
            pieces in proptest::collection::vec(1usize..9, 1..20),
        ) {
            let sent = [&PREFACE[..common], &rest].concat();
            let expected = sent.starts_with(PREFACE);
            // Less than a preface that may still become one is waited for.
            prop_assume!(expected || !PREFACE.starts_with(&sent));
            let (is_two, read) = run(async {
                let (mut far, near) = duplex(8);
                let bytes = sent.clone();
                tokio::spawn(async move {
                    let mut rest = bytes.as_slice();
                    for piece in pieces.into_iter().cycle() {
                        let (now, later) = rest.split_at(piece.min(rest.len()));
                        if now.is_empty() || far.write_all(now).await.is_err() {
                            return;
                        }
                        tokio::task::yield_now().await;
                        rest = later;
                    }
                });
                let (is_two, mut stream) = look(near).await.unwrap();
                let mut read = Vec::new();
                stream.read_to_end(&mut read).await.unwrap();
                (is_two, read)
            });
            prop_assert_eq!((is_two, read), (expected, sent));
        }
    }

    #[test]
    fn a_client_that_does_not_begin_is_given_up() {
        for begun in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            let error = run(async {
                let (mut far, near) = duplex(64);
                far.write_all(begun).await.unwrap();
                look(near).await.err().unwrap()
            });
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }
}

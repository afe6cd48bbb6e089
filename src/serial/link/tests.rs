use super::*;

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

const TEXT: usize = 3_000_000;

/// A line of two links, each driven by a task.
fn pair() -> (Connections, Connections) {
    let (a, b) = duplex(10_000);
    (driven(a), driven(b))
}

fn driven(io: DuplexStream) -> Connections {
    let (driver, connections) = link(io, Timing::default());
    tokio::spawn(driver);
    connections
}

#[tokio::test(start_paused = true)]
async fn bytes_pass_both_ways_at_once() {
    let (mut a, mut b) = pair();
    let (one, two) = tokio::join!(a.next(), b.next());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.epochs(), (two.epochs().1, two.epochs().0));
    let text: Vec<u8> = (0..TEXT).map(|i| (i / 3) as u8).collect();
    let exchange = async |stream: Stream| {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut got = vec![0; TEXT];
        let (sent, taken) = tokio::join!(writer.write_all(&text), reader.read_exact(&mut got));
        sent.unwrap();
        taken.unwrap();
        assert!(got == text);
        reader.unsplit(writer)
    };
    let _open = tokio::join!(exchange(one), exchange(two));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_ends_the_connection_at_both_ends_and_the_next_opens() {
    let (mut a, mut b) = pair();
    let (one, two) = tokio::join!(a.next(), b.next());
    let mut two = two.unwrap();
    drop(one);
    let error = two.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(two.ended().await, End::PeerClosed);
    let (one, again) = tokio::join!(a.next(), b.next());
    let (mut one, mut again) = (one.unwrap(), again.unwrap());
    one.write_all(b"x").await.unwrap();
    assert_eq!(again.read_u8().await.unwrap(), b'x');
}

#[tokio::test(start_paused = true)]
async fn shutdown_sends_what_was_written_first() {
    let (mut a, mut b) = pair();
    let (one, two) = tokio::join!(a.next(), b.next());
    let (mut one, mut two) = (one.unwrap(), two.unwrap());
    let text = vec![5; 200_000];
    let send = async {
        one.write_all(&text).await.unwrap();
        one.shutdown().await.unwrap();
    };
    let receive = async {
        let mut got = vec![0; 200_000];
        two.read_exact(&mut got).await.unwrap();
    };
    tokio::join!(send, receive);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_line_ends_everything() {
    let (a, b) = duplex(1_000);
    let (driver, mut a) = link(a, Timing::default());
    let driving = tokio::spawn(driver);
    let mut b = driven(b);
    let (one, two) = tokio::join!(a.next(), b.next());
    let (_one, mut two) = (one.unwrap(), two.unwrap());
    driving.abort();
    assert!(two.read_u8().await.is_err());
    assert_eq!(two.ended().await, End::Line);
    assert!(b.next().await.is_none());
    assert!(a.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_line_that_takes_nothing_is_given_up_and_taken_up_again() {
    let (a, mut raw) = duplex(1_000);
    let mut a = driven(a);
    // The peer by hand: it opens, beats, and never reads.
    let mut peer = Line::new(Timing::default(), || NonZeroU32::new(9).unwrap(), now());
    let mut bytes = Vec::new();
    let mut input = [0; 200];
    let taken = raw.read(&mut input).await.unwrap();
    peer.receive(&input[..taken], now());
    while peer.transmit(&mut bytes, now()) {}
    raw.write_all(&bytes).await.unwrap();
    let mut stream = a.next().await.unwrap();
    let mut ended = Box::pin(stream.ended());
    let flood = async {
        let error = stream.write_all(&[1; 1_000_000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    };
    let beats = async {
        let taken = raw.read(&mut input).await.unwrap();
        peer.receive(&input[..taken], now());
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            bytes.clear();
            while peer.transmit(&mut bytes, now()) {}
            raw.write_all(&bytes).await.unwrap();
        }
    };
    tokio::select! {
        () = flood => {}
        () = beats => {}
    }
    assert_eq!((&mut ended).await, End::Stall);
    // Read at last: the next connection opens.
    let mut b = driven(raw);
    assert!(b.next().await.is_some());
    assert!(a.next().await.is_some());
}

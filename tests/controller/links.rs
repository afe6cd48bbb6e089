//! Connections: certificates that change, and peers that do not begin.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use crate::lab::Identity;
use crate::support::eventually;
use crate::world::{SOON, STATE, World, call, results, session};

/// A client with the certificate of `identity` that has shaken hands and says nothing yet.
fn connect(world: &World, identity: &Identity) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(world.servers.file()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(&identity.certificate).unwrap()],
            PrivateKeyDer::from_pem_file(&identity.key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", world.relay_port())).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).unwrap();
    }
    stream.set_read_timeout(Some(SOON)).unwrap();
    StreamOwned::new(connection, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_never_speak_are_cut_and_cost_nobody_else_anything() {
    let world = World::start();
    let silent: Vec<_> = ["", "PRI * HTTP/2.0", "GET / HT"]
        .into_iter()
        .map(|begun| {
            let mut stream = connect(&world, &world.relay[1]);
            stream.write_all(begun.as_bytes()).unwrap();
            stream.flush().unwrap();
            stream
        })
        .collect();
    // Neither a certificate nor a handshake.
    let bare: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(("127.0.0.1", world.relay_port())).unwrap())
        .collect();
    let (_guest, a) = world.guest(0).await;
    let offered = call(
        &a,
        "offload",
        json!({ "session": [session("a", "one", 1)] }),
    )
    .await;
    assert_eq!(results(&offered)[0].0, "offloaded");
    for mut stream in silent {
        // Its end, and not the test's own deadline.
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let is_end = |kind| kind != std::io::ErrorKind::WouldBlock;
        assert!(
            ended
                .as_ref()
                .map_or_else(|error| is_end(error.kind()), |_| true),
            "{ended:?}"
        );
    }
    for mut stream in bare {
        stream.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backend_and_controller_change_their_certificates_without_a_restart() {
    let mut world = World::start();
    let (_guest, b) = world.guest(1).await;
    let offered = call(
        &b,
        "offload",
        json!({ "session": [session("b", "one", 1)] }),
    )
    .await;
    assert_eq!(results(&offered)[0].0, "offloaded");
    let status = |world: &World| world.with_token(1, u64::MAX, "GET", STATE, None).status;
    let until = |world: &World, expected: u16, what: &str| {
        eventually(SOON, what, || status(world) == expected);
    };
    // The controller's own: another name is no controller's.
    world.controllers.issue("controller", "other.example");
    world.controller.hang_up();
    until(&world, 503, "the backend refuses another name");
    world.controllers.issue("controller", "controller.example");
    world.controller.hang_up();
    until(
        &world,
        200,
        "the backend takes a new certificate of the name",
    );
    // The backend's: another name is not where the inventory says it is.
    world.servers.issue("backend-b", "other.example");
    world.backend[1].process().signal(libc::SIGHUP);
    until(&world, 503, "the controller refuses another name");
    world.servers.issue("backend-b", "localhost");
    world.backend[1].process().signal(libc::SIGHUP);
    until(
        &world,
        200,
        "the controller takes a new certificate of the name",
    );
    assert_eq!(world.keys()[1], ["one"]);
}

//! The unix socket that control is offered on.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt, helpers of tests too"
)]

mod fake_control;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use fake_control::{Server, runtime};
use shunt::api::{ControlSocket, SocketError};

#[test]
fn the_socket_is_for_owner_and_group_and_goes_with_its_server() {
    let mut server = Server::start();
    let found = std::fs::symlink_metadata(server.path()).expect("a socket");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o7777, 0o660);
    server.stop();
    assert!(!server.path().exists());
}

#[test]
fn a_left_behind_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s.sock");
    drop(UnixListener::bind(&path).expect("bind"));
    assert!(path.exists());
    runtime().block_on(async {
        let socket = ControlSocket::bind(&path).await.expect("the name is free");
        let second = ControlSocket::bind(&path).await.expect_err("it is served");
        assert!(matches!(second, SocketError::InUse(_)), "{second}");
        assert!(path.exists(), "a refused second one removes nothing");
        drop(socket);
        assert!(!path.exists());

        std::fs::write(&path, "precious").expect("write");
        let error = ControlSocket::bind(&path).await.expect_err("a file");
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "precious");

        let lost = directory.path().join("none/s.sock");
        let error = ControlSocket::bind(&lost).await.expect_err("no directory");
        assert!(matches!(error, SocketError::NoDirectory(_)), "{error}");
    });
}

#[test]
fn a_socket_that_took_our_name_is_not_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s.sock");
    runtime().block_on(async {
        let socket = ControlSocket::bind(&path).await.expect("bind");
        std::fs::remove_file(&path).expect("remove");
        let _other = UnixListener::bind(&path).expect("bind");
        drop(socket);
        assert!(path.exists());
    });
}

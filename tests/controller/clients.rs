//! Clients of RESTCONF that are not ours: Ansible, and a Python library. (curl is everywhere
//! else in these tests.)

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::lab::{Controller, INVENTORY};
use crate::operators::Lab;
use crate::support::{Dir, repository};
use crate::{LOCAL, at};

/// Runs a client to its end; it must succeed.
fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; run 'make setup'");
    });
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{command:?}:\n{said}");
    said
}

fn file(name: &str) -> PathBuf {
    repository().join("tests/controller/clients").join(name)
}

/// A port that leads to a unix socket, as `ssh -L` makes one. It ends with the test.
fn forward(socket: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), UnixStream::connect(&socket).unwrap());
            let (back, from) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || {
                pump(near, &far);
                let _gone = far.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || {
                pump(from, &back);
                let _gone = TcpStream::shutdown(&back, Shutdown::Both);
            });
        }
    });
    address
}

fn pump(mut from: impl Read, mut to: impl Write) {
    let _either_is_gone = std::io::copy(&mut from, &mut to);
}

#[test]
fn ansible_reads_creates_replaces_patches_and_deletes() {
    let dir = Dir::new();
    let controller = Controller::start(&dir, LOCAL);
    let address = forward(&dir.file("controller.sock"));
    let mut ansible = Command::new("ansible-playbook");
    ansible
        .args(["--inventory", file("inventory.yml").to_str().unwrap()])
        .args([
            "--extra-vars",
            &format!("ansible_httpapi_port={}", address.port()),
        ])
        .arg(file("playbook.yml"))
        // Its files and its sockets.
        .env("HOME", dir.path())
        .env("ANSIBLE_HOME", dir.path())
        .env("ANSIBLE_PERSISTENT_CONTROL_PATH_DIR", dir.file("pc"))
        .current_dir(dir.path());
    let said = succeed(ansible);
    assert!(
        said.contains("ok=11") && said.contains("changed=5"),
        "{said}"
    );
    let tenant = controller.get(&at("/tenant=globex")).json();
    let wanted = json!([{ "name": "globex", "description": "Globex" }]);
    assert_eq!(tenant["shunt-inventory:tenant"], wanted);
    assert_eq!(controller.get(&at("/element=fw9")).status, 404);
}

#[test]
fn a_python_client_with_a_certificate_is_told_what_it_may_not() {
    let lab = Lab::new();
    let admin = lab.operators.issue("admin", "admin.example");
    let port = lab.controller.port(&lab.server.certificate);
    let mut python = Command::new(repository().join("target/clients/bin/python"));
    python.arg(file("nso.py")).arg(port.to_string()).args([
        &admin.certificate,
        &admin.key,
        &lab.servers.file(),
    ]);
    assert_eq!(succeed(python).trim(), "done");
    let left = lab.controller.get(INVENTORY);
    assert!(!left.body.contains("initech"), "{left:?}");
}

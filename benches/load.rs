//! Sessions for what flowgen sends, loaded through the control socket, a page a request.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// flowgen's fixed destination MAC.
pub const FLOWGEN_MAC: &str = "00:01:02:03:04:01";
/// flowgen's first destination; flow n goes to the n-th address from here.
const FIRST: u32 = 0x0afd_0000;
/// Sessions a request: the most it may have.
const PAGE: u32 = 1024;

/// Destination of flowgen's flow `number`.
pub fn destination(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + number)
}

/// Offloads, `vouched`, what flowgen sends into `ingress`: `count` sessions from
/// 10.254.0.0:1000, each translated to a source of its own, towards `egress`.
pub fn offload(control: &Path, element: &str, ingress: &str, egress: &str, count: u32) {
    for first in (0..count).step_by(PAGE as usize) {
        let page = first..count.min(first + PAGE);
        let mut body = format!(r#"{{"shunt-offload:input":{{"element":"{element}","session":["#);
        for number in page.clone() {
            let comma = if number == first { "" } else { "," };
            let (source, port) = (translated(number), source_port(number));
            let to = destination(number);
            write!(
                body,
                r#"{comma}{{"key":"{ingress}-{number}","protocol":"udp","idle-timeout":3600,"vouched":true,"directions":"original","original":{{"ingress-vnic":"{ingress}","ingress-mac":"{FLOWGEN_MAC}","source-address":"10.254.0.0","source-port":1000,"destination-address":"{to}","destination-port":1001,"translation":{{"source-address":"{source}","source-port":{port}}},"egress-vnic":"{egress}","destination-mac":"02:00:00:00:00:0d","source-mac":"02:00:00:00:00:0c"}}}}"#,
            )
            .unwrap();
        }
        body.push_str("]}}");
        let answer = post(control, "/restconf/operations/shunt-offload:offload", &body);
        let accepted = answer.matches(r#""offloaded""#).count();
        assert_eq!(
            accepted,
            page.len(),
            "sessions {page:?} of {ingress}: {}",
            answer.get(..2000).unwrap_or(&answer)
        );
    }
}

/// The source address flow `number` is translated to: one for every 32,768 of them.
pub fn translated(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 51, 100, 1)) + (number >> 15))
}

/// The source port flow `number` is translated to.
pub fn source_port(number: u32) -> u16 {
    1024 + (number & 0x7fff) as u16
}

/// One request on a connection of its own: a page is more than an argument of curl takes.
fn post(control: &Path, path: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(control).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/yang-data+json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 2"), "POST {path}: {answer}");
    answer
}

//! One connection of HTTP/1.1 to a controller's unix socket: a process for each request
//! would cost more than the request.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

/// See the module.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects; `None`: nobody is there yet.
    pub fn connect(socket: &Path) -> Option<Self> {
        let stream = UnixStream::connect(socket).ok()?;
        Some(Self {
            stream: BufReader::new(stream),
        })
    }

    /// The status of one request; `None`: the connection ended.
    pub fn ask(&mut self, method: &str, path: &str, body: &Value) -> Option<u16> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/yang-data+json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).ok()?;
        let status = self.line()?.split(' ').nth(1)?.parse().ok()?;
        let mut length = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut rest = vec![0; length];
        self.stream.read_exact(&mut rest).ok()?;
        Some(status)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line).ok()?;
        (count > 0).then(|| line.trim_end().to_owned())
    }
}

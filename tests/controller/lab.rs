//! `shunt controller` as its users start it, and those who talk to it: curl with
//! certificates of a small authority, and tokens as a relay makes them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;
use shunt::api::identity::Signer;

use crate::support::etcd::Place;
use crate::support::process::{Process, output};
use crate::support::shunt::binary;
use crate::support::{Dir, eventually, eventually_some};

const DEADLINE: Duration = Duration::from_secs(30);
/// Where all configuration is.
pub const INVENTORY: &str = "/restconf/data/shunt-inventory:inventory";

/// An authority and the directory of what it has issued.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    name: &'static str,
}

impl Authority {
    /// A new one; its certificate is `NAME.pem` in `dir`.
    pub fn new(dir: &Dir, name: &'static str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        dir.write(&format!("{name}.pem"), &pem);
        Self {
            issuer: Issuer::new(params, key),
            dir: dir.path().to_owned(),
            name,
        }
    }

    /// Its certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.join(format!("{}.pem", self.name))
    }

    /// Issues a certificate for `host` under the file name `name`, or replaces it.
    pub fn issue(&self, name: &str, host: &str) -> Identity {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        // The default is every certificate's: OpenSSL would take this one for its own issuer.
        params.distinguished_name.push(DnType::CommonName, host);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let identity = Identity {
            certificate: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
            host: host.to_owned(),
            der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
        };
        replace(&identity.key, &key.serialize_pem());
        replace(&identity.certificate, &certificate.pem());
        identity
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// A certificate and its key.
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
    host: String,
    der: Vec<u8>,
    key_der: Vec<u8>,
}

impl Identity {
    /// A token for the element on `port`, as this relay would sign it at `time`.
    pub fn token_at(&self, port: &str, fence: u64, time: SystemTime) -> String {
        let signer = Signer::new(&self.host, &self.der, &self.key_der).unwrap();
        signer.sign(port, fence, time).unwrap()
    }

    /// One that is valid now.
    pub fn token(&self, port: &str, fence: u64) -> String {
        self.token_at(port, fence, wall_clock())
    }
}

/// The time of day.
#[expect(clippy::disallowed_methods, reason = "tokens have wall-clock times")]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub etag: String,
    pub location: String,
    pub body: String,
}

impl Reply {
    /// The body as JSON; `Null` without one.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// Status, tag and path of an error.
    pub fn error(&self) -> (u16, String, String) {
        let error = &self.json()["ietf-restconf:errors"]["error"][0];
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (self.status, text("error-tag"), text("error-path"))
    }
}

/// Runs curl; `Err` with its exit code where there was no answer.
pub fn curl(arguments: &[&str], method: &str, body: Option<&Value>) -> Result<Reply, i32> {
    curl_at(&Place::here(), arguments, method, body)
}

/// The same at `place`.
pub fn curl_at(
    place: &Place,
    arguments: &[&str],
    method: &str,
    body: Option<&Value>,
) -> Result<Reply, i32> {
    let mut command = place.command("curl");
    command.args(["--silent", "--globoff", "--max-time", "20"]);
    command.args(["--request", method]);
    command.args([
        "--write-out",
        "\n%{http_code} %header{etag} %header{location}",
    ]);
    if let Some(body) = body {
        command.args(["--header", "content-type: application/yang-data+json"]);
        command.args(["--data-binary", &body.to_string()]);
    }
    let said = command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if !said.status.success() {
        return Err(said.status.code().unwrap());
    }
    let text = String::from_utf8(said.stdout).unwrap();
    let (body, told) = text.rsplit_once('\n').unwrap();
    let mut told = told.split(' ');
    let mut next = || told.next().unwrap_or_default().to_owned();
    Ok(Reply {
        status: next().parse().unwrap(),
        etag: next(),
        location: next(),
        body: body.to_owned(),
    })
}

/// A running controller.
pub struct Controller {
    place: Place,
    process: Process,
    config: PathBuf,
    dir: PathBuf,
}

impl Controller {
    /// Starts it with the configuration `config`, in which `{dir}` is the test's directory;
    /// its socket must be `{dir}/controller.sock`.
    pub fn start(dir: &Dir, config: &str) -> Self {
        Self::start_at(Place::here(), dir, config)
    }

    /// The same at `place`.
    pub fn start_at(place: Place, dir: &Dir, config: &str) -> Self {
        let text = config.replace("{dir}", dir.path().to_str().unwrap());
        let config = dir.write("controller.toml", &text);
        let process = spawn(&place, &config, dir.path());
        let mut controller = Self {
            place,
            process,
            config,
            dir: dir.path().to_owned(),
        };
        controller.wait_ready();
        controller
    }

    fn wait_ready(&mut self) {
        let socket = self.dir.join("controller.sock");
        eventually(DEADLINE, "the controller answers", || {
            self.process.assert_running();
            let url = "http://localhost/restconf";
            curl(
                &["--unix-socket", socket.to_str().unwrap(), url],
                "GET",
                None,
            )
            .is_ok()
        });
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGKILL, and a new start.
    pub fn restart(&mut self) {
        self.restart_after(|| {});
    }

    /// The same, with something happening between.
    pub fn restart_after(&mut self, between: impl FnOnce()) {
        self.kill9();
        between();
        self.process = spawn(&self.place, &self.config, &self.dir);
        self.wait_ready();
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// SIGTERM.
    pub fn end(mut self) {
        assert!(self.process.terminate(DEADLINE).success());
    }

    /// SIGHUP.
    pub fn hang_up(&mut self) {
        self.process.signal(libc::SIGHUP);
    }

    /// Asks over the local socket; `arguments` are curl's.
    pub fn ask_with(
        &self,
        arguments: &[&str],
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Reply {
        let (socket, url) = (
            self.dir.join("controller.sock"),
            format!("http://localhost{path}"),
        );
        let mut argv = vec!["--unix-socket", socket.to_str().unwrap()];
        argv.extend(arguments);
        argv.push(&url);
        curl(&argv, method, body).unwrap()
    }

    /// Asks over the local socket.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.ask_with(&[], method, path, Some(body))
    }

    /// GET over the local socket.
    pub fn get(&self, path: &str) -> Reply {
        self.ask_with(&[], "GET", path, None)
    }

    /// Must succeed.
    pub fn set(&self, method: &str, path: &str, body: &Value) -> Reply {
        let reply = self.ask(method, path, body);
        assert!(
            (200..300).contains(&reply.status),
            "{method} {path}: {reply:?}"
        );
        reply
    }

    /// The port of the listener that has `certificate`.
    pub fn port(&self, certificate: &Path) -> u16 {
        told_port(certificate, || self.process.log())
    }

    /// Waits until the lines of the audit log are as `wanted`: they are written behind the
    /// answer.
    pub fn logs(&self, what: &str, mut wanted: impl FnMut(&[Value]) -> bool) {
        eventually(DEADLINE, what, || {
            let text = std::fs::read_to_string(self.dir.join("audit.jsonl")).unwrap();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let lines: Vec<Value> = whole
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            wanted(&lines)
        });
    }
}

/// The port of the listener that has `certificate`, as a process tells in its `log`.
pub fn told_port(certificate: &Path, mut log: impl FnMut() -> String) -> u16 {
    let end = format!(", {}", certificate.display());
    eventually_some(DEADLINE, "the listener is told", || {
        let log = log();
        let line = log
            .lines()
            .rev()
            .find(|line| line.ends_with(&end) && line.contains("serving on"))?;
        line.strip_suffix(&end)?.rsplit_once(':')?.1.parse().ok()
    })
}

/// Runs `shunt controller --config … ARGUMENTS`.
pub fn command(config: &Path, arguments: &[&str]) -> std::process::Output {
    let mut argv = vec![binary(), "controller".into(), "--config".into()];
    argv.push(config.to_owned());
    argv.extend(arguments.iter().map(PathBuf::from));
    output(&argv)
}

fn spawn(place: &Place, config: &Path, dir: &Path) -> Process {
    let mut command = place.command(binary());
    command
        .arg("controller")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null());
    Process::start(command, &dir.join("controller.log"))
}

/// curl's arguments of a client `identity` of the server at `port`.
pub fn mutual(identity: &Identity, server: &Authority, port: u16) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    vec![
        "--cert".to_owned(),
        text(&identity.certificate),
        "--key".to_owned(),
        text(&identity.key),
        "--cacert".to_owned(),
        text(&server.file()),
        "--connect-to".to_owned(),
        format!("::127.0.0.1:{port}"),
    ]
}

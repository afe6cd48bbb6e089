//! The program under test, as its users start it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::netns::Netns;
use super::process::{Process, output, succeed};
use super::{Dir, eventually, repository};

/// How long the backend may take until its control socket answers.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A configuration with one element, `router1`, whose vNICs `lan` and `wan` nobody connects to.
pub fn idle_router(sessions: u32) -> String {
    let vnic = |name, last| {
        format!(
            "[[element.vnic]]\nname = '{name}'\nsocket = '{{dir}}/{name}.sock'\n\
             mac = '52:54:00:00:00:0{last}'\n\
             uplink = {{ type = 'vhost-user', socket = '{{dir}}/{name}-uplink.sock' }}\n"
        )
    };
    format!(
        "[backend]\ncontrol = '{{dir}}/control.sock'\n\
         [[element]]\nname = 'router1'\nsessions = {sessions}\n{}{}",
        vnic("lan", 1),
        vnic("wan", 2)
    )
}

/// A running `shunt backend` or `shunt up`.
///
/// In its configuration `{dir}` stands for the test's directory; it must make the
/// backend listen for control on `{dir}/control.sock`.
#[derive(Debug)]
pub struct Shunt {
    process: Process,
    config: PathBuf,
    control: PathBuf,
    log: PathBuf,
    netns: Option<String>,
    command: &'static str,
}

impl Shunt {
    /// Starts `shunt backend --config …` and waits for its control socket.
    pub fn start(dir: &Dir, config: &str) -> Self {
        Self::launch(dir, config, None, "backend")
    }

    /// Starts `shunt up --config …` and waits for its backend's control socket.
    pub fn up(dir: &Dir, config: &str) -> Self {
        Self::launch(dir, config, None, "up")
    }

    /// The same inside a namespace, which then has its uplinks.
    pub fn start_in(netns: &Netns, dir: &Dir, config: &str) -> Self {
        Self::launch(dir, config, Some(netns.name().to_owned()), "backend")
    }

    fn launch(dir: &Dir, config: &str, netns: Option<String>, command: &'static str) -> Self {
        let text = config.replace("{dir}", dir.path().to_str().unwrap());
        let config = dir.write("shunt.toml", &text);
        let (control, log) = (dir.file("control.sock"), dir.file("shunt.log"));
        let process = spawn(command, &config, &log, netns.as_deref());
        let mut shunt = Self {
            process,
            config,
            control,
            log,
            netns,
            command,
        };
        shunt.wait_ready();
        shunt
    }

    fn wait_ready(&mut self) {
        eventually(
            START_DEADLINE,
            "the backend's control socket answers",
            || {
                self.process.assert_running();
                // Connecting alone says nothing: it listens before its devices are open.
                let url = "http://localhost/restconf/data/shunt-offload:state/summary";
                let socket = self.control.to_str().unwrap();
                let argv = [
                    "curl",
                    "--silent",
                    "--max-time",
                    "5",
                    "--unix-socket",
                    socket,
                    url,
                ];
                output(&argv).status.success()
            },
        );
        // The socket is there before the devices are; an answer comes after them.
        self.control()
            .get("/restconf/data/shunt-offload:state/summary");
    }

    /// SIGKILL: what a crash looks like to everybody else.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again after [`Shunt::kill9`] (or kills it first), same configuration.
    pub fn restart(&mut self) {
        self.kill9();
        let netns = self.netns.as_deref();
        self.process = spawn(self.command, &self.config, &self.log, netns);
        self.wait_ready();
    }

    /// Replaces the configuration file; the backend is not told.
    pub fn write_config(&self, text: &str) {
        let dir = self.config.parent().unwrap().to_str().unwrap();
        std::fs::write(&self.config, text.replace("{dir}", dir)).unwrap();
    }

    /// The process: id, signals, log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.control
    }

    /// The control API.
    pub fn control(&self) -> Control {
        Control::new(&self.control)
    }

    /// Runs `shunt ARGUMENTS…` as an operator would; gives its output.
    pub fn cli(&self, arguments: &[&str]) -> std::process::Output {
        let mut argv = vec![binary().into_os_string()];
        argv.extend(arguments.iter().map(OsString::from));
        output(&argv)
    }
}

/// The program of the same build: Cargo names it to tests; an example lies in a directory
/// beside it.
pub fn binary() -> PathBuf {
    if let Some(path) = option_env!("CARGO_BIN_EXE_shunt") {
        return PathBuf::from(path);
    }
    let own = std::env::current_exe().unwrap();
    let binary = own.parent().and_then(Path::parent).unwrap().join("shunt");
    assert!(
        binary.exists(),
        "{} is missing: run 'make build'",
        binary.display()
    );
    binary
}

/// The static program for guests, built if it is out of date (`make agent`).
pub fn agent_binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let repository = repository();
        let root = repository.to_str().unwrap();
        succeed(&["make", "--no-print-directory", "-C", root, "agent"]);
        repository.join("target/agent/shunt")
    };
    BUILT.get_or_init(build).clone()
}

fn spawn(program: &str, config: &Path, log: &Path, netns: Option<&str>) -> Process {
    let binary = binary();
    let mut command = match netns {
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(binary);
            command
        }
        None => Command::new(binary),
    };
    command
        .arg(program)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null());
    Process::start(command, log)
}

/// An answer of the control API.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body as it came.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {} '{}'", self.status, self.body))
    }
}

/// A client of an HTTP API on a Unix socket: curl, so that the peer is a real one.
#[derive(Debug)]
pub struct Control {
    socket: PathBuf,
}

impl Control {
    /// A client of the server on `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// GET that must succeed.
    pub fn get(&self, path: &str) -> serde_json::Value {
        let answer = self.request("GET", path, None);
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.body);
        answer.json()
    }

    /// POST that must succeed; `Null` if the answer has no body.
    pub fn post(&self, path: &str, body: &serde_json::Value) -> serde_json::Value {
        let answer = self.request("POST", path, Some(body));
        assert!(
            (200..300).contains(&answer.status),
            "POST {path}: {answer:?}"
        );
        if answer.body.is_empty() {
            serde_json::Value::Null
        } else {
            answer.json()
        }
    }

    /// Any request, any answer; panics only if there is none.
    pub fn request(&self, method: &str, path: &str, body: Option<&serde_json::Value>) -> Answer {
        let url = format!("http://localhost{path}");
        // Not as an argument: those are bounded.
        let dir = Dir::new();
        let body = body.map(|body| {
            let file = dir.file("body");
            std::fs::write(&file, body.to_string()).unwrap();
            format!("@{}", file.display())
        });
        let mut argv = vec![
            "curl",
            "--silent",
            "--show-error",
            "--globoff",
            "--max-time",
            "20",
            "--unix-socket",
            self.socket.to_str().unwrap(),
            "--request",
            method,
            "--write-out",
            "\n%{http_code}",
        ];
        if let Some(body) = &body {
            argv.extend(["--header", "content-type: application/yang-data+json"]);
            argv.extend(["--data-binary", body]);
        }
        argv.push(&url);
        let output = output(&argv);
        assert!(
            output.status.success(),
            "{method} {path}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        Answer {
            status: status.parse().unwrap(),
            body: body.to_owned(),
        }
    }
}

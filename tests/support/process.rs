//! A child process that ends with its owner.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use super::{eventually_some, is_interrupted};

/// A running program: its output goes to a file, and dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let name = format!("{command:?}");
        let child = command
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}; is 'make setup' done?"));
        Self {
            child,
            name,
            log: log.to_owned(),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, if the command asked for a pipe; once.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child
            .stdin
            .take()
            .expect("stdin was not piped, or was taken")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// All it has printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Panics with its output if it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended ({status}):\n{}", self.name, self.log());
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends `signal`.
    pub fn signal(&mut self, signal: libc::c_int) {
        assert!(self.is_running(), "{} ended:\n{}", self.name, self.log());
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: kill takes no pointers; the child was not waited for (checked above),
        // so its id is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "kill {pid}");
    }

    /// SIGTERM; panics if it has not ended within `deadline`.
    pub fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait(deadline)
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually_some(deadline, &what, || self.child.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() && !is_interrupted() {
            let log = self.log();
            let skip = log.len().saturating_sub(4_000);
            let tail = log.get(skip..).unwrap_or(&log);
            eprintln!("--- {} said:\n{tail}", self.name);
        }
    }
}

/// Panics, naming the Debian package, unless `program` (a name in PATH, or a path) is there.
pub fn needs(program: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    assert!(
        found,
        "{program} is missing: install the Debian package {package} ('make setup' does)"
    );
}

/// Runs a command to its end, without input.
pub fn output<S: AsRef<OsStr>>(argv: &[S]) -> Output {
    let (program, arguments) = argv.split_first().expect("no command");
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{:?}: {error}; is 'make setup' done?", program.as_ref()))
}

/// Runs a command that must succeed and gives what it printed.
pub fn succeed<S: AsRef<OsStr>>(argv: &[S]) -> String {
    let output = output(argv);
    assert!(
        output.status.success(),
        "{:?}: {}\n{}{}",
        argv.iter()
            .map(|a| a.as_ref().to_string_lossy())
            .collect::<Vec<_>>(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Binds all threads of a process to `cpus`, such as `0` or `0-2,5`.
pub fn pin(process: u32, cpus: &str) {
    let process = process.to_string();
    let argv = [
        "taskset",
        "--all-tasks",
        "--pid",
        "--cpu-list",
        cpus,
        &process,
    ];
    succeed(&argv);
}

//! A control without a backend behind it: keeps requests in a map. It checks them as
//! the api floor does, so that results of every kind come out.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use shunt::api::reload::{Action, Change, Kind, ReloadOutput};
use shunt::api::shield::{
    ShieldInput, ShieldOutput, ShieldReport, ShieldResult, ShieldStatus, Shields, UnshieldInput,
    UnshieldOutput, UnshieldResult, UnshieldStatus,
};
use shunt::api::state::{
    DeviceReport, ElementSummary, HandOverStatistics, Phase, Queue, SessionStatus, TableStatistics,
    Traffic, VnicReport, counts,
};
use shunt::api::{
    Answer, ApiError, Control, ControlSocket, OffloadInput, OffloadOutput, OffloadResult, Ports,
    ReproveInput, ReproveOutput, ReproveResult, ReproveStatus, SessionKey, SessionPage,
    SessionReport, Statistics, Summary, VnicNames, WithdrawInput, WithdrawOutput, WithdrawResult,
    WithdrawStatus, from_request, serve, to_request,
};
use shunt::flow::shield::{Asked, ShieldBook};
use shunt::flow::{CloseCode, Moment, Outcome, SessionId, SessionRequest};
use shunt::packet::{DropReason, PuntReason, VnicId};
use tokio::sync::{Mutex, oneshot};

pub const ELEMENT: &str = "router1";
pub const ROOM: usize = 1500;
/// Room for shields.
pub const SHIELDS: usize = 3;
/// A counter that no double holds exactly.
pub const LARGE: u64 = u64::MAX - 1;

pub struct Fake {
    sessions: Mutex<BTreeMap<String, SessionRequest>>,
    reloads: AtomicU32,
    shields: Mutex<ShieldBook>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            sessions: Mutex::default(),
            reloads: AtomicU32::default(),
            shields: Mutex::new(ShieldBook::new(1, 0, SHIELDS)),
        }
    }
}

struct Names;

impl VnicNames for Names {
    fn id(&self, name: &str) -> Option<VnicId> {
        match name {
            "lan" => Some(VnicId(0)),
            "wan" => Some(VnicId(1)),
            _ => None,
        }
    }

    fn name(&self, id: VnicId) -> Option<&str> {
        ["lan", "wan"].get(usize::from(id.0)).copied()
    }
}

fn check(element: &str) -> Result<(), ApiError> {
    match element {
        ELEMENT => Ok(()),
        "busy" => Err(ApiError::busy()),
        "broken" => Err(ApiError::failed("a worker ended")),
        other => Err(ApiError::unknown_element(other)),
    }
}

fn report(request: &SessionRequest) -> SessionReport {
    SessionReport {
        session: from_request(request, &Names).expect("made by to_request"),
        status: SessionStatus {
            id: LARGE,
            phase: Phase::Live,
            close_code: None,
            age: 187,
            idle: 3,
            transit: Some(450),
            drain_bounds: 0,
            hand_overs: 2,
            forced: 0,
            overtaken: 0,
            returned: 0,
            lost: 0,
            original: None,
            reply: None,
        },
    }
}

impl Control for Fake {
    fn summary(&self) -> Answer<'_, Summary> {
        Box::pin(async {
            Ok(Summary {
                version: "0.1.0".to_owned(),
                uptime: 61,
                element: vec![ElementSummary {
                    name: ELEMENT.to_owned(),
                    sessions: u32::try_from(self.sessions.lock().await.len()).expect("few"),
                    sessions_max: 1500,
                    vnic: vec!["lan".to_owned(), "wan".to_owned()],
                }],
            })
        })
    }

    fn offload(&self, input: OffloadInput) -> Answer<'_, OffloadOutput> {
        Box::pin(async move {
            check(input.element.as_deref().unwrap_or(ELEMENT))?;
            let mut sessions = self.sessions.lock().await;
            let result = input.session.iter().map(|session| {
                let key = session.key.clone();
                let request = match to_request(session, &Names) {
                    Ok(request) => request,
                    Err(fault) => return OffloadResult::invalid(key, fault),
                };
                let id = SessionId(1);
                let outcome = match sessions.get(key.as_str()) {
                    Some(known) if *known == request => Outcome::Unchanged(id),
                    Some(_) => Outcome::Replaced(id),
                    None if sessions.len() >= ROOM => Outcome::TableFull,
                    None => Outcome::Offloaded(id),
                };
                if !matches!(outcome, Outcome::TableFull) {
                    sessions.insert(key.to_string(), request);
                }
                OffloadResult::new(key, outcome)
            });
            Ok(OffloadOutput {
                result: result.collect(),
            })
        })
    }

    fn withdraw(&self, input: WithdrawInput) -> Answer<'_, WithdrawOutput> {
        Box::pin(async move {
            check(input.element.as_deref().unwrap_or(ELEMENT))?;
            let mut sessions = self.sessions.lock().await;
            let mut output = WithdrawOutput::default();
            if input.all {
                output.withdrawn = sessions.len() as u64;
                sessions.clear();
            }
            for key in input.key {
                let result = match sessions.remove(key.as_str()) {
                    Some(_) => WithdrawStatus::Withdrawn,
                    None => WithdrawStatus::Absent,
                };
                output.withdrawn += u64::from(result == WithdrawStatus::Withdrawn);
                output.result.push(WithdrawResult { key, result });
            }
            Ok(output)
        })
    }

    fn reprove(&self, input: ReproveInput) -> Answer<'_, ReproveOutput> {
        Box::pin(async move {
            check(input.element.as_deref().unwrap_or(ELEMENT))?;
            let sessions = self.sessions.lock().await;
            let mut output = ReproveOutput::default();
            if input.all {
                output.reproved = sessions.len() as u64;
            }
            for key in input.key {
                let is_there = sessions.contains_key(key.as_str());
                output.reproved += u64::from(is_there);
                let result = match is_there {
                    true => ReproveStatus::Pending,
                    false => ReproveStatus::Absent,
                };
                output.result.push(ReproveResult { key, result });
            }
            Ok(output)
        })
    }

    fn reload(&self) -> Answer<'_, ReloadOutput> {
        let change = |kind, name: &str, action, error| Change {
            kind,
            name: name.to_owned(),
            action,
            error,
        };
        // All is well once, then a tap is gone.
        let well = self.reloads.fetch_add(1, Ordering::Relaxed) == 0;
        let absent = (!well).then(|| *ApiError::failed("the tap is not there").entry);
        let changes = vec![
            change(Kind::Vnic, "router1/wan", Action::Remove, None),
            change(Kind::Element, "router2", Action::Add, absent),
        ];
        Box::pin(async { Ok(ReloadOutput { change: changes }) })
    }

    fn sessions<'a>(
        &'a self,
        element: &'a str,
        cursor: u64,
        limit: usize,
    ) -> Answer<'a, SessionPage> {
        Box::pin(async move {
            check(element)?;
            let sessions = self.sessions.lock().await;
            let from = usize::try_from(cursor).expect("ours");
            let page: Vec<_> = sessions
                .values()
                .skip(from)
                .take(limit)
                .map(report)
                .collect();
            let to = from + page.len();
            Ok(SessionPage {
                sessions: page,
                next: (to < sessions.len()).then_some(to as u64),
            })
        })
    }

    fn session<'a>(
        &'a self,
        element: &'a str,
        key: &'a SessionKey,
    ) -> Answer<'a, Option<SessionReport>> {
        Box::pin(async move {
            check(element)?;
            Ok(self.sessions.lock().await.get(key.as_str()).map(report))
        })
    }

    fn ports<'a>(&'a self, element: &'a str) -> Answer<'a, Ports> {
        Box::pin(async move {
            check(element)?;
            let device = |kind: &str, name: &str| DeviceReport {
                kind: kind.to_owned(),
                name: name.to_owned(),
                connected: true,
                queue: vec![Queue {
                    running: true,
                    rx_frames: LARGE,
                    ..Queue::default()
                }],
                ..DeviceReport::default()
            };
            Ok(Ports {
                vnic: vec![VnicReport {
                    name: "lan".to_owned(),
                    mac: "52:54:00:00:00:01".parse().expect("a MAC"),
                    bus_path: Some("0000:00:04.0".to_owned()),
                    mtu: Some(1500),
                    guest: device("vhost-user", "/run/shunt/lan.sock"),
                    uplink: device("tap", "tap0"),
                }],
            })
        })
    }

    fn statistics<'a>(&'a self, element: &'a str) -> Answer<'a, Statistics> {
        Box::pin(async move {
            check(element)?;
            let punted = PuntReason::ALL.iter().map(|reason| match reason {
                PuntReason::Miss => (reason.name(), LARGE),
                _ => (reason.name(), 0),
            });
            Ok(Statistics {
                forwarded: Traffic {
                    packets: LARGE,
                    octets: 2,
                },
                punted: counts(punted),
                dropped: counts(DropReason::ALL.iter().map(|reason| (reason.name(), 0))),
                closed: counts(CloseCode::ALL.iter().map(|code| (code.name(), 1))),
                table: TableStatistics::default(),
                hand_over: HandOverStatistics::default(),
                ..Statistics::default()
            })
        })
    }

    fn shield(&self, input: ShieldInput) -> Answer<'_, ShieldOutput> {
        Box::pin(async move {
            check(input.element.as_deref().unwrap_or(ELEMENT))?;
            let mut book = self.shields.lock().await;
            let result = input.shield.into_iter().map(|asked| {
                let ttl = Duration::from_secs(asked.ttl.map_or(0, |ttl| ttl.get().into()));
                match asked.to_shield(&Names) {
                    Ok(shield) => {
                        let asked_for = Asked { shield, ttl };
                        let outcome = book.install(asked_for, Moment::default());
                        ShieldResult::new(asked.name, outcome)
                    }
                    Err(fault) => ShieldResult::fault(asked.name, ShieldStatus::Invalid, fault),
                }
            });
            Ok(ShieldOutput {
                result: result.collect(),
            })
        })
    }

    fn unshield(&self, input: UnshieldInput) -> Answer<'_, UnshieldOutput> {
        Box::pin(async move {
            check(input.element.as_deref().unwrap_or(ELEMENT))?;
            let mut book = self.shields.lock().await;
            let mut output = UnshieldOutput::default();
            if input.all {
                output.removed = book.remove_all() as u64;
            }
            for name in input.name {
                let result = match book.remove(name.as_str()) {
                    true => UnshieldStatus::Removed,
                    false => UnshieldStatus::Absent,
                };
                output.removed += u64::from(result == UnshieldStatus::Removed);
                output.result.push(UnshieldResult { name, result });
            }
            Ok(output)
        })
    }

    fn shields<'a>(&'a self, element: &'a str) -> Answer<'a, Shields> {
        Box::pin(async move {
            check(element)?;
            let book = self.shields.lock().await;
            let reports = book.iter(Moment::default());
            let shield = reports.filter_map(|view| ShieldReport::new(&view, &Names));
            Ok(Shields {
                shield: shield.collect(),
            })
        })
    }
}

/// A server with a [`Fake`] in a thread of its own; ends when dropped.
pub struct Server {
    pub path: PathBuf,
    _directory: tempfile::TempDir,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let socket_path = path.clone();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let socket = ControlSocket::bind(&socket_path).await.expect("bind");
                ready.send(()).expect("a starter");
                let ended = async { drop(ended.await) };
                serve(socket.listener(), Arc::new(Fake::default()), ended).await;
            });
        });
        is_ready
            .recv_timeout(Duration::from_secs(10))
            .expect("the server starts");
        Self {
            path,
            _directory: directory,
            end: Some(end),
            thread: Some(thread),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the server and waits for it.
    pub fn stop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends well");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// A session of the model, in JSON.
pub fn session(key: &str, port: u16) -> serde_json::Value {
    serde_json::json!({
        "key": key, "protocol": "udp",
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": "10.0.0.2", "source-port": port,
            "destination-address": "192.0.2.9", "destination-port": 53,
            "translation": {"source-address": "198.51.100.1"}
        }
    })
}

//! The YANG modules of `docs/yang`, and of the IETF where an answer has their data, as
//! libyang reads them.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::process::output;
use super::{Dir, repository};

/// What a JSON text is meant to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Operational state under the modules' top-level nodes.
    State,
    /// A whole configuration under the modules' top-level nodes.
    Config,
    /// The body of a call of this rpc: `{"shunt-offload:input": …}`.
    Input(&'static str),
    /// The body of its answer: `{"shunt-offload:output": …}`.
    Output(&'static str),
    /// A notification as RESTCONF sends it: `{"ietf-restconf:notification": …}`.
    Notification,
}

/// A validator.
#[derive(Debug)]
pub struct Model {
    modules: Vec<PathBuf>,
    dir: Dir,
}

/// Modules of the IETF, from the package that `make setup` puts there.
const IETF: &str = "target/pyang/share/yang/modules/ietf";

impl Model {
    /// The module `docs/yang/shunt-offload.yang`, and what a RESTCONF server tells of itself.
    pub fn offload() -> Self {
        Self::of("shunt-offload")
    }

    /// The same with `docs/yang/shunt-inventory.yang`.
    pub fn inventory() -> Self {
        Self::of("shunt-inventory")
    }

    fn of(module: &str) -> Self {
        let monitoring = repository()
            .join(IETF)
            .join("ietf-restconf-monitoring.yang");
        assert!(
            monitoring.exists(),
            "{} is missing: run 'make setup'",
            monitoring.display()
        );
        let own = repository().join(format!("docs/yang/{module}.yang"));
        Self {
            modules: vec![own, monitoring],
            dir: Dir::new(),
        }
    }

    /// Whether `body` is an instance of the model, in the form RESTCONF gives it; otherwise
    /// what is wrong.
    pub fn check(&self, kind: Kind, body: &Value) -> Result<(), String> {
        let (form, instance) = match kind {
            Kind::State => ("get", body.clone()),
            Kind::Config => ("config", body.clone()),
            Kind::Input(rpc) => ("rpc", enveloped(rpc, &body["shunt-offload:input"])),
            Kind::Output(rpc) => ("reply", enveloped(rpc, &body["shunt-offload:output"])),
            Kind::Notification => ("notif", notified(body)),
        };
        let file = self.dir.write("instance.json", &instance.to_string());
        let ietf = repository().join(IETF);
        let mut argv = vec!["yanglint", "--type", form];
        argv.extend(["--path", ietf.to_str().unwrap()]);
        if instance.get("ietf-yang-library:yang-library").is_some() {
            // Not always: data without the library would then lack a mandatory node.
            argv.push("--yang-library");
        }
        argv.extend(self.modules.iter().map(|module| module.to_str().unwrap()));
        argv.push(file.to_str().unwrap());
        let said = output(&argv);
        if said.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&said.stderr);
        assert!(
            text.contains("libyang err"),
            "yanglint did not judge {kind:?} {body}: {text}"
        );
        Err(text.into_owned())
    }

    /// Fails unless `body` is an instance.
    pub fn assert(&self, kind: Kind, body: &Value) {
        if let Err(error) = self.check(kind, body) {
            panic!("{kind:?} is not of the model: {error}\n{body}");
        }
    }
}

/// An rpc's input or output as libyang wants it: inside a container of the rpc's name.
fn enveloped(rpc: &str, content: &Value) -> Value {
    let name = format!("shunt-offload:{rpc}");
    json!({ name: content })
}

/// A notification without its envelope, which is no YANG.
fn notified(body: &Value) -> Value {
    let mut content = body["ietf-restconf:notification"].clone();
    let time = content.as_object_mut().unwrap().remove("eventTime");
    let time = time.expect("a time");
    assert!(
        time.as_str().is_some_and(|time| time.ends_with('Z')),
        "{time}"
    );
    content
}

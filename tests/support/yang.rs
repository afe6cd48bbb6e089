//! The YANG modules of `docs/yang`, as libyang reads them.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::process::output;
use super::{Dir, repository};

/// What a JSON text is meant to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Operational state under the module's own top-level nodes.
    State,
    /// The body of a call of this rpc: `{"shunt-offload:input": …}`.
    Input(&'static str),
    /// The body of its answer: `{"shunt-offload:output": …}`.
    Output(&'static str),
}

/// A validator.
#[derive(Debug)]
pub struct Model {
    module: PathBuf,
    dir: Dir,
}

impl Model {
    /// The module `docs/yang/shunt-offload.yang`.
    pub fn offload() -> Self {
        let module = repository().join("docs/yang/shunt-offload.yang");
        let dir = Dir::new();
        Self { module, dir }
    }

    /// Whether `body` is an instance of the model, in the form RESTCONF gives it; otherwise
    /// what is wrong.
    pub fn check(&self, kind: Kind, body: &Value) -> Result<(), String> {
        let (form, instance) = match kind {
            Kind::State => ("get", body.clone()),
            Kind::Input(rpc) => ("rpc", enveloped(rpc, &body["shunt-offload:input"])),
            Kind::Output(rpc) => ("reply", enveloped(rpc, &body["shunt-offload:output"])),
        };
        let file = self.dir.write("instance.json", &instance.to_string());
        let module = self.module.to_str().unwrap();
        let said = output(&["yanglint", "--type", form, module, file.to_str().unwrap()]);
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

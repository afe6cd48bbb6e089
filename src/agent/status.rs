//! The agent's own socket: how it is, and orders to it.
//!
//! | method and path | what |
//! |---|---|
//! | `GET /status` | how it is |
//! | `POST /mode` | `{"mode": "pause"}`: `on`, `observe`, `pause` or `off` |
//! | `GET /shields` | the shields that it keeps, and what else the host has |
//! | `POST /shield` | a shield as `shunt-offload` has it; without `ttl` until it is deleted |
//! | `POST /unshield` | `{"name": ["bad-net"]}` or `{"all": true}` |
//!
//! *Promises*: answers are JSON; refusals say what to do.
//! *Refuses*: bodies of more than `BODY_MAX` bytes, and what is of another shape.
//! *Caller's duty*: the socket's group may give orders. Scripts read this, or
//! `shunt agent status --json`.
//! *Standard*: RFC 9110, RFC 8259, RFC 9457.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::channel::Channel;
use super::config::Mode;
use super::local::{Local, json_answer, problem};
use super::shields::Shields;
use crate::api::SessionKey;
use crate::api::shield::Shield;

/// The longest body that is taken, bytes.
const BODY_MAX: usize = 64 * 1_024;
/// How long a body may take, and an answer of the agent's other parts.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the part of the agent that offloads is asked.
#[derive(Debug)]
pub enum Ask {
    /// How it is: an object whose members stand in the status as they are.
    Status(oneshot::Sender<Value>),
    /// To do so from now on; answered when it does.
    Mode(Mode, oneshot::Sender<()>),
}

/// A mode, as an order says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeOrder {
    /// Which.
    pub mode: Mode,
}

/// Shields to keep no more.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnshieldOrder {
    /// Which.
    pub name: Vec<SessionKey>,
    /// All that commands have added, instead.
    pub all: bool,
}

/// What is told and done here.
#[derive(Clone, Debug)]
pub struct Desk {
    /// The part that offloads; absent where nothing does.
    pub offload: Option<mpsc::Sender<Ask>>,
    /// The shields.
    pub shields: Shields,
    /// The way to the host.
    pub channel: Channel,
}

/// Answers what comes to `local`, for ever.
pub async fn serve(local: &Local, desk: Desk) -> Infallible {
    let answer = move |request| {
        let desk = desk.clone();
        async move {
            desk.answer(request)
                .await
                .unwrap_or_else(|refusal| *refusal)
        }
    };
    local.serve(answer).await
}

/// An answer, or a refusal, which is one too.
type Outcome = Result<Response<Body>, Refusal>;
type Refusal = Box<Response<Body>>;

/// Nothing was done, and what to do.
fn refusal(status: StatusCode, text: &str) -> Refusal {
    Box::new(problem(status, text, false))
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Outcome {
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/status") => self.status().await,
            (&Method::GET, "/shields") => self.list().await,
            (&Method::POST, "/mode") => self.set_mode(body(request).await?).await,
            (&Method::POST, "/shield") => self.shield(body(request).await?).await,
            (&Method::POST, "/unshield") => self.unshield(body(request).await?).await,
            (_, "/status" | "/shields" | "/mode" | "/shield" | "/unshield") => {
                let text = "another method is for this path";
                Err(refusal(StatusCode::METHOD_NOT_ALLOWED, text))
            }
            _ => Err(refusal(StatusCode::NOT_FOUND, "there is no such path")),
        }
    }

    async fn status(&self) -> Outcome {
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "channel": self.channel.report(),
            "shields": self.shields.summary().await,
        });
        if let Some(offload) = &self.offload {
            let asked = ask(offload, Ask::Status).await?;
            if let (Some(all), Value::Object(asked)) = (status.as_object_mut(), asked) {
                all.extend(asked);
            }
        }
        Ok(json_answer(StatusCode::OK, &status))
    }

    async fn set_mode(&self, order: ModeOrder) -> Outcome {
        let Some(offload) = &self.offload else {
            let text = "this agent does not offload: it is a proxy only";
            return Err(refusal(StatusCode::CONFLICT, text));
        };
        ask(offload, |done| Ask::Mode(order.mode, done)).await?;
        Ok(json_answer(StatusCode::OK, &json!(order)))
    }

    async fn list(&self) -> Outcome {
        let list = self.shields.list().await.ok_or_else(ending)?;
        Ok(json_answer(StatusCode::OK, &json!({ "shield": list })))
    }

    async fn shield(&self, shield: Shield) -> Outcome {
        let kept = self.shields.add(shield).await.ok_or_else(ending)?;
        Ok(json_answer(StatusCode::OK, &json!(kept)))
    }

    async fn unshield(&self, order: UnshieldOrder) -> Outcome {
        if order.all != order.name.is_empty() {
            let text = "give either names or `all`: true";
            return Err(refusal(StatusCode::BAD_REQUEST, text));
        }
        let names = (!order.all).then_some(order.name);
        let removed = self.shields.remove(names).await.ok_or_else(ending)?;
        Ok(json_answer(StatusCode::OK, &json!({ "removed": removed })))
    }
}

/// What the part that offloads answers, in time.
async fn ask<T>(
    offload: &mpsc::Sender<Ask>,
    of: impl FnOnce(oneshot::Sender<T>) -> Ask,
) -> Result<T, Refusal> {
    let (sender, answer) = oneshot::channel();
    let asked = async {
        offload.send(of(sender)).await.ok()?;
        answer.await.ok()
    };
    match timeout(PATIENCE, asked).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(ending()),
        Err(_) => {
            let text = "the agent is busy: ask again";
            Err(Box::new(problem(
                StatusCode::SERVICE_UNAVAILABLE,
                text,
                true,
            )))
        }
    }
}

/// The part that was asked is gone.
fn ending() -> Refusal {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending")
}

/// The body of a request.
async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let refused = |text: &str| refusal(StatusCode::BAD_REQUEST, text);
    let read = Limited::new(request.into_body(), BODY_MAX).collect();
    let whole = timeout(PATIENCE, read).await;
    let whole = whole.map_err(|_| refused("the body did not come in time"))?;
    let whole = whole.map_err(|_| refused("the body is too large, or broke off"))?;
    let read = serde_json::from_slice(&whole.to_bytes());
    read.map_err(|error| refused(&error.to_string()))
}

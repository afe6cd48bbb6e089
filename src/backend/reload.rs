//! Reading the configuration again while everything runs.
//!
//! *Promises*: what is the same in the file as before is not touched: its guests, devices and
//! sessions go on. A step that fails is told and takes none of the others with it; reading the
//! file again tries it again. Nothing is done when the file is not sound.
//! *Refuses*: what only a restart can change.
//! *Caller's duty*: one at a time. *Standard*: none.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::config::{Config, ElementConfig, SharedUplinkConfig, VnicConfig, check_memory};
use super::open::{
    ElementInfo, OpenElement, SharedDevices, VnicInfo, open_element, open_shared, open_vnic,
    shape_of,
};
use super::plan::{Plan, Step};
use super::running::{Backend, let_go};
use super::{BackendError, bytes_per_session, chain_of};
use crate::api::bounds::Bounds;
use crate::api::convert::{VnicNames, from_request};
use crate::api::error::ApiError;
use crate::api::reload::{Change, ReloadOutput};
use crate::api::session::SessionKey;
use crate::datapath::lane::{Lane, Vnic};
use crate::datapath::lanes::Lanes;
use crate::datapath::{ElementId, PuntRate};
use crate::flow::Sessions;
use crate::packet::VnicId;

/// How long a removed vNIC's sessions may take to end; all of it only if a worker stands still.
const SETTLE_MAX: Duration = Duration::from_secs(1);
const SETTLE_LOOK: Duration = Duration::from_millis(2);
/// Sessions judged anew at a time, so that others have their turn between.
const BOUND_AT_ONCE: usize = 1_024;

/// A wish to have the configuration read again, and who wants to know how that went.
pub(super) struct Wish(pub(super) oneshot::Sender<Result<ReloadOutput, ApiError>>);

impl Wish {
    /// Also when nobody waits for it any more.
    pub(super) async fn carry_out(self, applied: &mut Applied, backend: &Backend) {
        let outcome = applied.reload(backend).await;
        let _gone = self.0.send(outcome.map_err(failed));
    }
}

/// The configuration that runs.
pub(super) struct Applied {
    path: PathBuf,
    config: Config,
    shared: SharedDevices,
    /// Numbers of elements that are gone are not used again: their flows' last reports may
    /// still be on the way.
    next: u32,
}

impl Applied {
    /// What was opened from a file.
    pub(super) fn new(path: PathBuf, config: Config, shared: SharedDevices) -> Self {
        let next = config.elements.len() as u32;
        Self {
            path,
            config,
            shared,
            next,
        }
    }

    /// Reads the file again and makes what runs follow it.
    pub(super) async fn reload(&mut self, backend: &Backend) -> Result<ReloadOutput, BackendError> {
        let wanted = Config::load(&self.path)?;
        let plan = Plan::between(&self.config, &wanted)?;
        check_memory(plan.new_sessions(), bytes_per_session())?;
        let mut output = ReloadOutput::default();
        for step in plan.steps {
            let (kind, name, action) = (step.kind(), step.name(), step.action());
            let outcome = self.take(&step, backend).await;
            match &outcome {
                Ok(()) => {
                    log::info!("{action} {kind} {name}: done");
                    step.note(&mut self.config);
                }
                Err(error) => log::error!("{action} {kind} {name}: {error}"),
            }
            output.change.push(Change {
                kind,
                name,
                action,
                error: outcome.err().map(|error| *error.entry),
            });
        }
        Ok(output)
    }

    async fn take(&mut self, step: &Step, backend: &Backend) -> Result<(), ApiError> {
        match step {
            Step::Unplug { element, vnic } => unplug(backend, element, vnic).await,
            Step::RemoveElement(name) => remove(backend, name).await,
            Step::RemoveShared(name) => {
                let_go(self.shared.remove(name)).await;
                Ok(())
            }
            Step::AddShared(shared) => self.share(shared),
            Step::AddElement(element) => {
                let id = ElementId(self.next);
                self.next += 1;
                let (shared, limits) = (&self.shared, &self.config.hand_over);
                let opened = open_element(id, element, shared, limits, backend.workers());
                add(backend, opened.map_err(failed)?).await
            }
            Step::Plug { element, vnic } => plug(backend, element, vnic, &self.shared).await,
            Step::PuntRate { element, rate } => {
                let (element, rate) = (backend.element(element)?, PuntRate::new(*rate));
                let id = element.id;
                let orders = (0..element.lanes).map(|_| {
                    let rate = rate.clone();
                    move |lanes: &mut Lanes| lanes.set_punt_rate(id, rate)
                });
                backend.order_all(id, orders).await.map(drop)
            }
            Step::Bounds(wanted) => bound(backend, wanted).await,
            Step::BusPaths(wanted) => place(backend, wanted).await,
            Step::Shields(of) => backend.configure_shields(of).await,
        }
    }

    fn share(&mut self, config: &SharedUplinkConfig) -> Result<(), ApiError> {
        let opened = open_shared(config).map_err(failed)?;
        self.shared.insert(config.name.clone(), opened);
        Ok(())
    }
}

/// A lane that its worker has given back; none if it had none.
type Gone = Option<Box<Lane>>;

/// Takes an element in.
async fn add(backend: &Backend, opened: OpenElement) -> Result<(), ApiError> {
    let OpenElement { lanes, book, info } = opened;
    let id = info.id;
    backend
        .ask(move |books, _| {
            books.insert(id, book);
        })
        .await?;
    let orders = lanes.into_iter();
    let orders = orders.map(|lane| move |lanes: &mut Lanes| lanes.admit(lane));
    let admitted = backend.order_all(id, orders).await;
    if let Err(error) = admitted.and_then(all_watched) {
        let lanes = dismiss(backend, &info).await;
        let book = backend.ask(move |books, _| books.remove(&id)).await;
        let_go((lanes, book, info)).await;
        return Err(error);
    }
    let mut elements = backend.elements().to_vec();
    elements.push(Arc::new(info));
    backend.set_elements(elements);
    Ok(())
}

/// Takes an element's lanes from their workers.
async fn dismiss(backend: &Backend, element: &ElementInfo) -> Result<Vec<Gone>, ApiError> {
    let id = element.id;
    let orders = (0..element.lanes).map(|_| move |lanes: &mut Lanes| lanes.dismiss(id));
    backend.order_all(id, orders).await
}

/// Takes an element out, with its sessions.
async fn remove(backend: &Backend, name: &str) -> Result<(), ApiError> {
    let element = backend.element(name)?;
    let id = element.id;
    let lanes = dismiss(backend, &element).await?;
    let book = backend.ask(move |books, _| books.remove(&id)).await?;
    let mut elements = backend.elements().to_vec();
    elements.retain(|other| other.id != id);
    backend.set_elements(elements);
    let_go((lanes, book, element)).await;
    Ok(())
}

/// Gives an element a vNIC.
async fn plug(
    backend: &Backend,
    element: &str,
    config: &VnicConfig,
    shared: &SharedDevices,
) -> Result<(), ApiError> {
    let owner = backend.element(element)?;
    let (id, at) = (owner.id, owner.free_place());
    let (vnic, info) = open_vnic(element, config, shared).map_err(failed)?;
    let with = owner.with(at, Some(Arc::new(info)));
    // Before its first frame: shields may name it.
    backend.shields_follow(&with).await;
    let parts = vnic.split(owner.lanes).into_iter();
    let orders = parts.map(|part| move |lanes: &mut Lanes| lanes.plug(id, at, part));
    let plugged = backend.order_all(id, orders).await;
    if let Err(error) = plugged.and_then(all_watched) {
        let parts = take_out(backend, &owner, at).await;
        backend.shields_follow(&owner).await;
        let_go((parts, with)).await;
        return Err(error);
    }
    let shape = shape_of(config);
    backend
        .ask_book(id, move |book, _| book.plug(at, shape))
        .await?;
    replace(backend, &owner, with).await;
    Ok(())
}

/// Takes a vNIC from an element, with the sessions that use it.
async fn unplug(backend: &Backend, element: &str, vnic: &str) -> Result<(), ApiError> {
    let owner = backend.element(element)?;
    let id = owner.id;
    let at = owner.names.id(vnic);
    let at = at.ok_or_else(|| ApiError::failed(format!("{element} has no vNIC {vnic}")))?;
    backend
        .ask_book(id, move |book, now| book.unplug(at, now))
        .await?;
    settle(backend, id, at).await?;
    let gone = take_out(backend, &owner, at).await?;
    let without = owner.with(at, None);
    replace(backend, &owner, without).await;
    let_go((gone, owner)).await;
    Ok(())
}

/// Tells from now on where the guest sees an element's vNICs.
async fn place(backend: &Backend, wanted: &ElementConfig) -> Result<(), ApiError> {
    let element = backend.element(&wanted.name)?;
    let mut new = (*element).clone();
    for vnic in new.vnics.iter_mut().flatten() {
        let same = wanted.vnics.iter().find(|other| other.name == vnic.name);
        if let Some(same) = same {
            *vnic = Arc::new(VnicInfo {
                bus_path: same.bus_path.clone(),
                ..(**vnic).clone()
            });
        }
    }
    replace(backend, &element, new).await;
    Ok(())
}

/// Bounds an element's sessions anew, and ends those that are outside now.
async fn bound(backend: &Backend, wanted: &ElementConfig) -> Result<(), ApiError> {
    let element = backend.element(&wanted.name)?;
    let bounds = wanted.bounds().map(Arc::new);
    let new = ElementInfo {
        bounds: bounds.clone(),
        ..(*element).clone()
    };
    replace(backend, &element, new).await;
    let Some(bounds) = bounds else { return Ok(()) };
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        let (bounds, names) = (bounds.clone(), element.names.clone());
        let page = move |book: &mut Sessions, now| {
            let (outside, next) = outside(book, from, &bounds, &*names);
            for key in outside {
                book.withdraw(key.as_str(), now);
            }
            next
        };
        cursor = backend.ask_book(element.id, page).await?;
    }
    Ok(())
}

/// The sessions of a page that `bounds` do not allow, and where the next page begins.
fn outside(
    book: &Sessions,
    from: u64,
    bounds: &Bounds,
    names: &dyn VnicNames,
) -> (Vec<SessionKey>, Option<u64>) {
    let mut keys = Vec::new();
    for (count, (place, view)) in book.iter_from(from).enumerate() {
        if count == BOUND_AT_ONCE {
            return (keys, Some(place));
        }
        // What is not of the model came from nobody whom the file bounds.
        let Ok(session) = from_request(&view.request, names) else {
            continue;
        };
        if bounds.judge(&session).is_err() {
            keys.push(session.key);
        }
    }
    (keys, None)
}

/// Takes a vNIC's queue pairs from an element's workers.
async fn take_out(
    backend: &Backend,
    element: &ElementInfo,
    at: VnicId,
) -> Result<Vec<Option<Vnic>>, ApiError> {
    let id = element.id;
    let orders = (0..element.lanes).map(|_| move |lanes: &mut Lanes| lanes.unplug(id, at));
    backend.order_all(id, orders).await
}

/// Waits until the workers have let go of a vNIC's sessions, and given their guest what they
/// had parked.
async fn settle(backend: &Backend, id: ElementId, at: VnicId) -> Result<(), ApiError> {
    let ended = async {
        while backend.ask_book(id, move |book, _| book.uses(at)).await? {
            tokio::time::sleep(SETTLE_LOOK).await;
        }
        Ok(())
    };
    match tokio::time::timeout(SETTLE_MAX, ended).await {
        Ok(outcome) => outcome,
        Err(_) => {
            log::warn!("sessions of a removed vNIC still end");
            Ok(())
        }
    }
}

/// From now on the element is this one. Its shields are made anew also where that was done
/// before: a request may have come between, which took the old names.
async fn replace(backend: &Backend, old: &ElementInfo, new: ElementInfo) {
    let new = Arc::new(new);
    let mut elements = backend.elements().to_vec();
    if let Some(place) = elements.iter().position(|element| element.id == old.id) {
        elements[place] = new.clone();
    }
    backend.set_elements(elements);
    backend.shields_follow(&new).await;
}

fn failed(error: BackendError) -> ApiError {
    ApiError::failed(chain_of(&error))
}

fn all_watched(outcomes: Vec<std::io::Result<()>>) -> Result<(), ApiError> {
    let unwatched =
        |error| ApiError::failed(format!("a worker cannot watch its descriptors: {error}"));
    outcomes
        .into_iter()
        .collect::<Result<(), _>>()
        .map_err(unwatched)
}

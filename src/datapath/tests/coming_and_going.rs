//! Elements and vNICs come and go while a worker serves others.

use std::sync::mpsc;

use super::waiting::{SOON, element, start, vnic};
use crate::datapath::ElementId;
use crate::datapath::lanes::Lanes;
use crate::datapath::pace::Polling;
use crate::datapath::worker::Worker;
use crate::packet::VnicId;

/// Has the worker carry out an order, and waits for its answer.
fn order<T: Send + 'static>(
    worker: &mut Worker,
    order: impl FnOnce(&mut Lanes) -> T + Send + 'static,
) -> T {
    let (answer, answered) = mpsc::channel();
    worker
        .submit(move |lanes| answer.send(order(lanes)).unwrap())
        .unwrap();
    answered.recv_timeout(SOON).unwrap()
}

#[test]
fn an_element_is_served_from_its_admission_to_its_dismissal_and_others_go_on() {
    let (mut worker, old) = start(Polling::Interrupt, 1);
    old[0].line.cross(1);
    let (lane, new) = element(7);
    order(&mut worker, |lanes| lanes.admit(lane)).unwrap();
    new.line.cross(2);
    old[0].line.cross(3);
    let gone = order(&mut worker, |lanes| lanes.dismiss(ElementId(7)));
    drop(gone.expect("it was there"));
    old[0].line.cross(4);
    assert!(order(&mut worker, |lanes| lanes.dismiss(ElementId(7))).is_none());
    assert!(worker.is_alive());
}

#[test]
fn an_element_that_takes_anothers_place_has_its_own_doorbell() {
    let (mut worker, old) = start(Polling::Interrupt, 2);
    drop(order(&mut worker, |lanes| lanes.dismiss(ElementId(0))));
    let (lane, new) = element(2);
    order(&mut worker, |lanes| lanes.admit(lane)).unwrap();
    for number in 0..20 {
        new.line.cross(number);
        old[1].line.cross(number);
    }
}

#[test]
fn a_vnic_is_served_from_its_plugging_to_its_unplugging_and_others_go_on() {
    let (mut worker, elements) = start(Polling::Interrupt, 1);
    let (vnic, line) = vnic();
    let plugged = order(&mut worker, |lanes| {
        lanes.plug(ElementId(0), VnicId(3), vnic)
    });
    plugged.unwrap();
    line.cross(1);
    elements[0].line.cross(2);
    let gone = order(&mut worker, |lanes| lanes.unplug(ElementId(0), VnicId(3)));
    drop(gone.expect("it was there"));
    elements[0].line.cross(3);
    assert!(order(&mut worker, |lanes| lanes.unplug(ElementId(0), VnicId(3))).is_none());
    assert!(order(&mut worker, |lanes| lanes.unplug(ElementId(0), VnicId(9))).is_none());
}

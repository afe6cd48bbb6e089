use serde_json::{Value, json};

use super::*;
use crate::api::wire::read_input;
use crate::flow::shield::{Action as Does, Rate, Unit};
use crate::packet::VnicId;

struct Names;

impl VnicNames for Names {
    fn id(&self, name: &str) -> Option<VnicId> {
        (name == "wan").then_some(VnicId(1))
    }

    fn name(&self, id: VnicId) -> Option<&str> {
        (id == VnicId(1)).then_some("wan")
    }
}

fn input(shields: Value) -> Result<ShieldInput, ApiError> {
    let body = json!({ "shunt-offload:input": { "shield": shields } });
    let input: ShieldInput = read_input(body.to_string().as_bytes())?;
    input.check().map(|()| input)
}

fn one(shield: Value) -> Shield {
    input(json!([shield])).unwrap().shield.remove(0)
}

#[test]
fn a_whole_shield_is_read_and_written_back_equal() {
    let whole = json!({
        "name": "s1", "priority": 7, "ttl": 60, "ingress-vnic": "wan",
        "source-prefix": "10.0.0.0/8", "destination-prefix": "192.0.2.0/24", "protocol": "tcp",
        "source-port": {"lower-port": 1024, "upper-port": 2047},
        "destination-port": {"operator": "neq", "port": 443},
        "tcp-flags": "ack syn", "tcp-flags-mask": "ack rst syn",
        "action": "police", "police": {"bit-rate": "8000000", "burst": 65_536}
    });
    let shield = one(whole.clone());
    assert_eq!(serde_json::to_value(&shield).unwrap(), whole);
    let flow = shield.to_shield(&Names).unwrap();
    assert_eq!(flow.matches.flags, Some(Flags::of(Some(0x12), Some(0x16))));
    let rate = Rate {
        unit: Unit::Bits,
        rate: 8_000_000,
        burst: 8 * 65_536,
    };
    assert_eq!(flow.action, Does::Police(rate));
    assert_eq!(
        Shield::of(&flow, Some(Duration::from_secs(60))),
        Some(shield)
    );
}

#[test]
fn what_is_left_out_is_any_and_what_is_reported_can_be_asked_for_again() {
    let shield = one(json!({
        "name": "s", "ttl": 1, "protocol": "tcp", "tcp-flags": "syn", "source-port": {"port": 5},
        "action": "police", "police": {"packet-rate": 100}
    }));
    let flow = shield.to_shield(&Names).unwrap();
    assert_eq!(flow.matches.flags, Some(Flags::of(Some(2), Some(2))));
    let reported = Shield::of(&flow, Some(Duration::from_secs(1))).unwrap();
    assert_eq!(reported.to_shield(&Names).unwrap(), flow);
    let text = serde_json::to_value(reported).unwrap();
    assert_eq!(text["police"], json!({"packet-rate": 100, "burst": 32}));
    assert_eq!(text["tcp-flags-mask"], "syn");
}

#[test]
fn every_operator_on_ports_means_what_its_name_says() {
    for (port, has, has_not) in [
        (json!({"operator": "lte", "port": 5}), [0, 5], [6, 65_535]),
        (json!({"operator": "gte", "port": 5}), [5, 65_535], [0, 4]),
        (json!({"operator": "neq", "port": 5}), [4, 6], [5, 5]),
        (json!({"operator": "eq", "port": 5}), [5, 5], [4, 6]),
        (json!({"lower-port": 5, "upper-port": 9}), [5, 9], [4, 10]),
    ] {
        let ports: PortMatch = serde_json::from_value(port.clone()).unwrap();
        assert!(has.iter().all(|own| ports.0.has(*own)), "{port}");
        assert!(has_not.iter().all(|own| !ports.0.has(*own)), "{port}");
        let again = serde_json::to_value(ports).unwrap();
        assert_eq!(serde_json::from_value::<PortMatch>(again).unwrap(), ports);
    }
}

#[test]
fn what_is_not_of_the_model_is_refused_with_its_path() {
    let sound = || json!({ "name": "a", "ttl": 1, "action": "drop" });
    let with = |leaf: &str, value: Value| {
        let mut shield = sound();
        match value {
            Value::Null => shield.as_object_mut().unwrap().remove(leaf),
            value => shield
                .as_object_mut()
                .unwrap()
                .insert(leaf.to_owned(), value),
        };
        json!([sound_named("first"), shield])
    };
    let at = |leaf: &str| format!("/shunt-offload:input/shield[2]{leaf}");
    for (shields, path) in [
        (with("ttl", Value::Null), at("/ttl")),
        (with("ttl", json!(0)), at("/ttl")),
        (with("name", json!("first")), at("/name")),
        (with("action", json!("police")), at("/police")),
        (with("police", json!({"packet-rate": 1})), at("/police")),
        (with("police", json!({})), at("/police")),
        (with("tcp-flags", json!("syn syn")), at("/tcp-flags")),
        (
            with("source-port", json!({"lower-port": 2, "upper-port": 1})),
            at("/source-port"),
        ),
        (
            with("source-port", json!({"operator": "eq"})),
            at("/source-port"),
        ),
        (
            with("source-prefix", json!("10.0.0.0")),
            at("/source-prefix"),
        ),
        (with("priority", json!(65_536)), at("/priority")),
        (with("colour", json!("red")), at("/colour")),
    ] {
        let error = input(shields.clone()).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert_eq!(error.entry.error_path, Some(path), "{shields}");
    }
}

fn sound_named(name: &str) -> Value {
    json!({ "name": name, "ttl": 1, "action": "drop" })
}

#[test]
fn a_vnic_that_the_element_has_not_is_a_result_not_an_error() {
    let shield = one(json!({ "name": "a", "ttl": 1, "action": "drop", "ingress-vnic": "lan" }));
    let fault = shield.to_shield(&Names).unwrap_err();
    let result = ShieldResult::fault(shield.name, ShieldStatus::Invalid, fault);
    let error = result.error.unwrap();
    assert_eq!(error.error_app_tag.as_deref(), Some("unknown-vnic"));
    let path = "/shunt-offload:input/shield[name='a']/ingress-vnic";
    assert_eq!(error.error_path.as_deref(), Some(path));
}

#[test]
fn unshield_names_or_all_and_not_both() {
    let check = |body: &str| serde_json::from_str::<UnshieldInput>(body).unwrap().check();
    assert!(check(r#"{"name": ["a"]}"#).is_ok() && check(r#"{"all": true}"#).is_ok());
    assert!(check("{}").is_err() && check(r#"{"name": ["a"], "all": true}"#).is_err());
}

//! What the user gives, as input of `offload`.

use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use super::args::{Endpoint, SessionFlags};
use super::error::HostError;
use crate::api::OffloadInput;
use crate::api::session::{Original, Reply, Session, Translation, Vlan};
use crate::api::wire;

/// The input that a file (or stdin for `-`) holds.
pub(super) fn from_file(path: &Path) -> Result<OffloadInput, HostError> {
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut text).map(drop)
    } else {
        std::fs::read(path).map(|content| text = content)
    };
    read.map_err(|source| HostError::File {
        path: path.to_owned(),
        source,
    })?;
    wire::read_input(&text).map_err(|error| HostError::Input {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// The session that the flags describe.
pub(super) fn from_flags(flags: SessionFlags) -> Session {
    let of = |endpoint: Option<Endpoint>| match endpoint {
        Some(endpoint) => (endpoint.address, endpoint.port),
        None => (None, None),
    };
    let (new_source, new_source_port) = of(flags.snat);
    let (new_destination, new_destination_port) = of(flags.dnat);
    Session {
        key: flags.key,
        protocol: flags.protocol,
        idle_timeout: flags.idle,
        hard_timeout: flags.hard,
        hand_over: flags.hand_over.into(),
        vouched: flags.vouched,
        directions: flags.directions.into(),
        original: Original {
            ingress_vnic: flags.ingress,
            ingress_vlan: flags.ingress_vlan.unwrap_or(Vlan::UNTAGGED),
            ingress_mac: flags.ingress_mac,
            source_address: address(flags.from),
            destination_address: address(flags.to),
            source_port: flags.from.port,
            destination_port: flags.to.port,
            identifier: flags.identifier,
            translation: Translation {
                source_address: new_source,
                destination_address: new_destination,
                source_port: new_source_port,
                destination_port: new_destination_port,
                identifier: flags.new_identifier,
            },
            egress_vnic: flags.egress,
            egress_vlan: flags.egress_vlan.unwrap_or(Vlan::UNTAGGED),
            destination_mac: flags.destination_mac,
            source_mac: flags.source_mac,
            l3_mtu: flags.mtu,
            decrement_ttl: !flags.no_ttl,
            dscp: flags.dscp,
        },
        reply: Reply {
            ingress_vnic: flags.reply_ingress,
            ingress_vlan: flags.reply_ingress_vlan,
            ingress_mac: flags.reply_ingress_mac,
            egress_vnic: flags.reply_egress,
            egress_vlan: flags.reply_egress_vlan,
            destination_mac: flags.reply_destination_mac,
            source_mac: flags.reply_source_mac,
            l3_mtu: flags.reply_mtu,
            decrement_ttl: !flags.no_ttl,
            dscp: flags.reply_dscp,
        },
    }
}

/// The parser lets no match endpoint through without an address.
fn address(endpoint: Endpoint) -> IpAddr {
    endpoint
        .address
        .unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

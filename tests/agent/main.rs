//! The agent inside a real router: Linux under QEMU behind `shunt up`, clients and servers in
//! namespaces around it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may be as blunt as tests"
)]

mod death;
mod life;
mod many;
mod others;
mod paths;
mod revoke;
mod rig;
#[path = "../support/mod.rs"]
mod support;
mod vrrp;
mod ways;

use rig::{Plan, Rig};

/// One boot serves all steps; each says what is promised.
#[test]
fn a_firewall_s_connections_go_around_it_and_nobody_notices() {
    let mut rig = Rig::start(&Plan::default(), |guest| guest);
    step("TCP is offloaded on every path", || {
        paths::tcp_is_offloaded_on_every_path(&mut rig);
    });
    step("UDP is offloaded on every path", || {
        paths::udp_is_offloaded_on_every_path(&mut rig);
    });
    step("what is withdrawn goes on through the guest", || {
        life::what_is_withdrawn_goes_on_through_the_guest(&mut rig);
    });
    step("only what stands still expires", || {
        life::only_what_stands_still_expires(&mut rig);
    });
    step("hops, echoes and the path's MTU are found", || {
        others::the_path_is_seen_as_it_is(&mut rig);
    });
    step("FTP with a helper is left to the guest", || {
        others::ftp_with_a_helper_is_left_to_the_guest(&mut rig);
    });
    step("short connections are left alone", || {
        many::short_connections_are_left_alone(&mut rig);
    });
    step("a bridge that filters VLANs is a way", || {
        ways::through_a_bridge_that_filters_vlans(&mut rig);
    });
    step("a VRF is a way", || ways::through_a_vrf(&mut rig));
    step("equal routes are ways", || ways::by_equal_routes(&mut rig));
    step("back where it came from is a way", || {
        ways::back_where_it_came_from(&mut rig);
    });
    step("an agent may be killed", || {
        death::an_agent_may_be_killed(&mut rig);
    });
    step("a guest may be killed", || {
        death::a_guest_may_be_killed(&mut rig);
    });
}

/// Whatever the guest decides anew holds for what is offloaded within a second, though there
/// are a thousand sessions.
#[test]
fn what_the_guest_decides_anew_holds_within_a_second() {
    let plan = Plan {
        agent: "[offload]\nminimum-rate = 1",
        ..Plan::default()
    };
    let mut rig = Rig::start(&plan, |guest| guest);
    step("a blocking rule blocks", || {
        revoke::a_blocking_rule_blocks(&mut rig);
    });
    step("a rule of iptables blocks", || {
        revoke::a_rule_of_iptables_blocks(&mut rig);
    });
    step("a flush of conntrack is a new decision", || {
        revoke::a_flush_of_conntrack_is_a_new_decision(&mut rig);
    });
    step("another route leads another way", || {
        revoke::another_route_leads_another_way(&mut rig);
    });
    step("a lost neighbour gets nothing", || {
        revoke::a_lost_neighbour_gets_nothing(&mut rig);
    });
    step("by an interface that is down nothing leaves", || {
        revoke::by_an_interface_that_is_down_nothing_leaves(&mut rig);
    });
}

/// The master of two routers goes in mid-transfer, and comes back.
#[test]
fn a_transfer_survives_fail_over_and_back() {
    vrrp::a_transfer_survives_fail_over_and_back();
}

/// Names what a failure belongs to, and how long it took.
fn step(promise: &str, body: impl FnOnce()) {
    eprintln!("step: {promise}");
    let started = support::now();
    body();
    eprintln!("  ok, {:.1} s", started.elapsed().as_secs_f32());
}

//! Several controllers over etcd, on a network that is cut: nobody dies, and nobody is told. Packets
//! just do not come.

use crate::etcd::Lab;
use crate::support::etcd::{Etcd, Place};
use crate::support::netns::Netns;

/// Machines with a member of etcd each, then those with a controller each.
const MEMBERS: usize = 3;
const MACHINES: usize = MEMBERS + 2;
/// The two bridges of the switch. Packets do not go from one to the other.
const SIDES: [&str; 2] = ["here", "there"];

/// Machines on a switch.
struct Net {
    // Dropped before the switch, their veths with them.
    machines: Vec<Netns>,
    switch: Netns,
}

impl Net {
    fn new() -> Self {
        let switch = Netns::new("sw");
        for side in SIDES {
            switch.ip(&format!("link add {side} type bridge"));
            switch.ip(&format!("link set {side} up"));
        }
        let machine = |number| {
            let machine = Netns::new("mc");
            machine.veth("eth0", &switch, &format!("port{number}"));
            machine.address("eth0", &format!("10.0.0.{}/24", number + 1));
            machine
        };
        let machines = (0..MACHINES).map(machine).collect();
        let net = Self { machines, switch };
        net.heal();
        net
    }

    fn places(&self) -> Vec<Place> {
        let place = |(machine, number): (&Netns, u8)| Place {
            address: [10, 0, 0, number].into(),
            netns: Some(machine.name().to_owned()),
        };
        self.machines.iter().zip(1..).map(place).collect()
    }

    /// Cuts some machines off from all others; they still reach each other.
    fn cut_off(&self, machines: &[usize]) {
        for number in 0..MACHINES {
            let side = SIDES[usize::from(machines.contains(&number))];
            self.switch
                .ip(&format!("link set port{number} master {side}"));
        }
    }

    fn heal(&self) {
        self.cut_off(&[]);
    }
}

#[test]
fn who_is_cut_off_under_load_loses_nothing_that_was_accepted_and_comes_back() {
    let net = Net::new();
    let places = net.places();
    let etcd = Etcd::start_at(&places[..MEMBERS], "http", &["--pre-vote".to_owned()]);
    let of_controllers = [places[MEMBERS].clone(), places[MEMBERS + 1].clone()];
    let (lab, mut controllers) = Lab::over(&etcd, of_controllers);
    lab.under_load(&mut controllers, |load, _| {
        let leader = etcd.leader();
        for (cut, with) in [(0, Some(leader)), (1, None)] {
            let other = 1 - cut;
            let off: Vec<usize> = with.into_iter().chain([MEMBERS + cut]).collect();
            net.cut_off(&off);
            let what = format!("controller {cut} is cut off with {with:?}");
            load.accepts(&[other], &[0, 1], &what);
            // By now the others have a leader of their own: the old one knows that it is none.
            let before = load.edits(cut);
            load.accepts(&[other], &[0, 1], &what);
            assert_eq!(load.edits(cut), before, "{what}: edits are accepted");
            net.heal();
            load.goes_on(&[0, 1], "healed");
        }
    });
}

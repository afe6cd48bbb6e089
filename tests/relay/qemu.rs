//! The port of a real guest: QEMU's chardev, Linux' virtio-serial driver, `shunt call`.

use std::time::Duration;

use tokio::task::spawn_blocking;

use super::rig::{Rig, eventually};
use super::run_for;
use super::support::Dir;
use super::support::guest::Guest;
use super::support::shunt::binary;

/// Boots without KVM on a busy machine.
const DEADLINE: Duration = Duration::from_secs(180);
const CALL: &str = "shunt call --timeout 20 ";

/// Does what waits for the guest beside the upstream.
async fn with<T: Send + 'static>(
    mut guest: Guest,
    work: impl FnOnce(&mut Guest) -> T + Send + 'static,
) -> (Guest, T) {
    let done = spawn_blocking(move || {
        let outcome = work(&mut guest);
        (guest, outcome)
    });
    done.await.unwrap()
}

/// Asks from inside; gives the answer.
async fn ask(guest: Guest, what: &'static str) -> (Guest, String) {
    with(guest, move |guest| guest.succeed(&format!("{CALL}{what}"))).await
}

#[test]
fn a_guest_under_qemu_is_answered_again_after_reboots_and_killed_relays() {
    run_for(DEADLINE, async {
        let socket = ("\"{dir}/a\"", "\"{dir}/guest/offload.sock\"");
        let dir = Dir::new();
        std::fs::create_dir(dir.file("guest")).unwrap();
        let mut rig = Rig::start_in(dir, &[socket]).await;
        let mut guest = Guest::build()
            .program(&binary())
            .start(&rig.dir.file("guest"));
        guest.wait_ready();
        let (guest, text) = ask(guest, "POST /restconf/x hello").await;
        assert_eq!(text, "a POST hello");
        // A second process in the guest cannot have the port.
        let (guest, (said, code)) = with(guest, |guest| {
            guest.run("exec 9<>/dev/virtio-ports/org.shunt.offload.0; shunt call GET /restconf/x")
        })
        .await;
        assert_eq!(code, 1);
        assert!(said.contains("no other process at it"), "{said}");

        // Reboot in mid-request: it is given up, and the next is answered.
        let begun = rig.upstream.begun();
        let (guest, ()) = with(guest, |guest| {
            guest.succeed("shunt call GET /restconf/silent >/dev/null 2>&1 &");
        })
        .await;
        eventually(|| rig.upstream.begun() > begun).await;
        let (guest, ()) = with(guest, Guest::reboot).await;
        let (guest, text) = ask(guest, "PUT /restconf/x again").await;
        assert_eq!(text, "a PUT again");
        assert_eq!(rig.upstream.cancelled(), 1);

        // The relay killed in mid-request: the guest is told, and later answered again.
        let begun = rig.upstream.begun();
        let silent = "shunt call GET /restconf/silent >/run/said 2>&1; echo $? >>/run/said";
        let (guest, ()) = with(guest, move |guest| {
            guest.succeed(&format!("({silent}) &"));
        })
        .await;
        eventually(|| rig.upstream.begun() > begun).await;
        rig.restart();
        let (guest, said) = with(guest, |guest| {
            guest.succeed(
                "until grep -q '^[0-9][0-9]*$' /run/said; do usleep 100000; done; cat /run/said",
            )
        })
        .await;
        assert!(said.contains("broke") && said.ends_with("1\n"), "{said}");
        let (_guest, text) = ask(guest, "DELETE /restconf/x").await;
        assert_eq!(text, "a DELETE ");
    });
}

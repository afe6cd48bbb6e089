//! What is not offloaded, and what the guest must answer, works as without Shunt.

use std::time::Duration;

use crate::life::transfer;
use crate::rig::{LAN, Rig, SERVER, SOON};
use crate::support::eventually;
use crate::support::process::needs;
use crate::support::tcp::Direction;

/// A file fetched by FTP, whose data connections a conntrack helper lets through: active ones
/// come from the server, to an address that is not the client's.
pub fn ftp_with_a_helper_is_left_to_the_guest(rig: &mut Rig) {
    rig.guest.succeed(
        "modprobe nf_nat_ftp && nft -f - <<'RULES'
table ip helpers {
    ct helper ftp { type \"ftp\" protocol tcp; }
    chain prerouting {
        type filter hook prerouting priority filter;
        tcp dport 21 ct helper set \"ftp\"
    }
}
RULES",
    );
    let files = rig.dir.file("ftp");
    std::fs::create_dir(&files).unwrap();
    let content: Vec<u8> = (0..3_000_000_u32)
        .map(|number| (number >> 4) as u8)
        .collect();
    std::fs::write(files.join("file"), &content).unwrap();
    let argv = [
        "/usr/bin/python3",
        "-m",
        "pyftpdlib",
        "--interface",
        SERVER,
        "--port",
        "21",
        "--directory",
        files.to_str().unwrap(),
    ];
    let mut server = rig.server.spawn(&argv, &rig.dir.file("ftpd.log"));
    let url = format!("ftp://{SERVER}/file");
    let fetched = rig.dir.file("fetched");
    for more in [
        &["--ftp-port", "-", "--disable-eprt"][..],
        &["--ftp-pasv"][..],
    ] {
        let mut argv = vec!["curl", "--silent", "--show-error", "--max-time", "30"];
        // Slow enough to be worth an offload, if it might be.
        argv.extend(["--limit-rate", "1M", "--output", fetched.to_str().unwrap()]);
        argv.extend(more);
        argv.push(&url);
        eventually(SOON, "the file is fetched", || {
            server.assert_running();
            rig.client.exec(&argv).status.success()
        });
        assert!(std::fs::read(&fetched).unwrap() == content, "{more:?}");
    }
    let asked = rig.sessions();
    assert!(asked.is_empty(), "{asked:?}");
    rig.guest.succeed("nft delete table ip helpers");
}

/// Hops, echoes, and the path's MTU are found, and kept to, also by what is offloaded.
pub fn the_path_is_seen_as_it_is(rig: &mut Rig) {
    needs("traceroute", "traceroute");
    needs("tracepath", "iputils-tracepath");
    rig.guest.succeed("/usr/sbin/ip link set eth1 mtu 1400");
    let hops = rig
        .client
        .succeed(&["traceroute", "-n", "-q", "1", "-w", "3", SERVER]);
    let hops: Vec<&str> = hops.lines().skip(1).map(str::trim).collect();
    assert!(
        hops[0].contains(LAN) && hops[1].contains(SERVER),
        "{hops:?}"
    );
    let path = rig.client.succeed(&["tracepath", "-n", SERVER]);
    assert!(path.contains("pmtu 1400"), "{path}");
    rig.client.ip("route flush cache");

    // A client that begins with its own link's MTU learns the path's, and so is offloaded.
    let (to, mut running) = transfer(rig, Direction::Upload);
    rig.wait_offloaded(to);
    running.unpace();
    let moved = running.moved();
    running.wait_moved(moved + 50_000_000, 2 * SOON);
    let argv = ["ping", "-n", "-c", "20", "-i", "0.1", "-W", "2", SERVER];
    let said = rig.client.succeed(&argv);
    assert!(said.contains(" 0% packet loss"), "{said}");
    // Larger than the path takes, and never to be fragmented: the guest's answer comes.
    let argv = [
        "ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1400", SERVER,
    ];
    let refused = rig.client.exec(&argv);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned()
        + &String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("1400"), "{said}");
    running.finish(2 * SOON);
    rig.guest.succeed("/usr/sbin/ip link set eth1 mtu 1500");
    rig.client.ip("route flush cache");
    rig.wait_handed_back(to, Duration::from_secs(30));
}

//! Every rule: a text that breaks it, and the line and words of the answer.

use std::path::{Path, PathBuf};

use super::memory::{available_bytes, check_memory, check_memory_of};
use super::{
    Config, ConfigError, ElementConfig, HandOverConfig, Problem, SocketMode, UplinkConfig,
};
use crate::datapath::pace::Polling;
use crate::packet::{FRAME_MAX, MacAddr};
use crate::port::tap;
use crate::port::xdp::CopyMode;

/// Two elements of one and two vNICs; tests change a line of it. Line numbers matter.
const GOOD: &str = r#"[backend]
control = "/run/shunt/backend.sock"
workers = 2
[hand-over]
park-frames = 100
[[element]]
name = "router1"
sessions = 1000
[[element.vnic]]
name = "lan"
socket = "/run/shunt/lan.sock"
mac = "52:54:00:00:00:01"
mtu = 9000
[element.vnic.uplink]
type = "tap"
name = "tap-lan"
netns = "blue"
[[element.vnic]]
name = "wan"
socket = "/run/shunt/wan.sock"
mode = "client"
queue-pairs = 4
mac = "52:54:00:00:00:02"
[element.vnic.uplink]
type = "vhost-user"
socket = "/run/shunt/wan-uplink.sock"
[[element]]
name = "router2"
[[element.vnic]]
name = "lan"
socket = "/run/shunt/lan2.sock"
mac = "52:54:00:00:00:01"
uplink = { type = "tap", name = "tap-lan", queues = 2 }
"#;

/// The good text with line `number` replaced.
fn with_line(number: usize, line: &str) -> String {
    let mut lines: Vec<_> = GOOD.lines().collect();
    lines[number - 1] = line;
    lines.join("\n")
}

/// The line and the problem of a text that is refused.
fn refusal(text: &str) -> (usize, Problem) {
    match Config::parse(text) {
        Err(ConfigError::Invalid { place, problem }) => (place.line, problem),
        other => panic!("{other:?} for\n{text}"),
    }
}

/// Replacing line `number` is refused there, with `words` in the answer.
#[track_caller]
fn refused_at(number: usize, line: &str, words: &str) {
    let (at, problem) = refusal(&with_line(number, line));
    let text = problem.to_string();
    assert!(text.contains(words), "{line}: {text}");
    assert_eq!(at, number, "{line}: {text}");
}

#[test]
fn a_good_file_is_read_as_written() {
    let config = Config::parse(GOOD).unwrap();
    assert_eq!(config.backend.workers, 2);
    assert_eq!(config.hand_over.park_frames, 100);
    assert_eq!(config.hand_over.park_bytes, 4_194_304);
    let [router1, router2] = &config.elements[..] else {
        panic!("two elements");
    };
    assert_eq!((router1.sessions, router2.sessions), (1000, 4096));
    let (lan, wan) = (&router1.vnics[0], &router1.vnics[1]);
    assert_eq!(lan.mac, MacAddr([0x52, 0x54, 0, 0, 0, 1]));
    assert_eq!(
        (lan.mode, lan.queue_pairs, lan.mtu),
        (SocketMode::Server, 1, 9000)
    );
    assert_eq!(
        (wan.mode, wan.queue_pairs, wan.mtu),
        (SocketMode::Client, 4, 1500)
    );
    let tap = UplinkConfig::Tap {
        name: "tap-lan".to_owned(),
        netns: Some("blue".to_owned()),
        queues: None,
        send_buffer: None,
    };
    assert_eq!(lan.uplink, tap);
    let peer = UplinkConfig::VhostUser {
        socket: PathBuf::from("/run/shunt/wan-uplink.sock"),
        mode: SocketMode::Server,
    };
    assert_eq!(wan.uplink, peer);
    let queues = |element: &ElementConfig, vnic: usize| element.vnics[vnic].uplink_queue_pairs();
    assert_eq!((queues(router1, 0), queues(router1, 1)), (1, 4));
    assert_eq!(queues(router2, 0), 2);
}

#[test]
fn an_element_is_bounded_as_soon_as_one_list_of_prefixes_is_given() {
    let bounds = |text: &str| Config::parse(text).unwrap().elements[0].bounds();
    assert_eq!(bounds(GOOD), None);
    let none = bounds(&with_line(8, "translation-prefixes = []")).unwrap();
    assert!(none.translations.is_empty() && none.sources.is_empty());
    let names: Vec<_> = none.vnics.iter().map(|vnic| vnic.name.as_str()).collect();
    assert_eq!(names, ["lan", "wan"]);
    let of_vnic = bounds(&with_line(
        13,
        "source-prefixes = [\"10.0.0.0/8\", \"::/0\"]",
    ));
    assert_eq!(of_vnic.unwrap().vnics[0].sources.len(), 2);
    refused_at(
        8,
        "source-prefixes = [\"10.0.0.0\"]",
        "write one such as 192.0.2.0/24",
    );
}

#[test]
fn polling_and_punt_rates_are_read_and_others_refused() {
    let config = Config::parse(&with_line(3, "polling = \"interrupt\"")).unwrap();
    assert_eq!(config.backend.polling, Polling::Interrupt);
    refused_at(
        3,
        "polling = \"sometimes\"",
        "`adaptive`, `busy`, `interrupt`",
    );
    let config = Config::parse(&with_line(8, "punt-rate = 5000")).unwrap();
    let rates: Vec<_> = config
        .elements
        .iter()
        .map(|element| element.punt_rate)
        .collect();
    assert_eq!(rates, [Some(5000), None]);
    refused_at(8, "punt-rate = 0", "give 1 to 100000000");
}

#[test]
fn sections_left_out_have_the_defaults_of_the_docs() {
    let text: Vec<_> = GOOD.lines().skip(5).collect();
    let config = Config::parse(&text.join("\n")).unwrap();
    assert_eq!(config.backend.control, Path::new("/run/shunt/backend.sock"));
    assert_eq!(config.backend.workers, 1);
    let defaults = HandOverConfig {
        park_frames: 1_024,
        park_bytes: 4_194_304,
        park_time_ms: 20,
        forced: false,
    };
    assert_eq!(config.hand_over, defaults);
}

#[test]
fn the_example_and_the_docs_are_true() {
    let example = include_str!("../../../docs/example.toml");
    let config = Config::parse(example).unwrap();
    assert_eq!(config.elements.len(), 2);
    let docs = include_str!("../../../docs/config.md");
    let keys = example.lines().filter_map(|line| {
        let key = line.split(" = ").next()?;
        (!line.starts_with(['#', '[']) && key != line).then_some(key)
    });
    for key in keys {
        assert!(docs.contains(&format!("`{key}`")), "{key} is not described");
    }
    for limit in ["65,597", "1,073,741,824", "4,194,304", "65,521"] {
        assert!(docs.contains(limit), "{limit}");
    }
    assert_eq!((FRAME_MAX, tap::MTU_MAX), (65_597, 65_521));
}

#[test]
fn unknown_keys_are_refused_at_their_line() {
    refused_at(3, "worker = 2", "unknown field `worker`");
    refused_at(5, "park-frame = 1", "unknown field `park-frame`");
    refused_at(8, "session = 1", "unknown field `session`");
    refused_at(13, "mut = 1500", "unknown field `mut`");
    refused_at(17, "namespace = 'blue'", "unknown field `namespace`");
    refused_at(4, "[handover]", "unknown field `handover`");
}

#[test]
fn what_is_no_toml_is_refused_at_its_line() {
    let (line, _) = refusal(&with_line(11, "socket = /run/shunt/lan.sock"));
    assert_eq!(line, 11);
    refused_at(3, "workers = \"two\"", "invalid type");
    refused_at(21, "mode = \"both\"", "unknown variant `both`");
    refused_at(15, "type = \"bridge\"", "unknown variant `bridge`");
}

#[test]
fn missing_keys_are_refused_at_their_table() {
    for (removed, table, key) in [
        (12, 9, "mac"),
        (11, 9, "socket"),
        (10, 9, "name"),
        (7, 6, "name"),
    ] {
        let (line, problem) = refusal(&with_line(removed, ""));
        assert_eq!(line, table, "{problem}");
        assert!(
            problem
                .to_string()
                .contains(&format!("missing field `{key}`"))
        );
    }
    let (line, problem) = refusal(&with_line(16, ""));
    assert_eq!(line, 14, "{problem}");
    assert!(
        problem
            .to_string()
            .contains("type tap needs the key `name`")
    );
    let (line, problem) = refusal(&with_line(26, ""));
    assert_eq!(line, 24, "{problem}");
    assert!(
        problem
            .to_string()
            .contains("type vhost-user needs the key `socket`")
    );
}

#[test]
fn keys_of_another_uplink_type_are_refused() {
    for (number, line, key) in [
        (17, "socket = '/run/x.sock'", "type tap has no key `socket`"),
        (17, "mode = 'client'", "type tap has no key `mode`"),
        (25, "type = 'vhost-user'\nnetns = 'a'", "has no key `netns`"),
        (25, "type = 'vhost-user'\nqueues = 1", "has no key `queues`"),
        (16, "interface = 'eth0'", "type tap has no key `interface`"),
        (25, "type = 'xdp'", "type xdp has no key `socket`"),
    ] {
        let (_, problem) = refusal(&with_line(number, line));
        assert!(problem.to_string().contains(key), "{problem}");
    }
}

#[test]
fn numbers_out_of_their_limits_are_refused_with_the_limits() {
    for (number, key, values, limits) in [
        (3, "workers", [0, 65], "give 1 to 64"),
        (5, "park-frames", [0, 65_537], "give 1 to 65536"),
        (
            5,
            "park-bytes",
            [65_596, 1_073_741_825],
            "give 65597 to 1073741824",
        ),
        (5, "park-time-ms", [0, 1_001], "give 1 to 1000"),
        (8, "sessions", [0, 4_194_305], "give 1 to 4194304"),
        (13, "mtu", [67, 65_536], "give 68 to 65535"),
        (22, "queue-pairs", [0, 9], "give 1 to 8"),
        (17, "queues", [0, 9], "give 1 to 8"),
    ] {
        for value in values.into_iter().chain([-1, i64::MAX, i64::MIN]) {
            refused_at(number, &format!("{key} = {value}"), limits);
        }
    }
}

#[test]
fn the_limits_themselves_are_taken() {
    for (number, line) in [
        (3, "workers = 64"),
        (5, "park-bytes = 65597"),
        (8, "sessions = 4194304"),
        (13, "mtu = 68"),
        (13, "mtu = 65521"),
        (22, "mtu = 65535"),
        (22, "queue-pairs = 8"),
        (7, "name = 'a-name_with.32-characters-0123AZ'"),
        (16, "name = 'fifteen-letters'"),
    ] {
        let text = with_line(number, line);
        assert!(Config::parse(&text).is_ok(), "{line}");
    }
}

#[test]
fn names_are_plain_and_short() {
    let long = format!("name = '{}'", "a".repeat(33));
    for line in [
        "name = ''",
        "name = 'a b'",
        "name = 'a/b'",
        "name = 'ä'",
        &long,
    ] {
        refused_at(7, line, "is no name");
        refused_at(10, line, "is no name");
    }
    refused_at(16, "name = 'sixteen-letters-'", "1 to 15 printable");
    refused_at(16, "send-buffer = 100", "give 4096 to 2147483647");
    refused_at(16, "name = 'tap%d'", "1 to 15 printable");
    refused_at(17, "netns = '../x'", "`ip netns list`");
}

#[test]
fn addresses_are_those_of_one_vnic() {
    refused_at(12, "mac = '00:00:00:00:00:00'", "zero address");
    refused_at(12, "mac = '01:00:5e:00:00:01'", "group address");
    refused_at(12, "mac = 'ff:ff:ff:ff:ff:ff'", "group address");
    refused_at(12, "mac = '52:54:00'", "is not a MAC address");
}

#[test]
fn socket_paths_are_absolute_and_fit() {
    let longest = format!("/{}", "s".repeat(106));
    let text = with_line(11, &format!("socket = '{longest}'"));
    assert!(Config::parse(&text).is_ok());
    for number in [2, 11, 26] {
        let key = if number == 2 { "control" } else { "socket" };
        refused_at(number, &format!("{key} = 'lan.sock'"), "relative path");
        refused_at(number, &format!("{key} = ''"), "relative path");
        refused_at(number, &format!("{key} = '/run/../x'"), "without it");
        refused_at(number, &format!("{key} = '/run/'"), "names no socket");
        refused_at(number, &format!("{key} = '/'"), "names no socket");
        refused_at(
            number,
            &format!("{key} = \"/run/\\u0000\""),
            "names no socket",
        );
        refused_at(number, &format!("{key} = '{longest}s'"), "107");
    }
}

#[test]
fn one_path_is_one_socket_however_it_is_written() {
    refused_at(
        11,
        "socket = '/run/shunt/backend.sock'",
        "the control socket",
    );
    refused_at(
        20,
        "socket = '/run//shunt/./lan.sock'",
        "vNIC `lan` of element `router1`",
    );
    refused_at(26, "socket = '/run/shunt/wan.sock'", "vNIC `wan`");
    refused_at(
        31,
        "socket = '/run/shunt/wan-uplink.sock'",
        "the uplink of vNIC `wan`",
    );
}

/// The good text with an AF_XDP uplink instead of the last tap.
fn with_xdp(keys: &str) -> String {
    let last = GOOD.lines().count();
    with_line(last, &format!("uplink = {{ type = 'xdp', {keys} }}"))
}

#[test]
fn an_af_xdp_uplink_has_its_keys_and_defaults() {
    let uplink = |keys: &str| Config::parse(&with_xdp(keys)).unwrap().elements[1].vnics[0].clone();
    let least = uplink("interface = 'eth0'");
    assert_eq!(least.uplink_queue_pairs(), least.queue_pairs);
    let mut expected = UplinkConfig::Xdp {
        interface: "eth0".to_owned(),
        netns: None,
        queues: None,
        mode: CopyMode::Auto,
    };
    assert_eq!(least.uplink, expected);
    let all = uplink("interface = 'eth0', netns = 'blue', queues = 4, mode = 'zero-copy'");
    assert_eq!(all.uplink_queue_pairs(), 4);
    if let UplinkConfig::Xdp {
        netns,
        queues,
        mode,
        ..
    } = &mut expected
    {
        (*netns, *queues, *mode) = (Some("blue".to_owned()), Some(4), CopyMode::ZeroCopy);
    }
    assert_eq!(all.uplink, expected);
}

#[test]
fn an_af_xdp_uplink_that_cannot_be_is_refused() {
    let line = GOOD.lines().count();
    for (keys, says) in [
        ("netns = 'blue'", "type xdp needs the key `interface`"),
        (
            "interface = 'eth0', name = 'x'",
            "type xdp has no key `name`",
        ),
        (
            "interface = 'eth0', mode = 'server'",
            "\"auto\", \"copy\" or \"zero-copy\"",
        ),
        ("interface = 'eth0', queues = 9", "give 1 to 8"),
        ("interface = 'a/b'", "1 to 15 printable"),
        (
            "interface = 'tap-lan', netns = 'blue'",
            "interface `tap-lan` in netns `blue` is the uplink of vNIC `lan`",
        ),
    ] {
        let (at, problem) = refusal(&with_xdp(keys));
        assert_eq!(at, line, "{problem}");
        assert!(problem.to_string().contains(says), "{problem}");
    }
    let long = with_xdp("interface = 'eth0'").replace(
        "socket = \"/run/shunt/lan2.sock\"",
        "mtu = 3819\nsocket = \"/run/shunt/lan2.sock\"",
    );
    let (_, problem) = refusal(&long);
    assert_eq!(problem, Problem::XdpMtu { mtu: 3_819 });
    refused_at(
        24,
        "[element.vnic.uplink]\nmode = 'copy'",
        "\"server\" or \"client\"",
    );
}

#[test]
fn a_tap_is_used_once_in_its_namespace() {
    let line = "uplink = { type = 'tap', name = 'tap-lan', netns = 'blue' }";
    refused_at(
        33,
        line,
        "tap `tap-lan` in netns `blue` is the uplink of vNIC `lan`",
    );
}

#[test]
fn names_and_addresses_are_used_once() {
    refused_at(28, "name = 'router1'", "another element `router1`");
    refused_at(19, "name = 'lan'", "another vNIC `lan`");
    refused_at(
        23,
        "mac = '52:54:00:00:00:01'",
        "vNIC `lan` of the same element",
    );
}

#[test]
fn a_vnic_cannot_have_an_mtu_that_its_tap_refuses() {
    refused_at(13, "mtu = 65522", "at most 65521");
}

#[test]
fn nothing_to_serve_is_refused() {
    assert_eq!(refusal(""), (1, Problem::NoElements));
    assert_eq!(refusal("[backend]\nworkers = 1"), (1, Problem::NoElements));
    let text = "# none\n[[element]]\nname = 'idle'";
    assert_eq!(refusal(text), (2, Problem::NoVnics("idle".to_owned())));
}

#[test]
fn an_element_has_at_most_256_vnics() {
    let vnics = |count: u32| {
        let vnic = |n: u32| {
            format!(
                "[[element.vnic]]\nname = 'v{n}'\nsocket = '/s{n}'\nmac = '02:00:00:00:{:02x}:{:02x}'\n\
                 uplink = {{ type = 'tap', name = 't{n}' }}\n",
                n >> 8,
                n & 255
            )
        };
        let text: String = (0..count).map(vnic).collect();
        Config::parse(&format!("[[element]]\nname = 'wide'\n{text}"))
    };
    assert!(vnics(256).is_ok());
    assert!(
        vnics(257)
            .unwrap_err()
            .to_string()
            .contains("256 are the most")
    );
}

#[test]
fn a_file_is_named_in_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shunt.toml");
    let missing = Config::load(&path).unwrap_err();
    assert!(missing.to_string().contains("--config"), "{missing}");
    assert!(std::error::Error::source(&missing).is_some());
    std::fs::write(&path, with_line(22, "queue-pairs = 9")).unwrap();
    let wrong = Config::load(&path).unwrap_err().to_string();
    let expected = format!(
        "{}:22: `queue-pairs = 9`: 9 is out of range: give 1 to 8",
        path.display()
    );
    assert_eq!(wrong, expected);
    std::fs::write(&path, GOOD).unwrap();
    assert_eq!(Config::load(&path).unwrap(), Config::parse(GOOD).unwrap());
}

#[test]
fn tables_that_do_not_fit_into_memory_are_refused_with_both_numbers() {
    let config = Config::parse(GOOD).unwrap();
    assert_eq!(config.sessions(), 5_096);
    assert!(check_memory_of(5_096, 1_000, 5_096_000).is_ok());
    let error = check_memory_of(5_096, 1_048_576, 5_096_000).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("5096 sessions need 5096 MiB, and 4 MiB"),
        "{text}"
    );
    assert!(check_memory_of(5_096, u64::MAX, u64::MAX - 1).is_err());
    assert!(check_memory(5_096, 1).is_ok());
}

#[test]
fn available_memory_is_read_in_bytes() {
    let text = "MemTotal:       8000 kB\nMemAvailable:    4000 kB\n";
    assert_eq!(available_bytes(text), Some(4_096_000));
    for text in [
        "",
        "MemAvailable: x kB",
        "MemAvailable: 12",
        "MemAvailable: 99999999999999999 kB",
    ] {
        assert_eq!(available_bytes(text), None, "{text}");
    }
}

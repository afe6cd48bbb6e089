use super::*;

const SOUND: &str = r#"
[relay]
host = "host1.example.net"
certificate = "/etc/shunt/relay.pem"
key = "/etc/shunt/relay.key"

[upstream]
url = "https://controller.example.net:8443"
ca = "/etc/shunt/ca.pem"

[allow]
paths = ["/restconf"]

[[port]]
name = "router1"
socket = "/run/shunt/router1.serial"
uid = 1000
"#;

/// The outcome of the sound file with `from` replaced by `to`.
fn with(from: &str, to: &str) -> Result<Config, String> {
    assert!(SOUND.contains(from), "{from}");
    let text = SOUND.replacen(from, to, 1);
    let config: Config = toml::from_str(&text).map_err(|error| error.to_string())?;
    match config.find_problem() {
        None => Ok(config),
        Some(problem) => Err(problem),
    }
}

#[test]
fn a_short_file_is_enough() {
    let config = with("", "").unwrap();
    assert_eq!(
        config.upstream.url,
        Url::Https {
            host: "controller.example.net".to_owned(),
            port: 8_443,
        }
    );
    assert_eq!(config.ports[0].mode, PortMode::Listen);
    assert_eq!(config.limits, LimitsConfig::default());
    assert_eq!(config.serial.timing(), Timing::default());
}

#[test]
fn the_example_is_sound() {
    let text = include_str!("../../../docs/relay.example.toml");
    let config: Config = toml::from_str(text).unwrap();
    assert_eq!(config.find_problem(), None);
}

#[test]
fn upstreams_are_https_or_unix() {
    let url = |text: &str| {
        with("https://controller.example.net:8443", text).map(|config| config.upstream.url)
    };
    assert_eq!(
        url("https://[2001:db8::1]").unwrap(),
        Url::Https {
            host: "2001:db8::1".to_owned(),
            port: 443,
        }
    );
    assert_eq!(
        url("unix:/run/c.sock").unwrap(),
        Url::Unix(PathBuf::from("/run/c.sock"))
    );
    for wrong in [
        "http://controller",
        "controller:8443",
        "https://",
        "https://user@controller",
        "https://controller/restconf",
        "https://controller?x",
        "unix:relative",
        "",
    ] {
        let error = url(wrong).unwrap_err();
        assert!(
            error.contains("upstream") || error.contains("socket"),
            "{error}"
        );
    }
}

#[test]
fn headers_that_only_the_relay_may_send_cannot_be_listed() {
    for name in [
        "Authorization",
        "forwarded",
        "X-Forwarded-For",
        "via",
        "host",
        "te",
    ] {
        let list = format!("paths = [\"/\"]\nrequest-headers = [\"{name}\"]");
        let error = with("paths = [\"/restconf\"]", &list).unwrap_err();
        assert!(error.contains("relay's own"), "{name}: {error}");
    }
    let list = "paths = [\"/\"]\nrequest-headers = [\"X-Api-Version\"]";
    with("paths = [\"/restconf\"]", list).unwrap();
}

#[test]
fn what_contradicts_itself_or_is_unknown_is_refused() {
    let port = "[[port]]\nname = \"b\"\nsocket = \"/run/b\"\nuid = 1\n[[port]]\n";
    for (from, to, expected) in [
        ("ca = \"/etc/shunt/ca.pem\"", "", "needs `ca`"),
        (
            "paths = [\"/restconf\"]",
            "paths = []",
            "nothing would pass",
        ),
        ("paths = [\"/restconf\"]", "paths = [\"/a/\"]", "no path"),
        (
            "paths = [\"/restconf\"]",
            "paths = [\"/a/../b\"]",
            "no path",
        ),
        ("uid = 1000", "", "missing field `uid`"),
        ("uid = 1000", "uid = 1000\nuser = 1", "unknown field"),
        ("router1\"\nsocket", "a/b\"\nsocket", "no name"),
        (
            "/run/shunt/router1.serial",
            "/run/shunt/presence.sock",
            "used twice",
        ),
        (
            "[[port]]",
            &port.replace("\"b\"", "\"router1\""),
            "two ports are named",
        ),
        (
            "[[port]]",
            &port.replace("/run/b", "/run/shunt/router1.serial"),
            "used twice",
        ),
        ("[allow]", "[limits]\nstreams = 0\n[allow]", "out of range"),
        (
            "[allow]",
            "[serial]\nsilence-ms = 2000\n[allow]",
            "less than three",
        ),
        ("host1.example.net", "host 1", "no DNS name"),
    ] {
        let error = with(from, to).unwrap_err();
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn ports_of_one_user_are_found() {
    let second = "[[port]]\nname = \"b\"\nsocket = \"/run/b\"\nuid = 1000\n[[port]]";
    let config = with("[[port]]", second).unwrap();
    let pairs: Vec<_> = config
        .shared_uids()
        .map(|(one, other)| (one.name.as_str(), other.name.as_str()))
        .collect();
    assert_eq!(pairs, [("b", "router1")]);
}

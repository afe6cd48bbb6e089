//! The file and its limits.

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path)).map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error} {}", source.unwrap_or_default())
    })
}

/// The example, with what is commented out there put to use.
fn example(is_whole: bool) -> String {
    let text = include_str!("../../../docs/agent.example.toml");
    if !is_whole {
        return text.to_owned();
    }
    let uncomment = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if rest.starts_with('[') || rest.contains(" = ") => rest.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(|line| uncomment(line) + "\n").collect()
}

#[test]
fn without_a_file_everything_has_its_default_and_a_named_file_must_be_there() {
    assert_eq!(parse(""), Ok(Config::default()));
    let missing = Config::load(Some(Path::new("/nonexistent/agent.toml")));
    assert!(matches!(missing, Err(ConfigError::Read { .. })));
}

#[test]
fn the_example_tells_the_defaults_and_every_key() {
    assert_eq!(parse(&example(false)), Ok(Config::default()));
    let whole = parse(&example(true)).unwrap();
    assert_eq!(whole.interfaces["eth0"], "lan");
    let mut proxy = whole.proxy.clone().unwrap();
    assert!(proxy.group.take().is_some());
    assert_eq!(proxy, ProxyConfig::default());
    let [drop, police] = &whole.shields.set[..] else {
        panic!("{:?}", whole.shields);
    };
    assert_eq!((drop.action, police.action), (Action::Drop, Action::Police));
    assert_eq!(police.family, Family::Ip6);
    let mark = Mark {
        value: 0x100,
        mask: 0xf00,
    };
    assert_eq!(whole.switches.opt_in, Some(mark));
    // Every key there is, is in the example: it names as many as the types have.
    let table: toml::Table = toml::from_str(&example(true)).unwrap();
    let keys = |name: &str| table[name].as_table().unwrap().len();
    let counts = [
        "agent",
        "serial",
        "offload",
        "switches",
        "revocation",
        "shields",
        "proxy",
        "status",
    ]
    .map(keys);
    assert_eq!(counts, [1, 6, 7, 7, 4, 4, 4, 2]);
}

#[test]
fn what_is_misspelt_or_out_of_range_is_refused_and_named() {
    for (text, word) in [
        ("[offlaod]", "offlaod"),
        ("[offload]\nminimum-aeg = 1", "minimum-aeg"),
        ("[offload]\nminimum-age = -1", "604800 seconds"),
        ("[offload]\nminimum-age = 'x'", "number of seconds"),
        ("[agent]\nmode = 'of'", "observe"),
        ("[serial]\nbeat-ms = 5", "10 to 60000"),
        ("[serial]\nbeat-ms = 2000", "three `beat-ms`"),
        ("[switches]\nprefixes-off = ['10.0.0.1']", "192.0.2.0/24"),
        ("[switches]\nopt-in-only = true", "needs the mark"),
        ("[status]\nsocket = 'x'", "absolute path"),
        ("[proxy]\nmode = '0999'", "no permissions"),
        ("[proxy]\nsocket = '/run/shunt/agent.sock'", "used twice"),
        ("[[shields.set]]\ntable = 'a'", "missing field `set`"),
        (
            "[[shields.set]]\ntable = 'a'\nset = 'b'\naction = 'police'",
            "needs `police`",
        ),
        (
            "[[shields.set]]\ntable = 'a'\nset = 'b'\npolice = { packet-rate = 1 }",
            "for the action",
        ),
        (
            "[[shields.set]]\ntable = 'a'\nset = 'b'\n[[shields.set]]\ntable = 'a'\nset = 'b'",
            "mirrored twice",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn times_may_have_fractions() {
    let config = parse("[offload]\nminimum-age = 0.25\n[revocation]\nbackstop = 0").unwrap();
    assert_eq!(config.offload.minimum_age, Duration::from_millis(250));
    assert_eq!(config.revocation.backstop, Duration::ZERO);
}

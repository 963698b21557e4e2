use outlive_net::Uplink;

use super::*;

const FULL: &str = r#"
node = "a"
listen = "10.77.0.1:7400"
bridge = "br7"
state_dir = "/var/lib/outlive-a"
control_socket = "/run/outlive-a.sock"
control_group = "root"
detection_ms = 150
max_pause_share = 0.5
longest_epoch_ms = 250
epoch_limit_mb = 64
log_limit_mb = 2
cluster = "prod"
seeds = ["c", "a", "b"]

[tls]
ca = "/etc/a/ca.pem"
cert = "/etc/a/node.pem"
key = "/etc/a/node.key"

[[peers]]
name = "b"
address = "10.77.0.2:7401"

[[peers]]
name = "c"
address = "10.77.0.3"
"#;

fn parse(text: &str) -> Result<Config> {
    Config::from_text(text, Path::new("agent.toml"))
}

/// The line on which the configuration says `needle`, counted as editors do.
fn refused(text: &str, needle: &str) -> String {
    let failure = parse(text).unwrap_err();
    assert_eq!(failure.kind, crate::error::Kind::Usage, "{failure}");
    let line = 1 + text.lines().position(|line| line.contains(needle)).unwrap();
    let place = format!("agent.toml:{line}: ");
    assert!(failure.message.starts_with(&place), "not at {place}: {failure}");
    assert_eq!(failure.message.lines().count(), 1, "{failure}");
    failure.message
}

#[test]
fn every_key_is_understood() {
    let config = parse(FULL).unwrap();
    assert_eq!(config.node, "a");
    assert_eq!(config.listen, "10.77.0.1:7400".parse().unwrap());
    assert_eq!(config.uplink, Uplink::bridge("br7"));
    assert_eq!(config.control_group, Some(nix::unistd::Gid::from_raw(0)));
    assert_eq!(config.seeds, ["a", "b", "c"]);
    assert_eq!(config.peer("c").unwrap().address, "10.77.0.3:7400".parse().unwrap());
    assert_eq!(config.address_of("b"), Some("10.77.0.2:7401".parse().unwrap()));
    assert_eq!(config.tuning.detection, Duration::from_millis(150));
    assert_eq!(config.tuning.max_pause_permille, 500);
    assert_eq!(config.tuning.longest_epoch, Duration::from_millis(250));
    assert_eq!(config.tuning.epoch_limit, 64 << 20);
    assert_eq!(config.tuning.log_limit, 2 << 20);
    assert_eq!(config.tls.key, Path::new("/etc/a/node.key"));
    assert!(config.is_seed());
}

#[test]
fn everything_has_a_default() {
    let config = parse("node = \"a\"\nlisten = \"10.0.0.1\"").unwrap();
    assert_eq!(config.tuning, setup::Tuning::default());
    assert_eq!(config.seeds, ["a"]);
    assert_eq!(config.control_socket, Path::new(DEFAULT_SOCKET));
    assert_eq!(config.uplink, Uplink::bridge(DEFAULT_BRIDGE));
    let config = parse("node = \"a\"\nlisten = \"10.0.0.1\"\nmacvtap = \"eth0\"").unwrap();
    assert_eq!(config.uplink, Uplink::macvtap("eth0"));
    // The loopback interface stands in for a bridge that has an address.
    let config = parse("node = \"a\"\nbridge = \"lo\"").unwrap();
    assert_eq!(config.listen, format!("127.0.0.1:{DEFAULT_PORT}").parse().unwrap());
}

#[test]
fn without_a_list_all_nodes_are_seeds() {
    let text = FULL.replace("seeds = [\"c\", \"a\", \"b\"]", "");
    assert_eq!(parse(&text).unwrap().seeds, ["a", "b", "c"]);
}

/// Those that are installed as they are, but for addresses.
#[test]
fn the_examples_of_two_hosts_and_a_seed_fit_together() {
    let texts = [
        include_str!("../../../../dist/two-hosts-and-a-seed/a.toml"),
        include_str!("../../../../dist/two-hosts-and-a-seed/b.toml"),
        include_str!("../../../../dist/two-hosts-and-a-seed/c.toml"),
    ];
    let configs = texts.map(|text| parse(text).unwrap());
    for (place, config) in configs.iter().enumerate() {
        assert_eq!(config.seeds, ["a", "b", "c"]);
        for (other, peer) in configs.iter().enumerate().filter(|(other, _)| *other != place) {
            assert_eq!(config.address_of(&peer.node), Some(peer.listen), "{place} of {other}");
        }
    }
}

/// The example in the documentation must stay true: every key it shows, at its default.
#[test]
fn the_documented_defaults_are_the_defaults() {
    let shown = include_str!("../../../../docs/agent.toml");
    let uncommented: String = shown
        .lines()
        .map(|line| line.strip_prefix("#:").map(str::trim_start).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let documented = parse(&uncommented).unwrap();
    let minimal = "node = \"a\"\nlisten = \"10.77.0.1:7400\"\n[[peers]]\nname = \"b\"\naddress = \"10.77.0.2\"\n\
                   [[peers]]\nname = \"c\"\naddress = \"10.77.0.3\"\n";
    assert_eq!(documented, parse(minimal).unwrap());
    for key in [
        "control_group",
        "detection_ms",
        "max_pause_share",
        "longest_epoch_ms",
        "epoch_limit_mb",
        "log_limit_mb",
    ] {
        assert!(shown.contains(key), "{key} is not documented");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let message = refused("node = \"a\"\n\ndetecton_ms = 5\n", "detecton_ms");
    assert!(message.contains("`detecton_ms`") && message.contains("`detection_ms`"), "{message}");
    let message = refused(&FULL.replace("ca = ", "authority = "), "authority = ");
    assert!(message.contains("`authority`"), "{message}");
    let message =
        refused(&FULL.replace("address = \"10.77.0.3\"", "addr = \"10.77.0.3\""), "addr = \"10.77.0.3\"");
    assert!(message.contains("`addr`"), "{message}");
}

#[test]
fn a_value_of_another_type_is_named_with_its_key_and_line() {
    let message = refused(&FULL.replace("= 150", "= \"soon\""), "\"soon\"");
    assert!(message.contains("`detection_ms`"), "{message}");
    let message = refused(&FULL.replace("= 150", "= -1"), "= -1");
    assert!(message.contains("`detection_ms`"), "{message}");
    let both = FULL.replace("bridge = \"br7\"", "bridge = \"br7\"\nmacvtap = \"eth0\"");
    assert!(refused(&both, "macvtap = \"eth0\"").contains("either `bridge` or `macvtap`"));
    let message = refused(&FULL.replace("bridge = \"br7\"", "bridge = 7"), "bridge = 7");
    assert!(message.contains("`bridge`"), "{message}");
}

#[test]
fn a_file_that_is_not_toml_is_refused_at_its_line() {
    refused("node = \"a\"\nlisten : \"10.0.0.1\"\n", "listen :");
    refused("node = \"a\"\nnode = \"b\"\n", "\"b\"");
}

#[test]
fn bad_values_are_refused_by_key_and_line() {
    let change = |from: &str, to: &str, key: &str| {
        assert!(FULL.contains(from), "{from} is not in the configuration");
        let message = refused(&FULL.replace(from, to), to);
        assert!(message.contains(&format!("`{key}`")), "{message}");
    };
    change("detection_ms = 150", "detection_ms = 1", "detection_ms");
    change("max_pause_share = 0.5", "max_pause_share = 1.5", "max_pause_share");
    change("max_pause_share = 0.5", "max_pause_share = nan", "max_pause_share");
    change("longest_epoch_ms = 250", "longest_epoch_ms = 0", "longest_epoch_ms");
    change("epoch_limit_mb = 64", "epoch_limit_mb = 99999999999", "epoch_limit_mb");
    change("log_limit_mb = 2", "log_limit_mb = 0", "log_limit_mb");
    change("node = \"a\"", "node = \"A b\"", "node");
    change("listen = \"10.77.0.1:7400\"", "listen = \"0.0.0.0:7400\"", "listen");
    change("listen = \"10.77.0.1:7400\"", "listen = \"somewhere\"", "listen");
    change("bridge = \"br7\"", "bridge = \"a/b\"", "bridge");
    change("bridge = \"br7\"", "macvtap = \"a b\"", "macvtap");
    change("state_dir = \"/var/lib/outlive-a\"", "state_dir = \"lib\"", "state_dir");
    change("control_group = \"root\"", "control_group = \"no-such-group\"", "control_group");
    change("cluster = \"prod\"", "cluster = \"\"", "cluster");
    change("seeds = [\"c\", \"a\", \"b\"]", "seeds = [\"c\", \"a\", \"x\"]", "seeds");
    change("seeds = [\"c\", \"a\", \"b\"]", "seeds = [\"a\", \"a\"]", "seeds");
    change("seeds = [\"c\", \"a\", \"b\"]", "seeds = []", "seeds");
    change("key = \"/etc/a/node.key\"", "key = \"node.key\"", "tls.key");
    change("address = \"10.77.0.3\"", "address = \"10.77.0.3:0\"", "peers.address");
    change("name = \"c\"", "name = \"a\"", "peers.name");
}

#[test]
fn a_peer_twice_is_refused() {
    let text = format!("{FULL}\n[[peers]]\nname = \"b\" # again\naddress = \"10.77.0.9\"\n");
    assert!(refused(&text, "# again").contains("twice"));
}

#[test]
fn a_missing_file_is_an_error_with_a_next_step() {
    let failure = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err();
    assert_eq!(failure.kind, crate::error::Kind::Usage);
    assert!(failure.message.contains("/nonexistent/agent.toml") && failure.message.contains("--config"));
}

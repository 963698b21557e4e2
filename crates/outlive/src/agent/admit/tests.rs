use outlive_epoch::setup::{Peer, Tuning, WhenExposed};

use super::*;
use crate::config::Tls;

fn config() -> Config {
    let none = PathBuf::from("/nonexistent");
    Config {
        node: "a".to_owned(),
        listen: "127.0.0.1:1".parse().unwrap(),
        uplink: outlive_net::Uplink::bridge("br0"),
        state_dir: none.clone(),
        control_socket: none.clone(),
        control_group: None,
        cluster: "prod".to_owned(),
        seeds: vec!["a".to_owned()],
        tls: Tls { ca: none.clone(), cert: none.clone(), key: none },
        peers: vec![Peer { name: "b".to_owned(), address: "127.0.0.1:2".parse().unwrap() }],
        tuning: Tuning::default(),
    }
}

fn wanted() -> Wanted {
    Wanted {
        name: "db".to_owned(),
        addresses: vec!["192.0.2.10/24".parse().unwrap()],
        mac: None,
        mtu: 1500,
        routes: Vec::new(),
        backup: None,
        when_exposed: WhenExposed::Run,
        scratch: vec![PathBuf::from("/tmp/db")],
        environment: vec![("HOME".to_owned(), "/srv".to_owned())],
        directory: PathBuf::from("/"),
        user: "0".to_owned(),
        command: vec!["sh".to_owned(), "-c".to_owned(), "true".to_owned()],
    }
}

#[test]
fn what_is_resolved_means_the_same_on_every_node() {
    let workload = resolve(&config(), wanted()).unwrap();
    assert!(Path::new(&workload.program.arguments[0]).is_absolute());
    assert_eq!(workload.network.mac, Mac::derive("prod/db"));
    let variable = |key: &str| {
        let found: Vec<_> = workload.program.environment.iter().filter(|(known, _)| known == key).collect();
        assert_eq!(found.len(), 1, "{key}");
        found[0].1.clone()
    };
    assert_eq!(variable("HOME"), "/srv");
    assert_eq!(variable("PATH"), PATH);
}

#[test]
fn a_user_is_known_by_name_or_is_a_number() {
    let root = find_user("root").unwrap();
    assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
    let number = find_user("4000000000").unwrap();
    assert_eq!((number.uid, number.gid, number.groups), (4_000_000_000, 4_000_000_000, vec![4_000_000_000]));
    assert!(find_user("no-such-user").is_err());
    assert!(find_user("-1").is_err());
}

#[test]
fn names_that_are_paths_are_no_names() {
    for text in ["", ".", "..", ".hidden", "-x", "a/b", "../b", "a b"] {
        assert!(name(text).is_err(), "{text:?}");
    }
    assert!(name("db-1.prod_x").is_ok());
}

#[test]
fn directories_are_what_they_are_inside_the_workload() {
    let scratch = [Path::new("/srv"), Path::new("/tmp/db/data")];
    let check = |directory: &str| check_directory("a", Path::new(directory), &scratch).is_ok();
    for there in ["/", "/usr", "/tmp", "/dev/shm", "/srv", "/tmp/db", "/tmp/db/data"] {
        assert!(check(there), "{there}");
    }
    for not_there in
        ["/tmp/other", "/run/x", "/srv/below", "/nonexistent", "/etc/passwd", "usr", "/usr/../etc"]
    {
        assert!(!check(not_there), "{not_there}");
    }
}

#[test]
fn a_program_that_the_workload_cannot_see_is_refused() {
    let check = |program: &Path, scratch: &[&Path]| check_program("a", program, scratch).is_ok();
    assert!(check(Path::new("/bin/sh"), &[]));
    assert!(!check(Path::new("/bin/sh"), &[Path::new("/bin")]));
    assert!(!check(Path::new("/etc/passwd"), &[]));
    assert!(!check(Path::new("/bin"), &[]));
    // Reached by a link from a place that can be seen.
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let (program, link) = (directory.path().join("program"), directory.path().join("link"));
    fs::copy("/bin/true", &program).unwrap();
    std::os::unix::fs::symlink("/bin/true", &link).unwrap();
    assert!(!check(&program, &[]));
    assert!(!check(&link, &[]));
}

/// Another node is not trusted to be of this version, or well.
#[test]
fn what_another_node_asks_for_is_bounded() {
    let good = resolve(&config(), wanted()).unwrap();
    assert!(check_bounds(&good).is_ok());
    let refused = |change: &dyn Fn(&mut Workload)| {
        let mut workload = good.clone();
        change(&mut workload);
        check(&config(), &workload).unwrap_err().message
    };
    assert!(refused(&|w| w.program.arguments = vec!["x".to_owned(); STRINGS_MAX + 1]).contains("bounds"));
    assert!(refused(&|w| w.program.arguments.push("x".repeat(BYTES_MAX))).contains("bounds"));
    assert!(
        refused(&|w| w.program.environment.push(("A\0".to_owned(), String::new()))).contains("zero byte")
    );
    assert!(refused(&|w| w.name = "../db".to_owned()).contains("name"));
    assert!(refused(&|w| w.network.name = "other".to_owned()).contains("different names"));
    assert!(refused(&|w| w.program.arguments.clear()).contains("full path"));
    assert!(refused(&|w| w.program.scratch.push("/".to_owned())).contains("--scratch"));
}

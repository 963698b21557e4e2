//! Seed nodes as processes of their own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use outlive_replicated::testing::free_address;
use outlive_replicated::{ClusterId, Config, Identity, Node, Started, commit, replicated, start, stop};
use outlive_stream::certificate::{Authority, Validity, create_authority, issue};

#[replicated]
static COUNT: u64 = 0;

struct Seed {
    child: Child,
}

impl Drop for Seed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The certificate of a node, as files.
fn certificate(directory: &Path, authority: &Authority, node: &str) -> [PathBuf; 3] {
    let path = |end: &str| directory.join(format!("{node}.{end}"));
    let (ca, cert, key) = (directory.join("ca.pem"), path("pem"), path("key"));
    std::fs::write(&ca, &authority.cert_pem).unwrap();
    issue(authority, node, Validity::days(1)).unwrap().write_files(&cert, &key).unwrap();
    [ca, cert, key]
}

/// Its configuration, and what it says first.
fn run(config: &Path, bootstrap: bool) -> (Seed, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlive-replicated-seed"));
    command.arg(config).args(bootstrap.then_some("--bootstrap"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line.is_empty() {
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    }
    (Seed { child }, line)
}

#[test]
fn seed_nodes_are_processes_that_may_be_started_again_but_not_without_their_votes() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let authority = create_authority("test").unwrap();
    let cluster = ClusterId::random();
    let seeds: Vec<Node> =
        ["s1", "s2", "s3"].map(|name| Node { name: name.into(), address: free_address() }).to_vec();
    let configs: Vec<PathBuf> =
        seeds.iter().map(|seed| write_config(directory, &authority, cluster, &seeds, seed)).collect();

    let (_, said) = run(&configs[0], false);
    assert!(said.contains("no votes on its disk"), "{said}");
    let mut running: Vec<Seed> = Vec::new();
    for (config, seed) in configs.iter().zip(&seeds) {
        let (process, said) = run(config, true);
        assert_eq!(said.trim_end(), format!("listening on {}", seed.address));
        running.push(process);
    }

    let [ca, cert, key] = certificate(directory, &authority, "a");
    let identity = Identity::load(&ca, &cert, &key).unwrap();
    let listen: SocketAddr = free_address();
    let config = Config::new("counter", listen, identity, cluster, seeds, Vec::new()).unwrap();
    assert_eq!(start(config).unwrap(), Started::Fresh);
    *COUNT.write() += 1;
    commit().unwrap();

    // One may be gone; and those that come back stand by their votes.
    drop(running.remove(0));
    drop(running.remove(0));
    running.push(run(&configs[1], false).0);
    stop().unwrap();

    // A disk that was lost is no new one.
    drop(running.pop());
    std::fs::remove_dir_all(directory.join("votes-s2")).unwrap();
    let (_, said) = run(&configs[1], false);
    assert!(said.contains("no votes on its disk"), "{said}");
}

fn write_config(
    directory: &Path,
    authority: &Authority,
    cluster: ClusterId,
    seeds: &[Node],
    seed: &Node,
) -> PathBuf {
    let [ca, cert, key] = certificate(directory, authority, &seed.name);
    let votes = directory.join(format!("votes-{}", seed.name));
    let mut text = format!(
        "listen = \"{}\"\ndirectory = {votes:?}\ncluster = \"{cluster}\"\n[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n",
        seed.address
    );
    for seed in seeds {
        text += &format!("[[seeds]]\nname = {:?}\naddress = \"{}\"\n", seed.name, seed.address);
    }
    let path = directory.join(format!("{}.toml", seed.name));
    std::fs::write(&path, text).unwrap();
    path
}

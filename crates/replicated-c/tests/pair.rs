//! Two processes in C: what one had, the other goes on with, also when it is a newer program.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::{compiled, home};
use outlive_replicated::Node;
use outlive_replicated::testing::{Cluster, free_address, until};

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Process {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (to, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = to.send(line);
            }
        });
        Self { child, orders, lines }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the process says something")
    }

    #[track_caller]
    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        self.line().trim_end().to_owned()
    }

    #[track_caller]
    fn wait_until_protected(&mut self) {
        until("the pair is protected", || self.ask("status").starts_with("2 1").then_some(()));
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

struct Pair {
    cluster: Cluster,
    nodes: [Node; 2],
    folder: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        let nodes = ["a", "b"].map(|name| Node { name: name.into(), address: free_address() });
        Self { cluster: Cluster::new(), nodes, folder: tempfile::tempdir().unwrap() }
    }

    fn program(&self, version: u32) -> PathBuf {
        let path = self.folder.path().join(format!("pair{version}"));
        let define = format!("-DVERSION={version}");
        compiled("gcc", &home().join("tests/programs/pair.c"), &path, &[&define]);
        path
    }

    fn config(&self, place: usize) -> String {
        self.cluster.config_file("pair", &self.nodes[place], &self.nodes).display().to_string()
    }

    /// Files that are open under a name: one for each process that has it.
    fn open(&self, name: &str) -> usize {
        let prefix = format!("{name}.");
        let names = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().starts_with(&prefix)).count()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

#[test]
fn a_newer_program_in_c_takes_over_from_an_older_one() {
    let pair = Pair::new();
    let mut old = Process::start(&pair.program(1), &["file", &pair.config(0)], &[]);
    assert!(old.line().starts_with("fresh "));
    assert_eq!(old.ask("add x"), "0");
    let mut new = Process::start(&pair.program(2), &["text", &pair.config(1)], &[]);
    old.wait_until_protected();
    assert_eq!(old.ask("add y"), "0");
    assert_eq!(old.ask("show x"), "2 y 1 x");
    old.kill();
    let taken = new.line();
    assert!(taken.starts_with("taken ") && taken.ends_with(" a"), "{taken}");
    assert_eq!(new.ask("show x"), "2 y 1 x");
    assert_eq!(new.ask("show y"), "2 y 2 y");
    assert_eq!(new.ask("add z"), "0");
    assert_eq!(new.ask("show z"), "3 z 3 z");
}

#[test]
fn a_program_in_c_that_cannot_hold_the_state_is_refused_by_type_and_field() {
    let pair = Pair::new();
    let mut old = Process::start(&pair.program(1), &["file", &pair.config(0)], &[]);
    assert!(old.line().starts_with("fresh "));
    for (version, says) in [
        (3, ["`count`", "`thing`", "uint64_t", "uint32_t"]),
        (4, ["`needed`", "`thing`", "`ADDED`", "zero"]),
        (5, ["C function", "only_old", "not here", "keep it"]),
    ] {
        let mut other = Process::start(&pair.program(version), &["file", &pair.config(1)], &[]);
        let refused = other.line();
        assert!(refused.starts_with("44 ") && says.iter().all(|word| refused.contains(word)), "{refused}");
        assert_eq!(other.child.wait().unwrap().code(), Some(1));
    }
}

/// The configuration by fields, the names and files of which are those of the other form.
#[test]
fn functions_in_c_are_called_on_both_sides() {
    let pair = Pair::new();
    let text = std::fs::read_to_string(pair.config(0)).unwrap();
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    let mut fields = vec!["fields".to_owned(), "pair".into(), pair.nodes[0].address.to_string()];
    fields.extend(["cluster", "ca", "cert", "key"].map(value));
    for line in text.lines().skip_while(|line| !line.starts_with("[[")) {
        if let Some((_, rest)) = line.split_once(" = \"") {
            fields.push(rest.trim_end_matches('"').to_owned());
        }
    }
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    let program = pair.program(1);
    let mut primary = Process::start(&program, &fields, &[]);
    assert!(primary.line().starts_with("fresh "));
    let (early, eager, lazy) = (pair.path("early"), pair.path("eager"), pair.path("lazy"));
    assert_eq!(primary.ask(&format!("open {early}")), "0");

    // A backup that refuses: what is to be opened at once fails the commit, what may come later is tried again.
    let mut refusing = Process::start(&program, &["file", &pair.config(1)], &[("REFUSE", "1")]);
    primary.wait_until_protected();
    let failed = primary.ask(&format!("open {eager}"));
    assert!(failed.starts_with("23 ") && failed.contains("this side refuses"), "{failed}");
    let soon = pair.path("soon");
    assert_eq!(primary.ask(&format!("soon {soon}")), "0");
    until("the failures are said", || (primary.ask("status") == "2 1 2").then_some(()));
    until("what failed is undone", || (pair.open("eager") == 0).then_some(()));
    refusing.kill();
    until("it is missed", || primary.ask("status").starts_with("2 0").then_some(()));

    let mut backup = Process::start(&program, &["file", &pair.config(1)], &[]);
    primary.wait_until_protected();
    assert_eq!(primary.ask(&format!("open {eager}")), "0");
    assert_eq!(pair.open("eager"), 2, "both sides have it when the commit is acknowledged");
    until("what was there before is opened", || (pair.open("early") + pair.open("soon") == 4).then_some(()));
    assert_eq!(primary.ask(&format!("late {lazy}")), "0");
    assert_eq!(pair.open("lazy"), 1);
    assert_eq!(primary.ask(&format!("close {early}")), "0");
    until("it is closed on both sides", || (pair.open("early") == 0).then_some(()));

    assert_eq!(primary.ask("over"), "0");
    let deposed = primary.ask("add late");
    assert!(deposed.starts_with("10 "), "{deposed}");
    primary.kill();
    assert!(backup.line().starts_with("taken "));
    let own = |name: &str| format!("{name}.{}", backup.child.id());
    let (own_eager, own_lazy) = (own(&eager), own(&lazy));
    assert_eq!(backup.ask(&format!("use {eager}")), own_eager);
    assert_eq!(backup.ask(&format!("use {lazy}")), own_lazy);
    assert!(Path::new(&own_lazy).exists());
    let since = Instant::now();
    assert_eq!(backup.ask("add more"), "0");
    assert!(since.elapsed() < PATIENCE);
}

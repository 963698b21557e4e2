//! Patches through the command line: a process by its number, and a protected workload, in which a patch survives its host.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use outlive_lab::HostProcess;
use outlive_lab::client::connect;
use serde_json::Value;
use support::{Cluster, OUTLIVE, done, outlive, path, refused, text, until};

const PORT: u16 = 7777;
const NAME: &str = "patched";

/// A recorded program, its fix as a patch, and keys.
struct Made {
    folder: tempfile::TempDir,
    source: &'static str,
}

impl Made {
    fn new() -> Made {
        Made::of("patched.c")
    }

    fn of(source: &'static str) -> Made {
        let folder = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(source);
        fs::copy(from, folder.path().join(source)).unwrap();
        let made = Made { folder, source };
        done(outlive(&["patch", "key", "--out", path(&made.file("keys"))]));
        done(outlive(&["patch", "key", "--out", path(&made.file("stranger"))]));
        let said = done(made.build(&["record", "--out", path(&made.file("base"))], ""));
        assert!(said.contains("1 objects compiled, 1 programs linked"), "{said}");
        fs::rename(made.file("program"), made.file("running")).unwrap();
        made
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `outlive patch … -- gcc …`, in the folder.
    fn build(&self, words: &[&str], flags: &str) -> std::process::Output {
        let gcc = format!("echo compiling; gcc -O2 -pthread {flags} -o program {}", self.source);
        let mut command = Command::new(OUTLIVE);
        command.arg("patch").args(words).args(["--", "sh", "-c", &gcc]).current_dir(self.folder.path());
        command.output().unwrap()
    }

    fn patch(&self, keys: &str, name: &str) -> PathBuf {
        self.patch_of(keys, name, &["value"])
    }

    fn patch_of(&self, keys: &str, name: &str, functions: &[&str]) -> PathBuf {
        self.patch_with("-DFIXED", keys, name, functions)
    }

    fn patch_with(&self, flags: &str, keys: &str, name: &str, functions: &[&str]) -> PathBuf {
        let (base, out, key) = (self.file("base"), self.file(name), self.file(keys).join("patch.key"));
        let words = ["build", "--json", "--base", path(&base), "--out", path(&out), "--key", path(&key)];
        // What the build says is not in the way of a program that reads the outcome.
        let made: Value = serde_json::from_str(&done(self.build(&words, flags))).unwrap();
        assert_eq!(made["parts"][0]["switched"], serde_json::json!(functions), "{made}");
        assert!(made["times"]["rebuild_ms"].is_u64(), "{made}");
        out
    }
}

/// A recorded program as a protected workload on node `a`, and a connection to it.
struct Protected {
    cluster: Cluster,
    agents: Option<Vec<HostProcess>>,
    stream: TcpStream,
    lines: Lines<BufReader<TcpStream>>,
}

impl Protected {
    fn start(lab: &str, made: &Made) -> Protected {
        let cluster = Cluster::new(lab, &["a", "b", "c"]);
        let client = cluster.lab.client("client").unwrap();
        let agents = Some(cluster.start_all());
        cluster.bootstrap();
        let address = cluster.lab.free_address().unwrap();
        // Where the workload can read it, whose `/tmp` is its own.
        let running = cluster.lab.install(&made.file("running")).unwrap();
        let ip = format!("{address}/24");
        done(
            cluster.cli("a", &["run", "--name", NAME, "--ip", &ip, "--", path(&running), &PORT.to_string()]),
        );
        let from = client.netns().unwrap();
        let target = SocketAddr::from((address, PORT));
        let mut stream: Option<TcpStream> = None;
        until("the program answers", || {
            stream = connect(Some(&from), target).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        Protected { cluster, agents, stream, lines }
    }

    fn ask(&mut self, what: &[u8]) -> String {
        self.stream.write_all(what).unwrap();
        self.lines.next().unwrap().unwrap()
    }

    fn patch(&self, node: &str, words: &[&str]) -> Output {
        let mut all = vec!["patch"];
        all.extend(words);
        all.extend(["--workload", NAME]);
        self.cluster.cli(node, &all)
    }

    /// The node of its backup. On a busy machine a pair may come apart, and is made again.
    fn backup(&self, node: &str) -> String {
        let mut backup = None;
        until("it is protected", || {
            let row = &self.cluster.json(node, &["inspect", NAME, "--json"]);
            backup = (row["state"] == "protected").then(|| row["backup_node"].as_str().unwrap().to_owned());
            backup.is_some()
        });
        backup.unwrap()
    }

    fn power_off(&mut self, node: &str) {
        self.cluster.host(node).power_off().unwrap();
        self.agents = None;
    }
}

struct Server(Child);

impl Server {
    fn ask(&mut self) -> String {
        self.0.stdin.as_mut().unwrap().write_all(b"?").unwrap();
        let mut line = String::new();
        // The program sends a line for each byte: nothing is left in a buffer that is thrown away.
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_is_patched_listed_and_reverted() {
    let made = Made::new();
    let fix = made.patch("keys", "fix.opatch");
    let (trust, other) = (made.file("keys/patch.pub"), made.file("stranger/patch.pub"));
    let mut command = Command::new(made.file("running"));
    let mut server = Server(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let pid = server.0.id().to_string();
    let patch = |words: &[&str]| {
        let mut all = vec!["patch"];
        all.extend(words);
        all.extend(["--pid", &pid]);
        outlive(&all)
    };
    let file = path(&fix);
    let trusting = ["--trust", path(&trust)];
    assert_eq!(server.ask(), "1 1");
    assert!(done(patch(&["ls"])).contains("has no patch"));
    let said = refused(&patch(&["apply", file, "--trust", path(&other)]), 5);
    assert!(said.contains("not trusted"), "{said}");
    let said = done(patch(&["check", file, "--trust", path(&trust)]));
    assert!(said.contains("can be applied"), "{said}");
    assert_eq!(server.ask(), "1 2", "a check changes nothing");

    let report: Value =
        serde_json::from_str(&done(patch(&["apply", file, "--json", "--trust", path(&trust)]))).unwrap();
    assert_eq!(
        (report["functions"].as_u64(), report["pid"].as_u64()),
        (Some(1), pid.parse().ok()),
        "{report}"
    );
    assert!(report["longest_hold_us"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(server.ask(), "2 3");
    let said = refused(&patch(&["apply", file, trusting[0], trusting[1]]), 5);
    assert!(said.contains("has the patch fix already"), "{said}");
    let listed: Value = serde_json::from_str(&done(patch(&["ls", "--json"]))).unwrap();
    assert_eq!(
        (listed[0]["name"].as_str(), listed[0]["state"].as_str()),
        (Some("fix"), Some("applied")),
        "{listed}"
    );
    assert!(done(outlive(&["patch", "inspect", "--pid", &pid])).contains("value: its code is another"));
    let said = done(outlive(&["patch", "inspect", file, trusting[0], trusting[1]]));
    assert!(said.contains("patch fix") && said.contains("signed by"), "{said}");

    assert!(done(patch(&["revert"])).contains("is reverted: 1 functions"));
    assert_eq!(server.ask(), "1 4");
    assert!(done(patch(&["ls"])).contains("fix reverted"));
    assert!(refused(&patch(&["revert"]), 5).contains("has no patch"));
    done(patch(&["apply", file, trusting[0], trusting[1]]));
    assert_eq!(server.ask(), "2 5");
    done(patch(&["revert"]));
    done(patch(&["apply", file, "--together", trusting[0], trusting[1]]));
    assert_eq!(server.ask(), "2 6");
    assert!(done(patch(&["inspect"])).contains("its functions switch together"));
    done(patch(&["revert"]));
    assert_eq!(server.ask(), "1 7");

    assert!(refused(&outlive(&["patch", "ls", "--pid", "1999999999"]), 5).contains("there is no process"));
    // Nobody is named, or two are.
    assert_eq!(outlive(&["patch", "ls"]).status.code(), Some(2));
    assert_eq!(patch(&["ls", "--workload", "x"]).status.code(), Some(2));
}

#[test]
fn a_change_that_cannot_be_patched_is_refused_with_its_reason() {
    let made = Made::new();
    let source = made.file("patched.c");
    let changed =
        fs::read_to_string(&source).unwrap().replace("unsigned long asked;", "unsigned long asked = 100;");
    fs::write(&source, changed).unwrap();
    let (base, out, key) = (made.file("base"), made.file("no.opatch"), made.file("keys/patch.key"));
    let words = ["build", "--base", path(&base), "--out", path(&out), "--key", path(&key)];
    let output = made.build(&words, "");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("asked"), "{said}");
    assert!(!out.exists());
}

/// The patch is memory, and so survives what memory survives.
#[test]
fn a_workload_keeps_its_patch_when_its_host_dies() {
    let made = Made::new();
    let fix = made.patch("keys", "fix.opatch");
    let trust = made.file("keys/patch.pub");
    let mut workload = Protected::start("patch", &made);
    assert_eq!(workload.ask(b"?"), "1 1");
    let said = refused(&workload.patch("b", &["ls"]), 5);
    assert!(said.contains("ask on a"), "{said}");
    done(workload.patch("a", &["check", path(&fix), "--trust", path(&trust)]));
    let said = done(workload.patch("a", &["apply", path(&fix), "--json", "--trust", path(&trust)]));
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["processes"][0]["functions"], 1, "{report}");
    println!("{report}");
    assert_eq!(workload.ask(b"?"), "2 2");
    let backup = workload.backup("a");

    workload.power_off("a");
    assert_eq!(workload.ask(b"?"), "2 3", "the function is the new one on the new host");
    let listed: Value = serde_json::from_str(&done(workload.patch(&backup, &["ls", "--json"]))).unwrap();
    let listed = &listed["processes"][0]["patches"][0];
    assert_eq!(
        (listed["name"].as_str(), listed["state"].as_str()),
        (Some("fix"), Some("applied")),
        "{listed}"
    );
    assert_eq!(workload.ask(b"?"), "2 4");
    let said = done(workload.patch(&backup, &["inspect"]));
    assert!(said.contains("fix applied") && said.contains("value: its code is another"), "{said}");
    let inspected: Value =
        serde_json::from_str(&done(workload.patch(&backup, &["inspect", "--json"]))).unwrap();
    assert_eq!(inspected["processes"][0]["patches"][0]["name"], "fix", "{inspected}");
    done(workload.patch(&backup, &["revert"]));
    assert_eq!(workload.ask(b"?"), "1 5");
    // There, where its code lies already, and with a tracer that did not see it come.
    done(workload.patch(&backup, &["apply", path(&fix), "--trust", path(&trust)]));
    assert_eq!(workload.ask(b"?"), "2 6");
    done(workload.patch(&backup, &["revert"]));
    assert_eq!(workload.ask(b"?"), "1 7");
}

/// By its supervisor, while all other threads stand, one of them now and then with the lock of the unwinder.
#[test]
fn hooks_of_a_patch_are_called_in_a_workload_and_backtraces_pass_through_its_functions() {
    let made = Made::of("hooked.c");
    let fix = made.patch_of("keys", "fix.opatch", &["value"]);
    let trust = made.file("keys/patch.pub");
    let mut workload = Protected::start("hooked", &made);
    // A unit of 1, and how many functions are above.
    let answer = workload.ask(b"?");
    let above: u32 = answer.parse::<u32>().unwrap() - 500;
    assert!(above > 3, "{answer}");
    let expect = |value: u32| (value * 100 + above).to_string();
    workload.backup("a");
    let apply = ["apply", path(&fix), "--json", "--trust", path(&trust)];
    for _ in 0..10 {
        let report: Value = serde_json::from_str(&done(workload.patch("a", &apply))).unwrap();
        println!("{report}");
        assert_eq!(workload.ask(b"?"), expect(5 * 11));
        done(workload.patch("a", &["revert"]));
        assert_eq!(workload.ask(b"?"), expect(5));
    }
    // All at one instant as well, where it is looked for a moment before a hook is called.
    let together = [&apply[..], &["--together"]].concat();
    done(workload.patch("a", &together));
    assert_eq!(workload.ask(b"?"), expect(5 * 11));
    let listed: Value = serde_json::from_str(&done(workload.patch("a", &["ls", "--json"]))).unwrap();
    assert_eq!(listed["processes"][0]["patches"][0]["unwindable"], true, "{listed}");
    let backup = workload.backup("a");

    workload.power_off("a");
    assert_eq!(workload.ask(b"?"), expect(5 * 11));
    done(workload.patch(&backup, &["revert"]));
    assert_eq!(workload.ask(b"?"), expect(5));
    // What a hook must not do is told, nothing is switched, and the workload goes on.
    for (flag, word) in [
        ("WAITS", "hooks must not wait"),
        ("FAULTS", "signal 11"),
        ("EMPTIES", "would have to see, madvise"),
        ("FORKS", "would have to see, fork"),
    ] {
        let flags = format!("-DFIXED -D{flag}");
        let bad = made.patch_with(&flags, "keys", &format!("{flag}.opatch"), &["value"]);
        let said = refused(&workload.patch(&backup, &["apply", path(&bad), "--trust", path(&trust)]), 5);
        assert!(said.contains(word), "{said}");
        assert_eq!(workload.ask(b"?"), expect(5));
    }
    done(workload.patch(&backup, &apply));
    assert_eq!(workload.ask(b"?"), expect(5 * 11));
}

/// As one that an agent has handed on whose patcher has given up since: it finds other bytes at its mark.
fn a_store_that_nobody_waits_for_is_refused(cluster: &Cluster, pid: i64) {
    // A host numbers its processes itself.
    let host = cluster.host("a");
    let maps = done(host.exec(["cat", &format!("/proc/{pid}/maps")]).unwrap());
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    // Its far end, where nothing has come to yet.
    let at = u64::from_str_radix(stack.split_once('-').unwrap().0, 16).unwrap();
    let there = || -> Vec<u8> {
        let read = format!("dd if=/proc/{pid}/mem bs=1 skip={at} count=2 status=none | od -An -tu1");
        let words = done(host.exec(["sh", "-c", &read]).unwrap());
        words.split_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    let store = |mark: [u8; 1], byte: u8| -> Value {
        let mark = serde_json::json!({ "at": at + 1, "bytes": mark });
        let (name, avoided) = (NAME, [0; 0]);
        let request = serde_json::json!({
            "store": {
                "name": name, "pid": pid, "avoided": avoided, "change": { "at": at, "byte": byte, "mark": mark }
            }
        });
        let agent = UnixStream::connect(host.disk().join("agent.sock")).unwrap();
        (&agent).write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(&agent).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    };
    assert_eq!(there(), [0, 0]);
    let answer = store([1], 7);
    assert!(answer.to_string().contains("waits for it no more"), "{answer}");
    assert_eq!(there(), [0, 0]);
    let answer = store([0], 7);
    assert!(answer["stored"].is_object(), "{answer}");
    assert_eq!(there(), [7, 0]);
    assert!(store([0], 0)["stored"].is_object());
}

#[test]
fn functions_of_a_workload_switch_together_and_stay_so_when_its_host_dies() {
    let made = Made::of("agreeing.c");
    let fix = made.patch_of("keys", "fix.opatch", &["second", "first", "inside"]);
    let trust = made.file("keys/patch.pub");
    let mut workload = Protected::start("together", &made);
    let apply = ["apply", path(&fix), "--together", "--json", "--trust", path(&trust)];
    workload.backup("a");
    assert_eq!(workload.ask(b"?"), "0 1");
    // One thread waits in a function of them: nothing is switched, and it is said who is where.
    assert_eq!(workload.ask(b"i"), "in");
    let said = refused(&workload.patch("a", &apply), 5);
    assert!(said.contains("(running) was in inside") && said.contains("no moment"), "{said}");
    assert_eq!(workload.ask(b"o"), "0 1");
    done(workload.patch("a", &["check", path(&fix), "--together", "--trust", path(&trust)]));
    for _ in 0..20 {
        let report: Value = serde_json::from_str(&done(workload.patch("a", &apply))).unwrap();
        println!("{report}");
        assert_eq!(report["processes"][0]["functions"], 3, "{report}");
        assert_eq!(workload.ask(b"?"), "0 2");
        done(workload.patch("a", &["revert"]));
        assert_eq!(workload.ask(b"?"), "0 1");
    }
    let listed: Value = serde_json::from_str(&done(workload.patch("a", &["ls", "--json"]))).unwrap();
    let pid = listed["processes"][0]["pid"].as_i64().unwrap();
    a_store_that_nobody_waits_for_is_refused(&workload.cluster, pid);
    // What is said to be applied survives, also if the host dies at once.
    let backup = workload.backup("a");
    let report: Value = serde_json::from_str(&done(workload.patch("a", &apply))).unwrap();
    assert_eq!(report["processes"][0]["warnings"], serde_json::json!([]), "{report}");

    workload.power_off("a");
    assert_eq!(workload.ask(b"?"), "0 2", "the functions are the new ones on the new host");
    // Back at one instant as well, by a supervisor that did not see them come.
    done(workload.patch(&backup, &["revert"]));
    assert_eq!(workload.ask(b"?"), "0 1");
    done(workload.patch(&backup, &apply));
    assert_eq!(workload.ask(b"?"), "0 2");
    assert!(done(workload.patch(&backup, &["inspect"])).contains("its functions switch together"));
}

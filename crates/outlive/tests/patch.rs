//! Patches through the command line: a process by its number, and a protected workload, in which a patch survives its host.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use outlive_lab::client::connect;
use serde_json::Value;
use support::{Cluster, OUTLIVE, done, outlive, path, refused, text, until};

const PORT: u16 = 7777;
const NAME: &str = "patched";

/// A recorded program, its fix as a patch, and keys.
struct Made {
    folder: tempfile::TempDir,
}

impl Made {
    fn new() -> Made {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/patched.c");
        fs::copy(source, folder.path().join("patched.c")).unwrap();
        let made = Made { folder };
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
        let gcc = format!("echo compiling; gcc -O2 {flags} -o program patched.c");
        let mut command = Command::new(OUTLIVE);
        command.arg("patch").args(words).args(["--", "sh", "-c", &gcc]).current_dir(self.folder.path());
        command.output().unwrap()
    }

    fn patch(&self, keys: &str, name: &str) -> PathBuf {
        let (base, out, key) = (self.file("base"), self.file(name), self.file(keys).join("patch.key"));
        let words = ["build", "--json", "--base", path(&base), "--out", path(&out), "--key", path(&key)];
        // What the build says is not in the way of a program that reads the outcome.
        let made: Value = serde_json::from_str(&done(self.build(&words, "-DFIXED"))).unwrap();
        assert_eq!(made["parts"][0]["switched"], serde_json::json!(["value"]), "{made}");
        assert!(made["times"]["rebuild_ms"].is_u64(), "{made}");
        out
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
    let cluster = Cluster::new("patch", &["a", "b", "c"]);
    let client = cluster.lab.client("client").unwrap();
    let agents = cluster.start_all();
    cluster.bootstrap();
    let address = cluster.lab.free_address().unwrap();
    // Where the workload can read it, whose `/tmp` is its own.
    let (ip, running) = (format!("{address}/24"), cluster.lab.install(&made.file("running")).unwrap());
    done(cluster.cli("a", &["run", "--name", NAME, "--ip", &ip, "--", path(&running), &PORT.to_string()]));
    let from = client.netns().unwrap();
    let target = SocketAddr::from((address, PORT));
    let mut stream: Option<TcpStream> = None;
    until("the program answers", || {
        stream = connect(Some(&from), target).ok();
        stream.is_some()
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut lines = BufReader::new(&stream).lines();
    let mut ask = || -> String {
        (&stream).write_all(b"?").unwrap();
        lines.next().unwrap().unwrap()
    };
    let patch = |node: &str, words: &[&str]| {
        let mut all = vec!["patch"];
        all.extend(words);
        all.extend(["--workload", NAME]);
        cluster.cli(node, &all)
    };
    assert_eq!(ask(), "1 1");
    let said = refused(&patch("b", &["ls"]), 5);
    assert!(said.contains("ask on a"), "{said}");
    done(patch("a", &["check", path(&fix), "--trust", path(&trust)]));
    // Its supervisor does not look where the threads are.
    for command in ["check", "apply"] {
        let said = refused(&patch("a", &[command, path(&fix), "--together", "--trust", path(&trust)]), 5);
        assert!(said.contains("switch together"), "{said}");
    }
    let said = done(patch("a", &["apply", path(&fix), "--json", "--trust", path(&trust)]));
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["processes"][0]["functions"], 1, "{report}");
    println!("{report}");
    assert_eq!(ask(), "2 2");
    let protected = |node: &str| {
        let row = &cluster.json(node, &["inspect", NAME, "--json"]);
        (row["state"] == "protected").then(|| row["backup_node"].as_str().unwrap().to_owned())
    };
    let mut backup = None;
    until("it is protected", || {
        backup = protected("a");
        backup.is_some()
    });
    let backup = backup.unwrap();

    cluster.host("a").power_off().unwrap();
    drop(agents);
    assert_eq!(ask(), "2 3", "the function is the new one on the new host");
    let listed: Value = serde_json::from_str(&done(patch(&backup, &["ls", "--json"]))).unwrap();
    let listed = &listed["processes"][0]["patches"][0];
    assert_eq!(
        (listed["name"].as_str(), listed["state"].as_str()),
        (Some("fix"), Some("applied")),
        "{listed}"
    );
    assert_eq!(ask(), "2 4");
    let said = done(patch(&backup, &["inspect"]));
    assert!(said.contains("fix applied") && said.contains("value: its code is another"), "{said}");
    let inspected: Value = serde_json::from_str(&done(patch(&backup, &["inspect", "--json"]))).unwrap();
    assert_eq!(inspected["processes"][0]["patches"][0]["name"], "fix", "{inspected}");
    done(patch(&backup, &["revert"]));
    assert_eq!(ask(), "1 5");
    // There, where its code lies already, and with a tracer that did not see it come.
    done(patch(&backup, &["apply", path(&fix), "--trust", path(&trust)]));
    assert_eq!(ask(), "2 6");
    done(patch(&backup, &["revert"]));
    assert_eq!(ask(), "1 7");
}

//! A real program: Redis from Debian's source, one of whose security fixes is taken out, and put in by a patch under load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use outlive_hotpatch::build::{self, Options};
use outlive_hotpatch::record::Record;
use outlive_hotpatch::running::Patcher;

use super::lab::sign;
use super::trial;

/// A folder with `redis-VERSION/` as `apt-get source redis` unpacks it.
const SOURCE: &str = "OUTLIVE_REDIS_SOURCE";
const CYCLES: usize = 100;
/// Requests of one measurement.
const REQUESTS: &str = "300000";

pub fn trials() -> Vec<Trial> {
    let name = "redis_is_patched_and_reverted_a_hundred_times_under_load";
    // It needs the source and minutes of compiling.
    vec![trial(name, redis).with_ignored_flag(true)]
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn source(folder: &Path) -> PathBuf {
    let place = match std::env::var_os(SOURCE) {
        Some(place) => PathBuf::from(place),
        None => {
            let status =
                Command::new("apt-get").args(["source", "redis"]).current_dir(folder).status().unwrap();
            assert!(status.success(), "apt-get source needs deb-src lines; or set {SOURCE}");
            folder.to_owned()
        }
    };
    let unpacked = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path());
    let unpacked = {
        let mut unpacked = unpacked;
        unpacked.find(|path| path.join("src/server.c").exists()).unwrap()
    };
    let tree = folder.join("tree");
    let status = Command::new("cp").arg("-a").arg(&unpacked).arg(&tree).status().unwrap();
    assert!(status.success());
    tree
}

/// The last security fix of the series.
fn last_fix(tree: &Path) -> PathBuf {
    let series = fs::read_to_string(tree.join("debian/patches/series")).unwrap();
    let last = series.lines().rfind(|line| line.contains("CVE")).unwrap();
    tree.join("debian/patches").join(last)
}

fn change(tree: &Path, fix: &Path, reverse: bool) {
    let mut command = Command::new("patch");
    command.args(["-p1", "--no-backup-if-mismatch"]).current_dir(tree);
    if reverse {
        command.arg("-R");
    }
    let status = command.stdin(fs::File::open(fix).unwrap()).status().unwrap();
    assert!(status.success(), "patch {}", fix.display());
}

fn benchmark(port: u16) -> (f64, f64) {
    let output = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-n", REQUESTS, "-c", "20", "-t", "set,get", "--csv"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
    let rows = text.lines().skip(1).map(|line| -> Vec<f64> {
        line.split(',').filter_map(|field| field.trim_matches('"').parse().ok()).collect()
    });
    let rows: Vec<Vec<f64>> = rows.filter(|row| row.len() == 7).collect();
    assert_eq!(rows.len(), 2, "{text}");
    let rate = rows.iter().map(|row| row[0]).sum::<f64>() / 2.0;
    let p99 = rows.iter().map(|row| row[5]).fold(0.0, f64::max);
    (rate, p99)
}

fn redis() {
    let folder = tempfile::tempdir().unwrap();
    let tree = source(folder.path());
    let fix = last_fix(&tree);
    change(&tree, &fix, true);
    let make = ["make", "-C", &tree.join("src").display().to_string(), "-j2", "MALLOC=libc", "redis-server"]
        .map(str::to_owned);
    let base = Record::create(&folder.path().join("base"), &make, None).unwrap();
    let begun = Instant::now();
    base.run(&base, &make).unwrap();
    eprintln!("recorded in {:?}", begun.elapsed());
    let program = folder.path().join("redis-server");
    fs::copy(tree.join("src/redis-server"), &program).unwrap();
    change(&tree, &fix, false);
    let new = Record::create(&folder.path().join("new"), &make, Some(base.epoch())).unwrap();
    new.run(&base, &make).unwrap();
    let begun = Instant::now();
    let made = build::build(&base, &new, Options { name: "fix".to_owned(), ..Options::default() }).unwrap();
    let build_ms = begun.elapsed().as_millis();
    for piece in made.parts.iter().flat_map(|part| &part.pieces).filter(|piece| !piece.name.is_empty()) {
        eprintln!("{} ({}): {}", piece.name, piece.unit, piece.reason);
    }
    let signed = sign(&made);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Command::new(&program)
        .args(["--port", &port.to_string(), "--save", "", "--daemonize", "no"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server(server);
    let pid = server.0.id().cast_signed();
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    let (plain_rate, plain_p99) = benchmark(port);
    let load = std::thread::spawn(move || benchmark(port));
    let mut cycles = 0;
    let (mut longest, mut applies) = (0, Vec::new());
    let mut patcher = Patcher::open(pid).unwrap();
    while cycles < CYCLES || !load.is_finished() {
        let report = patcher.apply(&signed).unwrap();
        longest = longest.max(report.longest_hold_us);
        applies.push(report.took_us);
        std::thread::sleep(Duration::from_millis(5));
        longest = longest.max(patcher.revert(false).unwrap().longest_hold_us);
        cycles += 1;
    }
    let (rate, p99) = load.join().unwrap();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    applies.sort_unstable();
    println!(
        "figures: {{\"cycles\":{cycles},\"functions\":{},\"throughput_ratio\":{:.3},\"p99_ms\":{p99},\"p99_plain_ms\":{plain_p99},\
         \"longest_hold_us\":{longest},\"apply_us_median\":{},\"apply_us_max\":{},\"build_ms\":{build_ms}}}",
        made.parts.iter().map(|part| part.switches.len()).sum::<usize>(),
        rate / plain_rate,
        applies[applies.len() / 2],
        applies[applies.len() - 1],
    );
}

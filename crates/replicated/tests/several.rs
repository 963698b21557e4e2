//! A primary and two backups, each a process of its own, which are killed and stopped.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outlive_replicated::testing::{Cluster, Line, free_address, until};
use outlive_replicated::{
    CommitError, Config, ForgetError, Forgot, Handle, Inspection, List, Map, Node, Role, commit, forget,
    hand_over, inspect, replicated, start, status,
};

#[replicated]
static DONE: List<u64> = List::new();

#[replicated]
static FILLING: List<String> = List::new();

/// A file for as long as it is open, of one process.
#[replicated(eager, on_error = fail, undo = close)]
fn open(name: String) -> Result<PathBuf, String> {
    let config = PathBuf::from(std::env::var_os(CONFIG).ok_or("no configuration")?);
    let stem = config.file_stem().and_then(|stem| stem.to_str()).ok_or("no name")?;
    let (_, node) = stem.rsplit_once('-').ok_or("no node")?;
    if name == format!("not-on-{node}") {
        return Err(format!("not on {node}"));
    }
    if name == "not-on-backups" && status().is_none_or(|status| status.role != Role::Primary) {
        return Err("not on backups".into());
    }
    let path = config.with_file_name(format!("{name}.{node}.open"));
    std::fs::File::create_new(&path).map_err(|error| error.to_string())?;
    Ok(path)
}

fn close(path: PathBuf) {
    std::fs::remove_file(path).unwrap();
}

#[replicated]
static FILES: Map<String, Handle<PathBuf>> = Map::new();

const CONFIG: &str = "OUTLIVE_TEST_SEVERAL_CONFIG";
const SERVE: &str = "OUTLIVE_TEST_SEVERAL_SERVE";

/// Not a test but one of the processes of those below.
#[test]
fn process() {
    let Some(config) = std::env::var_os(CONFIG) else { return };
    let address: SocketAddr = std::env::var(SERVE).unwrap().parse().unwrap();
    start(Config::load(Path::new(&config)).unwrap()).unwrap();
    let listener = TcpListener::bind(address).unwrap();
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut stream = stream;
            while let Some(Ok(line)) = lines.next() {
                // As one segment: a second small one would wait for the client's acknowledgement.
                let reply = format!("{}\n", answer(&line));
                if stream.write_all(reply.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

fn answer(line: &str) -> String {
    let done = |outcome: Result<(), _>| match outcome {
        Ok(()) => "ok".to_owned(),
        // Nothing is acknowledged any more.
        Err(_) => std::process::exit(1),
    };
    match line.split_once(' ') {
        Some(("push", number)) => {
            DONE.write().push(number.parse().unwrap());
            done(commit())
        }
        Some(("fill", length)) => {
            FILLING.write().push("x".repeat(length.parse().unwrap()));
            done(commit())
        }
        Some(("open", name)) => {
            let opened = match open(name.to_owned()) {
                Ok(opened) => opened,
                Err(error) => return error.to_string(),
            };
            FILES.write().insert(name.to_owned(), opened);
            match commit() {
                Err(CommitError::CallFailed { reason, .. }) => reason,
                outcome => done(outcome),
            }
        }
        Some(("close", name)) => {
            FILES.write().remove(&name.to_owned());
            done(commit())
        }
        _ if line == "all" => {
            let all: Vec<String> = DONE.read().read().iter().map(u64::to_string).collect();
            all.join(" ")
        }
        // Who has handed over is to end.
        _ if line == "hand over" => match hand_over() {
            Ok(()) => std::process::exit(0),
            Err(error) => error.to_string(),
        },
        _ if line == "failing" => status().unwrap().failing.join("; "),
        _ => {
            let status = status().unwrap();
            let counting = status.backups.iter().filter(|backup| backup.counts).count();
            format!("{} {counting} {:?}", status.generation, status.phase.unwrap())
        }
    }
}

struct Process {
    config: PathBuf,
    serves: SocketAddr,
    child: Option<Child>,
}

impl Process {
    fn start(&mut self) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["process", "--exact", "--nocapture"]).env(CONFIG, &self.config).stdout(Stdio::null());
        command.env(SERVE, self.serves.to_string());
        if std::env::var_os("OUTLIVE_LOUD").is_none() {
            command.stderr(Stdio::null());
        }
        self.child = Some(command.spawn().unwrap());
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        // A busy machine takes a while to stop the last thread.
        if signal == Signal::SIGSTOP {
            until("it has stopped", || self.has_stopped().then_some(()));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Its generation, how many backups count, and its phase; `None` if it does not speak.
    fn status(&self) -> Option<(u64, usize, String)> {
        let reply = Line::to(self.serves)?.ask("status")?;
        let mut words = reply.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.to_owned()))
    }

    /// Whether every thread of it is stopped by a signal: `T` behind the name in proc_pid_stat(5).
    fn has_stopped(&self) -> bool {
        let Some(child) = &self.child else { return false };
        let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        threads.map(|thread| thread.unwrap().path().join("stat")).all(|stat| {
            // One that has ended meanwhile is not there the next time.
            let stat = std::fs::read_to_string(stat).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, behind)| behind.starts_with(" T"))
        })
    }

    fn resident(&self) -> u64 {
        let child = self.child.as_ref().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Three {
    _cluster: Cluster,
    all: Vec<Process>,
}

impl Three {
    fn new(settings: &str) -> Self {
        let cluster = Cluster::new();
        let nodes = ["a", "b", "c"].map(|name| Node { name: name.into(), address: free_address() });
        let process = |node: &Node| {
            let config = cluster.config_file("several", node, &nodes);
            let text = std::fs::read_to_string(&config).unwrap();
            let text: Vec<_> = text.lines().filter(|line| !line.starts_with("detection_ms")).collect();
            std::fs::write(&config, format!("{settings}\n{}\n", text.join("\n"))).unwrap();
            Process { config, serves: free_address(), child: None }
        };
        let mut all: Vec<Process> = nodes.iter().map(process).collect();
        all.iter_mut().for_each(Process::start);
        Self { _cluster: cluster, all }
    }

    /// On how many nodes this is open.
    fn open(&self, name: &str) -> usize {
        let name = format!("{name}.");
        let directory = std::fs::read_dir(self.all[0].config.parent().unwrap()).unwrap();
        let files = directory.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        files.filter(|file| file.starts_with(&name) && file.ends_with(".open")).count()
    }

    /// Who speaks, once so many backups count and none is missing.
    fn protected(&self, by: usize) -> usize {
        until("all are in step", || {
            self.all.iter().position(|process| {
                process.status().is_some_and(|(_, counting, phase)| counting == by && phase == "Protected")
            })
        })
    }

    /// Who speaks now.
    fn speaker(&self) -> usize {
        until("somebody speaks", || self.all.iter().position(|process| process.status().is_some()))
    }

    /// An operator's word that these are dead, given on a node that is left.
    fn forget(&self, on: usize, dead: &[usize]) -> Result<Forgot, ForgetError> {
        let nodes: Vec<String> = dead.iter().map(|place| ["a", "b", "c"][*place].to_owned()).collect();
        forget(&Config::load(&self.all[on].config).unwrap(), &nodes)
    }

    /// The same, once one that is left has noticed that its primary is gone.
    fn forget_soon(&self, on: usize, dead: &[usize]) -> Forgot {
        until("it is granted", || match self.forget(on, dead) {
            Ok(forgot) => Some(forgot),
            Err(ForgetError::Refused(_)) => None,
            Err(error) => panic!("{error}"),
        })
    }

    /// Stops a backup, and has numbers 1 to 99 acknowledged without it: behind more than the buffers of its connection hold,
    /// for what they hold it has as soon as it goes on.
    fn leave_behind(&self, stopped: usize, primary: usize, line: &mut Line) {
        self.all[stopped].signal(Signal::SIGSTOP);
        for _ in 0..40 {
            assert_eq!(line.ask("fill 1000000").as_deref(), Some("ok"));
        }
        for number in 1..100 {
            assert_eq!(line.ask(&format!("push {number}")).as_deref(), Some("ok"));
        }
        assert_eq!(self.all[primary].status().unwrap().1, 2, "it was given up before it was to be");
    }

    fn inspection(&self, of: usize) -> Inspection {
        let config = Config::load(&self.all[of].config).unwrap();
        let all = inspect(&config);
        let own = all.into_iter().find(|(node, _)| node.name == config.identity.node_name());
        own.unwrap().1.unwrap()
    }

    fn values(&self, of: usize) -> Vec<u64> {
        let mut line = Line::to(self.all[of].serves).unwrap();
        line.ask("all").unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect()
    }
}

/// Pushes numbers, each once, to whoever answers; those that were acknowledged.
fn push_until(serves: &[SocketAddr], next: &AtomicU64, over: &AtomicBool) -> Vec<u64> {
    let (mut line, mut acknowledged) = (None, Vec::new());
    let mut place = 0;
    while !over.load(Ordering::Relaxed) {
        if line.is_none() {
            place += 1;
            line = Line::to(serves[place % serves.len()]);
        }
        let Some(open) = &mut line else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        let number = next.fetch_add(1, Ordering::Relaxed);
        match open.ask(&format!("push {number}")) {
            Some(reply) if reply == "ok" => acknowledged.push(number),
            // Nobody knows whether it was done.
            _ => line = None,
        }
    }
    acknowledged
}

fn primaries_die(wait_for: &str) {
    let kills: usize = std::env::var("OUTLIVE_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let mut three = Three::new(&format!("wait_for = \"{wait_for}\"\ndetection_ms = 2000"));
    let serves: Vec<_> = three.all.iter().map(|process| process.serves).collect();
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let acknowledged: Vec<u64> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| push_until(&serves, &next, &over))).collect();
        for _ in 0..kills {
            let primary = three.protected(2);
            let before = next.load(Ordering::Relaxed);
            until("something is pushed", || (next.load(Ordering::Relaxed) > before + 50).then_some(()));
            three.all[primary].kill();
            let since = Instant::now();
            let new = three.speaker();
            println!("{wait_for}: taken over after {} ms", since.elapsed().as_millis());
            // The other backup follows the new primary before anybody else is there.
            three.protected(1);
            assert_ne!(new, primary);
            three.all[primary].start();
        }
        three.protected(2);
        over.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let values = three.values(three.speaker());
    let found: BTreeSet<u64> = values.iter().copied().collect();
    assert_eq!(found.len(), values.len(), "something was done twice");
    let lost: Vec<_> = acknowledged.iter().filter(|number| !found.contains(number)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged are lost: {lost:?}", lost.len(), acknowledged.len());
    println!("{wait_for}: {kills} kills, {} acknowledged", acknowledged.len());
    assert!(acknowledged.len() > 50 * kills);
}

#[test]
fn primaries_die_one_after_the_other_with_all_waited_for() {
    primaries_die("all");
}

#[test]
fn primaries_die_one_after_the_other_with_one_waited_for() {
    primaries_die("one");
}

#[test]
fn primaries_die_one_after_the_other_with_a_majority_waited_for() {
    primaries_die("majority");
}

/// What every backup holds survives in any one of them.
#[test]
fn a_primary_and_a_backup_die_at_once_with_all_waited_for() {
    let mut three = Three::new("wait_for = \"all\"\ndetection_ms = 2000");
    let primary = three.protected(2);
    let mut line = Line::to(three.all[primary].serves).unwrap();
    for number in 0..100 {
        assert_eq!(line.ask(&format!("push {number}")).as_deref(), Some("ok"));
    }
    three.all[(primary + 1) % 3].kill();
    three.all[primary].kill();
    let left = three.speaker();
    assert_eq!(left, (primary + 2) % 3);
    assert_eq!(three.values(left), (0..100).collect::<Vec<_>>());
}

/// What one of two holds may be what the other lacks: both must be heard. One that is stopped keeps its place until it goes on.
#[test]
fn r5_nobody_takes_over_before_all_are_heard_with_one_waited_for() {
    let mut three = Three::new("wait_for = \"one\"\ndetection_ms = 3000");
    let primary = three.protected(2);
    let (stopped, other) = ((primary + 1) % 3, (primary + 2) % 3);
    let mut line = Line::to(three.all[primary].serves).unwrap();
    assert_eq!(line.ask("push 0").as_deref(), Some("ok"));
    // Which of both has what is acknowledged from here on, is certain.
    three.all[stopped].signal(Signal::SIGSTOP);
    for number in 1..100 {
        assert_eq!(line.ask(&format!("push {number}")).as_deref(), Some("ok"));
    }
    assert_eq!(three.all[primary].status().unwrap().1, 2, "it was given up before it was to be");
    three.all[primary].kill();
    // Well after the silence of the primary is noticed: until then it would say nothing in any case.
    thread::sleep(Duration::from_secs(8));
    assert_eq!(three.all[other].status(), None, "who may lack something speaks");
    three.all[stopped].signal(Signal::SIGCONT);
    let left = three.speaker();
    assert_eq!(left, other, "who lacks something took over");
    assert_eq!(three.values(left), (0..100).collect::<Vec<_>>());
    three.protected(1);
}

/// A primary and the only backup that held what it acknowledged die for good: the other waits, and goes on by an operator's
/// word, without what was acknowledged meanwhile. Nobody knows how much that was, and so it is said.
#[test]
fn the_one_that_is_left_goes_on_when_an_operator_says_so() {
    let mut three = Three::new("wait_for = \"one\"\ndetection_ms = 10000");
    let primary = three.protected(2);
    let (held, left) = ((primary + 1) % 3, (primary + 2) % 3);
    let mut line = Line::to(three.all[primary].serves).unwrap();
    assert_eq!(line.ask("push 0").as_deref(), Some("ok"));
    // Nothing is waited for.
    let node = |place: usize| ["a", "b", "c"][place].to_owned();
    let lives = three.forget(left, &[primary, held]).unwrap_err();
    assert_eq!(lives, ForgetError::Lives { node: node(primary), role: "primary".into() });
    until("both hold it", || {
        (three.inspection(left).commit == three.inspection(primary).commit).then_some(())
    });
    three.leave_behind(left, primary, &mut line);
    // It has no time to say how far it is, and the primary none to leave it out: nobody else holds what it acknowledged.
    three.all[held].kill();
    three.all[primary].kill();
    three.all[left].signal(Signal::SIGCONT);
    // Until somebody says more, it waits.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(three.all[left].status(), None, "who may lack something speaks");
    let half = three.forget(left, &[held]).unwrap_err();
    assert!(matches!(&half, ForgetError::PrimaryNotNamed { primary: named, .. } if *named == node(primary)));
    let all = three.forget(left, &[primary, held, left]).unwrap_err();
    assert!(matches!(&all, ForgetError::Lives { node: named, .. } if *named == node(left)), "{all}");

    let forgot = three.forget_soon(left, &[primary, held]);
    assert_eq!((forgot.goes_on, forgot.forgotten.lost_at_most), (Some(node(left)), None));
    assert_eq!(forgot.forgotten.nodes, [node(primary), node(held)]);
    assert_eq!(three.speaker(), left);
    assert_eq!(three.values(left), [0]);
    assert_eq!(three.inspection(left).forgotten, Some(forgot.forgotten));
    let mut line = Line::to(three.all[left].serves).unwrap();
    assert_eq!(line.ask("push 1000").as_deref(), Some("ok"));
    // They are back, as others.
    three.all[primary].start();
    three.all[held].start();
    assert_eq!(three.protected(2), left);
}

/// R2: one that was said to be dead and lives has no right any more. It joins anew, by a copy. What it held was known,
/// and so is how much is lost at most.
#[test]
fn r2_who_was_forgotten_and_lives_joins_anew() {
    let mut three = Three::new("wait_for = \"one\"\ndetection_ms = 10000");
    let primary = three.protected(2);
    let (hangs, left) = ((primary + 1) % 3, (primary + 2) % 3);
    let mut line = Line::to(three.all[primary].serves).unwrap();
    assert_eq!(line.ask("push 0").as_deref(), Some("ok"));
    until("both hold it", || {
        (three.inspection(left).commit == three.inspection(primary).commit).then_some(())
    });
    three.leave_behind(left, primary, &mut line);
    three.all[primary].kill();
    // It says at once how far it is, and answers.
    thread::sleep(Duration::from_secs(2));
    let lives = three.forget(hangs, &[primary, hangs]).unwrap_err();
    assert!(matches!(lives, ForgetError::Lives { role, .. } if role == "backup"));
    three.all[hangs].signal(Signal::SIGSTOP);
    three.all[left].signal(Signal::SIGCONT);
    let forgot = three.forget_soon(left, &[primary, hangs]);
    assert_eq!((three.speaker(), three.values(left)), (left, vec![0]));
    println!("{}", forgot.forgotten);
    // All 99 numbers, and some of what was before them.
    assert!(forgot.forgotten.lost_at_most.is_some_and(|lost| (99..99 + 50).contains(&lost)), "{forgot:?}");

    three.all[hangs].signal(Signal::SIGCONT);
    assert_eq!(three.protected(1), left);
    let mut line = Line::to(three.all[left].serves).unwrap();
    assert_eq!(line.ask("push 1000").as_deref(), Some("ok"));
    three.all[left].kill();
    assert_eq!(three.speaker(), hangs);
    assert_eq!(three.values(hangs), [0, 1000]);
}

/// What a marked function opens, every backup opens before the commit is acknowledged; one that cannot fails the commit, and
/// the others close what they have opened for it.
#[test]
fn calls_are_made_on_every_backup_before_their_commit() {
    let three = Three::new("wait_for = \"all\"\ndetection_ms = 2000");
    let primary = three.protected(2);
    let mut line = Line::to(three.all[primary].serves).unwrap();
    assert_eq!(line.ask("open file").as_deref(), Some("ok"));
    assert_eq!(three.open("file"), 3);
    for other in [1, 2].map(|by| (primary + by) % 3) {
        let (name, node) = (format!("not-on-{}", ["a", "b", "c"][other]), ["a", "b", "c"][other]);
        assert_eq!(line.ask(&format!("open {name}")), Some(format!("not on {node}")));
        until("nothing of it is open", || (three.open(&name) == 0).then_some(()));
    }
    // Both backups fail, and the commit has ended with the word of the first.
    for _ in 0..10 {
        assert_eq!(line.ask("open not-on-backups").as_deref(), Some("not on backups"));
        until("nothing of it is open", || (three.open("not-on-backups") == 0).then_some(()));
    }
    thread::sleep(Duration::from_secs(1));
    assert_eq!(line.ask("failing").as_deref(), Some(""), "what is no part of the state is said to fail");
    assert_eq!(line.ask("close file").as_deref(), Some("ok"));
    until("it is closed everywhere", || (three.open("file") == 0).then_some(()));
}

#[test]
fn a_call_does_not_wait_for_a_stopped_backup_with_one_waited_for() {
    let three = Three::new("wait_for = \"one\"\ndetection_ms = 30000");
    let primary = three.protected(2);
    let mut line = Line::to(three.all[primary].serves).unwrap();
    let stopped = &three.all[(primary + 1) % 3];
    stopped.signal(Signal::SIGSTOP);
    // An answer is waited for 5 s.
    assert_eq!(line.ask("open file").as_deref(), Some("ok"));
    assert_eq!((three.open("file"), three.all[primary].status().unwrap().1), (2, 2));
    stopped.signal(Signal::SIGCONT);
    until("it is open there as well", || (three.open("file") == 3).then_some(()));
    assert_eq!(line.ask("close file").as_deref(), Some("ok"));
    until("it is closed everywhere", || (three.open("file") == 0).then_some(()));
}

/// A backup that takes nothing: nobody waits for it, it costs no more memory than it may, and it joins again.
#[test]
fn a_stopped_backup_slows_nobody_with_one_waited_for() {
    let bound = 4 << 20;
    // Long enough that it is given up for what is on its way to it, not for its silence.
    let three = Three::new(&format!("wait_for = \"one\"\ndetection_ms = 30000\nunacknowledged = {bound}"));
    let primary = three.protected(2);
    let stopped = (primary + 1) % 3;
    let mut line = Line::to(three.all[primary].serves).unwrap();
    let longest = |line: &mut Line, request: &str, count: usize| {
        let longest = (0..count).map(|_| {
            let since = Instant::now();
            assert_eq!(line.ask(request).as_deref(), Some("ok"));
            since.elapsed()
        });
        longest.max().unwrap()
    };
    let with_both = longest(&mut line, "push 1", 200);
    three.all[stopped].signal(Signal::SIGSTOP);
    let without = longest(&mut line, "push 2", 200);
    assert_eq!(three.all[primary].status().unwrap().1, 2, "a few small commits are no reason to give it up");
    let before = three.all[primary].resident();
    let (length, count) = (100_000, 400);
    let filling = longest(&mut line, &format!("fill {length}"), count);
    let grown = three.all[primary].resident().saturating_sub(before);
    println!(
        "longest commit: {with_both:?} with both, {without:?} with one stopped, {filling:?} beyond the bound"
    );
    println!("{} MB committed, {} MB more resident", length * count / 1_000_000, grown / 1_000_000);
    assert!(without < Duration::from_secs(5) && filling < Duration::from_secs(5));
    // The state itself, and what allocators keep.
    let state = (length * count) as u64;
    assert!(grown < 2 * state + 4 * bound as u64, "{grown} bytes more, for {state} of state");
    until("it is given up", || (three.all[primary].status()?.1 == 1).then_some(()));
    three.all[stopped].signal(Signal::SIGCONT);
    assert_eq!(three.protected(2), primary);
}

/// They hold everything, and may be dead without anybody having noticed.
#[test]
fn a_place_is_not_handed_over_to_backups_that_do_not_answer() {
    let three = Three::new("wait_for = \"all\"\ndetection_ms = 30000");
    let primary = three.protected(2);
    let mut line = Line::to(three.all[primary].serves).unwrap();
    assert_eq!(line.ask("push 1").as_deref(), Some("ok"));
    let backups = [1, 2].map(|by| &three.all[(primary + by) % 3]);
    backups.iter().for_each(|backup| backup.signal(Signal::SIGSTOP));
    let handed_over = thread::spawn(move || line.ask("hand over"));
    thread::sleep(Duration::from_secs(1));
    assert!(!handed_over.is_finished());
    backups.iter().for_each(|backup| backup.signal(Signal::SIGCONT));
    assert_eq!(handed_over.join().unwrap(), None);
    let new = three.speaker();
    assert_ne!(new, primary);
    assert_eq!(three.values(new), [1]);
}

/// A host that has died and is back: nobody waits until the process of its former life is taken for dead.
#[test]
fn a_backup_that_joins_anew_takes_its_own_place() {
    let mut three = Three::new("wait_for = \"all\"\ndetection_ms = 30000");
    let primary = three.protected(2);
    let back = (primary + 1) % 3;
    three.all[back].signal(Signal::SIGSTOP);
    let text = std::fs::read_to_string(&three.all[back].config).unwrap();
    let listens = text.lines().find(|line| line.starts_with("listen")).unwrap();
    let again = format!("listen = \"{}\"", free_address());
    let config = three.all[back].config.with_extension("again.toml");
    std::fs::write(&config, text.replacen(listens, &again, 1)).unwrap();
    let before = three.all[primary].status().unwrap().0;
    three.all.push(Process { config, serves: free_address(), child: None });
    three.all[3].start();
    until("the former life is left out", || (three.all[primary].status()?.0 > before).then_some(()));
    assert_eq!(three.protected(2), primary);
    let mut line = Line::to(three.all[primary].serves).unwrap();
    assert_eq!(line.ask("push 1").as_deref(), Some("ok"));
}

/// Waited for, it is given up after the time after which silence is death, and commits go on.
#[test]
fn a_stopped_backup_is_given_up_in_time_with_all_waited_for() {
    let three = Three::new("wait_for = \"all\"\ndetection_ms = 1000");
    let primary = three.protected(2);
    let stopped = (primary + 1) % 3;
    let mut line = Line::to(three.all[primary].serves).unwrap();
    assert_eq!(line.ask("push 0").as_deref(), Some("ok"));
    three.all[stopped].signal(Signal::SIGSTOP);
    let since = Instant::now();
    assert_eq!(line.ask("push 1").as_deref(), Some("ok"));
    println!("given up after {} ms", since.elapsed().as_millis());
    assert_eq!(three.all[primary].status().unwrap().1, 1);
    three.all[stopped].signal(Signal::SIGCONT);
    assert_eq!(three.protected(2), primary);
    assert_eq!(three.values(primary), [0, 1]);
}

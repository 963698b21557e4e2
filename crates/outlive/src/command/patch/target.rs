//! Whom a command is about: one process, or those of a workload, whose supervisor is their tracer and has them make the calls.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use outlive_epoch::control::{Side, State};
use outlive_hotpatch::Error;
use outlive_hotpatch::running::{Call, Caller, Desk, Patcher, Store, Try, first_failure};
use outlive_process::tree::{Change, Errand, Mark};

use super::ForUser;
use crate::cli::{Reach, Whom};
use crate::command::progress;
use crate::control::{Inspected, Reply, Request, unexpected};
use crate::error::{Context, Failure, Result};

/// How long a backup is waited for, and how often it is looked: an idle workload has a checkpoint several times a second.
const COMMIT_LIMIT: Duration = Duration::from_secs(5);
const COMMIT_LOOK: Duration = Duration::from_millis(5);

/// One process, open.
pub struct Target<'a> {
    pub pid: i32,
    pub patcher: Patcher<'a>,
}

pub fn open<'a>(whom: &Whom<'a>) -> Result<Vec<Target<'a>>> {
    let Some(name) = whom.workload else {
        // The command line has one of the two.
        let pid = whom.pid.unwrap_or_default();
        return Ok(vec![Target { pid, patcher: Patcher::open(pid).for_user()? }]);
    };
    let mut targets = Vec::new();
    for pid in processes(whom.reach, name)? {
        let tracer = Supervisor { reach: whom.reach, name, pid, longest: Duration::ZERO };
        let patcher = Patcher::open_traced(pid, Box::new(tracer)).for_user()?;
        targets.push(Target { pid, patcher });
    }
    Ok(targets)
}

/// Waits until what was done to a protected workload is its backup's as well, so that who is told of it can rely on it: a checkpoint that was
/// taken before may be on its way, and the one after it has everything. Says what keeps it from being known.
pub fn await_commit(whom: &Whom<'_>) -> Result<Option<&'static str>> {
    let Some(name) = whom.workload else { return Ok(None) };
    let (begun, mut wanted) = (Instant::now(), None);
    loop {
        let status = inspect(whom.reach, name)?.status;
        if status.role != Side::Primary || status.state != State::Protected {
            return Ok(Some("the workload has no backup at this moment"));
        }
        let last = *wanted.get_or_insert(status.epoch + 2);
        if status.epoch >= last {
            return Ok(None);
        }
        if begun.elapsed() > COMMIT_LIMIT {
            return Ok(Some("the backup has not acknowledged it yet"));
        }
        thread::sleep(COMMIT_LOOK);
    }
}

fn inspect(reach: &Reach, name: &str) -> Result<Inspected> {
    let request = Request::Inspect { name: name.to_owned() };
    match reach.connect()?.call(&request, &mut progress)? {
        Reply::Inspected(inspected) => Ok(*inspected),
        other => Err(unexpected(&other)),
    }
}

/// The processes of a workload as this host numbers them, parents first, without its init, which is not the program's.
fn processes(reach: &Reach, name: &str) -> Result<Vec<i32>> {
    let Inspected { node, status } = inspect(reach, name)?;
    let init = i32::try_from(status.init_pid).unwrap_or(0);
    if status.role != Side::Primary || init == 0 || node != status.primary_node {
        let place = status.primary_node.unwrap_or_else(|| "its primary's node".to_owned());
        return Err(Failure::refused(format!("{name} does not run on this node: ask on {place}")));
    }
    let mut found = vec![init];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        let path = format!("/proc/{pid}/task");
        let threads =
            fs::read_dir(&path).or_failed(|| format!("list {path}: is the workload on this node?"))?;
        let mut children = Vec::new();
        for thread in threads.flatten() {
            // A thread that has ended meanwhile has no children any more.
            let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            children.extend(text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
        }
        found.extend(children);
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

/// Has calls made by the supervisor of a workload, through its node's agent.
struct Supervisor<'a> {
    reach: &'a Reach,
    name: &'a str,
    pid: i32,
    longest: Duration,
}

impl Caller for Supervisor<'_> {
    fn call(&mut self, calls: &[Call]) -> Result<Vec<u64>, Error> {
        let mut errands = Vec::new();
        for call in calls {
            errands.push(match *call {
                Call::Map { at, length, rights } => {
                    Errand::Map { at, length, executable: rights & libc::PROT_EXEC != 0 }
                }
                Call::Synchronise => Errand::Synchronise,
                Call::Function(at, arguments) => Errand::Function { at, arguments },
            });
        }
        let request = Request::Errands { name: self.name.to_owned(), pid: self.pid, errands };
        let reply = self.reach.connect().and_then(|mut agent| agent.call(&request, &mut progress));
        let (results, held_us) = match reply {
            Ok(Reply::Returned { results, held_us }) => (results, held_us),
            Ok(other) => return Err(Error::Unfit(unexpected(&other).message)),
            Err(failure) => return Err(Error::Unfit(failure.message)),
        };
        self.longest = self.longest.max(Duration::from_micros(held_us));
        let mut results = results.into_iter().map(|result| result as u64);
        let each = calls.iter().map(|call| {
            let count = if matches!(call, Call::Synchronise) { 2 } else { 1 };
            let returned: Vec<u64> = results.by_ref().take(count).collect();
            if returned.len() == count { Some(first_failure(&returned)) } else { None }
        });
        each.collect::<Option<Vec<u64>>>()
            .ok_or_else(|| Error::Unfit("the supervisor answered for fewer calls than were asked".to_owned()))
    }

    fn store(&mut self, store: &Store<'_>) -> Result<(Try, Duration), Error> {
        let change = store.change.map(|change| Change {
            at: change.at,
            byte: change.byte,
            mark: Mark { at: change.mark.0, bytes: change.mark.1.clone() },
        });
        let request = Request::Store {
            name: self.name.to_owned(),
            pid: self.pid,
            avoided: store.avoided.iter().map(|avoided| avoided.range.clone()).collect(),
            change,
        };
        let reply = self.reach.connect().and_then(|mut agent| agent.call(&request, &mut progress));
        let (in_the_way, held_us) = match reply {
            Ok(Reply::Stored { in_the_way, held_us }) => (in_the_way, held_us),
            Ok(other) => return Err(Error::Unfit(unexpected(&other).message)),
            Err(failure) => return Err(Error::Unfit(failure.message)),
        };
        let named = |place: Result<usize, String>| match place {
            Ok(index) => store.avoided.get(index).map_or_else(String::new, |avoided| avoided.name.clone()),
            Err(why) => format!("what cannot be told: {why}"),
        };
        let in_the_way: Vec<_> = in_the_way.into_iter().map(|(tid, place)| (tid, named(place))).collect();
        let outcome = if in_the_way.is_empty() { Try::Done } else { Try::InTheWay(in_the_way) };
        Ok((outcome, Duration::from_micros(held_us)))
    }

    /// A supervisor has its own.
    fn use_desk(&mut self, _: Desk) {}

    fn longest_hold(&self) -> Duration {
        self.longest
    }
}

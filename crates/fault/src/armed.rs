//! What a fault point does in a test.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{env, fs, io};

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::getpid;

use crate::{CONTROL, HIT, Point};

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Freeze(PathBuf),
    Hang,
}

/// What a control file says.
#[derive(Debug, PartialEq, Eq)]
struct Order {
    point: String,
    nth: u64,
    /// Only while protected.
    protected: bool,
    action: Action,
}

impl Order {
    fn parse(text: &str) -> Option<Order> {
        let mut words = text.split_whitespace();
        let (point, nth) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let word = words.next()?;
        let protected = word == "protected";
        let action = match if protected { words.next()? } else { word } {
            "kill" => Action::Kill,
            "stop" => Action::Stop,
            "hang" => Action::Hang,
            "freeze" => Action::Freeze(words.next()?.into()),
            _ => return None,
        };
        words.next().is_none().then_some(Order { point, nth, protected, action })
    }
}

/// How often the step of the line last seen was taken.
struct Count {
    line: String,
    taken: u64,
}

static PROTECTED: AtomicBool = AtomicBool::new(false);

/// This process is one side of a protected pair from here on, or is not any more.
pub fn protected(is: bool) {
    PROTECTED.store(is, Ordering::SeqCst);
}

/// The step `point` is being taken.
pub fn point(point: Point) {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    static COUNT: Mutex<Count> = Mutex::new(Count { line: String::new(), taken: 0 });
    let Some(file) = FILE.get_or_init(|| env::var_os(CONTROL).map(PathBuf::from)) else { return };
    let Some(action) = due(point, file, &COUNT) else { return };
    if let Err(error) = act(&action) {
        eprintln!("fault point {}: {action:?} failed: {error}", point.name());
    }
}

fn due(point: Point, file: &Path, count: &Mutex<Count>) -> Option<Action> {
    // Most of the time there is none.
    let line = fs::read_to_string(file).ok()?;
    let Some(order) = Order::parse(&line) else {
        eprintln!("fault point {}: {} is not understood: {line}", point.name(), file.display());
        return None;
    };
    if order.point != point.name() || order.protected && !PROTECTED.load(Ordering::SeqCst) {
        return None;
    }
    {
        let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
        if count.line != line {
            *count = Count { line, taken: 0 };
        }
        count.taken += 1;
        if count.taken < order.nth {
            return None;
        }
        *count = Count { line: String::new(), taken: 0 };
    }
    let mut claimed = OsString::from(file);
    claimed.push(HIT);
    // Another process may have been first.
    fs::rename(file, claimed).ok()?;
    Some(order.action)
}

fn act(action: &Action) -> io::Result<()> {
    match action {
        Action::Kill => kill(getpid(), Signal::SIGKILL).map_err(io::Error::from),
        // To this thread: one for the process would be taken by any thread, and this one go on meanwhile (signal(7)).
        Action::Stop => raise(Signal::SIGSTOP).map_err(io::Error::from),
        // The writer is in the group: it does not return to here before it is thawed (kernel/cgroup/freezer.c).
        Action::Freeze(group) => fs::write(group.join("cgroup.freeze"), "1"),
        Action::Hang => loop {
            std::thread::park();
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_understood_or_nothing() {
        let order = |protected, action| Some(Order { point: "plug.fresh".into(), nth: 3, protected, action });
        assert_eq!(Order::parse("plug.fresh 3 kill\n"), order(false, Action::Kill));
        assert_eq!(Order::parse("plug.fresh 3 freeze /a/b"), order(false, Action::Freeze("/a/b".into())));
        assert_eq!(Order::parse("plug.fresh 3 protected stop"), order(true, Action::Stop));
        assert_eq!(Order::parse("plug.fresh 3 hang"), order(false, Action::Hang));
        let bad = ["", "plug.fresh", "plug.fresh x kill", "plug.fresh 1 explode", "plug.fresh 1 protected"];
        for bad in bad.into_iter().chain(["plug.fresh 1 kill 2", "plug.fresh 1 freeze"]) {
            assert_eq!(Order::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_point_is_due_once_at_its_nth_time() {
        let folder = tempfile::tempdir().unwrap();
        let (file, claimed) = (folder.path().join("faults"), folder.path().join("faults.hit"));
        let count = Mutex::new(Count { line: String::new(), taken: 0 });
        let due = |point| due(point, &file, &count);
        assert_eq!(due(Point::PlugFresh), None, "there is no file");
        for _ in 0..2 {
            fs::write(&file, "plug.fresh 2 stop").unwrap();
            assert_eq!(due(Point::PlugFirstFrame), None);
            assert_eq!(due(Point::PlugFresh), None);
            assert!(!claimed.exists());
            assert_eq!(due(Point::PlugFresh), Some(Action::Stop));
            assert_eq!(due(Point::PlugFresh), None, "it has happened");
            fs::write(&file, "plug.fresh 1 protected kill").unwrap();
            assert_eq!(due(Point::PlugFresh), None, "it is not protected");
            fs::remove_file(&claimed).unwrap();
        }
    }
}

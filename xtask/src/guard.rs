//! Runs a test program, and ends it when it hangs: it has said then what its threads wait in.

use std::ffi::OsString;
use std::fs;
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long one program of tests may take. The longest takes two minutes on a machine with two processors; what takes this long waits
/// for something that does not come.
const LONGEST: Duration = Duration::from_secs(20 * 60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub fn run(command: &[OsString]) -> Result<bool> {
    let (program, arguments) = command.split_first().context("no test program is named")?;
    let name = program.display();
    let mut child =
        Command::new(program).args(arguments).spawn().with_context(|| format!("cannot run {name}"))?;
    match within(&mut child, LONGEST)? {
        Some(status) => Ok(status.success()),
        None => {
            let waiting = threads(child.id());
            child.kill().with_context(|| format!("cannot end {name}, which hangs"))?;
            child.wait()?;
            bail!("{name} has not ended after {} s; its threads:\n{waiting}", LONGEST.as_secs())
        }
    }
}

fn within(child: &mut Child, longest: Duration) -> Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() > longest {
            return Ok(None);
        }
        sleep(LOOK_EVERY);
    }
}

/// Name, system call and kernel stack of each (proc(5)); the harness names a thread after its test.
fn threads(pid: u32) -> String {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return "gone".to_owned() };
    let describe = |task: fs::DirEntry| {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        format!("{} in system call {}{}", read("comm").trim(), read("syscall"), read("stack"))
    };
    tasks.flatten().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_noticed_and_described() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let ended = within(&mut child, Duration::from_millis(200));
        let waiting = threads(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.unwrap().is_none());
        assert!(waiting.starts_with("sleep in system call "), "{waiting}");
        let mut child = Command::new("true").spawn().unwrap();
        assert!(within(&mut child, LONGEST).unwrap().is_some_and(|status| status.success()));
    }
}

//! How a workload was started, kept on every node that has had it: a lost one can be started anew from it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use outlive_epoch::setup::Workload;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Context, Failure, Result};

const FILE: &str = "workload.json";
/// A workload has at most a command line and an environment: each argument 128 KiB (execve(2)), and JSON's escapes.
const LONGEST: u64 = crate::control::LINE_MAX;

/// Whole or not at all: its checksum is the first line. Only root may read it, for an environment may hold secrets.
pub fn save(directory: &Path, workload: &Workload) -> Result<()> {
    let path = directory.join(FILE);
    let new = directory.join(format!("{FILE}.new"));
    let text = serde_json::to_string(workload).or_failed(|| "put the workload into words".to_owned())?;
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        write!(file, "{:016x}\n{text}", xxh3_64(text.as_bytes()))?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    write().or_failed(|| format!("write {}", path.display()))
}

/// None if this node never had it.
pub fn load(directory: &Path) -> Result<Option<Workload>> {
    let path = directory.join(FILE);
    let shown = path.display();
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => {
            if found.or_failed(|| format!("look at {shown}"))?.len() > LONGEST {
                return Err(Failure::failed(format!("{shown} is too long to be a workload")));
            }
        }
    }
    let content = fs::read_to_string(&path).or_failed(|| format!("read {shown}"))?;
    let (sum, text) = content.split_once('\n').unwrap_or_default();
    if u64::from_str_radix(sum, 16).ok() != Some(xxh3_64(text.as_bytes())) {
        return Err(Failure::failed(format!(
            "{shown} is damaged: remove it, and start the workload with `outlive run`"
        )));
    }
    serde_json::from_str(text).map(Some).or_failed(|| format!("understand {shown}"))
}

#[cfg(test)]
mod tests {
    use outlive_epoch::setup::WhenExposed;
    use outlive_net::NetworkConfig;
    use outlive_process::launch::Program;

    use super::*;

    #[test]
    fn a_workload_comes_back_and_damage_is_found_anywhere() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()).unwrap(), None);
        let workload = Workload {
            name: "db".to_owned(),
            program: Program {
                name: "db".to_owned(),
                arguments: vec!["/bin/true".to_owned()],
                environment: vec![("A".to_owned(), "b=\n".to_owned())],
                directory: "/".to_owned(),
                scratch: Vec::new(),
                uid: 0,
                gid: 0,
                groups: Vec::new(),
            },
            network: NetworkConfig::new("db", Vec::new()),
            when_exposed: WhenExposed::Run,
            backup: Some("b".to_owned()),
        };
        save(directory.path(), &workload).unwrap();
        assert_eq!(load(directory.path()).unwrap(), Some(workload));
        let path = directory.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert!(load(directory.path()).is_err(), "byte {place}");
            fs::write(&path, &whole[..place]).unwrap();
            assert!(load(directory.path()).is_err(), "cut at {place}");
        }
    }
}

//! What a program uses, as it is shown: a row for each kind of thing, those first about which something is to be done.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use outlive_process::refusals::Refusal;
use outlive_process::survey::{Hidden, Kept};
use serde::Serialize;

use crate::command::table;

/// Directories in which nobody but Python writes, and it does without.
const CACHE: &str = "__pycache__";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Refused,
    /// Refused for a moment, which protection waits for.
    Passing,
    Hidden,
    Captured,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Refused => "REFUSED",
            Verdict::Passing => "passing",
            Verdict::Hidden => "hidden",
            Verdict::Captured => "captured",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Use {
    pub verdict: Verdict,
    pub object: String,
    /// How many there were at once; of calls, how often they were made.
    pub count: usize,
    /// One process that has it: of a program that was run, by its number inside.
    pub process: i32,
    pub example: String,
    /// What to do about it, or what the program is told.
    pub advice: String,
}

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
pub struct Uses {
    /// Nothing is refused.
    pub can_be_protected: bool,
    /// How it went: how long it was looked at, how it ended.
    pub course: String,
    pub objects: Vec<Use>,
    /// Directories to declare with `--scratch`.
    pub scratch: Vec<PathBuf>,
    /// What could not be seen.
    pub unseen: Vec<String>,
}

impl Uses {
    pub fn keep(&mut self, kept: &[Kept]) {
        for kept in kept {
            self.add(Use {
                verdict: Verdict::Captured,
                object: kept.what.to_owned(),
                count: kept.count,
                process: kept.pid,
                example: kept.example.clone(),
                advice: String::new(),
            });
        }
    }

    pub fn refuse(&mut self, refusal: &Refusal, verdict: Verdict) {
        self.add(Use {
            verdict,
            object: refusal.what.clone(),
            count: 1,
            process: refusal.pid,
            example: String::new(),
            advice: refusal.advice.to_owned(),
        });
    }

    pub fn hide<'a>(&mut self, hidden: impl IntoIterator<Item = &'a Hidden>) {
        for hidden in hidden {
            let error = nix::errno::Errno::from_raw(hidden.error);
            self.add(Use {
                verdict: Verdict::Hidden,
                object: hidden.call.clone(),
                count: hidden.count,
                process: hidden.pid,
                example: String::new(),
                advice: format!("the program is told {error:?}, as if the kernel lacked it"),
            });
        }
    }

    /// Files or directories that are written where nothing is kept.
    pub fn unwritten<'a>(&mut self, paths: impl IntoIterator<Item = (&'a PathBuf, i32)>) {
        let mut directories = BTreeSet::new();
        for (path, pid) in paths {
            if path.iter().any(|part| part == CACHE) {
                continue;
            }
            let parent = path.parent().unwrap_or(path);
            let root = parent == Path::new("/");
            let advice = match root {
                true => "let the program write in a directory, and declare that with --scratch".to_owned(),
                false => {
                    format!("--scratch {}, which begins empty and must exist on every node", parent.display())
                }
            };
            if !root {
                directories.insert(parent.to_owned());
            }
            self.add(Use {
                verdict: Verdict::Refused,
                object: format!(
                    "writing {}, which is in no directory whose contents are kept",
                    path.display()
                ),
                count: 1,
                process: pid,
                example: String::new(),
                advice,
            });
        }
        // The outermost have the others in them.
        let inner = |path: &PathBuf| directories.iter().any(|other| other != path && path.starts_with(other));
        self.scratch = directories.iter().filter(|path| !inner(path)).cloned().collect();
    }

    /// One row for each; the most there were at once.
    fn add(&mut self, new: Use) {
        let known =
            self.objects.iter_mut().find(|known| known.verdict == new.verdict && known.object == new.object);
        match known {
            Some(known) => known.count = known.count.max(new.count),
            None => self.objects.push(new),
        }
    }

    pub fn settle(&mut self) {
        let refused: Vec<String> = self
            .objects
            .iter()
            .filter(|object| object.verdict == Verdict::Refused)
            .map(|object| object.object.clone())
            .collect();
        // At one time it passed, and at another it did not.
        self.objects.retain(|object| object.verdict != Verdict::Passing || !refused.contains(&object.object));
        self.objects.sort_by_key(|a| a.verdict);
        self.can_be_protected = self.objects.iter().all(|object| object.verdict != Verdict::Refused);
    }

    pub fn render(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .objects
            .iter()
            .map(|object| {
                let about = [&object.example, &object.advice].into_iter().filter(|text| !text.is_empty());
                let about: Vec<&str> = about.map(String::as_str).collect();
                let (count, process) = (object.count.to_string(), object.process.to_string());
                vec![
                    object.verdict.word().to_owned(),
                    object.object.clone(),
                    count,
                    process,
                    about.join("; "),
                ]
            })
            .collect();
        let mut text = table::render(&["VERDICT", "OBJECT", "COUNT", "PROCESS", "ABOUT"], &rows);
        for unseen in &self.unseen {
            text.push_str(&format!("\nnot seen: {unseen}"));
        }
        if !self.scratch.is_empty() {
            let options: Vec<String> =
                self.scratch.iter().map(|path| format!("--scratch {}", path.display())).collect();
            text.push_str(&format!("\nto keep what it writes: {}", options.join(" ")));
        }
        let refused = self.objects.iter().filter(|object| object.verdict == Verdict::Refused).count();
        let verdict = match refused {
            0 => "all of it can be protected".to_owned(),
            1 => "one thing cannot be protected".to_owned(),
            many => format!("{many} things cannot be protected"),
        };
        format!("{text}\n\n{}: {verdict}", self.course)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_comes_first_and_directories_are_named_once() {
        let mut uses = Uses::default();
        uses.keep(&[Kept { what: "eventfd", count: 2, pid: 2, example: String::new() }]);
        uses.keep(&[Kept { what: "eventfd", count: 1, pid: 2, example: String::new() }]);
        let paths = ["/srv/db/a", "/srv/db/log/b", "/srv/app/__pycache__/c"].map(PathBuf::from);
        uses.unwritten(paths.iter().map(|path| (path, 3)));
        uses.settle();
        assert!(!uses.can_be_protected);
        assert_eq!(uses.scratch, [PathBuf::from("/srv/db")]);
        let said: Vec<(Verdict, usize)> = uses.objects.iter().map(|row| (row.verdict, row.count)).collect();
        assert_eq!(said, [(Verdict::Refused, 1), (Verdict::Refused, 1), (Verdict::Captured, 2)]);
        assert!(uses.render().ends_with("2 things cannot be protected"));
    }

    #[test]
    fn what_only_passes_can_be_protected() {
        let mut uses = Uses::default();
        let refusal = Refusal { pid: 2, what: "a moment".to_owned(), advice: "wait", passing: true };
        uses.refuse(&refusal, Verdict::Passing);
        uses.settle();
        assert!(uses.can_be_protected && uses.render().contains("all of it can be protected"));
    }
}

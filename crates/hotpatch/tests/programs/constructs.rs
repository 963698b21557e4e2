//! One program per construct. Its first lines say what is to happen:
//!
//! | line | meaning |
//! |---|---|
//! | `build: COMMAND` | how it is built; `$FLAGS` is empty, or `-DFIXED` |
//! | `old: TEXT` | what it answers; several in the order of the questions, each with what is in force |
//! | `new: TEXT` | what it answers patched |
//! | `switched: NAMES` | the functions whose entries are switched |
//! | `warned: TEXT` | the builder says this |
//! | `nothing:` | the two builds do not differ |
//! | `refused: KIND TEXT` | the patch is refused so, with this text in the reason |
//! | `allowed:` | with `--allow` of that kind it is built |

use std::fs;

use libtest_mimic::Trial;
use outlive_hotpatch::refusal::Kind;
use outlive_hotpatch::running::State;

use super::lab::{Recorded, allowing, sign, sources};
use super::trial;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut names: Vec<String> = fs::read_dir(sources())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".c") || name.ends_with(".cpp"))
        .collect();
    names.sort();
    for file in names {
        let text = fs::read_to_string(sources().join(&file)).unwrap();
        let name = file.split('.').next().unwrap().to_owned();
        let head: Vec<String> = text
            .lines()
            .map_while(|line| line.strip_prefix("// "))
            .map(|line| line.trim().to_owned())
            .collect();
        let all = |key: &str| -> Vec<(String, String)> {
            let prefix = format!("{key}:");
            head.iter()
                .filter_map(|line| line.strip_prefix(&prefix))
                .map(|value| (key.to_owned(), value.trim().to_owned()))
                .collect()
        };
        if all("old").is_empty() {
            continue;
        }
        let answers: Vec<(String, String)> = head
            .iter()
            .filter_map(|line| line.split_once(": "))
            .filter(|(key, _)| *key == "old" || *key == "new")
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let one = |key: &str| all(key).into_iter().next().map(|(_, value)| value);
        let construct = Construct {
            name: name.clone(),
            build: one("build").unwrap_or_else(|| format!("gcc -O2 -pthread $FLAGS -o program {name}.c")),
            answers,
            switched: one("switched"),
            warned: one("warned"),
            is_nothing: one("nothing").is_some(),
            refused: one("refused"),
            is_allowed: one("allowed").is_some(),
        };
        trials.push(trial(&format!("construct/{name}"), move || construct.run()));
    }
    trials
}

struct Construct {
    name: String,
    build: String,
    answers: Vec<(String, String)>,
    switched: Option<String>,
    warned: Option<String>,
    is_nothing: bool,
    refused: Option<String>,
    is_allowed: bool,
}

impl Construct {
    fn run(&self) {
        let recorded = Recorded::new(&self.build);
        let mut running = recorded.start();
        assert_eq!(running.ask("?"), self.answers[0].1, "{} before anything", self.name);
        let made = recorded.build("-DFIXED", allowing(&[]));
        if self.is_nothing {
            let error = made.unwrap_err().to_string();
            assert!(error.contains("nothing to patch"), "{error}");
            return;
        }
        if let Some(refused) = &self.refused {
            let (kind, text) = refused.split_once(' ').unwrap_or((refused, ""));
            let error = made.unwrap_err().to_string();
            assert!(error.contains(&format!("[{kind}]")) && error.contains(text), "{error}");
            if self.is_allowed {
                let made = recorded.build("-DFIXED", allowing(&[Kind::parse(kind).unwrap()])).unwrap();
                assert_eq!(made.allowed.len(), 1);
            }
            return;
        }
        let made = made.unwrap();
        let switched: Vec<&str> =
            made.parts.iter().flat_map(|part| &part.switches).map(|switch| switch.name.as_str()).collect();
        let wanted = self.switched.as_deref().unwrap_or_default();
        let sorted = |text: &str| {
            let mut names: Vec<String> = text.split(',').map(str::to_owned).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(&switched.join(",")), sorted(wanted));
        if let Some(warned) = &self.warned {
            assert!(made.warnings.iter().any(|warning| warning.contains(warned)), "{:?}", made.warnings);
        }
        let signed = sign(&made);
        running.patcher().check(&signed).unwrap();
        assert!(running.regions().is_empty(), "a check changed something");
        // As the first line was answered before the patch, the rest follows in the order of the file; without more of them, old and
        // new alternate.
        let mut rest: Vec<(String, String)> = self.answers[1..].to_vec();
        let repeats = !rest.iter().any(|(key, _)| key == "old");
        if repeats {
            let (old, new) = (self.answers[0].clone(), rest[0].clone());
            rest.extend([old.clone(), new, old]);
        }
        let mut is_new = false;
        for (key, wanted) in &rest {
            if (key == "new") != is_new {
                is_new = !is_new;
                if is_new {
                    let report = running.apply(&signed);
                    assert!(report.functions > 0);
                } else {
                    running.revert();
                }
            }
            let states = running.states();
            let state = if is_new { State::Applied } else { State::Reverted };
            assert!(states.iter().all(|other| *other == state), "{states:?} while {key}");
            assert_eq!(&running.ask("?"), wanted, "{} while {key}", self.name);
        }
    }
}

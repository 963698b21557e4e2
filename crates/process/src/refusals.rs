//! What cannot be protected (R3). A capture ends with the first; a survey wants all of them.

use std::collections::BTreeMap;

use crate::checkpoint::Pid;
use crate::error::{Error, Result};

/// Something that cannot be protected, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub pid: Pid,
    pub what: String,
    pub advice: &'static str,
    /// It may be gone in a moment: a capture would be tried again.
    pub passing: bool,
}

impl Refusal {
    /// What an error says, if it is a refusal and not a failure.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Unsupported { pid, what, advice } => {
                Some(Self { pid: *pid, what: what.clone(), advice, passing: false })
            }
            Error::NotNow(inner) => Self::of(inner).map(|refusal| Self { passing: true, ..refusal }),
            _ => None,
        }
    }
}

/// Whether a capture goes on past what is refused.
#[derive(Debug, Default)]
pub(crate) enum Refusals {
    /// The first ends it.
    #[default]
    End,
    /// All are listed, and what is refused is left out. Such a checkpoint is never used.
    Listed(Vec<Refusal>),
}

impl Refusals {
    /// `None` if it was refused and that has been listed.
    pub fn pass<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match (result, self) {
            (Ok(value), _) => Ok(Some(value)),
            (Err(error), Refusals::Listed(list)) => match Refusal::of(&error) {
                Some(refusal) => {
                    if !list.contains(&refusal) {
                        list.push(refusal);
                    }
                    Ok(None)
                }
                None => Err(error),
            },
            (Err(error), Refusals::End) => Err(error),
        }
    }

    /// Whether this is a survey: nothing of it is used, and what runs must not notice it.
    pub fn are_listed(&self) -> bool {
        matches!(self, Refusals::Listed(_))
    }

    /// Ends the list.
    pub fn take(&mut self) -> Vec<Refusal> {
        match std::mem::take(self) {
            Refusals::Listed(list) => list,
            Refusals::End => Vec::new(),
        }
    }
}

/// What processes have done that cannot be protected for as long as they live, or until they run another program.
#[derive(Debug, Default)]
pub(crate) struct Standing(BTreeMap<Pid, Vec<(String, &'static str)>>);

impl Standing {
    /// More kinds of refusals than there are.
    const MAX: usize = 64;

    pub fn add(&mut self, pid: Pid, what: &str, advice: &'static str) {
        let list = self.0.entry(pid).or_default();
        if list.len() < Self::MAX && list.iter().all(|(known, _)| known != what) {
            list.push((what.to_owned(), advice));
        }
    }

    pub fn forget(&mut self, pid: Pid) {
        self.0.remove(&pid);
    }

    pub fn errors(&self) -> Vec<Error> {
        let each = self.0.iter().flat_map(|(pid, list)| list.iter().map(move |entry| (*pid, entry)));
        each.map(|(pid, (what, advice))| Error::Unsupported { pid, what: what.clone(), advice }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(what: &str) -> Result<()> {
        Err(Error::Unsupported { pid: 2, what: what.to_owned(), advice: "do without" })
    }

    #[test]
    fn a_survey_lists_every_refusal_once_and_stops_at_failures() {
        let mut refusals = Refusals::Listed(Vec::new());
        for what in ["a", "b", "a"] {
            assert!(refusals.pass(refused(what)).unwrap().is_none());
        }
        assert_eq!(refusals.pass(Ok(7)).unwrap(), Some(7));
        let moment = refused("c").map_err(|error| Error::NotNow(Box::new(error)));
        assert!(refusals.pass(moment).unwrap().is_none());
        assert!(refusals.pass::<()>(Err(Error::NotStopped(1))).is_err());
        let list = refusals.take();
        let said: Vec<(&str, bool)> = list.iter().map(|found| (found.what.as_str(), found.passing)).collect();
        assert_eq!(said, [("a", false), ("b", false), ("c", true)]);
        assert!(refusals.pass(refused("d")).is_err(), "a capture ends with the first");
    }

    #[test]
    fn what_a_process_did_stands_until_it_is_forgotten() {
        let mut standing = Standing::default();
        standing.add(2, "a", "x");
        standing.add(2, "a", "x");
        standing.add(3, "b", "y");
        assert_eq!(standing.errors().len(), 2);
        standing.forget(2);
        assert_eq!(standing.errors().len(), 1);
    }
}

//! A patch from two recorded builds: which functions changed, what goes with them, and what cannot be done.

mod assemble;
mod select;
mod unwind;

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::patch::{Part, Patch};
use crate::program::Program;
use crate::record::{Input, Link, Record};
use crate::refusal::{Kind, Refusal};
use crate::unit::Unit;

/// What the user decides about a patch.
#[derive(Debug, Default)]
pub struct Options {
    pub name: String,
    pub allow: BTreeSet<Kind>,
    pub is_cumulative: bool,
    /// All functions are to switch at one instant.
    pub is_together: bool,
    pub diff: Option<String>,
}

/// One program of both builds.
struct Both<'a> {
    program: &'a Program,
    /// Objects of the new build, each with that of the old of the same name.
    pairs: Vec<(Rc<Unit>, Rc<Unit>)>,
}

/// Compares two builds and makes the patch between them.
pub fn build(base: &Record, new: &Record, options: Options) -> Result<Patch> {
    let (old_links, new_links) = (base.links()?, new.links()?);
    if old_links.is_empty() {
        return Err(Error::unfit(
            "the recorded build linked no program: does it call its compiler by an absolute path? Set CC for it",
        ));
    }
    if new_links.is_empty() {
        return Err(Error::unfit(
            "the new build linked nothing: was anything changed, and does the command build it?",
        ));
    }
    let mut units = Units::default();
    let mut parts = Vec::new();
    let mut refusals = BTreeSet::new();
    let mut warnings = BTreeSet::new();
    for (name, new_link) in &new_links {
        let Some(old_link) = old_links.get(name) else {
            warnings.insert(format!("{name} was not in the recorded build, and is left alone"));
            continue;
        };
        if old_link.program == new_link.program {
            continue;
        }
        let program = Program::parse(name, &base.program(&old_link.program)?)?;
        let both = Both { program: &program, pairs: units.pair(base, old_link, new, new_link)? };
        let selected = select::select(&both, &mut refusals, &mut warnings)?;
        if let Some(part) = assemble::assemble(&both, selected, &mut refusals)? {
            parts.push(part);
        }
    }
    let (allowed, refused): (Vec<Refusal>, Vec<Refusal>) = refusals
        .into_iter()
        .partition(|refusal| refusal.kind.can_be_allowed() && options.allow.contains(&refusal.kind));
    if !refused.is_empty() {
        return Err(Error::Refused(refused));
    }
    parts.retain(|part: &Part| !part.switches.is_empty());
    if parts.is_empty() {
        return Err(Error::unfit("no function differs between the two builds: there is nothing to patch"));
    }
    let built = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    Ok(Patch {
        name: options.name,
        built,
        is_cumulative: options.is_cumulative,
        is_together: options.is_together,
        diff: options.diff,
        allowed,
        warnings: warnings.into_iter().collect(),
        parts,
    })
}

/// Objects that were read, by their content: most are the same in both builds and in several programs.
#[derive(Default)]
struct Units {
    read: HashMap<String, Rc<Unit>>,
}

impl Units {
    fn get(&mut self, record: &Record, input: &Input) -> Result<Rc<Unit>> {
        if let Some(unit) = self.read.get(&input.object) {
            return Ok(Rc::clone(unit));
        }
        let unit = Rc::new(Unit::parse(&input.name, record.object(&input.object)?)?);
        self.read.insert(input.object.clone(), Rc::clone(&unit));
        Ok(unit)
    }

    /// Objects of one link with those of the other, by name; of several with one name in their order.
    fn pair(
        &mut self,
        base: &Record,
        old: &Link,
        new: &Record,
        now: &Link,
    ) -> Result<Vec<(Rc<Unit>, Rc<Unit>)>> {
        let mut by_name: HashMap<&str, Vec<&Input>> = HashMap::new();
        for input in old.inputs.iter().rev() {
            by_name.entry(&input.name).or_default().push(input);
        }
        let mut pairs = Vec::new();
        for input in &now.inputs {
            let before = match by_name.get_mut(input.name.as_str()).and_then(Vec::pop) {
                Some(before) => self.get(base, before)?,
                None => Rc::new(Unit::nothing(&input.name)),
            };
            pairs.push((before, self.get(new, input)?));
        }
        Ok(pairs)
    }
}

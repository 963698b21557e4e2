//! Which functions a patch must have: those that changed, and those that rely on something that cannot be switched.

use std::collections::{BTreeSet, HashMap};

use iced_x86::FlowControl;
use object::elf;

use super::Both;
use crate::compare::{Change, Pair, is_by_content};
use crate::error::Result;
use crate::layout::Types;
use crate::patch::When;
use crate::program::Placement;
use crate::refusal::{Kind as Why, Refusal};
use crate::unit::{Item, Kind, Place, Unit, decode};

/// What becomes of an item of the new build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// As it was: the program's own is used.
    Kept,
    /// The program has none, or none that can be used: taken into the patch if something there refers to it.
    Added,
    /// Differs, with the reason. The patch has the new one.
    Changed(String),
}

/// An item: its object and its place in it.
pub(super) type At = (usize, usize);

pub(super) struct Selected<'a> {
    pub pairs: Vec<Pair<'a>>,
    pub placements: Vec<Placement>,
    /// By object and item.
    pub fates: Vec<Vec<Fate>>,
    /// Changed functions whose entries are switched.
    pub switched: Vec<At>,
    /// Changed, and reached only by what refers to them in the patch: clones, whose callers know more of them than their
    /// signature, functions that are called differently, constants.
    pub private: BTreeSet<At>,
    /// Global names that objects of the new build define, with the distance from the item's beginning.
    pub globals: HashMap<String, (At, u64)>,
}

impl Selected<'_> {
    /// Functions that the change brings along for the patcher to call: those of an earlier change are not called again.
    pub fn hooks(&self) -> Vec<(At, When)> {
        let mut found = Vec::new();
        for (unit, pair) in self.pairs.iter().enumerate() {
            for (item, it) in pair.new.items.iter().enumerate() {
                let when = it.name.as_deref().and_then(When::of);
                if let (Kind::Code, Some(when)) = (it.kind, when)
                    && self.fates[unit][item] != Fate::Kept
                {
                    found.push(((unit, item), when));
                }
            }
        }
        found
    }

    /// Where the program has what an item of the new build is a build of.
    pub fn address(&self, both: &Both<'_>, (unit, item): At) -> Option<u64> {
        let pair = &self.pairs[unit];
        let partner = pair.partners[item]?;
        let address = both.program.address(pair.old, self.placements[unit], partner)?;
        let old = &pair.old.items[partner];
        let fits =
            old.kind != Kind::Code || both.program.is_code_at(pair.old, self.placements[unit], old, address);
        fits.then_some(address)
    }
}

pub(super) fn select<'a>(
    both: &'a Both<'a>,
    refusals: &mut BTreeSet<Refusal>,
    warnings: &mut BTreeSet<String>,
) -> Result<Selected<'a>> {
    let old_units: Vec<&Unit> = both.pairs.iter().map(|(old, _)| old.as_ref()).collect();
    let placements = both.program.place(&old_units);
    let pairs: Vec<Pair<'a>> = both.pairs.iter().map(|(old, new)| Pair::new(old, new)).collect();
    let mut selected = Selected {
        fates: pairs.iter().map(|pair| vec![Fate::Kept; pair.new.items.len()]).collect(),
        globals: globals(&pairs),
        pairs,
        placements,
        switched: Vec::new(),
        private: BTreeSet::new(),
    };
    for unit in 0..selected.pairs.len() {
        let pair = &selected.pairs[unit];
        let is_same = std::ptr::eq(pair.old, pair.new);
        for item in 0..pair.new.items.len() {
            let fate = match &selected.pairs[unit].partners[item] {
                Some(_) if is_same => Fate::Kept,
                _ => fate(both, &selected, (unit, item), refusals),
            };
            selected.fates[unit][item] = fate;
        }
        let pair = &selected.pairs[unit];
        let fates = selected.fates[unit].iter().enumerate();
        let kept = fates.filter(|(item, fate)| **fate == Fate::Kept && pair.has_only_moved(*item));
        let names: Vec<&str> = kept.map(|(item, _)| pair.new.title(item)).collect();
        if !names.is_empty() {
            let (object, names) = (&pair.new.name, names.join(", "));
            warnings.insert(format!(
                "in {object} only the numbers of lines (__LINE__) differ, and stay as they were, of: {names}"
            ));
        }
    }
    let types = check_types(both, &selected, refusals, warnings)?;
    spread(both, &mut selected, &types, refusals);
    for unit in 0..selected.pairs.len() {
        for item in 0..selected.pairs[unit].new.items.len() {
            if is_changed_code(&selected, (unit, item))
                && !selected.private.contains(&(unit, item))
                && selected.address(both, (unit, item)).is_some()
            {
                check_entry(&selected, (unit, item), refusals, warnings);
                selected.switched.push((unit, item));
            }
        }
    }
    Ok(selected)
}

fn globals(pairs: &[Pair<'_>]) -> HashMap<String, (At, u64)> {
    let mut found: HashMap<String, (At, u64, bool)> = HashMap::new();
    for (unit, pair) in pairs.iter().enumerate() {
        for symbol in pair.new.symbols.iter().filter(|symbol| !symbol.is_local()) {
            let Place::Item(item) = symbol.place else { continue };
            let is_weak = symbol.binding == elf::STB_WEAK.0;
            let is_better = found.get(&symbol.name).is_none_or(|(_, _, was_weak)| *was_weak && !is_weak);
            if is_better {
                found.insert(symbol.name.clone(), ((unit, item), symbol.value, is_weak));
            }
        }
    }
    found.into_iter().map(|(name, (at, value, _))| (name, (at, value))).collect()
}

fn is_changed_code(selected: &Selected<'_>, (unit, item): At) -> bool {
    matches!(selected.fates[unit][item], Fate::Changed(_))
        && selected.pairs[unit].new.items[item].kind == Kind::Code
}

/// The compiler's clones and parts of functions: `f.constprop.0`, `f.isra.0`, `f.part.0`, `f.cold`.
pub(super) fn is_clone(item: &Item) -> bool {
    item.kind == Kind::Code
        && item.name.as_deref().is_some_and(|name| name.trim_start_matches('.').contains('.'))
}

/// The table by which virtual functions are called (Itanium C++ ABI, 5.1.4.1).
fn is_virtual_table(item: &Item) -> bool {
    item.kind == Kind::ReadOnly && item.name.as_deref().is_some_and(|name| name.starts_with("_ZTV"))
}

fn old_table(title: &str, why: &str) -> Refusal {
    Refusal::new(Why::Layout, title, format!("{why}: objects that exist lead to the old table"))
}

fn fate(both: &Both<'_>, selected: &Selected<'_>, at: At, refusals: &mut BTreeSet<Refusal>) -> Fate {
    let (unit, item) = at;
    let pair = &selected.pairs[unit];
    let it = &pair.new.items[item];
    let title = format!("{} ({})", pair.new.title(item), pair.new.name);
    if matches!(it.kind, Kind::Unwind | Kind::Exceptions | Kind::Strings | Kind::Constants(_)) {
        return Fate::Kept;
    }
    if is_by_content(pair.new, item) {
        return Fate::Added;
    }
    if it.kind == Kind::Constructors || (it.kind == Kind::Code && it.name.is_none() && it.size > 0) {
        let same = pair.old.items.iter().position(|old| old.section_name == it.section_name);
        let has_changed = same.is_none_or(|old| {
            let old = &pair.old.items[old];
            old.bytes != it.bytes || old.relocations.len() != it.relocations.len()
        });
        if has_changed && it.size > 0 {
            let (kind, why) = if it.kind == Kind::Constructors {
                (Why::Constructor, "what runs before main or at exit changed, and the program is past that")
            } else {
                (Why::Unsupported, "code without a function's name changed (assembly)")
            };
            refusals.insert(Refusal::new(kind, title, why));
        }
        return Fate::Kept;
    }
    if it.name.is_none() {
        // Data without a name: sections that assemblers begin in any case are empty.
        if it.size > 0 && matches!(it.kind, Kind::Data | Kind::Zero | Kind::ThreadLocal) {
            let same = pair.old.items.iter().find(|old| old.section_name == it.section_name);
            if same.is_none_or(|old| old.bytes != it.bytes || old.size != it.size) {
                refusals.insert(Refusal::new(Why::Data, title, "data without a name changed"));
            }
        }
        return Fate::Kept;
    }
    let change = pair.change(item);
    let is_in_program = selected.address(both, at).is_some();
    match (it.kind, change) {
        (_, Change::Added) => Fate::Added,
        (_, _) if !is_in_program => Fate::Added,
        (_, Change::Same) => Fate::Kept,
        (Kind::Code, Change::Changed(why)) => {
            let functions: BTreeSet<u64> =
                it.symbols.iter().map(|symbol| pair.new.symbols[*symbol].value).collect();
            if functions.len() > 1 {
                let why = "it shares its section with other functions (-fno-function-sections or assembly)";
                refusals.insert(Refusal::new(Why::Unsupported, title, why));
                return Fate::Kept;
            }
            Fate::Changed(why)
        }
        (Kind::ReadOnly, Change::Changed(why)) => {
            if is_virtual_table(it) {
                refusals.insert(old_table(&title, &why));
            }
            Fate::Changed(why)
        }
        (Kind::ThreadLocal, Change::Changed(why)) => {
            refusals.insert(Refusal::new(
                Why::ThreadLocal,
                title,
                format!("{why}: threads that exist have the old"),
            ));
            Fate::Kept
        }
        (_, Change::Changed(why)) => {
            let partner = pair.partners[item].map(|old| &pair.old.items[old]);
            let (kind, rest) = if partner.is_some_and(|old| old.size == it.size) {
                (Why::Data, "the program has its own by now")
            } else {
                (Why::Unsupported, "the program has room for the old one only")
            };
            refusals.insert(Refusal::new(kind, title, format!("{why}, and {rest}")));
            Fate::Kept
        }
    }
}

/// Debug information of both builds of each object that differs.
type AllTypes = Vec<Option<(Types, Types)>>;

fn check_types(
    both: &Both<'_>,
    selected: &Selected<'_>,
    refusals: &mut BTreeSet<Refusal>,
    warnings: &mut BTreeSet<String>,
) -> Result<AllTypes> {
    let mut all = Vec::new();
    for (unit, pair) in selected.pairs.iter().enumerate() {
        // New functions use types as well: of a language that makes types part of a function's name they may be all there is.
        let is_new = |(fate, item): (&Fate, &Item)| match fate {
            Fate::Kept => false,
            Fate::Added => item.kind == Kind::Code,
            Fate::Changed(_) => true,
        };
        let changed = selected.fates[unit].iter().zip(&pair.new.items).any(is_new);
        if std::ptr::eq(pair.old, pair.new) || pair.old.raw.is_empty() || !changed {
            all.push(None);
            continue;
        }
        match (Types::parse(pair.old)?, Types::parse(pair.new)?) {
            (Some(old), Some(new)) => {
                for refusal in old.moved(&new) {
                    refusals.insert(refusal);
                }
                all.push(Some((old, new)));
            }
            _ => {
                let program = &both.program.name;
                warnings.insert(format!(
                    "{} in {program} has no debug information: whether its types changed is not known",
                    pair.new.name
                ));
                all.push(None);
            }
        }
    }
    Ok(all)
}

/// Makes what cannot be switched private, and takes in whoever refers to it, until nothing is added.
fn spread(both: &Both<'_>, selected: &mut Selected<'_>, types: &AllTypes, refusals: &mut BTreeSet<Refusal>) {
    let mut called_differently = HashMap::new();
    for (unit, types) in types.iter().enumerate() {
        for item in 0..selected.pairs[unit].new.items.len() {
            if !matches!(selected.fates[unit][item], Fate::Changed(_)) {
                continue;
            }
            let it = &selected.pairs[unit].new.items[item];
            let signature = match (types, &it.name) {
                (Some((old, new)), Some(name)) if it.kind == Kind::Code => old.signature_change(new, name),
                _ => None,
            };
            if it.kind == Kind::ReadOnly || is_clone(it) || signature.is_some() {
                selected.private.insert((unit, item));
            }
            if let Some(why) = signature {
                called_differently.insert((unit, item), why);
            }
        }
    }
    loop {
        let mut found: Vec<(At, String)> = Vec::new();
        for (unit, pair) in selected.pairs.iter().enumerate() {
            for (item, it) in pair.new.items.iter().enumerate() {
                if !matches!(selected.fates[unit][item], Fate::Kept) {
                    continue;
                }
                for relocation in &it.relocations {
                    let symbol = &pair.new.symbols[relocation.symbol];
                    let target = match symbol.place {
                        Place::Item(target) if symbol.is_local() => (unit, target),
                        _ => match selected.globals.get(&symbol.name) {
                            Some((target, _)) => *target,
                            None => continue,
                        },
                    };
                    if !selected.private.contains(&target) {
                        continue;
                    }
                    let title = selected.pairs[target.0].new.title(target.1);
                    match it.kind {
                        Kind::ReadOnly if is_virtual_table(it) => {
                            let why = format!("it refers to {title}, which changed");
                            refusals.insert(old_table(pair.new.title(item), &why));
                        }
                        Kind::Code | Kind::ReadOnly if selected.address(both, (unit, item)).is_some() => {
                            found.push(((unit, item), format!("it refers to {title}, which changed")));
                        }
                        Kind::Data => {
                            let (kind, why) = match called_differently.get(&target) {
                                Some(why) => (Why::Signature, format!("{title}: {why}")),
                                None => {
                                    (Why::Data, format!("it holds the address of {title}, which changed"))
                                }
                            };
                            refusals.insert(Refusal::new(kind, pair.new.title(item), why));
                        }
                        _ => {}
                    }
                    break;
                }
            }
        }
        if found.is_empty() {
            return;
        }
        for ((unit, item), why) in found {
            let it = &selected.pairs[unit].new.items[item];
            if it.kind == Kind::ReadOnly || is_clone(it) {
                selected.private.insert((unit, item));
            }
            selected.fates[unit][item] = Fate::Changed(why);
        }
    }
}

/// What must hold of a function whose entry is to be switched.
fn check_entry(
    selected: &Selected<'_>,
    (unit, item): At,
    refusals: &mut BTreeSet<Refusal>,
    warnings: &mut BTreeSet<String>,
) {
    let pair = &selected.pairs[unit];
    let Some(old_item) = pair.partners[item] else { return };
    let old = &pair.old.items[old_item];
    let title = pair.new.title(item).to_owned();
    if old.pad.is_none() {
        let why = "it has no room at its entry: it is assembly, or was not compiled under the recorder";
        refusals.insert(Refusal::new(Why::Entry, &title, why));
    }
    for (owner, owner_item) in [(pair.old, old_item), (pair.new, item)] {
        for symbol in &owner.symbols {
            if symbol.place != Place::Item(owner_item) {
                continue;
            }
            if symbol.kind == elf::STT_GNU_IFUNC.0 {
                let why = "the program chose one of several when it started";
                refusals.insert(Refusal::new(Why::Ifunc, &title, why));
            }
            let is_label =
                symbol.kind == elf::STT_NOTYPE.0 && !symbol.name.is_empty() && !symbol.name.starts_with(".L");
            if is_label {
                let why =
                    format!("inline assembly has the label {} in it, to which others may jump", symbol.name);
                refusals.insert(Refusal::new(Why::AssemblyLabel, &title, why));
            }
        }
    }
    let returns = decode(&old.bytes).any(|instruction| match instruction.flow_control() {
        FlowControl::Return | FlowControl::IndirectBranch => true,
        FlowControl::UnconditionalBranch => {
            // A call at a function's end is a jump out of it.
            old.relocations.iter().any(|r| (instruction.ip()..instruction.next_ip()).contains(&r.offset))
        }
        _ => false,
    });
    if title == "main" || !returns {
        warnings.insert(format!(
            "{title} is entered once or never left: threads that are in it stay in the old code"
        ));
    }
}

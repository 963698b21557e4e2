//! What changed between two builds of one object: by what code does and refers to, not by bytes.
//!
//! Two items are the same if their bytes are, outside of relocated fields, and each relocation means the same: the same
//! named thing, or, for what has no name (strings, constants, jump tables), the same content.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap};

use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, Register};
use object::elf;

use crate::lines::{Lines, are_lines_of_one_place};
use crate::unit::{Kind, Place, Relocation, Symbol, Unit, decode};

/// Functions that are given the line they are called from, and the register it is in, for objects without debug information. A
/// different line alone is no change: it is only printed, by a function that does not return or only reports.
const LINE_ARGUMENTS: [(&str, Register); 5] = [
    // glibc, assert.h: (assertion, file, line, function).
    ("__assert_fail", Register::EDX),
    // Redis, redisassert.h and server.h: (assertion, file, line); (client, object, assertion, file, line); (file, line, …).
    ("_serverAssert", Register::EDX),
    ("_serverAssertWithInfo", Register::R8D),
    ("_serverPanic", Register::ESI),
    // GLib, gtestutils.h: (domain, file, line, function, expression).
    ("g_assertion_message_expr", Register::EDX),
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Same,
    /// There was none of its name.
    Added,
    /// In what.
    Changed(String),
}

/// Two builds of one object.
#[derive(Debug)]
pub struct Pair<'a> {
    pub old: &'a Unit,
    pub new: &'a Unit,
    /// For each item of the new build the one of the old that has the same name.
    pub partners: Vec<Option<usize>>,
    /// Static variables of functions, in the new build, that may be one of several in the old.
    pub unclear: Vec<usize>,
    /// Of both objects, once they were needed.
    lines: OnceCell<(Lines, Lines)>,
    /// Functions of the new build that were found to differ only in the numbers of their lines.
    only_moved: RefCell<BTreeSet<usize>>,
}

impl<'a> Pair<'a> {
    pub fn new(old: &'a Unit, new: &'a Unit) -> Self {
        let partners = vec![None; new.items.len()];
        let mut pair = Self {
            old,
            new,
            partners,
            unclear: Vec::new(),
            lines: OnceCell::new(),
            only_moved: RefCell::default(),
        };
        let named: HashMap<(&str, bool), usize> = old
            .items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| Some(((item.name.as_deref()?, item.is_global), index)))
            .collect();
        for (index, item) in new.items.iter().enumerate() {
            let Some(name) = item.name.as_deref() else { continue };
            if !is_numbered(new, index) {
                // A variable that became static, or no longer is, is the same variable.
                let global =
                    named.get(&(name, item.is_global)).or_else(|| named.get(&(name, !item.is_global)));
                pair.partners[index] = global.copied();
            }
        }
        pair.match_numbered();
        pair
    }

    /// Matches static variables of functions (`name.3`), whose numbers differ from build to build: by the functions that use
    /// them, or, if as many have the name, by their order.
    fn match_numbered(&mut self) {
        let (old_users, new_users) = (users(self.old), users(self.new));
        let old_all = numbered(self.old);
        for (base, new_items) in numbered(self.new) {
            let old_items: &[usize] = old_all.get(base).map_or(&[], Vec::as_slice);
            let empty = BTreeSet::new();
            for (rank, item) in new_items.iter().enumerate() {
                let users = new_users.get(item).unwrap_or(&empty);
                let is_alone =
                    new_items.iter().filter(|other| new_users.get(other).unwrap_or(&empty) == users).count()
                        == 1;
                let same_users: Vec<usize> = old_items
                    .iter()
                    .copied()
                    .filter(|old| old_users.get(old).unwrap_or(&empty) == users)
                    .collect();
                self.partners[*item] = match same_users.as_slice() {
                    [only] if is_alone => Some(*only),
                    _ if old_items.len() == new_items.len() => Some(old_items[rank]),
                    _ => None,
                };
                if self.partners[*item].is_none() && !old_items.is_empty() {
                    self.unclear.push(*item);
                }
            }
        }
    }

    /// Whether a function that was compared differs only in the numbers of its lines, and so counts as the same.
    pub fn has_only_moved(&self, item: usize) -> bool {
        self.only_moved.borrow().contains(&item)
    }

    /// What became of an item.
    pub fn change(&self, item: usize) -> Change {
        let Some(partner) = self.partners[item] else { return Change::Added };
        match self.difference(partner, item, &mut Vec::new()) {
            None => Change::Same,
            Some(what) => Change::Changed(what),
        }
    }

    /// In what two items differ. `under_way` are pairs that are being compared: equal if nothing else differs.
    fn difference(&self, old: usize, new: usize, under_way: &mut Vec<(usize, usize)>) -> Option<String> {
        if under_way.contains(&(old, new)) {
            return None;
        }
        under_way.push((old, new));
        let found = self.difference_inside(old, new, under_way);
        under_way.pop();
        found
    }

    fn difference_inside(
        &self,
        old: usize,
        new: usize,
        under_way: &mut Vec<(usize, usize)>,
    ) -> Option<String> {
        let (a, b) = (&self.old.items[old], &self.new.items[new]);
        if a.kind != b.kind {
            return Some("it is of another kind".to_owned());
        }
        if a.size != b.size {
            return Some(format!("its size was {} and is {}", a.size, b.size));
        }
        if a.relocations.len() != b.relocations.len() {
            return Some("it refers to more or less".to_owned());
        }
        let (from, to) = (self.distances(self.old, old), self.distances(self.new, new));
        let mut is_relocated = vec![false; a.bytes.len()];
        for (x, y) in a.relocations.iter().zip(&b.relocations) {
            if x.offset != y.offset || meaning(x.kind) != meaning(y.kind) {
                return Some("its code is another".to_owned());
            }
            let distance = |distances: &HashMap<u64, u64>, r: &Relocation| {
                if is_relative(r.kind) { distances.get(&r.offset).copied().unwrap_or(0) } else { 0 }
            };
            if !self.same_target(x, distance(&from, x), y, distance(&to, y), under_way) {
                return Some(format!(
                    "it refers to {} in place of {}",
                    self.new.target_title(y),
                    self.old.target_title(x)
                ));
            }
            let at = x.offset as usize;
            let end = (at + width(x.kind)).min(is_relocated.len());
            is_relocated[at..end].fill(true);
        }
        let bytes = a.bytes.iter().zip(&b.bytes).zip(&is_relocated);
        if bytes.clone().all(|((x, y), is_relocated)| *is_relocated || x == y) {
            return None;
        }
        if a.kind == Kind::Code && self.only_lines_differ(old, new) {
            self.only_moved.borrow_mut().insert(new);
            return None;
        }
        Some(if a.kind == Kind::Code { "its code is another" } else { "its content is another" }.to_owned())
    }

    fn distances(&self, unit: &Unit, item: usize) -> HashMap<u64, u64> {
        if unit.items[item].kind == Kind::Code { unit.distances(item) } else { HashMap::new() }
    }

    fn same_target(
        &self,
        x: &Relocation,
        x_distance: u64,
        y: &Relocation,
        y_distance: u64,
        under_way: &mut Vec<(usize, usize)>,
    ) -> bool {
        let (s, t) = (&self.old.symbols[x.symbol], &self.new.symbols[y.symbol]);
        let same_name = || !s.is_local() && !t.is_local() && s.name == t.name && x.addend == y.addend;
        let (Place::Item(a), Place::Item(b)) = (s.place, t.place) else { return same_name() };
        let (old, new) = (&self.old.items[a], &self.new.items[b]);
        if old.kind != new.kind {
            return false;
        }
        let at = |symbol: &Symbol, r: &Relocation| symbol.value.wrapping_add_signed(r.addend);
        match old.kind {
            Kind::Strings => {
                let (from, from_rest) = string_start(s, x, x_distance);
                let (to, to_rest) = string_start(t, y, y_distance);
                from_rest == to_rest
                    && self.old.string(a, from).is_some()
                    && self.old.string(a, from) == self.new.string(b, to)
            }
            Kind::Constants(size) => {
                let (from, to) = (at(s, x).wrapping_add(x_distance), at(t, y).wrapping_add(y_distance));
                from % size == to % size
                    && constant(self.old, a, from, size).is_some()
                    && constant(self.old, a, from, size) == constant(self.new, b, to, size)
            }
            _ if at(s, x) != at(t, y) => false,
            _ => match (self.partners[b], is_by_content(self.new, b)) {
                (Some(partner), false) => partner == a,
                // What was added is not what was there; what has no name is what it holds.
                (None, false) => false,
                (_, true) => is_by_content(self.old, a) && self.difference(a, b, under_way).is_none(),
            },
        }
    }

    /// Whether two functions differ only in the numbers of the lines that they are on (`__LINE__`).
    ///
    /// The old code goes on with the old numbers, whatever it uses them for.
    fn only_lines_differ(&self, old: usize, new: usize) -> bool {
        let (a, b) = (&self.old.items[old], &self.new.items[new]);
        let mut factory = InstructionInfoFactory::new();
        let ours: Vec<_> = decode(&b.bytes).collect();
        let theirs: Vec<_> = decode(&a.bytes).collect();
        if ours.len() != theirs.len() {
            return false;
        }
        for (at, (x, y)) in theirs.iter().zip(&ours).enumerate() {
            if x.ip() != y.ip() || x.len() != y.len() {
                return false;
            }
            let range = x.ip() as usize..x.next_ip() as usize;
            // Relocated fields were compared by what they mean; whatever is around them counts.
            let relocated = |at: usize| {
                a.relocations
                    .iter()
                    .any(|r| (r.offset as usize..r.offset as usize + width(r.kind)).contains(&at))
            };
            if range.clone().all(|at| a.bytes[at] == b.bytes[at] || relocated(at)) {
                continue;
            }
            // Lines are passed on or stored. What is computed with or compared to is a number that means something.
            let is_moved = matches!(y.mnemonic(), Mnemonic::Mov | Mnemonic::Push);
            if let Some(numbers) = immediates(x, y).filter(|_| is_moved) {
                let (was, is) = self.lines.get_or_init(|| (Lines::parse(self.old), Lines::parse(self.new)));
                let leaves = ours[at + 1..].iter().find(|next| next.flow_control() != FlowControl::Next);
                let to = leaves.map_or(x.ip(), Instruction::ip);
                if are_lines_of_one_place((was, old), (is, new), (x.ip(), to), numbers) {
                    continue;
                }
            }
            if range.clone().any(relocated) {
                return false;
            }
            if x.code() != Code::Mov_r32_imm32 || y.code() != x.code() || x.op0_register() != y.op0_register()
            {
                return false;
            }
            let register = y.op0_register();
            let mut is_line = false;
            for next in &ours[at + 1..] {
                if next.flow_control() == FlowControl::Call {
                    is_line = self.called_with_line(new, next.ip(), next.next_ip(), register);
                    break;
                }
                let writes = factory
                    .info(next)
                    .used_registers()
                    .iter()
                    .any(|used| used.register().full_register() == register.full_register());
                if next.flow_control() != FlowControl::Next || writes {
                    break;
                }
            }
            if !is_line {
                return false;
            }
        }
        true
    }

    fn called_with_line(&self, item: usize, from: u64, to: u64, register: Register) -> bool {
        let mut calls = self.new.items[item].relocations.iter().filter(|r| (from..to).contains(&r.offset));
        calls.any(|relocation| {
            let name = &self.new.symbols[relocation.symbol].name;
            LINE_ARGUMENTS.iter().any(|(function, argument)| function == name && *argument == register)
        })
    }
}

/// The numbers in two instructions that are otherwise equal.
fn immediates(x: &Instruction, y: &Instruction) -> Option<(u64, u64)> {
    let mut operands = (0..x.op_count()).filter(|operand| x.try_immediate(*operand).is_ok());
    let (operand, None) = (operands.next()?, operands.next()) else { return None };
    let (was, is) = (x.try_immediate(operand).ok()?, y.try_immediate(operand).ok()?);
    let mut other = *x;
    other.try_set_immediate_u64(operand, is).ok()?;
    (other == *y).then_some((was, is))
}

impl Unit {
    /// How messages call what a relocation refers to.
    pub fn target_title(&self, relocation: &Relocation) -> String {
        let symbol = &self.symbols[relocation.symbol];
        match symbol.place {
            Place::Item(item) if self.items[item].kind == Kind::Strings => {
                let at = if symbol.kind == elf::STT_SECTION.0 {
                    relocation.addend.max(0) as u64
                } else {
                    symbol.value
                };
                let text = self.string(item, at).unwrap_or_default();
                format!("{:?}", String::from_utf8_lossy(&text[..text.len().min(40)]))
            }
            Place::Item(item) => self.title(item).to_owned(),
            _ => symbol.name.clone(),
        }
    }
}

/// Where the string begins that a relocation means, and how far from there it points. Assemblers keep a symbol for each string
/// that is referred to with a distance; a section's symbol with an addend is the place itself.
pub(crate) fn string_start(symbol: &Symbol, relocation: &Relocation, distance: u64) -> (u64, i64) {
    if symbol.kind == elf::STT_SECTION.0 {
        let at = symbol.value.wrapping_add_signed(relocation.addend).wrapping_add(distance);
        (at, -(distance as i64))
    } else {
        (symbol.value, relocation.addend)
    }
}

/// The constant of `size` bytes that an offset is in.
pub(crate) fn constant(unit: &Unit, item: usize, at: u64, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(at / size * size).ok()?;
    unit.items[item].bytes.get(start..start.checked_add(usize::try_from(size).ok()?)?)
}

/// Whether an item is known by what it holds: it has no name, or a number for one, and nobody writes to it.
///
/// Data without any name is what compilers copy local arrays from: a variable has a name, and so has the data of assembly.
pub(crate) fn is_by_content(unit: &Unit, item: usize) -> bool {
    let it = &unit.items[item];
    let is_template = it.kind == Kind::Data && it.symbols.is_empty() && !it.has_labels;
    let is_constant =
        matches!(it.kind, Kind::ReadOnly | Kind::Strings | Kind::Constants(_) | Kind::Exceptions);
    is_template || is_constant && (it.name.is_none() || is_numbered(unit, item))
}

/// A static variable of a function: `name.3`.
fn is_numbered(unit: &Unit, item: usize) -> bool {
    let it = &unit.items[item];
    it.kind != Kind::Code && !it.is_global && it.name.as_deref().is_some_and(|name| base_of(name).is_some())
}

fn base_of(name: &str) -> Option<&str> {
    let (base, number) = name.rsplit_once('.')?;
    (!base.is_empty() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        .then_some(base)
}

/// Numbered variables that can be written, by their name without the number, in the order of the numbers.
fn numbered(unit: &Unit) -> HashMap<&str, Vec<usize>> {
    let mut found: HashMap<&str, Vec<(u64, usize)>> = HashMap::new();
    for (index, item) in unit.items.iter().enumerate() {
        if is_numbered(unit, index)
            && !is_by_content(unit, index)
            && let Some((base, number)) = item.name.as_deref().and_then(|name| name.rsplit_once('.'))
        {
            found.entry(base).or_default().push((number.parse().unwrap_or(u64::MAX), index));
        }
    }
    found
        .into_iter()
        .map(|(base, mut items)| {
            items.sort_unstable();
            (base, items.into_iter().map(|(_, item)| item).collect())
        })
        .collect()
}

/// The functions that refer to each item, by their names without what the compiler appends to clones.
fn users(unit: &Unit) -> HashMap<usize, BTreeSet<&str>> {
    let mut found: HashMap<usize, BTreeSet<&str>> = HashMap::new();
    for item in unit.items.iter().filter(|item| item.kind == Kind::Code) {
        let Some(name) = item.name.as_deref() else { continue };
        let name = name.split('.').next().unwrap_or(name);
        for relocation in &item.relocations {
            if let Place::Item(target) = unit.symbols[relocation.symbol].place {
                found.entry(target).or_default().insert(name);
            }
        }
    }
    found
}

/// Relocations that mean the same to who reads the result: a call may go through the linkage table or not.
fn meaning(kind: u32) -> u32 {
    match elf::RelocationType(kind) {
        elf::R_X86_64_PLT32 => elf::R_X86_64_PC32.0,
        elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => elf::R_X86_64_GOTPCREL.0,
        _ => kind,
    }
}

/// Whether a relocation counts from the end of its instruction.
pub(crate) fn is_relative(kind: u32) -> bool {
    let kinds = [elf::R_X86_64_PC32, elf::R_X86_64_PLT32, elf::R_X86_64_GOTPCREL, elf::R_X86_64_GOTPCRELX];
    kinds.contains(&elf::RelocationType(kind))
        || elf::RelocationType(kind) == elf::R_X86_64_REX_GOTPCRELX
        || elf::RelocationType(kind) == elf::R_X86_64_GOTTPOFF
}

fn width(kind: u32) -> usize {
    match elf::RelocationType(kind) {
        elf::R_X86_64_64 | elf::R_X86_64_PC64 | elf::R_X86_64_TPOFF64 | elf::R_X86_64_DTPOFF64 => 8,
        _ => 4,
    }
}

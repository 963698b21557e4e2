//! Which line of the source each instruction of an object is from, by its debug information (DWARF line tables).

use std::borrow::Cow;
use std::collections::HashMap;

use gimli::{EndianSlice, LittleEndian};
use object::Endianness;
use object::read::elf::ElfFile64;

use crate::layout::relocated;
use crate::unit::{Place, Unit};

/// Items are told apart by the upper half of addresses: an object's sections all begin at 0.
const ITEM_SHIFT: u32 = 32;

/// The lines of an object's functions.
#[derive(Debug, Default)]
pub struct Lines {
    /// By item: offsets in it, and the lines that begin there.
    rows: HashMap<usize, Vec<(u64, u64)>>,
}

impl Lines {
    /// None are known of an object without debug information, or with some that is not understood.
    pub fn parse(unit: &Unit) -> Self {
        Self::read(unit).unwrap_or_default()
    }

    fn read(unit: &Unit) -> Option<Self> {
        let file = ElfFile64::<Endianness>::parse(unit.raw.as_slice()).ok()?;
        let base = |symbol: usize| match unit.symbols.get(symbol).map(|symbol| symbol.place) {
            Some(Place::Item(item)) => (item as u64 + 1) << ITEM_SHIFT,
            _ => 0,
        };
        let sections = relocated(&file, &unit.raw, base).ok()?;
        let owned = gimli::DwarfSections::load(|id| {
            Ok::<_, gimli::Error>(sections.get(id.name()).cloned().unwrap_or_default())
        })
        .ok()?;
        let dwarf = owned.borrow(|section: &Cow<'_, [u8]>| EndianSlice::new(section, LittleEndian));
        let mut lines = Self::default();
        let mut headers = dwarf.units();
        while let Some(header) = headers.next().ok()? {
            let Some(program) = dwarf.unit(header).ok()?.line_program else { continue };
            let mut rows = program.rows();
            while let Some((_, row)) = rows.next_row().ok()? {
                let item = (row.address() >> ITEM_SHIFT).checked_sub(1);
                if let (Some(item), Some(line), false) = (item, row.line(), row.end_sequence()) {
                    let offset = row.address() & ((1 << ITEM_SHIFT) - 1);
                    lines.rows.entry(item as usize).or_default().push((offset, line.get()));
                }
            }
        }
        Some(lines)
    }

    fn of(&self, item: usize) -> &[(u64, u64)] {
        self.rows.get(&item).map_or(&[], Vec::as_slice)
    }
}

/// Whether two numbers are the lines that one place of a function, which is built to equal instructions, was on and is on: the place of
/// an instruction, or one from there to the call (inclusive) that it prepares.
///
/// Any other line of the function would be no reason: a constant that changed may equal one.
pub fn are_lines_of_one_place(
    old: (&Lines, usize),
    new: (&Lines, usize),
    (from, to): (u64, u64),
    numbers: (u64, u64),
) -> bool {
    let (was, is) = (old.0.of(old.1), new.0.of(new.1));
    let (Some(was_from), Some(is_from)) = (covering(was, from), covering(is, from)) else { return false };
    let near = was_from.max(is_from)..=to;
    let mut places = was.iter().filter(|(offset, line)| near.contains(offset) && *line == numbers.0);
    places.any(|(offset, _)| is.contains(&(*offset, numbers.1)))
}

/// Where the row begins that an offset is in.
fn covering(rows: &[(u64, u64)], at: u64) -> Option<u64> {
    rows.iter().map(|(offset, _)| *offset).filter(|offset| *offset <= at).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_at_an_instruction_or_up_to_its_call_are_lines_of_it() {
        let lines = |rows: &[(u64, u64)]| Lines { rows: HashMap::from([(0, rows.to_vec())]) };
        let old = lines(&[(0, 10), (8, 12), (8, 13), (20, 14), (40, 15)]);
        let new = lines(&[(0, 11), (8, 13), (8, 14), (20, 15), (40, 16)]);
        let is_line = |at, numbers| are_lines_of_one_place((&old, 0), (&new, 0), at, numbers);
        assert!(is_line((10, 30), (12, 13)), "the row that covers it");
        assert!(is_line((10, 30), (13, 14)), "another at the same place");
        assert!(is_line((10, 30), (14, 15)), "the call's");
        assert!(!is_line((10, 30), (10, 11)), "before");
        assert!(!is_line((10, 30), (15, 16)), "behind the call");
        assert!(!is_line((10, 30), (13, 15)), "of two places");
    }
}

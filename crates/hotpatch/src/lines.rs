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

/// Whether two numbers are the lines that one place of a function, which is built to equal instructions, was on and is on.
pub fn are_lines_of_one_place(old: (&Lines, usize), new: (&Lines, usize), numbers: (u64, u64)) -> bool {
    let (was, is) = (old.0.of(old.1), new.0.of(new.1));
    let mut places = was.iter().filter(|(_, line)| *line == numbers.0);
    places.any(|(offset, _)| is.contains(&(*offset, numbers.1)))
}

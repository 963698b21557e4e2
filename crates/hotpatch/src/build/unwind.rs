//! Unwind tables (`.eh_frame`) of the functions in a patch: the entries of the object that are about them, with the common
//! entries they name (Linux Standard Base, 10.6).

use std::collections::HashMap;

use object::elf;

use crate::unit::{Kind, Place, Relocation, Unit};

/// One entry of an object's table.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// With its length field.
    pub bytes: &'a [u8],
    /// Relocations in it, with offsets from its beginning.
    pub relocations: Vec<Relocation>,
    /// Offset of its common entry in the object's table; `None` for a common entry.
    pub common: Option<usize>,
    /// The item whose code it describes.
    pub code: Option<usize>,
}

/// Where the address of the code is in an entry: after its length and the distance to its common entry.
const CODE_FIELD: u64 = 8;

/// All entries, by their offset in the object's table.
pub(super) fn entries(unit: &Unit) -> Result<HashMap<usize, Entry<'_>>, String> {
    let mut found = HashMap::new();
    for table in unit.items.iter().filter(|item| item.kind == Kind::Unwind) {
        let word = |at: usize| {
            let bytes = table.bytes.get(at..at + 4)?;
            Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let mut at = 0;
        while let Some(length) = word(at) {
            if length == 0 {
                break;
            }
            let end = at + 4 + length as usize;
            let (Some(bytes), Some(id)) = (table.bytes.get(at..end), word(at + 4)) else {
                return Err(format!("the unwind table of {} is cut off", unit.name));
            };
            let relocations: Vec<Relocation> = table
                .relocations
                .iter()
                .filter(|relocation| (at as u64..end as u64).contains(&relocation.offset))
                .map(|relocation| Relocation { offset: relocation.offset - at as u64, ..*relocation })
                .collect();
            let common = if id == 0 {
                None
            } else {
                let distance = id as usize;
                Some(
                    (at + 4)
                        .checked_sub(distance)
                        .ok_or_else(|| format!("an unwind table of {} makes no sense", unit.name))?,
                )
            };
            let code = relocations.iter().find(|relocation| relocation.offset == CODE_FIELD).and_then(
                |relocation| {
                    let is_relative = elf::RelocationType(relocation.kind) == elf::R_X86_64_PC32
                        || elf::RelocationType(relocation.kind) == elf::R_X86_64_64;
                    match unit.symbols[relocation.symbol].place {
                        Place::Item(item) if is_relative && common.is_some() => Some(item),
                        _ => None,
                    }
                },
            );
            found.insert(at, Entry { bytes, relocations, common, code });
            at = end;
        }
    }
    Ok(found)
}

//! The five bytes at each function's entry that can be switched by one store of one byte.
//!
//! The compiler leaves five one-byte no-operations (`-fpatchable-function-entry=5`). They become one instruction,
//! `test eax, imm32` (a9 and four bytes): it changes only flags, which are dead at a function's entry (System V ABI,
//! x86-64, 3.2.1), and its operand says nothing. So the operand can hold the distance to another function while threads
//! run over it, and a9 → e9 makes it a jump there. See docs/decisions/0009-entries-switched-by-one-byte.md.

use object::Endianness;
use object::elf;
use object::read::elf::{ElfFile64, SectionHeader};

use crate::error::{Error, Result};
use crate::unit::{PAD_LEN, PAD_OPEN, PAD_SECTION, Unit};

/// Offset of `sh_flags` in a section header (`Elf64_Shdr`).
const FLAGS_IN_HEADER: usize = 8;

/// Turns the no-operations into pads, and keeps the compiler's table of them out of the program that is linked, where it
/// would cost eight bytes and a relocation a function. Returns how many there are.
pub fn prepare(name: &str, raw: &mut [u8]) -> Result<usize> {
    let unit = Unit::parse(name, raw.to_vec())?;
    let malformed = |why: &dyn ToString| Error::malformed(format!("object {name}"), why.to_string());
    let file = ElfFile64::<Endianness>::parse(unit.raw.as_slice()).map_err(|e| malformed(&e))?;
    let endian = file.endian();
    let sections = file.elf_section_table();
    let symbols = file.elf_symbol_table();
    let headers = file.elf_header().e_shoff.get(endian) as usize;
    let header_size = usize::from(file.elf_header().e_shentsize.get(endian));
    let mut count = 0;
    for (index, section) in sections.enumerate() {
        let section_name = sections.section_name(endian, section).map_err(|e| malformed(&e))?;
        if section_name == PAD_SECTION.as_bytes() {
            let at = headers + index.0 * header_size + FLAGS_IN_HEADER;
            let flags =
                raw.get_mut(at..at + 8).ok_or_else(|| malformed(&"its section headers are cut off"))?;
            flags.copy_from_slice(&elf::SHF_EXCLUDE.0.to_le_bytes());
        }
        let Some((entries, _)) = section.rela(endian, unit.raw.as_slice()).map_err(|e| malformed(&e))? else {
            continue;
        };
        let target = sections
            .section(object::SectionIndex(section.sh_info(endian) as usize))
            .map_err(|e| malformed(&e))?;
        if sections.section_name(endian, target).map_err(|e| malformed(&e))? != PAD_SECTION.as_bytes() {
            continue;
        }
        for entry in entries {
            let index = object::SymbolIndex(entry.r_sym(endian, false) as usize);
            let symbol = symbols.symbol(index).map_err(|e| malformed(&e))?;
            let section = symbols
                .symbol_section(endian, symbol, index)
                .and_then(|section| sections.section(section.unwrap_or(object::SectionIndex(0))))
                .map_err(|e| malformed(&e))?;
            let at = section
                .sh_offset(endian)
                .wrapping_add(symbol.st_value.get(endian))
                .wrapping_add_signed(entry.r_addend.get(endian)) as usize;
            let Some(pad) = raw.get_mut(at..at.saturating_add(PAD_LEN as usize)) else { continue };
            if is_room(pad) {
                pad.copy_from_slice(&[PAD_OPEN, 0, 0, 0, 0]);
                count += 1;
            }
        }
    }
    Ok(count)
}

/// Five one-byte no-operations, or one of five bytes (Intel SDM vol. 2, NOP): the place that it names is of no matter, and LLVM names
/// another than gcc.
fn is_room(bytes: &[u8]) -> bool {
    bytes == [0x90; 5] || bytes.starts_with(&[0x0f, 0x1f, 0x44, 0])
}

//! A linked program or shared library: where each function and variable of its objects is.

use std::collections::HashMap;
use std::path::Path;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic, OpKind};
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{Endianness, Object};

use crate::error::{Error, Result};
use crate::unit::{Item, Kind, Place, Unit};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defined {
    pub address: u64,
    pub size: u64,
    /// `STT_*`.
    pub kind: u8,
}

/// The local symbols of one object: the linker puts them together, behind the name of the source file.
#[derive(Debug, Default)]
struct Group {
    source: String,
    symbols: HashMap<String, Vec<Defined>>,
}

#[derive(Debug)]
pub struct Program {
    pub name: String,
    pub build_id: Vec<u8>,
    /// Linked to lie at one address (`ET_EXEC`).
    pub is_fixed: bool,
    pub is_library: bool,
    globals: HashMap<String, Defined>,
    groups: Vec<Group>,
    /// Where a call of an imported function goes: its entry in the procedure linkage table.
    stubs: HashMap<String, u64>,
    /// Size and alignment of the thread-local segment.
    tls: Option<(u64, u64)>,
    segments: Vec<(u64, Vec<u8>)>,
}

/// Which group of the program holds an object's local symbols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    group: Option<usize>,
}

impl Program {
    pub fn parse(name: &str, raw: &[u8]) -> Result<Self> {
        let malformed = |why: &dyn ToString| Error::malformed(format!("program {name}"), why.to_string());
        let file = ElfFile64::<Endianness>::parse(raw).map_err(|e| malformed(&e))?;
        let endian = file.endian();
        let header = file.elf_header();
        let build_id = file.build_id().map_err(|e| malformed(&e))?.unwrap_or_default().to_vec();
        if build_id.is_empty() {
            return Err(malformed(&"it has no Build-ID (ld --build-id), by which a patch would know it"));
        }
        let mut segments = Vec::new();
        let mut tls = None;
        let mut has_interpreter = false;
        for segment in file.elf_program_headers() {
            match segment.p_type(endian) {
                elf::PT_LOAD => {
                    let bytes = segment.data(endian, raw).map_err(|()| malformed(&"a segment is cut off"))?;
                    segments.push((segment.p_vaddr(endian), bytes.to_vec()));
                }
                elf::PT_TLS => tls = Some((segment.p_memsz(endian), segment.p_align(endian).max(1))),
                elf::PT_INTERP => has_interpreter = true,
                _ => {}
            }
        }
        let is_fixed = header.e_type(endian) == elf::ET_EXEC;
        let mut program = Self {
            name: name.to_owned(),
            build_id,
            is_fixed,
            is_library: !is_fixed && !has_interpreter,
            globals: HashMap::new(),
            groups: Vec::new(),
            stubs: HashMap::new(),
            tls,
            segments,
        };
        let table = file.elf_symbol_table();
        if table.is_empty() {
            return Err(malformed(&"it has no symbols"));
        }
        for (_, symbol) in table.enumerate() {
            let symbol_name = table.symbol_name(endian, symbol).map_err(|e| malformed(&e))?;
            let symbol_name = String::from_utf8_lossy(symbol_name).into_owned();
            if symbol.st_type() == elf::STT_FILE {
                program.groups.push(Group { source: symbol_name, symbols: HashMap::new() });
                continue;
            }
            if symbol.st_shndx(endian) == elf::SHN_UNDEF {
                continue;
            }
            let defined = Defined {
                address: symbol.st_value(endian),
                size: symbol.st_size(endian),
                kind: symbol.st_type().0,
            };
            if symbol.st_bind() == elf::STB_LOCAL {
                if let Some(group) = program.groups.last_mut() {
                    group.symbols.entry(symbol_name).or_default().push(defined);
                }
            } else {
                // `name@@VERSION` is how symbols of libraries that were copied in are written.
                let plain = symbol_name.split('@').next().unwrap_or_default().to_owned();
                program.globals.insert(plain, defined);
            }
        }
        program.read_stubs(&file, raw).map_err(|e| malformed(&e))?;
        Ok(program)
    }

    fn read_stubs(&mut self, file: &ElfFile64<'_, Endianness>, raw: &[u8]) -> object::Result<()> {
        let endian = file.endian();
        let sections = file.elf_section_table();
        let dynamic = file.elf_dynamic_symbol_table();
        let mut slots = HashMap::new();
        for (_, section) in sections.enumerate() {
            let Some((entries, _)) = section.rela(endian, raw)? else { continue };
            for entry in entries {
                let kind = entry.r_type(endian, false);
                if kind != elf::R_X86_64_JUMP_SLOT && kind != elf::R_X86_64_GLOB_DAT {
                    continue;
                }
                let index = object::SymbolIndex(entry.r_sym(endian, false) as usize);
                let symbol = dynamic.symbol(index)?;
                let name = dynamic.symbol_name(endian, symbol)?;
                slots.insert(entry.r_offset.get(endian), String::from_utf8_lossy(name).into_owned());
            }
        }
        for (_, section) in sections.enumerate() {
            let name = sections.section_name(endian, section)?;
            if ![&b".plt"[..], b".plt.sec", b".plt.got"].contains(&name) {
                continue;
            }
            let code = section.data(endian, raw)?;
            let mut decoder = Decoder::with_ip(64, code, section.sh_addr(endian), DecoderOptions::NONE);
            let mut before = None;
            for instruction in &mut decoder {
                if instruction.flow_control() == FlowControl::IndirectBranch
                    && instruction.op0_kind() == OpKind::Memory
                    && instruction.is_ip_rel_memory_operand()
                    && let Some(name) = slots.get(&instruction.ip_rel_memory_address())
                {
                    let at = before.unwrap_or(instruction.ip());
                    self.stubs.entry(name.clone()).or_insert(at);
                }
                before = (instruction.mnemonic() == Mnemonic::Endbr64).then(|| instruction.ip());
            }
        }
        Ok(())
    }

    pub fn global(&self, name: &str) -> Option<Defined> {
        self.globals.get(name).copied()
    }

    /// A hidden symbol of an object that was not compiled here (`__dso_handle`, of the compiler's own crtbegin): in a library such are local,
    /// and GNU's linker lists them behind those of all objects, under no file's name.
    pub fn hidden(&self, name: &str) -> Option<Defined> {
        let behind = self.groups.last().filter(|group| group.source.is_empty())?;
        match behind.symbols.get(name)?.as_slice() {
            [defined] => Some(*defined),
            _ => None,
        }
    }

    pub fn stub(&self, name: &str) -> Option<u64> {
        self.stubs.get(name).copied()
    }

    /// The distance of a thread-local variable from the thread pointer, in an executable, whose variables are the first
    /// below it (ELF Handling For Thread-Local Storage, 3.4.6, variant II).
    pub fn thread_offset(&self, value: u64) -> Option<i64> {
        let (size, align) = self.tls.filter(|_| !self.is_library)?;
        i64::try_from(value).ok()?.checked_sub(i64::try_from(size.next_multiple_of(align)).ok()?)
    }

    /// What the file has at an address.
    pub fn bytes(&self, address: u64, length: usize) -> Option<&[u8]> {
        self.segments.iter().find_map(|(start, bytes)| {
            let at = usize::try_from(address.checked_sub(*start)?).ok()?;
            bytes.get(at..at.checked_add(length)?)
        })
    }

    /// Finds the local symbols of each object of a link, in the linker's order. Objects of one name are told apart by their
    /// code: it must be in the program, and refer to what belongs to the same object.
    pub fn place(&self, units: &[&Unit]) -> Vec<Placement> {
        let mut is_taken = vec![false; self.groups.len()];
        let mut placements = Vec::with_capacity(units.len());
        for unit in units {
            let candidates = self.groups.iter().enumerate().filter(|(index, group)| {
                !is_taken[*index]
                    && unit.source.as_deref().is_some_and(|source| same_file(source, &group.source))
            });
            let group = candidates
                .map(|(index, _)| index)
                .find(|index| self.fits(unit, Placement { group: Some(*index) }));
            if let Some(group) = group {
                is_taken[group] = true;
            }
            placements.push(Placement { group });
        }
        placements
    }

    /// Where an object's item is in the program, if it is.
    pub fn address(&self, unit: &Unit, placement: Placement, item: usize) -> Option<u64> {
        let item = &unit.items[item];
        item.symbols.iter().find_map(|index| {
            let symbol = &unit.symbols[*index];
            let defined = self.symbol(placement, &symbol.name, symbol.is_local())?;
            // A thread-local variable's value is its place in the segment.
            defined.address.checked_sub(symbol.value)
        })
    }

    /// What an object's symbol of a name is in the program.
    pub fn symbol(&self, placement: Placement, name: &str, is_local: bool) -> Option<Defined> {
        if !is_local && let Some(defined) = self.globals.get(name) {
            return Some(*defined);
        }
        let only = |symbols: &Vec<Defined>| match symbols.as_slice() {
            [defined] => Some(*defined),
            _ => None,
        };
        if is_local {
            return self.groups[placement.group?].symbols.get(name).and_then(only);
        }
        // Hidden symbols became local; GNU's linker lists them behind the objects' own, LLVM's with those of their object.
        let of_object = placement.group.and_then(|group| self.groups[group].symbols.get(name));
        let behind = || self.groups.last()?.symbols.get(name);
        of_object.or_else(behind).and_then(only)
    }

    /// Whether all code of an object that the program has under this placement is that object's.
    fn fits(&self, unit: &Unit, placement: Placement) -> bool {
        let mut has_local = false;
        let mut seen = false;
        for (index, item) in unit.items.iter().enumerate() {
            let is_local = item.name.is_some() && !item.is_global;
            let Some(address) = self.address(unit, placement, index) else { continue };
            has_local |= is_local;
            if item.kind != Kind::Code {
                continue;
            }
            if self.is_code_at(unit, placement, item, address) {
                seen = true;
            } else if is_local {
                return false;
            }
        }
        seen || has_local
    }

    /// Whether a function of an object lies at an address: its bytes, and what it refers to in its own object.
    pub fn is_code_at(&self, unit: &Unit, placement: Placement, item: &Item, address: u64) -> bool {
        let Some(there) = self.bytes(address, item.bytes.len()) else { return false };
        let mut is_open = vec![false; item.bytes.len()];
        for relocation in &item.relocations {
            let (before, after) = touched(elf::RelocationType(relocation.kind));
            let at = relocation.offset as usize;
            let from = at.saturating_sub(before);
            let to = (at + after).min(is_open.len());
            is_open[from..to].fill(true);
            let kind = elf::RelocationType(relocation.kind);
            let symbol = &unit.symbols[relocation.symbol];
            if let Place::Item(target) = symbol.place
                && (kind == elf::R_X86_64_PC32 || kind == elf::R_X86_64_PLT32)
                && unit.items[target].name.is_some()
                && !unit.items[target].is_global
                && let Some(expected) = self.address(unit, placement, target)
                && let Some(field) = there.get(at..at + 4)
            {
                let field = i32::from_le_bytes([field[0], field[1], field[2], field[3]]);
                let place = address + relocation.offset;
                let actual =
                    place.wrapping_add_signed(i64::from(field)).wrapping_add_signed(-relocation.addend);
                if actual != expected.wrapping_add(symbol.value) {
                    return false;
                }
            }
        }
        item.bytes.iter().zip(there).zip(&is_open).all(|((ours, theirs), is_open)| *is_open || ours == theirs)
    }
}

/// Bytes before and from the relocated field that a linker may write: where it relaxes an instruction, more than the field
/// (System V ABI, x86-64, B.2; ELF Handling For Thread-Local Storage, 5.5).
fn touched(kind: elf::RelocationType) -> (usize, usize) {
    match kind {
        elf::R_X86_64_64 | elf::R_X86_64_PC64 => (0, 8),
        elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => (3, 4),
        elf::R_X86_64_TLSGD
        | elf::R_X86_64_TLSLD
        | elf::R_X86_64_GOTTPOFF
        | elf::R_X86_64_GOTPC32_TLSDESC => (4, 12),
        elf::R_X86_64_TLSDESC_CALL => (0, 2),
        _ => (0, 4),
    }
}

/// Compilers write the source's name with or without its folder.
fn same_file(one: &str, other: &str) -> bool {
    one == other || Path::new(one).file_name() == Path::new(other).file_name()
}

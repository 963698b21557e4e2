//! An object file as items: with `-ffunction-sections -fdata-sections` each function and each variable has a section of
//! its own, which is the unit that is compared, taken into a patch and placed.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use object::Endianness;
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, SectionHeader, Sym};

use crate::error::{Error, Result};

/// What a section holds, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Code,
    /// Never written after the program was linked and relocated: constants, jump tables, `.data.rel.ro`.
    ReadOnly,
    /// Strings that the linker merges.
    Strings,
    /// Constants of this size that the linker merges.
    Constants(u64),
    Data,
    Zero,
    ThreadLocal,
    /// `.init_array` and its like.
    Constructors,
    /// `.eh_frame`.
    Unwind,
    /// Exception tables (`.gcc_except_table`), which belong to unwind information.
    Exceptions,
}

/// A section of the object that is part of the program.
#[derive(Debug)]
pub struct Item {
    pub section_name: String,
    pub kind: Kind,
    /// Empty for [`Kind::Zero`].
    pub bytes: Vec<u8>,
    pub size: u64,
    pub align: u64,
    pub relocations: Vec<Relocation>,
    /// The symbol that names it: the first function or variable at its beginning.
    pub name: Option<String>,
    pub is_global: bool,
    /// All functions and variables in it: index into [`Unit::symbols`].
    pub symbols: Vec<usize>,
    /// Where the five bytes are that can be switched.
    pub pad: Option<u64>,
    /// Names that are no functions or variables lie in it: labels of assembly.
    pub has_labels: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relocation {
    pub offset: u64,
    pub kind: u32,
    /// Index into [`Unit::symbols`].
    pub symbol: usize,
    pub addend: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Undefined,
    Absolute,
    Common,
    /// In this item.
    Item(usize),
    /// In a section that is not part of the program (debug information).
    Elsewhere,
}

#[derive(Debug)]
pub struct Symbol {
    pub name: String,
    /// `STT_*`.
    pub kind: u8,
    /// `STB_*`.
    pub binding: u8,
    pub place: Place,
    pub value: u64,
    pub size: u64,
}

impl Symbol {
    pub fn is_local(&self) -> bool {
        self.binding == elf::STB_LOCAL.0
    }
}

/// An object file.
#[derive(Debug)]
pub struct Unit {
    /// As messages call it: its path, as the linker was given it.
    pub name: String,
    pub items: Vec<Item>,
    pub symbols: Vec<Symbol>,
    /// The source file's name, which the linker puts before the object's local symbols.
    pub source: Option<String>,
    pub raw: Vec<u8>,
}

/// `mov` and `jmp` around the pad: `test eax, imm32`, whose operand nobody looks at. See docs/hotpatch.md.
pub const PAD_OPEN: u8 = 0xa9;
/// `jmp rel32`.
pub const PAD_TAKEN: u8 = 0xe9;
pub const PAD_LEN: u64 = 5;
/// Where gcc and clang note the places that `-fpatchable-function-entry` left room at.
pub const PAD_SECTION: &str = "__patchable_function_entries";

impl Unit {
    pub fn parse(name: &str, raw: Vec<u8>) -> Result<Self> {
        let malformed = |why: &dyn ToString| Error::malformed(format!("object {name}"), why.to_string());
        let file = ElfFile64::<Endianness>::parse(raw.as_slice()).map_err(|e| malformed(&e))?;
        let endian = file.endian();
        if file.elf_header().e_machine(endian) != elf::EM_X86_64 || endian != Endianness::Little {
            return Err(malformed(&"it is not for x86-64"));
        }
        if file.elf_header().e_type(endian) != elf::ET_REL {
            return Err(malformed(&"it is not an object file"));
        }
        let sections = file.elf_section_table();
        let mut items: Vec<Item> = Vec::new();
        let mut item_of: HashMap<usize, usize> = HashMap::new();
        for (index, section) in sections.enumerate() {
            let section_name = sections.section_name(endian, section).map_err(|e| malformed(&e))?;
            let section_name = String::from_utf8_lossy(section_name).into_owned();
            let flags = section.sh_flags(endian).0;
            if section_name.starts_with(".gnu.lto_") {
                let why = "it holds no machine code but the compiler's own (-flto): record without -flto";
                return Err(malformed(&why));
            }
            if flags & elf::SHF_ALLOC.0 == 0 || section_name == PAD_SECTION {
                continue;
            }
            let Some(kind) =
                kind_of(&section_name, section.sh_type(endian), flags, section.sh_entsize(endian))
            else {
                continue;
            };
            let bytes = section.data(endian, raw.as_slice()).map_err(|e| malformed(&e))?.to_vec();
            item_of.insert(index.0, items.len());
            items.push(Item {
                section_name,
                kind,
                size: section.sh_size(endian),
                bytes,
                align: section.sh_addralign(endian).max(1),
                relocations: Vec::new(),
                name: None,
                is_global: false,
                symbols: Vec::new(),
                pad: None,
                has_labels: false,
            });
        }
        let table = file.elf_symbol_table();
        let mut symbols = Vec::with_capacity(table.len());
        let mut source = None;
        for (index, symbol) in table.enumerate() {
            let symbol_name = table.symbol_name(endian, symbol).map_err(|e| malformed(&e))?;
            let symbol_name = String::from_utf8_lossy(symbol_name).into_owned();
            let section = table.symbol_section(endian, symbol, index).map_err(|e| malformed(&e))?;
            let place = match (section, symbol.st_shndx(endian)) {
                (Some(section), _) => {
                    item_of.get(&section.0).map_or(Place::Elsewhere, |item| Place::Item(*item))
                }
                (None, elf::SHN_ABS) => Place::Absolute,
                (None, elf::SHN_COMMON) => Place::Common,
                (None, _) => Place::Undefined,
            };
            if symbol.st_type() == elf::STT_FILE {
                source.get_or_insert(symbol_name.clone());
            }
            symbols.push(Symbol {
                name: symbol_name,
                kind: symbol.st_type().0,
                binding: symbol.st_bind().0,
                place,
                value: symbol.st_value(endian),
                size: symbol.st_size(endian),
            });
        }
        let mut pads = Vec::new();
        for (_, section) in sections.enumerate() {
            let Some((entries, _)) = section.rela(endian, raw.as_slice()).map_err(|e| malformed(&e))? else {
                continue;
            };
            let target = section.sh_info(endian) as usize;
            let target_name = sections
                .section(object::SectionIndex(target))
                .and_then(|section| sections.section_name(endian, section))
                .map_err(|e| malformed(&e))?;
            let is_pads = target_name == PAD_SECTION.as_bytes();
            for entry in entries {
                let relocation = Relocation {
                    offset: entry.r_offset.get(endian),
                    kind: entry.r_type(endian, false).0,
                    symbol: entry.r_sym(endian, false) as usize,
                    addend: entry.r_addend.get(endian),
                };
                if relocation.symbol >= symbols.len() {
                    return Err(malformed(&"a relocation names a symbol that is not there"));
                }
                if is_pads {
                    pads.push(relocation);
                } else if let Some(item) = item_of.get(&target) {
                    items[*item].relocations.push(relocation);
                }
            }
        }
        for item in &mut items {
            item.relocations.sort_by_key(|relocation| relocation.offset);
            let size = item.size;
            if item.relocations.iter().any(|relocation| relocation.offset + 4 > size) {
                return Err(malformed(&"a relocation lies outside of its section"));
            }
        }
        for pad in pads {
            let symbol = &symbols[pad.symbol];
            let Place::Item(item) = symbol.place else { continue };
            let at = symbol.value.wrapping_add_signed(pad.addend);
            let Some(pad_bytes) = items[item].bytes.get(at as usize..(at + PAD_LEN) as usize) else {
                continue;
            };
            if pad_bytes[0] == PAD_OPEN {
                items[item].pad.get_or_insert(at);
            }
        }
        for (index, symbol) in symbols.iter().enumerate() {
            let Place::Item(item) = symbol.place else { continue };
            let item = &mut items[item];
            let is_label = symbol.kind == elf::STT_NOTYPE.0 && !symbol.name.starts_with(".L");
            item.has_labels |= is_label && !symbol.name.is_empty();
            let named = [elf::STT_FUNC.0, elf::STT_OBJECT.0, elf::STT_GNU_IFUNC.0, elf::STT_TLS.0];
            if !named.contains(&symbol.kind) {
                continue;
            }
            item.symbols.push(index);
            // Of several names at the beginning, a global one says more.
            if symbol.value == 0 && (item.name.is_none() || (!item.is_global && !symbol.is_local())) {
                item.name = Some(symbol.name.clone());
                item.is_global = !symbol.is_local();
            }
        }
        Ok(Self { name: name.to_owned(), items, symbols, source, raw })
    }

    /// How messages call an item.
    pub fn title(&self, item: usize) -> &str {
        let item = &self.items[item];
        item.name.as_deref().unwrap_or(&item.section_name)
    }

    /// For every relocation of a piece of code: how far the end of its instruction is from the field that is relocated, by
    /// the field's offset. A relative reference counts from there.
    pub fn distances(&self, item: usize) -> HashMap<u64, u64> {
        let item = &self.items[item];
        let mut found = HashMap::new();
        let mut relocations = item.relocations.iter().peekable();
        for instruction in decode(&item.bytes) {
            let end = instruction.next_ip();
            while let Some(relocation) = relocations.next_if(|relocation| relocation.offset < end) {
                found.insert(relocation.offset, end - relocation.offset);
            }
        }
        found
    }

    /// The bytes of a string that the linker may merge, from an offset on, without its end.
    pub fn string(&self, item: usize, offset: u64) -> Option<&[u8]> {
        let rest = self.items[item].bytes.get(usize::try_from(offset).ok()?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(&rest[..end])
    }
}

/// Decodes code as if it lay at address 0.
pub fn decode(code: &[u8]) -> impl Iterator<Item = Instruction> {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE).into_iter()
}

fn kind_of(name: &str, kind: elf::SectionType, flags: u64, entry: u64) -> Option<Kind> {
    let has = |flag: elf::SectionFlags| flags & flag.0 != 0;
    Some(if name == ".eh_frame" {
        Kind::Unwind
    } else if name.starts_with(".gcc_except_table") {
        Kind::Exceptions
    } else if name.starts_with(".note") {
        return None;
    } else if [".init_array", ".fini_array", ".preinit_array", ".ctors", ".dtors"]
        .iter()
        .any(|start| name.starts_with(start))
    {
        Kind::Constructors
    } else if has(elf::SHF_EXECINSTR) {
        Kind::Code
    } else if has(elf::SHF_TLS) {
        Kind::ThreadLocal
    } else if kind == elf::SHT_NOBITS {
        Kind::Zero
    } else if has(elf::SHF_WRITE) {
        if name.starts_with(".data.rel.ro") { Kind::ReadOnly } else { Kind::Data }
    } else if has(elf::SHF_MERGE) && has(elf::SHF_STRINGS) && entry == 1 {
        Kind::Strings
    } else if has(elf::SHF_MERGE) && !has(elf::SHF_STRINGS) && entry > 0 {
        Kind::Constants(entry)
    } else {
        Kind::ReadOnly
    })
}

impl Unit {
    /// An object that was not there.
    pub fn nothing(name: &str) -> Self {
        Self { name: name.to_owned(), items: Vec::new(), symbols: Vec::new(), source: None, raw: Vec::new() }
    }
}

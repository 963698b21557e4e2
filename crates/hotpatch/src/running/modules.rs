//! The programs and libraries that a process has mapped, read from its memory: what the files say now, or whose mount namespace
//! they are in, does not matter.

use std::collections::BTreeMap;

use object::elf;

use super::memory::{Mapping, Memory, PAGE};
use crate::error::{Error, Result};
use crate::patch::Patch;

/// Largest table of any kind that is read from a process: it could say anything.
const MOST: u64 = 1 << 24;
/// Largest table of program headers: a linker makes a dozen of 56 bytes each.
const MOST_HEADERS: u64 = 1 << 16;

#[derive(Debug, Clone)]
pub struct Module {
    pub path: String,
    /// What is added to an address at which it was linked.
    pub bias: u64,
    pub build_id: Vec<u8>,
    /// The whole of its mappings.
    pub start: u64,
    pub end: u64,
    dynamic: Option<u64>,
    /// Where the index of its unwind tables (`.eh_frame_hdr`) is, and its size.
    pub unwind_index: Option<(u64, u64)>,
}

/// What a name is in a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub address: u64,
    /// `STT_*`.
    pub kind: u8,
}

fn half(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 2).map_or(0, |b| u64::from(u16::from_le_bytes([b[0], b[1]])))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 4).map_or(0, |b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
}

fn quad(bytes: &[u8], at: usize) -> u64 {
    long(bytes, at) | long(bytes, at + 4) << 32
}

/// All modules, in the order of their addresses, the program itself wherever it is.
pub fn find(memory: &Memory, mappings: &[Mapping]) -> Vec<Module> {
    let beginnings =
        mappings.iter().filter(|mapping| mapping.inode != 0 && mapping.offset == 0 && mapping.is_readable);
    // What cannot be read as a module is none: a font, a database.
    beginnings.filter_map(|mapping| Module::read(memory, mapping, mappings)).collect()
}

impl Module {
    /// What the kernel maps into every process (vdso(7)).
    pub fn of_kernel(memory: &Memory, mappings: &[Mapping]) -> Option<Self> {
        let mapping = mappings.iter().find(|mapping| mapping.path == "[vdso]")?;
        Self::read(memory, mapping, mappings)
    }

    fn read(memory: &Memory, mapping: &Mapping, mappings: &[Mapping]) -> Option<Self> {
        let header: [u8; 64] = memory.array(mapping.start).ok()?;
        // ELF-64, little-endian, x86-64 (System V ABI).
        if !header.starts_with(b"\x7fELF\x02\x01") || half(&header, 18) != u64::from(elf::EM_X86_64.0) {
            return None;
        }
        let (table, size, count) = (quad(&header, 32), half(&header, 54), half(&header, 56));
        // The header's sizes are 16 bits wide: their product is below 2^32.
        if size < 56 || table > MOST || size * count > MOST_HEADERS {
            return None;
        }
        let headers = memory.read(mapping.start.checked_add(table)?, (size * count) as usize).ok()?;
        let mut low = None;
        let mut executable = Vec::new();
        let mut high = 0;
        let mut notes = Vec::new();
        let mut dynamic = None;
        let mut unwind_index = None;
        for header in headers.chunks_exact(size as usize) {
            let (address, file_size, memory_size) = (quad(header, 16), quad(header, 32), quad(header, 40));
            match elf::ProgramType(long(header, 0) as u32) {
                elf::PT_LOAD => {
                    low.get_or_insert(address / PAGE * PAGE);
                    high = high.max(address.saturating_add(memory_size));
                    if long(header, 4) & u64::from(elf::PF_X.0) != 0 {
                        executable.push((address, quad(header, 8)));
                    }
                }
                elf::PT_NOTE => notes.push((address, file_size)),
                elf::PT_DYNAMIC => dynamic = Some(address),
                elf::PT_GNU_EH_FRAME => unwind_index = Some((address, memory_size)),
                _ => {}
            }
        }
        let bias = mapping.start.wrapping_sub(low?);
        // A file that is mapped to be read (by a debugger's library, say) is no program: it has no code where its header says.
        let is_code = |&(address, offset): &(u64, u64)| {
            let address = address.wrapping_add(bias);
            mappings.iter().any(|m| {
                let is_there = m.is_executable && m.inode == mapping.inode && m.path == mapping.path;
                is_there
                    && (m.start..m.end).contains(&address)
                    && (address - m.start).checked_add(m.offset) == Some(offset)
            })
        };
        if !executable.iter().any(is_code) {
            return None;
        }
        let build_id = notes.iter().find_map(|(address, size)| {
            let bytes = memory.read(address.wrapping_add(bias), (*size).min(PAGE) as usize).ok()?;
            build_id(&bytes)
        });
        Some(Self {
            path: mapping.path.clone(),
            bias,
            build_id: build_id.unwrap_or_default(),
            start: mapping.start,
            end: high.wrapping_add(bias).checked_next_multiple_of(PAGE)?,
            dynamic: dynamic.map(|address| address.wrapping_add(bias)),
            unwind_index: unwind_index.map(|(address, size)| (address.wrapping_add(bias), size)),
        })
    }

    /// The entries of its dynamic section, by tag; addresses as they are in the process.
    fn dynamic(&self, memory: &Memory) -> Option<BTreeMap<u64, u64>> {
        let mut at = self.dynamic?;
        let mut entries = BTreeMap::new();
        // No linker makes as many; a process could.
        for _ in 0..1024 {
            let entry: [u8; 16] = memory.array(at).ok()?;
            let (tag, value) = (quad(&entry, 0), quad(&entry, 8));
            if tag == 0 {
                return Some(entries);
            }
            entries.insert(tag, value);
            at = at.checked_add(16)?;
        }
        None
    }

    /// glibc writes addresses in place of what the file has; musl leaves them.
    fn at(&self, value: u64) -> u64 {
        if value < self.bias { value.wrapping_add(self.bias) } else { value }
    }

    /// All that the module offers to others under these names: the versions that new programs are linked with.
    pub fn exports(&self, memory: &Memory) -> Option<Exports> {
        let dynamic = self.dynamic(memory)?;
        let get = |tag: elf::DynamicTag| dynamic.get(&(tag.0 as u64)).copied();
        let symbols = self.at(get(elf::DT_SYMTAB)?);
        let strings = self.at(get(elf::DT_STRTAB)?);
        let strings = memory.read(strings, get(elf::DT_STRSZ)?.min(MOST) as usize).ok()?;
        let count = match (get(elf::DT_HASH), get(elf::DT_GNU_HASH)) {
            (Some(table), _) => long(&memory.array::<8>(self.at(table)).ok()?, 4),
            (None, Some(table)) => self.count_by_hash(memory, self.at(table))?,
            (None, None) => return None,
        };
        if count > MOST / 24 {
            return None;
        }
        let table = memory.read(symbols, (count * 24) as usize).ok()?;
        let versions =
            get(elf::DT_VERSYM).and_then(|table| memory.read(self.at(table), (count * 2) as usize).ok());
        let mut names = BTreeMap::new();
        let mut by_index = Vec::with_capacity(count as usize);
        for (index, symbol) in table.chunks_exact(24).enumerate() {
            let name = long(symbol, 0) as usize;
            let name =
                strings.get(name..).and_then(|rest| rest.split(|byte| *byte == 0).next()).unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            by_index.push(name.clone());
            let (info, section, value) = (symbol[4], half(symbol, 6), quad(symbol, 8));
            // The high bit marks versions that are only for programs that ask for them (Linux Standard Base, 10.7.2).
            let is_hidden = versions.as_ref().is_some_and(|versions| half(versions, index * 2) & 0x8000 != 0);
            if section != 0 && info >> 4 != elf::STB_LOCAL.0 && !is_hidden {
                names.insert(name, Found { address: value.wrapping_add(self.bias), kind: info & 0xf });
            }
        }
        let mut slots = Vec::new();
        for (table, size) in [(elf::DT_JMPREL, elf::DT_PLTRELSZ), (elf::DT_RELA, elf::DT_RELASZ)] {
            let (Some(table), Some(size)) = (get(table), get(size)) else { continue };
            let Ok(entries) = memory.read(self.at(table), size.min(MOST) as usize) else { continue };
            for entry in entries.chunks_exact(24) {
                let kind = elf::RelocationType(long(entry, 8) as u32);
                if kind == elf::R_X86_64_JUMP_SLOT || kind == elf::R_X86_64_GLOB_DAT {
                    let symbol = long(entry, 12) as usize;
                    slots.push((quad(entry, 0).wrapping_add(self.bias), symbol));
                }
            }
        }
        Some(Exports { names, slots, by_index })
    }

    /// The number of symbols by a GNU hash table, which does not say it: the end of the last chain.
    fn count_by_hash(&self, memory: &Memory, table: u64) -> Option<u64> {
        let header: [u8; 16] = memory.array(table).ok()?;
        let (buckets, first, bloom) = (long(&header, 0), long(&header, 4), long(&header, 8));
        if buckets > MOST / 4 || bloom > MOST / 8 {
            return None;
        }
        let bucket_table = table.checked_add(16 + bloom * 8)?;
        let all = memory.read(bucket_table, (buckets * 4) as usize).ok()?;
        let last = all.chunks_exact(4).map(|bucket| long(bucket, 0)).max().unwrap_or(0);
        if last < first {
            return Some(first);
        }
        let chains = bucket_table.checked_add(buckets * 4)?;
        for symbol in last..last.saturating_add(MOST / 24) {
            let entry = chains.checked_add((symbol - first) * 4)?;
            if long(&memory.array::<4>(entry).ok()?, 0) & 1 == 1 {
                return Some(symbol + 1);
            }
        }
        None
    }

    #[cfg(test)]
    pub fn for_test(start: u64, end: u64) -> Self {
        Self {
            path: "/a".to_owned(),
            bias: start,
            build_id: vec![1],
            start,
            end,
            dynamic: None,
            unwind_index: None,
        }
    }

    pub fn holds(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// What a module offers, and where it keeps what it was given.
#[derive(Debug)]
pub struct Exports {
    names: BTreeMap<String, Found>,
    slots: Vec<(u64, usize)>,
    by_index: Vec<String>,
}

impl Exports {
    pub fn get(&self, name: &str) -> Option<Found> {
        self.names.get(name).copied()
    }

    /// Where the module keeps the address of a function or variable of another's.
    fn slots_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = u64> + 'a {
        let named = self
            .slots
            .iter()
            .filter(move |(_, index)| self.by_index.get(*index).is_some_and(|other| other == name));
        named.map(|(slot, _)| *slot)
    }
}

/// The names that a process's modules offer, in the order in which the dynamic linker would look: the program first.
#[derive(Debug)]
pub struct Scope {
    modules: Vec<(Module, Exports)>,
}

impl Scope {
    pub fn read(memory: &Memory, modules: &[Module]) -> Self {
        let with_exports =
            modules.iter().filter_map(|module| Some((module.clone(), module.exports(memory)?)));
        Self { modules: with_exports.collect() }
    }

    /// The names, if a patch asks for any.
    pub fn of(memory: &Memory, modules: &[Module], patch: &Patch) -> Self {
        let asks = patch.parts.iter().any(|part| !part.imports.is_empty());
        if asks { Self::read(memory, modules) } else { Self { modules: Vec::new() } }
    }

    /// A function or variable by its name, for code that belongs to `user`. A function that its library chose when it started is
    /// taken from a module that has been given it, or bound when `user` first calls it.
    pub fn resolve(&self, memory: &Memory, name: &str, user: &Module) -> Result<Option<Found>> {
        let Some((owner, found)) =
            self.modules.iter().find_map(|(module, exports)| Some((module, exports.get(name)?)))
        else {
            return Ok(None);
        };
        if found.kind != elf::STT_GNU_IFUNC.0 {
            return Ok(Some(found));
        }
        let function = |address| Some(Found { address, kind: elf::STT_FUNC.0 });
        let mut unbound = None;
        for (module, exports) in &self.modules {
            for slot in exports.slots_of(name) {
                let address = memory.word(slot)?;
                // Until it is first called, a slot leads to its own module.
                if owner.holds(address) {
                    return Ok(function(address));
                }
                // Another module can be unloaded, and its linkage table with it.
                if module.start == user.start && module.holds(address) {
                    unbound = unbound.or(linkage_entry(memory, slot, address));
                }
            }
        }
        if let Some(address) = unbound {
            return Ok(function(address));
        }
        Err(Error::unfit(format!(
            "the patch calls {name}, of which {} chose one when it started, and nothing in the process has asked for it yet",
            owner.path
        )))
    }
}

/// What to call so that a slot that is not bound yet is: its entry of the procedure linkage table, `jmp [slot]; push number; jmp`, in
/// which the slot leads to the push (System V ABI, AMD64 supplement, 5.2). Where the jump is elsewhere (`.plt.sec`) the push itself: each
/// call has it bound anew, to the same.
fn linkage_entry(memory: &Memory, slot: u64, address: u64) -> Option<u64> {
    const END_BRANCH: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    const PUSH: u8 = 0x68;
    const JUMP_BY_SLOT: [u8; 2] = [0xff, 0x25];
    let at: [u8; 5] = memory.array(address).ok()?;
    let is_push = at[0] == PUSH || at[..4] == END_BRANCH && at[4] == PUSH;
    if !is_push {
        return None;
    }
    let entry = address.checked_sub(6)?;
    let before: [u8; 6] = memory.array(entry).ok()?;
    let distance = i32::from_le_bytes([before[2], before[3], before[4], before[5]]);
    let leads_by_slot =
        before[..2] == JUMP_BY_SLOT && address.wrapping_add_signed(i64::from(distance)) == slot;
    Some(if leads_by_slot { entry } else { address })
}

/// The Build-ID in a note segment (Linux Standard Base, 10.8: name size, size, type, name, content, each padded to 4).
fn build_id(notes: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0;
    while at + 12 <= notes.len() {
        let (name_size, size, kind) =
            (long(notes, at) as usize, long(notes, at + 4) as usize, long(notes, at + 8));
        let name = at + 12;
        let content = name.checked_add(name_size.next_multiple_of(4))?;
        let end = content.checked_add(size)?;
        if kind == u64::from(elf::NT_GNU_BUILD_ID.0) && notes.get(name..name + 4) == Some(b"GNU\0") {
            return notes.get(content..end).map(<[u8]>::to_vec);
        }
        at = content.checked_add(size.next_multiple_of(4))?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_modules_and_names_are_found() {
        let memory = Memory::open(std::process::id().cast_signed()).unwrap();
        let modules = find(&memory, &memory.mappings().unwrap());
        let libc = modules.iter().find(|module| module.path.contains("libc.so")).unwrap();
        assert!(!libc.build_id.is_empty());
        let scope = Scope::read(&memory, &modules);
        let found = scope.resolve(&memory, "getpid", libc).unwrap().unwrap();
        assert!(libc.holds(found.address));
        assert_eq!(scope.resolve(&memory, "no_such_name_anywhere", libc).unwrap(), None);
        // Chosen when libc started, by what the processor can do.
        let chosen = scope.resolve(&memory, "memcpy", libc).unwrap().unwrap();
        assert_eq!(chosen.kind, elf::STT_FUNC.0);
        assert!(libc.holds(chosen.address));
    }

    #[test]
    fn versions_of_an_interface_are_names_of_it() {
        let memory = Memory::open(std::process::id().cast_signed()).unwrap();
        let modules = find(&memory, &memory.mappings().unwrap());
        let libgcc = modules.iter().find(|module| module.path.contains("libgcc_s")).unwrap();
        let exports = libgcc.exports(&memory).unwrap();
        assert!(exports.get("__register_frame_info").is_some() && exports.get("GCC_3.0").is_some());
    }

    #[test]
    fn notes_of_any_bytes_are_no_trouble() {
        let mut note = vec![4, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0];
        note.extend(b"GNU\0abc\0");
        assert_eq!(build_id(&note), Some(b"abc".to_vec()));
        for length in 0..note.len() {
            let _ = build_id(&note[..length]);
            let mut spoilt = note.clone();
            spoilt[length] = 0xff;
            let _ = build_id(&spoilt);
        }
    }
}

//! The pieces of a patch and what each refers to: in the program, in the patch, or by a name for the dynamic linker.

use std::collections::{BTreeSet, HashMap};

use object::elf;
use serde_bytes::ByteBuf;

use super::Both;
use super::select::{At, Fate, Selected, is_clone};
use super::unwind;
use crate::compare::{constant, is_by_content, is_relative, string_start};
use crate::error::{Error, Result};
use crate::patch::{Fixup, FixupKind, Hook, Import, Part, Piece, PieceKind, Replaced, Switch, Target};
use crate::refusal::{Kind as Why, Refusal};
use crate::unit::{Kind, Place, Relocation, Symbol, Unit};

struct Assembler<'a, 'b> {
    both: &'a Both<'a>,
    selected: Selected<'a>,
    refusals: &'b mut BTreeSet<Refusal>,
    pieces: Vec<Piece>,
    of_item: HashMap<At, u32>,
    /// Strings and constants, by content and alignment.
    of_content: HashMap<(Vec<u8>, u32), u32>,
    imports: Vec<Import>,
    /// Pieces whose references are still to be made.
    open: Vec<At>,
}

/// The patch of one program, or nothing if nothing in it changed.
pub(super) fn assemble(
    both: &Both<'_>,
    selected: Selected<'_>,
    refusals: &mut BTreeSet<Refusal>,
) -> Result<Option<Part>> {
    let switched = selected.switched.clone();
    if switched.is_empty() {
        return Ok(None);
    }
    let mut assembler = Assembler {
        both,
        selected,
        refusals,
        pieces: Vec::new(),
        of_item: HashMap::new(),
        of_content: HashMap::new(),
        imports: Vec::new(),
        open: Vec::new(),
    };
    for at in &switched {
        assembler.take(*at, None);
    }
    let mut hooks = Vec::new();
    for (at, when) in assembler.selected.hooks() {
        hooks.push(Hook { when, piece: assembler.take(at, Some("the patcher")) });
    }
    assembler.close();
    assembler.add_unwind_tables()?;
    let mut switches = Vec::new();
    for at in switched {
        let pair = &assembler.selected.pairs[at.0];
        let (Some(old), Some(address)) = (pair.partners[at.1], assembler.selected.address(both, at)) else {
            continue;
        };
        // Without a pad it was refused.
        let Some(pad) = pair.old.items[old].pad else { continue };
        switches.push(Switch {
            name: pair.new.title(at.1).to_owned(),
            pad: address + pad,
            piece: assembler.of_item[&at],
            next_pad: pair.new.items[at.1].pad.and_then(|pad| u32::try_from(pad).ok()),
        });
    }
    let replaced = replaced(both, &assembler.selected);
    Ok(Some(Part {
        program: both.program.name.clone(),
        build_id: ByteBuf::from(both.program.build_id.clone()),
        is_fixed: both.program.is_fixed,
        pieces: assembler.pieces,
        switches,
        replaced,
        imports: assembler.imports,
        hooks,
    }))
}

/// Length of an entry of the procedure linkage table (System V ABI, x86-64, 5.2).
const STUB: u64 = 16;

/// Where the program's functions are that the patch has new ones of, with the clones and parts that the compiler made of them.
fn replaced(both: &Both<'_>, selected: &Selected<'_>) -> Vec<Replaced> {
    let mut found = Vec::new();
    for (number, pair) in selected.pairs.iter().enumerate() {
        let changed = |item: &usize| {
            matches!(selected.fates[number][*item], Fate::Changed(_))
                && pair.new.items[*item].kind == Kind::Code
        };
        let items: BTreeSet<usize> =
            (0..pair.new.items.len()).filter(changed).filter_map(|item| pair.partners[item]).collect();
        let names: BTreeSet<&str> =
            items.iter().filter_map(|item| pair.old.items[*item].name.as_deref()).collect();
        for (index, old) in pair.old.items.iter().enumerate().filter(|(_, old)| old.kind == Kind::Code) {
            let is_of_changed = is_clone(old)
                && old
                    .name
                    .as_deref()
                    .and_then(|name| name.split('.').next())
                    .is_some_and(|n| names.contains(n));
            if !items.contains(&index) && !is_of_changed {
                continue;
            }
            let Some(address) = both.program.address(pair.old, selected.placements[number], index) else {
                continue;
            };
            let name = pair.old.title(index).to_owned();
            // The stub by which it is called, where a jump to it may come from a function that has left no other trace.
            if let Some(stub) = both.program.stub(&name) {
                found.push(Replaced { name: name.clone(), start: stub, end: stub + STUB });
            }
            found.push(Replaced { name, start: address, end: address + old.size });
        }
    }
    found
}

impl<'a> Assembler<'a, '_> {
    fn unit(&self, unit: usize) -> &'a Unit {
        self.selected.pairs[unit].new
    }

    fn refuse(&mut self, kind: Why, at: At, why: impl Into<String>) {
        let about = self.unit(at.0).title(at.1).to_owned();
        self.refusals.insert(Refusal::new(kind, about, why));
    }

    /// Makes an item a piece; its references are made by [`Self::close`].
    fn take(&mut self, at: At, user: Option<&str>) -> u32 {
        if let Some(piece) = self.of_item.get(&at) {
            return *piece;
        }
        let unit = self.unit(at.0);
        let item = &unit.items[at.1];
        let kind = match item.kind {
            Kind::Code => PieceKind::Code,
            Kind::Data | Kind::Zero => PieceKind::Data,
            _ => PieceKind::ReadOnly,
        };
        let reason = match (&self.selected.fates[at.0][at.1], user) {
            (Fate::Changed(why), _) => why.clone(),
            (Fate::Added, Some(user)) if item.kind == Kind::Code => {
                format!("{user} refers to it, and the program has none")
            }
            (_, Some(user)) => format!("{user} refers to it"),
            (_, None) => "it changed".to_owned(),
        };
        let piece = self.pieces.len() as u32;
        self.pieces.push(Piece {
            name: unit.title(at.1).to_owned(),
            unit: unit.name.clone(),
            kind,
            align: u32::try_from(item.align).unwrap_or(u32::MAX),
            bytes: ByteBuf::from(item.bytes.clone()),
            zeros: item.size - item.bytes.len() as u64,
            fixups: Vec::new(),
            reason,
        });
        self.of_item.insert(at, piece);
        self.open.push(at);
        piece
    }

    fn take_content(&mut self, unit: &Unit, bytes: Vec<u8>, align: u32) -> u32 {
        let key = (bytes, align);
        if let Some(piece) = self.of_content.get(&key) {
            return *piece;
        }
        let piece = self.pieces.len() as u32;
        self.pieces.push(Piece {
            name: String::new(),
            unit: unit.name.clone(),
            kind: PieceKind::ReadOnly,
            align,
            bytes: ByteBuf::from(key.0.clone()),
            zeros: 0,
            fixups: Vec::new(),
            reason: "a string or constant".to_owned(),
        });
        self.of_content.insert(key, piece);
        piece
    }

    /// Makes the references of all pieces, and the pieces that those need.
    fn close(&mut self) {
        while let Some(at) = self.open.pop() {
            let unit = self.unit(at.0);
            let item = &unit.items[at.1];
            let distances = if item.kind == Kind::Code { unit.distances(at.1) } else { HashMap::new() };
            let mut fixups = Vec::with_capacity(item.relocations.len());
            for relocation in &item.relocations {
                let distance = if is_relative(relocation.kind) {
                    distances.get(&relocation.offset).copied().unwrap_or(0)
                } else {
                    0
                };
                if let Some(fixup) = self.fixup(at, relocation, distance, false) {
                    fixups.push(fixup);
                }
            }
            let piece = self.of_item[&at] as usize;
            self.pieces[piece].fixups = fixups;
        }
    }

    /// What a relocation becomes. `about_new_code`: the reference is a table's about the patch's own code.
    fn fixup(
        &mut self,
        at: At,
        relocation: &Relocation,
        distance: u64,
        about_new_code: bool,
    ) -> Option<Fixup> {
        let unit = self.unit(at.0);
        let symbol = &unit.symbols[relocation.symbol];
        let kind = match elf::RelocationType(relocation.kind) {
            elf::R_X86_64_NONE => return None,
            elf::R_X86_64_64 => FixupKind::Absolute64,
            elf::R_X86_64_32 => FixupKind::Absolute32,
            elf::R_X86_64_32S => FixupKind::Signed32,
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => FixupKind::Relative32,
            elf::R_X86_64_PC64 => FixupKind::Relative64,
            elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => {
                FixupKind::Slot32
            }
            elf::R_X86_64_TPOFF32 => return self.thread_local(at, relocation, FixupKind::Signed32),
            elf::R_X86_64_GOTTPOFF => return self.thread_local(at, relocation, FixupKind::Slot32),
            elf::R_X86_64_TLSGD
            | elf::R_X86_64_TLSLD
            | elf::R_X86_64_DTPOFF32
            | elf::R_X86_64_DTPOFF64
            | elf::R_X86_64_GOTPC32_TLSDESC
            | elf::R_X86_64_TLSDESC_CALL => {
                let why = format!(
                    "it uses {} as only the dynamic linker could set up",
                    unit.target_title(relocation)
                );
                self.refuse(Why::ThreadLocalModel, at, why);
                return None;
            }
            other => {
                self.refuse(Why::Unsupported, at, format!("it has a relocation of type {}", other.0));
                return None;
            }
        };
        let (target, addend) = self.target(at, symbol, relocation, distance, about_new_code)?;
        // A slot holds the address alone; what the relocation adds belongs to the instruction.
        Some(Fixup { offset: relocation.offset, kind, target, addend })
    }

    fn target(
        &mut self,
        at: At,
        symbol: &'a Symbol,
        relocation: &Relocation,
        distance: u64,
        about_new_code: bool,
    ) -> Option<(Target, i64)> {
        let unit = self.unit(at.0);
        let Place::Item(item) = symbol.place else {
            return Some((self.global(at, symbol, relocation, distance)?, relocation.addend));
        };
        // A library's own functions are called by way of the linker's table where another library could take their place.
        if self.both.program.is_library
            && !symbol.is_local()
            && let Some(stub) = self.both.program.stub(&symbol.name)
        {
            return Some((Target::Program(stub), relocation.addend));
        }
        match unit.items[item].kind {
            Kind::Strings => {
                let (start, rest) = string_start(symbol, relocation, distance);
                let Some(text) = unit.string(item, start) else {
                    self.refuse(Why::Unsupported, at, "it refers to a string that has no end");
                    return None;
                };
                let mut text = text.to_vec();
                text.push(0);
                let piece = self.take_content(unit, text, 1);
                Some((Target::Piece(piece), rest))
            }
            Kind::Constants(size) => {
                let place = symbol.value.wrapping_add_signed(relocation.addend).wrapping_add(distance);
                let Some(bytes) = constant(unit, item, place, size) else {
                    self.refuse(Why::Unsupported, at, "it refers to a constant that is not there");
                    return None;
                };
                let align = u32::try_from(unit.items[item].align).unwrap_or(16);
                let piece = self.take_content(unit, bytes.to_vec(), align);
                Some((Target::Piece(piece), (place % size) as i64 - distance as i64))
            }
            _ => {
                let item = self.one_of_all(at.0, item, symbol);
                let logical = symbol.value.wrapping_add_signed(relocation.addend).wrapping_add(distance);
                let is_entry = logical == 0 && !about_new_code && self.is_address_of(at, relocation);
                let target = self.item(at, item, is_entry)?;
                Some((target, (symbol.value as i64).wrapping_add(relocation.addend)))
            }
        }
    }

    /// A new variable that several objects define alike (weak, C++'s inline) is one in the program, and so in the patch.
    fn one_of_all(&self, unit: usize, item: usize, symbol: &Symbol) -> At {
        let is_data = matches!(self.unit(unit).items[item].kind, Kind::Data | Kind::Zero);
        match self.selected.globals.get(&symbol.name) {
            Some((one, value))
                if is_data
                    && !symbol.is_local()
                    && *value == symbol.value
                    && self.selected.address(self.both, (unit, item)).is_none() =>
            {
                *one
            }
            _ => (unit, item),
        }
    }

    /// Whether a reference to a function's beginning means the function, not a place in it: a jump table counts from itself.
    fn is_address_of(&self, (unit, item): At, relocation: &Relocation) -> bool {
        let relative = elf::RelocationType(relocation.kind) == elf::R_X86_64_PC32;
        self.unit(unit).items[item].kind == Kind::Code || !relative
    }

    /// Where an item of the new build is: in the program, or a piece.
    fn item(&mut self, from: At, at: At, is_entry: bool) -> Option<Target> {
        let unit = self.unit(at.0);
        let item = &unit.items[at.1];
        let user = self.unit(from.0).title(from.1).to_owned();
        let address = self.selected.address(self.both, at);
        let is_private = self.selected.private.contains(&at);
        let is_changed = matches!(self.selected.fates[at.0][at.1], Fate::Changed(_));
        match item.kind {
            Kind::Code => {
                if is_entry && !is_private && !is_part_of(item.name.as_deref(), &user) {
                    if let Some(address) = address {
                        return Some(Target::Program(address));
                    }
                } else if !is_changed
                    && !self.of_item.contains_key(&at)
                    && !is_part_of(item.name.as_deref(), &user)
                    && let Some(address) = address
                {
                    return Some(Target::Program(address));
                }
                Some(Target::Piece(self.take(at, Some(&user))))
            }
            Kind::ThreadLocal => {
                self.refuse(
                    Why::ThreadLocalModel,
                    from,
                    format!("it takes the address of {}", unit.title(at.1)),
                );
                None
            }
            Kind::Data | Kind::Zero => {
                if let Some(address) = address {
                    return Some(Target::Program(address));
                }
                if item.name.is_none() && !is_by_content(unit, at.1) {
                    let why = format!(
                        "it uses {} of an assembly, which has no name by which the program's is found",
                        unit.title(at.1)
                    );
                    self.refuse(Why::Unsupported, from, why);
                    return None;
                }
                if self.selected.pairs[at.0].unclear.contains(&at.1) {
                    let about = unit.title(at.1);
                    let why =
                        format!("it uses {about}, which may be one of several static variables of that name");
                    self.refuse(Why::StaticLocal, from, why);
                    return None;
                }
                Some(Target::Piece(self.take(at, Some(&user))))
            }
            _ => match address {
                Some(address) if !is_changed && !is_by_content(unit, at.1) => Some(Target::Program(address)),
                _ => Some(Target::Piece(self.take(at, Some(&user)))),
            },
        }
    }

    /// What a name means that the object does not define.
    fn global(
        &mut self,
        from: At,
        symbol: &Symbol,
        relocation: &Relocation,
        distance: u64,
    ) -> Option<Target> {
        let program = self.both.program;
        let name = symbol.name.as_str();
        if program.is_library
            && let Some(stub) = program.stub(name)
        {
            return Some(Target::Program(stub));
        }
        let stub = program.stub(name);
        // A stub is how the program calls what it does not have itself.
        let hidden = || if stub.is_none() { program.hidden(name) } else { None };
        let own = program.global(name).or_else(hidden);
        // What is at its address is who chooses, also if it was compiled here.
        if own.is_some_and(|defined| defined.kind == elf::STT_GNU_IFUNC.0) {
            self.refuse(
                Why::Ifunc,
                from,
                format!("it refers to {name}, of which the program chose one when it started"),
            );
            return None;
        }
        if let Some((at, value)) = self.selected.globals.get(name).copied() {
            let is_known = self.selected.address(self.both, at).is_some();
            // Of an archive's member that was not linked, another's may be what the program has.
            if is_known || program.global(name).is_none() {
                if value == 0 {
                    let is_entry = relocation.addend.wrapping_add(distance as i64) == 0 || distance == 0;
                    return self.item(from, at, is_entry);
                }
                // An entry within an item (assembly): only the program's own can be used.
                if let Some(address) = self.selected.address(self.both, at) {
                    return Some(Target::Program(address + value));
                }
                self.refuse(
                    Why::Unsupported,
                    from,
                    format!("it refers to {name}, which lies within something new"),
                );
                return None;
            }
        }
        if let Some(defined) = own {
            if defined.kind == elf::STT_TLS.0 {
                self.refuse(Why::ThreadLocalModel, from, format!("it takes the address of {name}"));
                return None;
            }
            return Some(Target::Program(defined.address));
        }
        if let Some(stub) = stub {
            return Some(Target::Program(stub));
        }
        if symbol.place == Place::Common {
            self.refuse(
                Why::Unsupported,
                from,
                format!("{name} is new and a common symbol: build with -fno-common"),
            );
            return None;
        }
        let is_weak = symbol.binding == elf::STB_WEAK.0;
        let known = self.imports.iter().position(|import| import.name == name);
        let import = known.unwrap_or_else(|| {
            self.imports.push(Import { name: name.to_owned(), is_weak });
            self.imports.len() - 1
        });
        Some(Target::Import(import as u32))
    }

    /// A thread-local variable of an executable lies at a distance from the thread pointer that is known when it is linked.
    fn thread_local(&mut self, at: At, relocation: &Relocation, kind: FixupKind) -> Option<Fixup> {
        let unit = self.unit(at.0);
        let symbol = &unit.symbols[relocation.symbol];
        let (target, value) = match symbol.place {
            Place::Item(item) => (Some((at.0, item)), symbol.value),
            _ => match self.selected.globals.get(&symbol.name) {
                Some((target, value)) => (Some(*target), *value),
                None => (None, 0),
            },
        };
        let title = unit.target_title(relocation);
        let Some(target) = target else {
            self.refuse(Why::ThreadLocalModel, at, format!("it uses {title}, which is another library's"));
            return None;
        };
        let Some(address) = self.selected.address(self.both, target) else {
            self.refuse(
                Why::ThreadLocal,
                at,
                format!("it uses {title}, which is new: threads that exist have no room for it"),
            );
            return None;
        };
        let Some(distance) = self.both.program.thread_offset(address + value) else {
            self.refuse(Why::ThreadLocalModel, at, format!("it uses {title}, which is a library's"));
            return None;
        };
        Some(Fixup {
            offset: relocation.offset,
            kind,
            target: Target::Number(distance),
            addend: relocation.addend,
        })
    }

    /// One table for all code in the patch.
    fn add_unwind_tables(&mut self) -> Result<()> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut fixups = Vec::new();
        for number in 0..self.selected.pairs.len() {
            let unit = self.unit(number);
            if !self.of_item.keys().any(|(other, _)| *other == number) {
                continue;
            }
            let entries = unwind::entries(unit).map_err(|why| Error::malformed(&unit.name, why))?;
            let mut common: HashMap<usize, usize> = HashMap::new();
            let mut offsets: Vec<_> = entries.keys().copied().collect();
            offsets.sort_unstable();
            for offset in offsets {
                let entry = &entries[&offset];
                let (Some(code), Some(common_at)) = (entry.code, entry.common) else { continue };
                if !self.of_item.contains_key(&(number, code)) {
                    continue;
                }
                let Some(shared) = entries.get(&common_at) else {
                    return Err(Error::malformed(
                        &unit.name,
                        "an unwind entry names a common one that is not there",
                    ));
                };
                if let std::collections::hash_map::Entry::Vacant(vacant) = common.entry(common_at) {
                    vacant.insert(bytes.len());
                    self.append(number, shared, &mut bytes, &mut fixups);
                }
                let at = bytes.len();
                self.append(number, entry, &mut bytes, &mut fixups);
                let distance = (at + 4 - common[&common_at]) as u32;
                bytes[at + 4..at + 8].copy_from_slice(&distance.to_le_bytes());
            }
        }
        if bytes.is_empty() {
            return Ok(());
        }
        bytes.extend([0; 4]);
        self.pieces.push(Piece {
            name: ".eh_frame".to_owned(),
            unit: String::new(),
            kind: PieceKind::Unwind,
            align: 8,
            bytes: ByteBuf::from(bytes),
            zeros: 0,
            fixups,
            reason: "how to unwind the functions of this patch".to_owned(),
        });
        // What tables refer to (exception tables, personality routines) refers to more.
        self.close();
        Ok(())
    }

    fn append(
        &mut self,
        unit: usize,
        entry: &unwind::Entry<'_>,
        bytes: &mut Vec<u8>,
        fixups: &mut Vec<Fixup>,
    ) {
        let base = bytes.len() as u64;
        bytes.extend(entry.bytes);
        // Messages about the table name the first item of the object.
        for relocation in &entry.relocations {
            if let Some(mut fixup) = self.fixup((unit, 0), relocation, 0, true) {
                fixup.offset += base;
                fixups.push(fixup);
            }
        }
    }
}

/// Whether one is the cold part of another: `f.cold` jumps back into `f`.
fn is_part_of(name: Option<&str>, user: &str) -> bool {
    name.and_then(|name| name.split_once(".cold")).is_some_and(|(owner, _)| owner == user)
}

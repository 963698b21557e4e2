//! Where a patch's pieces lie in the process, and what their references become there.

use object::elf;

use super::memory::{Mapping, Memory, PAGE};
use super::modules::{Found, Module, Scope};
use crate::error::{Error, Result};
use crate::patch::{FixupKind, Part, Piece, PieceKind, SHADOWS, Target};

/// What is left free on both sides of a region, so that it never touches a neighbour.
const MARGIN: u64 = 16 * PAGE;
/// The lowest address that is used: above what `vm.mmap_min_addr` may ask for.
const LOWEST: u64 = 0x10_0000;
/// The end of user addresses with four-level page tables.
const HIGHEST: u64 = 0x7fff_ffff_f000;
/// A jump and a relative reference reach 2 GiB; a megabyte less, so that an addend does not matter.
const REACH: u64 = (2 << 30) - (1 << 20);
/// Where programs that are not relocated must keep what they refer to by 32 bits.
const LOW_END: u64 = (2 << 30) - (1 << 20);
/// Room that the stack may grow into.
const STACK_ROOM: u64 = 1 << 30;

/// A free place of `length` bytes from which all of a module is in reach. Below the module for preference: above it the heap
/// grows.
pub fn place(mappings: &[Mapping], module: &Module, is_fixed: bool, length: u64) -> Result<u64> {
    let length = length.next_multiple_of(PAGE);
    let lowest = LOWEST.max(module.end.saturating_sub(REACH));
    let highest = module.start.saturating_add(REACH).min(if is_fixed { LOW_END } else { HIGHEST });
    let mut holes = Vec::new();
    let mut from = 0;
    for mapping in mappings {
        let to =
            if mapping.path == "[stack]" { mapping.start.saturating_sub(STACK_ROOM) } else { mapping.start };
        if to > from {
            holes.push((from, to));
        }
        from = mapping.end;
    }
    holes.push((from, HIGHEST));
    let fitting: Vec<(u64, u64)> = holes
        .into_iter()
        .map(|(from, to)| ((from + MARGIN).max(lowest), to.saturating_sub(MARGIN).min(highest)))
        .filter(|(from, to)| to.checked_sub(*from).is_some_and(|size| size >= length))
        .collect();
    let below = fitting.iter().rev().find(|(from, _)| *from < module.start);
    // Above: as far from the module as can be.
    let hole = below.or_else(|| fitting.last());
    hole.map(|(_, to)| (to - length) / PAGE * PAGE).ok_or_else(|| {
        Error::unfit(format!("there is no room for {length} bytes within 2 GiB of {}", module.path))
    })
}

/// A part, laid out.
pub struct Plan<'a> {
    part: &'a Part,
    /// By piece: whether it is in the data, and its offset there or behind the header.
    places: Vec<(bool, u64)>,
    /// Offsets of slots and stubs behind the header; slots first.
    slots_at: u64,
    slots: Vec<Target>,
    stubs_at: u64,
    /// A piece that is elsewhere already, and where.
    moved: Option<(u32, u64)>,
    /// Lengths of the part that is executed and of the one that is written.
    pub code_length: u64,
    pub data_length: u64,
}

/// `jmp [rip + distance]`.
const STUB: [u8; 2] = [0xff, 0x25];
const STUB_LENGTH: u64 = 8;

impl<'a> Plan<'a> {
    pub fn new(part: &'a Part) -> Self {
        let mut places = vec![(false, 0); part.pieces.len()];
        let (mut code, mut data) = (0u64, 0u64);
        for kind in [PieceKind::Unwind, PieceKind::ReadOnly, PieceKind::Code, PieceKind::Data] {
            for (index, piece) in part.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == kind) {
                let end = if kind == PieceKind::Data { &mut data } else { &mut code };
                let at = end.next_multiple_of(u64::from(piece.align));
                places[index] = (kind == PieceKind::Data, at);
                *end = at + piece.len();
            }
        }
        let mut slots: Vec<Target> = Vec::new();
        for fixup in part.pieces.iter().flat_map(|piece| &piece.fixups) {
            let is_import = matches!(fixup.target, Target::Import(_)) && fixup.kind == FixupKind::Relative32;
            if (fixup.kind == FixupKind::Slot32 || is_import) && !slots.contains(&fixup.target) {
                slots.push(fixup.target);
            }
        }
        let slots_at = code.next_multiple_of(8);
        let stubs_at = slots_at + 8 * slots.len() as u64;
        Self {
            part,
            places,
            slots_at,
            stubs_at,
            code_length: stubs_at + STUB_LENGTH * slots.len() as u64,
            data_length: data,
            slots,
            moved: None,
        }
    }

    /// Where a piece lies.
    pub fn address(&self, piece: u32, code: u64, data: u64) -> u64 {
        if let Some((_, there)) = self.moved.filter(|(moved, _)| *moved == piece) {
            return there;
        }
        let (is_data, offset) = self.places[piece as usize];
        offset + if is_data { data } else { code }
    }

    /// The piece that is the table of fields beside objects, if there is one.
    fn shadows(&self) -> Option<u32> {
        let is_table = |piece: &Piece| piece.kind == PieceKind::Data && piece.name == SHADOWS;
        self.part.pieces.iter().position(is_table).map(|index| index as u32)
    }

    /// Where the table of fields beside objects is: another patch's, if one has brought it along.
    pub fn take_shadows(&mut self, known: Option<u64>, code: u64, data: u64) -> Option<u64> {
        let piece = self.shadows()?;
        self.moved = known.map(|known| (piece, known));
        Some(self.address(piece, code, data))
    }

    /// The unwind table, if there is one.
    pub fn unwind_table(&self, code: u64, data: u64) -> Option<u64> {
        let index = self.part.pieces.iter().position(|piece| piece.kind == PieceKind::Unwind)?;
        Some(self.address(index as u32, code, data))
    }

    /// What imported names are in this process, for a part that belongs to `module`.
    pub fn imports(&self, memory: &Memory, scope: &Scope, module: &Module) -> Result<Vec<Option<Found>>> {
        let mut found = Vec::with_capacity(self.part.imports.len());
        for import in &self.part.imports {
            let address = scope.resolve(memory, &import.name, module)?;
            if address.is_none() && !import.is_weak {
                return Err(Error::unfit(format!(
                    "the patch uses {}, which nothing in the process has",
                    import.name
                )));
            }
            found.push(address);
        }
        Ok(found)
    }

    /// The bytes of both parts, as they are to lie at these addresses.
    pub fn image(
        &self,
        bias: u64,
        code: u64,
        data: u64,
        imports: &[Option<Found>],
    ) -> Result<(Vec<u8>, Vec<u8>)> {
        // Between functions: what stops who strays there.
        let mut code_bytes = vec![0xcc; self.code_length as usize];
        let mut data_bytes = vec![0; self.data_length as usize];
        let value = |target: Target| match target {
            Target::Piece(piece) => self.address(piece, code, data),
            Target::Program(address) => bias.wrapping_add(address),
            Target::Import(import) => {
                imports.get(import as usize).copied().flatten().map_or(0, |found| found.address)
            }
            Target::Number(number) => number as u64,
        };
        for (index, piece) in self.part.pieces.iter().enumerate() {
            let (is_data, offset) = self.places[index];
            let (bytes, base) = if is_data { (&mut data_bytes, data) } else { (&mut code_bytes, code) };
            let from = offset as usize;
            let range = from..from + piece.len() as usize;
            bytes[range.clone()].fill(0);
            bytes[from..from + piece.bytes.len()].copy_from_slice(&piece.bytes);
            for fixup in &piece.fixups {
                let at = base + offset + fixup.offset;
                let field = from + fixup.offset as usize;
                let plain = value(fixup.target).wrapping_add_signed(fixup.addend);
                let slot = || self.slots.iter().position(|slot| *slot == fixup.target).unwrap_or(0) as u64;
                let distance = |to: u64| i32::try_from(to.wrapping_sub(at) as i64).ok().map(i32::to_le_bytes);
                let encoded = match fixup.kind {
                    FixupKind::Absolute64 => Some(plain.to_le_bytes().to_vec()),
                    FixupKind::Relative64 => Some(plain.wrapping_sub(at).to_le_bytes().to_vec()),
                    FixupKind::Absolute32 => {
                        u32::try_from(plain).ok().map(|value| value.to_le_bytes().to_vec())
                    }
                    FixupKind::Signed32 => {
                        i32::try_from(plain as i64).ok().map(|value| value.to_le_bytes().to_vec())
                    }
                    FixupKind::Slot32 => {
                        let to = code + self.slots_at + 8 * slot();
                        distance(to.wrapping_add_signed(fixup.addend)).map(|value| value.to_vec())
                    }
                    FixupKind::Relative32 => distance(plain)
                        .or_else(|| {
                            // A function that is too far away is jumped to from nearby.
                            let Target::Import(import) = fixup.target else { return None };
                            let found = imports.get(import as usize).copied().flatten()?;
                            let is_function =
                                found.kind == elf::STT_FUNC.0 || found.kind == elf::STT_NOTYPE.0;
                            let to = code + self.stubs_at + STUB_LENGTH * slot();
                            is_function.then(|| distance(to.wrapping_add_signed(fixup.addend))).flatten()
                        })
                        .map(|value| value.to_vec()),
                };
                let Some(encoded) = encoded else { return Err(out_of_reach(self.part, piece, fixup.target)) };
                bytes[field..field + encoded.len()].copy_from_slice(&encoded);
            }
        }
        for (index, target) in self.slots.iter().enumerate() {
            let slot = self.slots_at + 8 * index as u64;
            code_bytes[slot as usize..slot as usize + 8].copy_from_slice(&value(*target).to_le_bytes());
            let stub = self.stubs_at + STUB_LENGTH * index as u64;
            let distance = (slot as i64 - (stub as i64 + 6)) as i32;
            let bytes = &mut code_bytes[stub as usize..stub as usize + 6];
            bytes[..2].copy_from_slice(&STUB);
            bytes[2..].copy_from_slice(&distance.to_le_bytes());
        }
        Ok((code_bytes, data_bytes))
    }
}

fn out_of_reach(part: &Part, piece: &Piece, target: Target) -> Error {
    let what = match target {
        Target::Import(import) => {
            part.imports.get(import as usize).map_or("a name", |import| &import.name).to_owned()
        }
        Target::Piece(piece) => {
            part.pieces.get(piece as usize).map_or("a piece", |piece| &piece.name).to_owned()
        }
        Target::Program(address) => format!("{address:#x} of {}", part.program),
        Target::Number(number) => number.to_string(),
    };
    Error::unfit(format!("{} refers to {what}, which is out of its reach in this process", piece.name))
}

/// Lays a part out as if in a process: what a file has that [`Part`]'s check lets pass must be no trouble here.
#[cfg(test)]
pub(crate) fn lay_out(part: &Part) {
    let plan = Plan::new(part);
    let imports = vec![None; part.imports.len()];
    let (code, data) = (0x5555_0000_0000, 0x5555_0100_0000);
    // References may be out of reach.
    if let Ok((code_bytes, data_bytes)) = plan.image(0x5555_5000_0000, code, data, &imports) {
        assert_eq!((code_bytes.len() as u64, data_bytes.len() as u64), (plan.code_length, plan.data_length));
    }
    for switch in &part.switches {
        plan.address(switch.piece, code, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, path: &str) -> Mapping {
        Mapping {
            start,
            end,
            is_readable: true,
            is_writable: false,
            is_executable: true,
            is_private: true,
            offset: 0,
            inode: 1,
            path: path.to_owned(),
        }
    }

    fn module(start: u64, end: u64) -> Module {
        Module::for_test(start, end)
    }

    #[test]
    fn a_region_lies_below_its_module_and_in_reach() {
        let mappings = [
            mapping(0x5555_0000_0000, 0x5555_0001_0000, "/a"),
            mapping(0x7fff_0000_0000, 0x7fff_0010_0000, "[stack]"),
        ];
        let at = place(&mappings, &module(0x5555_0000_0000, 0x5555_0001_0000), false, 0x1800).unwrap();
        assert_eq!(at, 0x5555_0000_0000 - MARGIN - 0x2000);
    }

    #[test]
    fn a_program_that_lies_low_gets_low_addresses() {
        let mappings = [mapping(0x40_0000, 0x50_0000, "/a"), mapping(0x60_0000, 0x70_0000, "[heap]")];
        let program = module(0x40_0000, 0x50_0000);
        assert!(place(&mappings, &program, true, 0x1000).unwrap() < 0x40_0000);
        // What is too much for below goes above, far from the heap.
        let at = place(&mappings, &program, true, 0x40_0000).unwrap();
        assert!(at > 0x7000_0000 && at + 0x40_0000 < 1 << 31, "{at:#x}");
        let full = [mapping(0x1000, 0x8000_0000, "/a")];
        assert!(place(&full, &module(0x1000, 0x8000_0000), true, 0x1000).is_err());
    }

    #[test]
    fn nothing_is_put_where_the_stack_grows() {
        let stack = 0x7fff_0000_0000;
        let mappings =
            [mapping(stack - (1 << 20), stack - (1 << 19), "/a"), mapping(stack, stack + 0x1000, "[stack]")];
        let at = place(&mappings, &module(stack - (1 << 20), stack - (1 << 19)), false, 0x1000).unwrap();
        assert!(at < stack - (1 << 20));
    }
}

//! A small assembler for BPF: instructions by name, jumps by label.
//!
//! It knows the instructions that the programs here use and nothing more; the kernel's verifier is what checks a
//! program. Encoding: Documentation/bpf/standardization/instruction-set.rst.

use std::os::fd::{AsRawFd, BorrowedFd};

/// One encoded instruction word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Instruction(u64);

/// R0 is a call's result, R1 to R5 its arguments (lost by it), R6 to R9 survive it, R10 points past the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// The width of a load or store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    Byte,
    Half,
    Word,
    Double,
}

/// When a conditional jump is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum If {
    Equal,
    NotEqual,
    /// Less than, of the lower 32 bits taken as signed.
    Negative32,
}

/// A place in the program that jumps can name before it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

#[derive(Debug, thiserror::Error)]
#[error("a BPF program jumps to a label that was never placed, or further than an instruction can encode")]
pub struct BadJump;

// Instruction classes and modes.
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;
const ALU32: u8 = 0x04;
const MEM: u8 = 0x60;
const IMM: u8 = 0x00;
const SOURCE_REGISTER: u8 = 0x08;
// Operations.
const SUB: u8 = 0x10;
const ADD: u8 = 0x00;
const AND: u8 = 0x50;
const SHIFT_LEFT: u8 = 0x60;
const MOVE: u8 = 0xb0;
const ALWAYS: u8 = 0x00;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
// Meanings of the source field.
const PSEUDO_MAP_FD: u8 = 1;
const PSEUDO_KFUNC_CALL: u8 = 2;

/// Builds a program instruction by instruction.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Parts>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<Option<usize>>,
}

#[derive(Debug, Clone, Copy)]
struct Parts {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Assembler {
    pub fn new() -> Self {
        Self::default()
    }

    /// A label to jump to, to be placed later with [`Self::place`].
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Makes `label` mean the next instruction.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    pub fn move_immediate(&mut self, to: Register, value: i32) {
        self.push(ALU64 | MOVE, to as u8, 0, 0, value);
    }

    pub fn move_register(&mut self, to: Register, from: Register) {
        self.push(ALU64 | MOVE | SOURCE_REGISTER, to as u8, from as u8, 0, 0);
    }

    pub fn add(&mut self, to: Register, value: i32) {
        self.push(ALU64 | ADD, to as u8, 0, 0, value);
    }

    pub fn add_register(&mut self, to: Register, from: Register) {
        self.push(ALU64 | ADD | SOURCE_REGISTER, to as u8, from as u8, 0, 0);
    }

    pub fn and(&mut self, to: Register, value: i32) {
        self.push(ALU64 | AND, to as u8, 0, 0, value);
    }

    pub fn shift_left(&mut self, to: Register, bits: i32) {
        self.push(ALU64 | SHIFT_LEFT, to as u8, 0, 0, bits);
    }

    /// `to -= from` in 32 bits, so that sequence numbers wrap as TCP's do.
    pub fn subtract32(&mut self, to: Register, from: Register) {
        self.push(ALU32 | SUB | SOURCE_REGISTER, to as u8, from as u8, 0, 0);
    }

    pub fn load(&mut self, width: Width, to: Register, base: Register, offset: i16) {
        self.push(LDX | MEM | width.bits(), to as u8, base as u8, offset, 0);
    }

    pub fn store(&mut self, width: Width, base: Register, offset: i16, from: Register) {
        self.push(STX | MEM | width.bits(), base as u8, from as u8, offset, 0);
    }

    pub fn store_immediate(&mut self, width: Width, base: Register, offset: i16, value: i32) {
        self.push(ST | MEM | width.bits(), base as u8, 0, offset, value);
    }

    /// Loads a map's address; the kernel replaces the descriptor by it when the program is loaded.
    pub fn load_map(&mut self, to: Register, map: BorrowedFd<'_>) {
        self.push(LD | IMM | Width::Double.bits(), to as u8, PSEUDO_MAP_FD, 0, map.as_raw_fd());
        self.push(0, 0, 0, 0, 0); // The second half of a 64-bit immediate.
    }

    /// Calls one of the kernel's numbered helpers (bpf-helpers(7)).
    pub fn call_helper(&mut self, helper: i32) {
        self.push(JMP | CALL, 0, 0, 0, helper);
    }

    /// Calls a kernel function by its BTF id (Documentation/bpf/kfuncs.rst).
    pub fn call_kernel_function(&mut self, btf_id: u32) {
        self.push(JMP | CALL, 0, PSEUDO_KFUNC_CALL, 0, btf_id.cast_signed());
    }

    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JMP | ALWAYS, 0, 0, 0, 0);
    }

    pub fn jump_if(&mut self, left: Register, condition: If, right: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(condition.bits(), left as u8, 0, 0, right);
    }

    pub fn jump_if_register(&mut self, left: Register, condition: If, right: Register, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(condition.bits() | SOURCE_REGISTER, left as u8, right as u8, 0, 0);
    }

    pub fn exit(&mut self) {
        self.push(JMP | EXIT, 0, 0, 0, 0);
    }

    /// The finished program, with every jump resolved.
    pub fn finish(mut self) -> Result<Vec<Instruction>, BadJump> {
        for (at, label) in self.jumps {
            let target = self.labels[label.0].ok_or(BadJump)?;
            // Offsets count from the instruction after the jump.
            let distance = target as isize - (at as isize + 1);
            self.code[at].offset = i16::try_from(distance).map_err(|_| BadJump)?;
        }
        Ok(self.code.into_iter().map(Parts::encode).collect())
    }

    fn push(&mut self, code: u8, destination: u8, source: u8, offset: i16, immediate: i32) {
        self.code.push(Parts { code, destination, source, offset, immediate });
    }
}

impl Parts {
    /// struct bpf_insn: opcode, two registers in nibbles, offset, immediate; in the machine's byte order.
    fn encode(self) -> Instruction {
        let registers = if cfg!(target_endian = "big") {
            self.destination << 4 | self.source
        } else {
            self.source << 4 | self.destination
        };
        let [o0, o1] = self.offset.to_ne_bytes();
        let [i0, i1, i2, i3] = self.immediate.to_ne_bytes();
        Instruction(u64::from_ne_bytes([self.code, registers, o0, o1, i0, i1, i2, i3]))
    }
}

impl Width {
    fn bits(self) -> u8 {
        match self {
            Width::Word => 0x00,
            Width::Half => 0x08,
            Width::Byte => 0x10,
            Width::Double => 0x18,
        }
    }
}

impl If {
    fn bits(self) -> u8 {
        match self {
            If::Equal => JMP | 0x10,
            If::NotEqual => JMP | 0x50,
            If::Negative32 => JMP32 | 0xc0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn encodes_as_documented() {
        let mut program = Assembler::new();
        let end = program.label();
        program.move_immediate(Register::R0, -1);
        program.jump_if(Register::R1, If::Equal, 7, end);
        program.load(Width::Half, Register::R2, Register::R10, -8);
        program.place(end);
        program.exit();
        let words: Vec<_> = program.finish().expect("finish").iter().map(|word| word.0).collect();
        assert_eq!(words, [0xffff_ffff_0000_00b7, 0x0000_0007_0001_0115, 0x0000_0000_fff8_a269, 0x95]);
    }

    #[test]
    fn refuses_a_jump_to_nowhere() {
        let mut program = Assembler::new();
        let nowhere = program.label();
        program.jump(nowhere);
        assert!(program.finish().is_err());
    }
}

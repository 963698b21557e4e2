//! Where a stopped thread is: its instruction, and where each of the functions below it goes on, by the tables that the modules of
//! the process have for their unwinder (`.eh_frame`, DWARF 5 section 6.4, Linux Standard Base 10.6).
//!
//! Who asks wants to know where the thread is *not*. So nothing is guessed: where a table ends (assembly, code that was made at run
//! time), what is left of the stack is given out word by word, as if each were a return address.

use std::collections::BTreeMap;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, EvaluationResult, LittleEndian,
    ParsedEhFrameHdr, Pointer, Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection, Value,
};

use super::memory::{Mapping, Memory};
use super::modules::Module;
use crate::error::{Error, Result};
use crate::sys::ptrace::Registers;

/// Largest table that is read from a process: a browser's has some ten MiB. And of all together; modules beyond are walked over word by word.
const MOST_TABLE: u64 = 256 << 20;
const MOST_TABLES: u64 = 512 << 20;
/// A thread that is in more functions than this is in a recursion without an end.
const MOST_FRAMES: usize = 1 << 16;
/// Most of a stack that is given out word by word.
const MOST_WORDS: u64 = 64 << 20;
/// What is read of a stack at once.
const CHUNK: u64 = 64 << 10;
/// Stacks of one thread: a handler on its own stack may be interrupted by one that is not, and so on.
const MOST_STACKS: usize = 16;
/// In a `struct sigcontext` (arch/x86/include/uapi/asm/sigcontext.h) the word of `cs`, `gs`, `fs` and `ss`, as it is of every 64-bit program
/// (`__USER_CS` and `__USER_DS`, arch/x86/include/asm/segment.h), comes behind `rsp`, `rip` and `eflags`.
const SEGMENTS: u64 = 0x002b_0000_0000_0033;
const BEFORE_SEGMENTS: usize = 3;
/// Registers by their numbers in DWARF (System V ABI, x86-64, figure 3.36): 16 is the return address.
const STACK: usize = 7;
const RETURN: usize = 16;

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Row<'a> = gimli::UnwindTableRow<usize>;

/// The tables of one module.
struct Table {
    start: u64,
    end: u64,
    bases: BaseAddresses,
    index: Vec<u8>,
    frames: Vec<u8>,
}

/// Those of all modules, read while the process runs: they do not change while the modules are the same.
pub(super) struct Tables {
    tables: Vec<Table>,
}

/// What is known of the end of a stack: where the thread goes on, or one of its words, which may be such a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The next instruction of the thread.
    At(u64),
    /// An address behind a call, or what could be one.
    Behind(u64),
}

impl Tables {
    pub fn read(memory: &Memory, modules: &[Module], mappings: &[Mapping]) -> Self {
        // A module without tables is walked over word by word.
        let mut left = MOST_TABLES;
        let tables = modules.iter().filter_map(|module| Table::read(memory, module, mappings, &mut left));
        Self { tables: tables.collect() }
    }

    /// Hands out every place that the thread is at or goes back to, until `take` has found what it looks for.
    pub fn walk(
        &self,
        memory: &Memory,
        mappings: &[Mapping],
        regs: &Registers,
        take: &mut dyn FnMut(Place) -> bool,
    ) -> Result<()> {
        let mut frame = Frame::new(regs);
        if take(Place::At(frame.at)) {
            return Ok(());
        }
        let mut stack = Stack { memory, from: 0, bytes: Vec::new(), mappings };
        let mut context = UnwindContext::new();
        // The instruction itself, not one behind a call: so it is for the first, and for one that a signal interrupted.
        let mut is_exact = true;
        for _ in 0..MOST_FRAMES {
            let looked_up = if is_exact { frame.at } else { frame.at.wrapping_sub(1) };
            let below = frame.registers[STACK];
            let step = self
                .tables
                .iter()
                .find(|table| (table.start..table.end).contains(&looked_up))
                .and_then(|table| table.step(&mut stack, &mut context, &frame, looked_up));
            match step {
                Some(Step::End) => return Ok(()),
                Some(Step::To(next, was_signal)) => {
                    if take(if was_signal { Place::At(next.at) } else { Place::Behind(next.at) }) {
                        return Ok(());
                    }
                    is_exact = was_signal;
                    frame = next;
                }
                None => return stack.words(below, take),
            }
        }
        Err(Error::unfit("it is in a recursion without an end"))
    }
}

#[derive(Clone, Copy)]
struct Frame {
    at: u64,
    registers: [u64; RETURN],
}

enum Step {
    /// This was the first function of the thread.
    End,
    /// The function below, and whether a signal had interrupted it.
    To(Frame, bool),
}

impl Frame {
    fn new(regs: &Registers) -> Self {
        let registers = [
            regs.rax, regs.rdx, regs.rcx, regs.rbx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        Self { at: regs.rip, registers }
    }

    fn register(&self, register: Register) -> Option<u64> {
        self.registers.get(usize::from(register.0)).copied()
    }
}

impl Table {
    /// `left` is what may still be read.
    fn read(memory: &Memory, module: &Module, mappings: &[Mapping], left: &mut u64) -> Option<Self> {
        let mut take = |size: u64| {
            let size = size.min(MOST_TABLE);
            *left = left.checked_sub(size)?;
            usize::try_from(size).ok()
        };
        let (at, size) = module.unwind_index?;
        let index = memory.read(at, take(size)?).ok()?;
        let bases = BaseAddresses::default().set_eh_frame_hdr(at);
        let frames_at = match parse(&index, &bases)?.eh_frame_ptr() {
            Pointer::Direct(address) => address,
            Pointer::Indirect(_) => return None,
        };
        let mapping = mappings.iter().find(|m| (m.start..m.end).contains(&frames_at))?;
        let frames = memory.read(frames_at, take(mapping.end - frames_at)?).ok()?;
        Some(Self {
            start: module.start,
            end: module.end,
            bases: bases.set_eh_frame(frames_at),
            index,
            frames,
        })
    }

    /// To the function below, as the table has it; `None` if it does not say.
    fn step(
        &self,
        stack: &mut Stack<'_>,
        context: &mut UnwindContext<usize>,
        frame: &Frame,
        looked_up: u64,
    ) -> Option<Step> {
        let index = parse(&self.index, &self.bases)?;
        let section = EhFrame::new(&self.frames, LittleEndian);
        let entry = index
            .table()?
            .fde_for_address(&section, &self.bases, looked_up, EhFrame::cie_from_offset)
            .ok()?;
        let row = entry.unwind_info_for_address(&section, &self.bases, context, looked_up).ok()?;
        let encoding = entry.cie().encoding();
        let evaluate = |expression: &UnwindExpression<usize>, first: Option<u64>, stack: &mut Stack<'_>| {
            evaluate(expression, &section, encoding, first, frame, stack)
        };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                frame.register(*register)?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => evaluate(expression, None, stack)?,
        };
        let is_signal = entry.is_signal_trampoline();
        // Each function has more of the stack than those that it calls; only a signal may come on another stack.
        if cfa <= frame.registers[STACK] && !is_signal {
            return None;
        }
        let mut value = |number: usize| -> Option<Option<u64>> {
            let register = Register(u16::try_from(number).ok()?);
            Some(match rule(row, register) {
                None | Some(RegisterRule::SameValue) => frame.register(register),
                Some(RegisterRule::Undefined) => None,
                Some(RegisterRule::Offset(offset)) => Some(stack.word(cfa.wrapping_add_signed(offset))?),
                Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
                Some(RegisterRule::Register(other)) => Some(frame.register(other)?),
                Some(RegisterRule::Expression(expression)) => {
                    let at = evaluate(&expression, Some(cfa), stack)?;
                    Some(stack.word(at)?)
                }
                Some(RegisterRule::ValExpression(expression)) => {
                    Some(evaluate(&expression, Some(cfa), stack)?)
                }
                Some(_) => return None,
            })
        };
        // No rule for the return address would be a table that is not of this processor.
        rule(row, Register(RETURN as u16))?;
        let at = match value(RETURN)? {
            None | Some(0) => return Some(Step::End),
            Some(at) => at,
        };
        let mut registers = [0; RETURN];
        for (number, register) in registers.iter_mut().enumerate() {
            *register = match (number, rule(row, Register(number as u16))) {
                (STACK, None) => cfa,
                // What a function does not keep its caller does not use.
                _ => value(number)?.unwrap_or(0),
            };
        }
        Some(Step::To(Frame { at, registers }, is_signal))
    }
}

fn parse<'a>(index: &'a [u8], bases: &BaseAddresses) -> Option<ParsedEhFrameHdr<Slice<'a>>> {
    EhFrameHdr::new(index, LittleEndian).parse(bases, 8).ok()
}

fn rule(row: &Row<'_>, register: Register) -> Option<RegisterRule<usize>> {
    row.register(register)
}

/// An expression of a table: of registers, memory and numbers.
fn evaluate(
    expression: &UnwindExpression<usize>,
    section: &EhFrame<Slice<'_>>,
    encoding: gimli::Encoding,
    first: Option<u64>,
    frame: &Frame,
    stack: &mut Stack<'_>,
) -> Option<u64> {
    /// Tables of compilers and libraries have a dozen operations; a loop has no end.
    const MOST_OPERATIONS: u32 = 1000;
    let mut evaluation = expression.get(section).ok()?.evaluation(encoding);
    evaluation.set_max_iterations(MOST_OPERATIONS);
    if let Some(first) = first {
        evaluation.set_initial_value(first);
    }
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                evaluation.resume_with_register(Value::Generic(frame.register(register)?)).ok()?
            }
            EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                evaluation.resume_with_memory(Value::Generic(stack.word(address)?)).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.as_result() {
        [gimli::Piece { location: gimli::Location::Address { address }, .. }] => Some(*address),
        _ => None,
    }
}

/// A thread's stack, read in pieces.
struct Stack<'a> {
    memory: &'a Memory,
    from: u64,
    bytes: Vec<u8>,
    mappings: &'a [Mapping],
}

impl<'a> Stack<'a> {
    fn word(&mut self, at: u64) -> Option<u64> {
        if let Some(word) = self.kept(at) {
            return Some(word);
        }
        let mapping = self.mappings.iter().find(|m| (m.start..m.end).contains(&at))?;
        let length = (mapping.end - at).min(CHUNK);
        self.bytes = self.memory.read(at, usize::try_from(length).ok()?).ok()?;
        self.from = at;
        self.kept(at)
    }

    fn kept(&self, at: u64) -> Option<u64> {
        let from = usize::try_from(at.checked_sub(self.from)?).ok()?;
        let word = self.bytes.get(from..from.checked_add(8)?)?;
        Some(u64::from_le_bytes(std::array::from_fn(|index| word[index])))
    }

    /// All words of a stack from here on, and of the stack that a signal interrupted, where its handler has one of its own (sigaltstack(2)).
    fn words(&mut self, from: u64, take: &mut dyn FnMut(Place) -> bool) -> Result<()> {
        let mapping =
            self.stack_at(from)?.ok_or_else(|| Error::unfit("its stack pointer leads to no stack"))?;
        let mut next = vec![(from, mapping)];
        // The lowest place in each mapping that was begun at: one mapping may have several stacks.
        let mut begun = BTreeMap::from([(mapping.start, from)]);
        let mut stacks = 1;
        while let Some((from, mapping)) = next.pop() {
            let mut at = from.next_multiple_of(8);
            // Of the words before: the stack pointer, when this one ends the registers of a signal frame.
            let mut before = [0; BEFORE_SEGMENTS];
            while at < mapping.end {
                let length = (mapping.end - at).min(CHUNK) as usize;
                // What was mapped or could be read may have changed since.
                let bytes = self
                    .memory
                    .read(at, length)
                    .map_err(|error| Error::unfit(format!("its stack cannot be looked at: {error}")))?;
                for word in bytes.chunks_exact(8) {
                    let word = u64::from_le_bytes(std::array::from_fn(|index| word[index]));
                    if take(Place::Behind(word)) {
                        return Ok(());
                    }
                    // A signal interrupted this instruction itself.
                    if word == SEGMENTS && take(Place::At(before[1])) {
                        return Ok(());
                    }
                    // A frame that is left over from before leads anywhere, also nowhere.
                    if word == SEGMENTS
                        && let Some(other) = self.stack_at(before[0])?
                        && begun.get(&other.start).is_none_or(|lowest| before[0] < *lowest)
                    {
                        if stacks == MOST_STACKS {
                            return Err(Error::unfit("signals have interrupted it on too many stacks"));
                        }
                        stacks += 1;
                        begun.insert(other.start, before[0]);
                        next.push((before[0], other));
                    }
                    before.rotate_left(1);
                    before[BEFORE_SEGMENTS - 1] = word;
                }
                at += CHUNK;
            }
        }
        Ok(())
    }

    /// What a stack pointer leads to, if that can be a stack.
    fn stack_at(&self, from: u64) -> Result<Option<&'a Mapping>> {
        // A stack that grew since the mappings were read begins below where it did.
        let mapping = self.mappings.iter().find(|m| from < m.end && m.start <= from.saturating_add(CHUNK));
        let Some(mapping) = mapping.filter(|mapping| mapping.is_writable) else { return Ok(None) };
        // What is not looked at may be what matters.
        if mapping.end - from > MOST_WORDS {
            return Err(Error::unfit(
                "its stack, or one that a signal interrupted, is too large to be looked at",
            ));
        }
        Ok(Some(mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::super::modules;
    use super::*;

    /// What each thread of a program is in, whose functions are known by name.
    #[test]
    fn a_thread_of_this_process_is_walked_to_its_first_function() {
        let memory = Memory::open(std::process::id().cast_signed()).unwrap();
        let mappings = memory.mappings().unwrap();
        let modules = modules::find(&memory, &mappings);
        let tables = Tables::read(&memory, &modules, &mappings);
        assert!(tables.tables.len() >= 2, "the program's and libc's");
        // As it is at this call: the registers that matter are read by assembly.
        // SAFETY: plain integers, for which all-zero is a value.
        let mut regs: Registers = unsafe { std::mem::zeroed() };
        // SAFETY: only reads registers.
        unsafe {
            std::arch::asm!(
                "lea {at}, [rip]",
                "mov [{regs} + 152], rsp",
                "mov [{regs} + 32], rbp",
                "mov [{regs} + 40], rbx",
                "mov [{regs} + 24], r12",
                "mov [{regs} + 16], r13",
                "mov [{regs} + 8], r14",
                "mov [{regs}], r15",
                "mov [{regs} + 128], {at}",
                at = out(reg) _,
                regs = in(reg) &raw mut regs,
            );
        }
        let (mut places, mut is_scanned) = (Vec::new(), 0);
        tables
            .walk(&memory, &mappings, &regs, &mut |place| {
                let (Place::At(at) | Place::Behind(at)) = place;
                is_scanned += usize::from(!modules.iter().any(|module| module.holds(at)));
                places.push(place);
                false
            })
            .unwrap();
        assert_eq!(places[0], Place::At(regs.rip));
        assert!(places.len() > 5, "{places:x?}");
        // A walk by tables gives out addresses of code only.
        assert_eq!(is_scanned, 0, "{places:x?}");
    }

    /// A mapping of this process that goes away again.
    struct Mapped {
        at: *mut u64,
        size: usize,
    }

    impl Mapped {
        fn new(size: usize) -> Self {
            let (writable, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            );
            // SAFETY: a new mapping, between two pages of it that nobody can touch, so that the kernel joins it to no other.
            unsafe {
                let at = libc::mmap(std::ptr::null_mut(), size + 2 * 4096, libc::PROT_NONE, flags, -1, 0);
                assert_ne!(at, libc::MAP_FAILED);
                let at = at.byte_add(4096);
                assert_eq!(libc::mprotect(at, size, writable), 0);
                Self { at: at.cast(), size }
            }
        }

        fn address(&self) -> u64 {
            self.at.addr() as u64
        }

        fn put(&self, index: usize, words: &[u64]) {
            assert!((index + words.len()) * 8 <= self.size);
            for (offset, word) in words.iter().enumerate() {
                // SAFETY: in the mapping, which nobody else has.
                unsafe { self.at.add(index + offset).write(*word) };
            }
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: mapped above, with the page before it and the one behind, and used no more.
            unsafe { libc::munmap(self.at.byte_sub(4096).cast(), self.size + 2 * 4096) };
        }
    }

    /// All words from here on, by these mappings.
    fn words(mappings: &[Mapping], from: u64) -> Result<Vec<Place>> {
        let memory = Memory::open(std::process::id().cast_signed()).unwrap();
        let mut stack = Stack { memory: &memory, from: 0, bytes: Vec::new(), mappings };
        let mut places = Vec::new();
        let mut take = |place| {
            places.push(place);
            false
        };
        stack.words(from, &mut take)?;
        Ok(places)
    }

    fn mappings() -> Vec<Mapping> {
        Memory::open(std::process::id().cast_signed()).unwrap().mappings().unwrap()
    }

    /// Two stacks: on one a handler runs, and the other has what the signal interrupted.
    #[test]
    fn where_tables_end_on_a_signal_stack_the_interrupted_one_is_scanned_as_well() {
        let (alternate, main) = (Mapped::new(1 << 16), Mapped::new(1 << 16));
        main.put(100, &[0x1234]);
        main.put(10, &[0x5678]);
        alternate.put(60, &[main.address() + 512, 0xabcd, 0x202, SEGMENTS]);
        let places = words(&mappings(), alternate.address() + 128).unwrap();
        assert!(places.contains(&Place::At(0xabcd)), "it was interrupted there, and not behind it");
        assert!(places.contains(&Place::Behind(0x1234)), "what called it is on the other stack");
        assert!(!places.contains(&Place::Behind(0x5678)), "below its pointer a stack holds nothing");
    }

    #[test]
    fn an_interrupted_stack_that_lies_lower_in_the_same_mapping_is_scanned_as_well() {
        let both = Mapped::new(1 << 16);
        both.put(100, &[0x1234]);
        both.put(10, &[0x5678]);
        both.put(4060, &[both.address() + 512, 0xabcd, 0x202, SEGMENTS]);
        let places = words(&mappings(), both.address() + 4000 * 8).unwrap();
        assert!(places.contains(&Place::Behind(0x1234)), "what the signal interrupted");
        assert!(!places.contains(&Place::Behind(0x5678)), "below its pointer a stack holds nothing");
    }

    #[test]
    fn an_interrupted_stack_that_is_not_looked_at_is_no_frame_that_was_left_over() {
        let alternate = Mapped::new(1 << 16);
        let from = alternate.address() + 128;
        let interrupt = |at: u64| alternate.put(60, &[at, 0xabcd, 0x202, SEGMENTS]);
        // The page before is mapped, and not writable.
        for nowhere in [8, alternate.address() - 8] {
            interrupt(nowhere);
            words(&mappings(), from).unwrap();
        }
        let large = Mapped::new(MOST_WORDS as usize + (1 << 16));
        interrupt(large.address() + 512);
        assert!(matches!(words(&mappings(), from), Err(Error::Unfit(_))));
        let gone = Mapped::new(1 << 16);
        interrupt(gone.address() + 512);
        let before = mappings();
        drop(gone);
        assert!(matches!(words(&before, from), Err(Error::Unfit(_))), "it can be tried again");
    }
}

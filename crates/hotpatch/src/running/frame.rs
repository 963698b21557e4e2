//! What `rt_sigreturn` takes all registers of a thread from: the way back of a thread that calls for us, also without us.

use crate::sys;
use crate::sys::ptrace::Registers;

/// Below the stack pointer a function may keep 128 bytes (System V ABI, x86-64, 3.2.2).
const RED_ZONE: u64 = 128;

/// What `rt_sigreturn` takes all registers from (`struct rt_sigframe`, arch/x86/include/asm/sigframe.h).
pub(super) struct Frame {
    pub address: u64,
    pub bytes: Vec<u8>,
}

/// `uc_flags`: extended state is there, `ss` is, and is to be taken (arch/x86/include/uapi/asm/ucontext.h).
const CONTEXT_FLAGS: u64 = 1 | 2 | 4;
/// No value of `ss_flags`: the alternate stack stays what it is (`do_sigaltstack` refuses, `restore_altstack` goes on).
const KEEP_ALTERNATE_STACK: u32 = 0x40;
/// `FP_XSTATE_MAGIC1`, `FP_XSTATE_MAGIC2` and the place of `struct _fpx_sw_bytes` (uapi/asm/sigcontext.h).
const XSTATE_MAGIC: u32 = 0x4650_5853;
const XSTATE_END: u32 = 0x4650_5845;
const SOFTWARE_AT: usize = 464;
/// In the XSAVE header: which components are not in their initial state.
const PRESENT_AT: usize = 512;
/// Tile configuration and data (Intel SDM vol. 1, 13.1): a thread has room for them only once it has asked.
const TILES: u64 = 0b11 << 17;

impl Frame {
    /// Below `stack`. Without extended state (an empty one) the thread gets the state of a new program. `None` if `stack`, which
    /// can be any number, has not as much below it.
    pub fn new(stack: u64, regs: &Registers, mask: u64, mut xstate: Vec<u8>, sigreturn: u64) -> Option<Self> {
        let quad = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(std::array::from_fn(|index| b[index])))
        };
        // `ptrace` notes there which components the kernel has switched on.
        let mut components = quad(&xstate, SOFTWARE_AT);
        if quad(&xstate, PRESENT_AT) & TILES == 0 {
            components &= !TILES;
        }
        let size = sys::xsave_size(components).min(xstate.len());
        xstate.truncate(size);
        if size >= PRESENT_AT {
            let mut software = Vec::with_capacity(48);
            software.extend(XSTATE_MAGIC.to_le_bytes());
            software.extend((size as u32 + 4).to_le_bytes());
            software.extend(components.to_le_bytes());
            software.extend((size as u32).to_le_bytes());
            software.resize(48, 0);
            xstate[SOFTWARE_AT..SOFTWARE_AT + 48].copy_from_slice(&software);
        }
        let has_state = !xstate.is_empty();
        if has_state {
            xstate.extend(XSTATE_END.to_le_bytes());
        }
        let area = stack.checked_sub(RED_ZONE + xstate.len() as u64)? & !63;
        let mut bytes = Vec::with_capacity(xstate.len() + 512);
        let mut put = |value: u64| bytes.extend(value.to_le_bytes());
        put(sigreturn);
        put(CONTEXT_FLAGS);
        put(0);
        put(0);
        put(u64::from(KEEP_ALTERNATE_STACK));
        put(0);
        for value in [
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
            regs.rdi,
            regs.rsi,
            regs.rbp,
            regs.rbx,
            regs.rdx,
            regs.rax,
            regs.rcx,
            regs.rsp,
            regs.rip,
            regs.eflags,
        ] {
            put(value);
        }
        // cs, gs, fs, ss, 16 bits each.
        put(regs.cs & 0xffff | (regs.ss & 0xffff) << 48);
        for value in [0, 0, mask, 0, if has_state { area } else { 0 }] {
            put(value);
        }
        for _ in 0..8 {
            put(0);
        }
        put(mask);
        // Room for a siginfo that nobody reads.
        for _ in 0..16 {
            put(0);
        }
        // After the first eight bytes are popped the kernel looks at what follows; functions that are called here find their stack
        // aligned: at their entry, 8 below a multiple of 16.
        let address = (area.checked_sub(bytes.len() as u64 + 8)? & !15) + 8;
        bytes.resize((area - address) as usize, 0);
        bytes.extend(xstate);
        Some(Self { address, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_what_the_kernel_looks_for() {
        // SAFETY: plain integers, for which all-zero is a value.
        let mut regs: Registers = unsafe { std::mem::zeroed() };
        regs.rip = 0x1111;
        regs.rsp = 0x7000_0000_1008;
        let mut xstate = vec![0u8; 2696];
        xstate[SOFTWARE_AT] = 7;
        let frame = Frame::new(regs.rsp, &regs, 0xabc, xstate.clone(), 0x9999).unwrap();
        for nowhere in [0, RED_ZONE, 2000, 3000] {
            assert!(
                Frame::new(nowhere, &regs, 0xabc, xstate.clone(), 0x9999).is_none_or(|f| f.address < nowhere)
            );
        }
        assert!(Frame::new(RED_ZONE, &regs, 0xabc, Vec::new(), 0x9999).is_none());
        let quad = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| frame.bytes[at + index]));
        assert_eq!(frame.address % 16, 8);
        assert_eq!(quad(0), 0x9999);
        // After the pretcode: flags, link and stack are 40 bytes; then 15 registers and the stack pointer.
        assert_eq!(quad(8 + 40 + 15 * 8), regs.rsp);
        assert_eq!(quad(8 + 40 + 16 * 8), regs.rip);
        assert_eq!(quad(8 + 40 + 256), 0xabc);
        let area = quad(8 + 40 + 23 * 8);
        assert_eq!(area % 64, 0);
        assert!(area + 512 < regs.rsp - RED_ZONE);
        let at = (area - frame.address) as usize;
        assert_eq!(frame.bytes[at + SOFTWARE_AT..at + SOFTWARE_AT + 4], XSTATE_MAGIC.to_le_bytes());
        assert_eq!(frame.bytes[frame.bytes.len() - 4..], XSTATE_END.to_le_bytes());
    }
}

//! Signal handlers, alternate stacks and signals that wait.

use std::io;

use serde::{Deserialize, Serialize};

use crate::sys::ptrace::SignalInfo;
use crate::sys::remote::{Batch, Remote};

/// `_NSIG` on x86-64.
pub const SIGNALS: usize = 64;
/// The size of a signal set for the kernel.
const SET_SIZE: u64 = 8;
/// `struct kernel_sigaction`: handler, flags, restorer, mask.
const ACTION_SIZE: usize = 32;
/// `stack_t`: pointer, flags (with padding), size.
const STACK_SIZE: usize = 24;

/// What a process does on one signal, as the kernel keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    pub signal: u8,
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// `stack_t`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalStack {
    pub pointer: u64,
    pub flags: i32,
    pub size: u64,
}

/// A signal that was sent and not yet delivered, with its `siginfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSignal(pub Vec<u8>);

impl PendingSignal {
    pub fn new(info: &SignalInfo) -> Self {
        Self(info.to_vec())
    }

    /// The `siginfo_t` again; short or long ones, which only a damaged checkpoint has, are cut or padded.
    pub fn info(&self) -> SignalInfo {
        let mut info = [0u8; 128];
        let len = self.0.len().min(128);
        info[..len].copy_from_slice(&self.0[..len]);
        info
    }

    pub fn number(&self) -> i32 {
        let info = self.info();
        i32::from_ne_bytes([info[0], info[1], info[2], info[3]])
    }
}

/// All actions that are not the default, asked by any thread of the process.
pub fn capture_actions(remote: &mut Remote<'_>) -> io::Result<Vec<SignalAction>> {
    let mut batch = Batch::new();
    let room = batch.bytes(&[0u8; ACTION_SIZE * SIGNALS]);
    for signal in 1..=SIGNALS as u64 {
        let at = room + (signal - 1) * ACTION_SIZE as u64;
        batch.call(libc::SYS_rt_sigaction, &[signal, 0, at, SET_SIZE]);
    }
    remote.run_all(&mut batch)?;
    let bytes = remote.read(room, ACTION_SIZE * SIGNALS)?;
    Ok(bytes
        .chunks_exact(ACTION_SIZE)
        .enumerate()
        .map(|(index, raw)| {
            let word = |at: usize| {
                raw[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte))
            };
            SignalAction {
                signal: index as u8 + 1,
                handler: word(0),
                flags: word(8),
                restorer: word(16),
                mask: word(24),
            }
        })
        .filter(|action| action.handler != 0 || action.flags != 0)
        .collect())
}

/// What the supervisor ignores (SIGPIPE, as every program in Rust does) is ignored by what it has made.
pub fn restore_default(batch: &mut Batch, signal: i32) {
    let default = batch.bytes(&[0; ACTION_SIZE]);
    batch.call(libc::SYS_rt_sigaction, &[signal as u64, default, 0, SET_SIZE]);
}

/// In a process that was made for it, which has no handlers.
pub fn restore_actions(batch: &mut Batch, actions: &[SignalAction]) {
    if actions.iter().all(|action| i32::from(action.signal) != libc::SIGPIPE) {
        restore_default(batch, libc::SIGPIPE);
    }
    for action in actions {
        if matches!(i32::from(action.signal), libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        let raw: Vec<u8> = [action.handler, action.flags, action.restorer, action.mask]
            .into_iter()
            .flat_map(u64::to_ne_bytes)
            .collect();
        let at = batch.bytes(&raw);
        batch.call(libc::SYS_rt_sigaction, &[u64::from(action.signal), at, 0, SET_SIZE]);
    }
}

/// The alternate stack of the thread that is asked, and the address at which it wants to be told to have ended.
pub fn capture_thread(remote: &mut Remote<'_>) -> io::Result<(SignalStack, u64)> {
    let mut batch = Batch::new();
    let stack = batch.bytes(&[0u8; STACK_SIZE]);
    let tid = batch.bytes(&[0u8; 8]);
    batch.call(libc::SYS_sigaltstack, &[0, stack]);
    batch.call(libc::SYS_prctl, &[libc::PR_GET_TID_ADDRESS as u64, tid, 0, 0, 0]);
    remote.run_all(&mut batch)?;
    let raw = remote.read(stack, STACK_SIZE)?;
    let word = |at: usize| raw[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    let tid = remote.read(tid, 8)?;
    let stack = SignalStack { pointer: word(0), flags: word(8) as u32 as i32, size: word(16) };
    Ok((stack, tid.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte))))
}

pub fn restore_stack(batch: &mut Batch, stack: &SignalStack) {
    // SS_ONSTACK says that the thread runs on it just now; the kernel finds that out by itself.
    let flags = stack.flags & !libc::SS_ONSTACK;
    let mut raw = stack.pointer.to_ne_bytes().to_vec();
    raw.extend_from_slice(&u64::from(flags as u32).to_ne_bytes());
    raw.extend_from_slice(&stack.size.to_ne_bytes());
    let at = batch.bytes(&raw);
    batch.call(libc::SYS_sigaltstack, &[at, 0]);
}

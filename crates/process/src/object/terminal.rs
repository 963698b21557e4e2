//! Pseudo-terminals (`pty(7)`): the pair, once, with what waits in both directions, and descriptors of either side.
//!
//! What waits is read from the kernel's memory ([`Reader`]): a read would take it, and nothing could be put back in the
//! form in which it was. It is written again by [`super::terminal_build`], which looks afterwards whether it is the same.
//! Which session a terminal controls, and which group is in its foreground, belongs to the process tree
//! ([`crate::terminals`]).

use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::descriptor::{At, StatusFlags};
use crate::checkpoint::{ObjectId, Pid};
use crate::error::{Attempt, Result};
use crate::sys::bpf::terminal::{self as kernel, Reader, TERMIOS};
use crate::sys::{proc, terminal as sys};

// Device numbers (include/uapi/linux/major.h, Documentation/admin-guide/devices.txt).
pub(super) const ANY: u64 = 5;
pub(super) const CONTROLLING: u64 = 0;
pub(super) const MULTIPLEXER: u64 = 2;
pub(super) const SLAVES: u64 = 136;

/// `c_lflag`, `c_iflag` (`asm-generic/termbits.h`).
pub(super) const ICANON: u32 = 0o2;
pub(super) const ECHO: u32 = 0o10;
pub(super) const ECHOE: u32 = 0o20;
pub(super) const IEXTEN: u32 = 0o100_000;
const EXTPROC: u32 = 0o200_000;
pub(super) const IXON: u32 = 0o2000;
pub(super) const OPOST: u32 = 0o1;

/// What a master in packet mode is told next (`TIOCPKT_…`, `asm-generic/ioctls.h`).
pub(super) mod packet {
    pub const FLUSH_READ: u8 = 1;
    pub const FLUSH_WRITE: u8 = 2;
    pub const STOP: u8 = 4;
    pub const START: u8 = 8;
    pub const NO_STOP: u8 = 16;
    pub const DO_STOP: u8 = 32;
}

/// What surely fits again: see `in_steps` in [`super::terminal_build`]. The kernel holds a little more of some writers' output.
const MOST_OUTPUT: usize = 20_400;

/// How long a worker of the kernel's may take to hand on what was written: it has tens of kilobytes to copy.
const SETTLE_ATTEMPTS: u32 = 100;
const SETTLE_REST: std::time::Duration = std::time::Duration::from_micros(20);

/// Settings as `TCGETS2` gives them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termios(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl Termios {
    /// Of the words for input, output, control and local modes.
    pub(super) fn word(&self, index: usize) -> u32 {
        let bytes = self.0.get(4 * index..).and_then(|bytes| bytes.first_chunk::<4>());
        bytes.copied().map_or(0, u32::from_ne_bytes)
    }

    /// One of the special characters, which follow the words and the number of the discipline.
    pub(super) fn character(&self, index: usize) -> u8 {
        self.0.get(17 + index).copied().unwrap_or(0)
    }

    pub(super) fn raw(&self) -> [u8; TERMIOS] {
        let mut raw = [0; TERMIOS];
        let length = self.0.len().min(TERMIOS);
        raw[..length].copy_from_slice(&self.0[..length]);
        raw
    }

    /// Whether the usual characters stop and start output, which a master in packet mode is told.
    pub(super) fn has_flow_control(&self) -> bool {
        const VSTART: usize = 8;
        const VSTOP: usize = 9;
        self.word(0) & IXON != 0 && self.character(VSTOP) == 0x13 && self.character(VSTART) == 0x11
    }
}

/// Whether anybody has the slave open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlaveUse {
    /// Nobody has opened it yet: reading the master waits.
    Never,
    Open,
    /// Reading the master gives an error.
    Closed,
}

/// What can be read from the slave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// In canonical mode: the last bytes of lines. A zero that is one stands for an end of file.
    pub marks: Vec<u16>,
    pub canonical: bool,
    /// The first mark came by a change to canonical mode.
    pub push: bool,
    /// The next byte is taken literally.
    pub quoting: bool,
    /// What there was no room for: not looked at yet.
    #[serde(with = "serde_bytes")]
    pub behind: Vec<u8>,
}

/// A pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// `/dev/pts/INDEX`.
    pub index: u32,
    /// Without a master all descriptors of the slave are hung up.
    pub master_open: bool,
    pub slave: SlaveUse,
    pub mode: u32,
    pub owner: (u32, u32),
    pub locked: bool,
    /// Of the master and of the slave.
    pub exclusive: (bool, bool),
    pub termios: Termios,
    pub window: [u16; 4],
    /// Output is stopped by a character, or by a call.
    pub stopped: bool,
    pub stopped_by_call: bool,
    /// In packet mode: what the master is told next.
    pub packet: Option<u8>,
    /// Where output stands, for tabs.
    pub column: u32,
    /// Where the line that is being typed began; 0 if none is.
    pub line_column: u32,
    pub input: Input,
    /// What can be read from the master.
    #[serde(with = "serde_bytes")]
    pub output: Vec<u8>,
    pub session: Option<Pid>,
    /// In the foreground.
    pub group: Option<Pid>,
}

/// Which side a descriptor is of, and how it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Side {
    Master,
    Slave,
    /// As `/dev/tty`.
    Controlling,
    /// The slave's, hung up since it was opened.
    Hung,
}

/// A description of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalEnd {
    /// The [`Terminal`].
    pub terminal: ObjectId,
    pub side: Side,
    pub flags: StatusFlags,
}

/// Of a pair of which these are some descriptors. `slave` is where the kernel keeps it.
pub(crate) fn capture(at: &At<'_>, slave: u64) -> Result<Terminal> {
    let reader = reader(at)?;
    let what = || "look into a terminal".to_owned();
    for attempt in 0.. {
        if !reader.is_moving(slave).attempt(what)? {
            break;
        }
        if attempt == SETTLE_ATTEMPTS {
            return Err(at.refuse("a terminal in which something moves", "it is kept when that has arrived"));
        }
        std::thread::sleep(SETTLE_REST);
    }
    let pair = reader.read(slave).attempt(what)?;
    let node = nix::sys::stat::stat(&proc::path(at.holder.root, &format!("root/dev/pts/{}", pair.index)));
    // A pair without a master has no node.
    let (mode, owner) =
        node.map_or((0o620, (0, 0)), |node| (node.st_mode & 0o7777, (node.st_uid, node.st_gid)));
    let terminal = describe(&pair, mode, owner);
    match unkept(&pair, &terminal) {
        Some((what, advice)) if terminal.master_open => {
            Err(at.refuse(format!("the terminal /dev/pts/{} {what}", pair.index), advice))
        }
        _ => Ok(terminal),
    }
}

/// One description of a side; `end` has all but its flags. It is asked what only it tells: whether it was hung up, and of its
/// side whether that is locked or for exclusive use.
pub(crate) fn capture_end(at: &At<'_>, end: TerminalEnd, terminal: &mut Terminal) -> Result<TerminalEnd> {
    let what = || "ask about a terminal".to_owned();
    let flags = at.status_flags(&at.info()?)?;
    if end.side == Side::Master {
        if flags.access() != libc::O_RDWR {
            return Err(at.refuse("a master of a terminal for one direction only", "open it for both"));
        }
        let master = at.duplicate()?;
        terminal.locked = sys::is_locked(master.as_fd()).attempt(what)?;
        terminal.exclusive.0 = sys::is_exclusive(master.as_fd()).attempt(what)?;
        return Ok(TerminalEnd { flags, ..end });
    }
    let slave = at.duplicate()?;
    let hung = sys::is_hung(slave.as_fd()).attempt(what)?;
    if !hung {
        terminal.exclusive.1 = sys::is_exclusive(slave.as_fd()).attempt(what)?;
    }
    if hung && terminal.master_open && terminal.session.is_some() {
        let what = "a terminal that was hung up and controls a session again";
        return Err(at.refuse(what, "let the program close what was hung up"));
    }
    let side = if hung { Side::Hung } else { end.side };
    Ok(TerminalEnd { flags, side, ..end })
}

/// Whether an open file still is of the pair whose slave is kept there.
pub(crate) fn is_of(file: u64, slave: u64) -> bool {
    Reader::shared().is_ok_and(|reader| reader.identify(file).is_ok_and(|(found, _)| found == slave))
}

pub(crate) fn reader(at: &At<'_>) -> Result<&'static Reader> {
    Reader::shared()
        .map_err(|why| at.refuse(format!("a terminal, which cannot be looked into here ({why})"), ADVICE))
}

pub(super) const ADVICE: &str = "run it on a kernel with BPF and its type information";

/// What it is, by what the kernel has of it.
pub(super) fn describe(pair: &kernel::Pair, mode: u32, owner: (u32, u32)) -> Terminal {
    let waiting = &pair.slave.waiting;
    // An open master counts as one that has its slave open (`pty_common_install`, drivers/tty/pty.c).
    let opened = pair.slave.open > pair.master.open.min(1);
    let slave = match (opened, pair.master.other_closed) {
        (true, _) => SlaveUse::Open,
        (false, true) => SlaveUse::Closed,
        (false, false) => SlaveUse::Never,
    };
    let is_typing = waiting.canonical && waiting.bytes.len() > usize::from(waiting.lines);
    Terminal {
        index: pair.index,
        master_open: pair.master.open > 0,
        slave,
        mode,
        owner,
        // Told by descriptors.
        locked: false,
        exclusive: (false, false),
        termios: Termios(pair.termios.to_vec()),
        window: pair.window,
        stopped: pair.stopped,
        stopped_by_call: pair.stopped_by_call,
        packet: pair.packet.then_some(pair.packet_status),
        column: waiting.column,
        line_column: if is_typing { waiting.canon_column } else { 0 },
        input: Input {
            bytes: waiting.bytes.clone(),
            marks: waiting.marks.clone(),
            canonical: waiting.canonical,
            push: waiting.push,
            quoting: waiting.quoting,
            behind: waiting.behind.clone(),
        },
        output: [pair.master.waiting.bytes.as_slice(), &pair.master.waiting.behind].concat(),
        session: pair.session,
        group: pair.group,
    }
}

/// What could not be made again as it is.
fn unkept(pair: &kernel::Pair, terminal: &Terminal) -> Option<(&'static str, &'static str)> {
    let (input, status) = (&terminal.input, terminal.packet.unwrap_or(0));
    let canonical = terminal.termios.word(3) & ICANON != 0;
    let waiting = &pair.slave.waiting;
    let lines = input.marks.last().map_or(0, |last| last + 1);
    let empty = input.bytes.is_empty() && input.behind.is_empty() && terminal.output.is_empty();
    let flow = terminal.termios.has_flow_control();
    let passes = "it is kept as soon as that has passed";
    if !waiting.usual || !pair.master.waiting.usual {
        return Some(("with a line discipline of its own", "let the program leave it as it is (N_TTY)"));
    }
    if terminal.termios.word(3) & EXTPROC != 0 {
        return Some(("of which the master edits lines (EXTPROC)", "switch off the program's local editing"));
    }
    if pair.termios_locked {
        return Some(("of which settings are locked (TIOCSLCKTRMIOS)", "let the program leave them open"));
    }
    if waiting.marked || pair.master.waiting.marked {
        return Some(("with errors or breaks in its input", passes));
    }
    if waiting.echoes || pair.master.waiting.echoes {
        return Some(("with echoes that wait for room", "it is kept as soon as its master reads"));
    }
    if waiting.erasing {
        return Some(("in the middle of what it shows of an erasure (ECHOPRT)", passes));
    }
    if canonical != input.canonical || (canonical && lines != waiting.lines) {
        return Some(("with input in a state that is not understood", "it is kept as soon as that is read"));
    }
    if terminal.slave == SlaveUse::Never && !(empty && terminal.column == 0) {
        return Some(("with content, which nobody has opened yet", "it is kept as soon as somebody does"));
    }
    if terminal.stopped && !terminal.stopped_by_call && !input.behind.is_empty() {
        return Some(("stopped, and with more input than fits", "it is kept as soon as that is read"));
    }
    let told = "it is kept as soon as its master has read what it is told";
    if status & packet::FLUSH_READ != 0 && !(input.bytes.is_empty() && input.behind.is_empty()) {
        return Some(("that was emptied and has new input, of which its master was not told", told));
    }
    if terminal.output.len() > MOST_OUTPUT {
        return Some((
            "with more output than can be written again",
            "it is kept as soon as its master reads",
        ));
    }
    if status & packet::FLUSH_WRITE != 0 && terminal.output.len() >= kernel::QUEUE {
        return Some(("that was emptied and has much new output, of which its master was not told", told));
    }
    let consistent = (status & packet::STOP == 0 || terminal.stopped)
        && (status & packet::START == 0 || !terminal.stopped)
        && (status & packet::DO_STOP == 0 || flow)
        && (status & packet::NO_STOP == 0 || !flow);
    if !consistent {
        return Some(("of which the master was not told what has changed", told));
    }
    None
}

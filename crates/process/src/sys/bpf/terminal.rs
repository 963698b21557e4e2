//! What the kernel keeps of a pseudo-terminal: both its sides, and what waits in each. Read from the kernel's memory
//! ([`KernelMemory`]), since no call tells it without taking it.
//!
//! A side (`struct tty_struct`, include/linux/tty.h) has a buffer of what was sent to it (`struct tty_bufhead`,
//! include/linux/tty_buffer.h), from which a worker of the kernel hands on to the line discipline (`struct n_tty_data`,
//! drivers/tty/n_tty.c), from which it is read.

use std::io;
use std::sync::OnceLock;

use super::btf::Layout;
use super::iterator::Unavailable;
use super::members::members;
use super::memory::KernelMemory;

/// Bytes that the line discipline holds (`N_TTY_BUF_SIZE`, include/linux/tty.h).
pub const QUEUE: usize = 4096;
/// `struct ktermios` without padding: four words, the discipline, 19 characters, two speeds.
pub const TERMIOS: usize = 44;
/// `UNIX98_PTY_MASTER_MAJOR`, `UNIX98_PTY_SLAVE_MAJOR` (include/uapi/linux/major.h): by these the drivers of the sides are
/// known, whose types have other numbers in every other kernel.
const MASTER: u32 = 128;
const SLAVE: u32 = 136;
/// Bit of `tty_struct.flags` (include/linux/tty.h). The others have other numbers since Linux 6.9.
const OTHER_CLOSED: u32 = 2;
/// A work item that waits to be run (`WORK_STRUCT_PENDING_BIT`, include/linux/workqueue.h).
const WORK_PENDING: u64 = 1;
/// What is on its way to the line discipline is at most this (`pty_common_install` limits it to 8 KiB, and a buffer more
/// may be begun): 64 KiB is the limit of other terminals.
const MOST_ON_ITS_WAY: usize = 64 * 1024;
/// Buffers of one side: each holds at least one byte.
const MOST_BUFFERS: usize = 4096;

members! {
    file_private: "file", "private_data";
    private_tty: "tty_file_private", "tty";
    index: "tty_struct", "index";
    driver: "tty_struct", "driver";
    driver_major: "tty_driver", "major";
    discipline: "tty_struct", "ldisc";
    discipline_ops: "tty_ldisc", "ops";
    discipline_number: "tty_ldisc_ops", "num";
    data: "tty_struct", "disc_data";
    port: "tty_struct", "port";
    link: "tty_struct", "link";
    flags: "tty_struct", "flags";
    count: "tty_struct", "count";
    termios: "tty_struct", "termios";
    termios_locked: "tty_struct", "termios_locked";
    window: "tty_struct", "winsize";
    stopped: "tty_struct", "flow.stopped";
    stopped_by_call: "tty_struct", "flow.tco_stopped";
    group: "tty_struct", "ctrl.pgrp";
    session: "tty_struct", "ctrl.session";
    packet_status: "tty_struct", "ctrl.pktstatus";
    packet: "tty_struct", "ctrl.packet";
    pid_level: "pid", "level";
    pid_numbers: "pid", "numbers";
    buffer: "tty_port", "buf";
    buffer_head: "tty_bufhead", "head";
    buffer_work: "tty_bufhead", "work.data";
    buffer_lock: "tty_bufhead", "lock.owner";
    piece_next: "tty_buffer", "next";
    piece_used: "tty_buffer", "used";
    piece_commit: "tty_buffer", "commit";
    piece_read: "tty_buffer", "read";
    piece_flags: "tty_buffer", "flags";
    piece_data: "tty_buffer", "data";
    read_head: "n_tty_data", "read_head";
    read_tail: "n_tty_data", "read_tail";
    canon_head: "n_tty_data", "canon_head";
    echo_head: "n_tty_data", "echo_head";
    echo_tail: "n_tty_data", "echo_tail";
    bits: "n_tty_data", "lnext";
    read_buf: "n_tty_data", "read_buf";
    read_flags: "n_tty_data", "read_flags";
    column: "n_tty_data", "column";
    canon_column: "n_tty_data", "canon_column";
    no_room: "n_tty_data", "no_room";
}

/// The places of single bits in the byte at [`Members::bits`].
#[derive(Debug, Clone, Copy)]
struct Bits {
    quoting: u32,
    erasing: u32,
    canonical: u32,
    push: u32,
}

/// What waits on one side to be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// What the line discipline has taken in.
    pub bytes: Vec<u8>,
    /// Of these, the ends of what a read gives at once.
    pub marks: Vec<u16>,
    /// How many of them can be read in canonical mode.
    pub lines: u16,
    /// The first mark was made by a change to canonical mode, not by an end of line.
    pub push: bool,
    /// The next byte is taken literally (VLNEXT).
    pub quoting: bool,
    /// Erased characters are being shown (ECHOPRT).
    pub erasing: bool,
    pub canonical: bool,
    /// What the line discipline has no room for yet.
    pub behind: Vec<u8>,
    /// Echoes that wait for room in the output.
    pub echoes: bool,
    pub column: u32,
    pub canon_column: u32,
    /// The discipline is the usual one (N_TTY).
    pub usual: bool,
    /// What is behind has marks of errors or breaks.
    pub marked: bool,
}

/// One side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    pub address: u64,
    pub waiting: Waiting,
    pub open: u32,
    /// Everybody has closed the other side.
    pub other_closed: bool,
}

/// A pair of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub index: u32,
    pub master: Side,
    pub slave: Side,
    /// The slave's, as `TCGETS2` gives it.
    pub termios: [u8; TERMIOS],
    /// Some of it may not be changed (TIOCSLCKTRMIOS).
    pub termios_locked: bool,
    pub window: [u16; 4],
    pub stopped: bool,
    pub stopped_by_call: bool,
    pub packet: bool,
    pub packet_status: u8,
    /// Innermost numbers.
    pub group: Option<i32>,
    pub session: Option<i32>,
}

/// Reads them.
#[derive(Debug)]
pub struct Reader {
    memory: &'static KernelMemory,
    at: Members,
    bits: Bits,
}

impl Reader {
    /// The one of this process, made at the first call.
    pub fn shared() -> Result<&'static Self, String> {
        static SHARED: OnceLock<Result<Reader, String>> = OnceLock::new();
        KernelMemory::reader(&SHARED, Self::find)
    }

    fn find(memory: &'static KernelMemory, layout: &Layout<'_>) -> Result<Self, Unavailable> {
        let at = Members::find(layout)?;
        let bit = |name: &str| {
            let missing = || Unavailable::Missing(format!("n_tty_data.{name}"));
            let byte = layout.offset("n_tty_data", name)?.map(u64::from).ok_or_else(missing)?;
            let shift = layout.shift("n_tty_data", name)?.ok_or_else(missing)?;
            if byte == at.bits { Ok::<_, Unavailable>(shift) } else { Err(missing()) }
        };
        let bits = Bits {
            quoting: bit("lnext")?,
            erasing: bit("erasing")?,
            canonical: bit("icanon")?,
            push: bit("push")?,
        };
        Ok(Self { memory, at, bits })
    }

    fn byte(&self, address: u64) -> io::Result<u8> {
        Ok(self.memory.read(address, 1)?[0])
    }

    /// The side that an open file is of, and whether that is the master's.
    fn side_of(&self, file: u64) -> io::Result<(u64, bool)> {
        let private = self.memory.double(file + self.at.file_private)?;
        let tty = self.memory.double(private + self.at.private_tty)?;
        let driver = self.memory.double(tty + self.at.driver)?;
        match self.memory.word(driver + self.at.driver_major)? {
            MASTER => Ok((tty, true)),
            SLAVE => Ok((tty, false)),
            _ => Err(io::Error::other("it is no pseudo-terminal")),
        }
    }

    /// The slave's side by which a pair is known, of an open file of either side, and whether that is the master.
    pub fn identify(&self, file: u64) -> io::Result<(u64, bool)> {
        let (tty, is_master) = self.side_of(file)?;
        let slave = if is_master { self.memory.double(tty + self.at.link)? } else { tty };
        Ok((slave, is_master))
    }

    /// The number of a pair, by its slave's side.
    pub fn index(&self, slave: u64) -> io::Result<u32> {
        self.memory.word(slave + self.at.index)
    }

    /// Whether a worker of the kernel's moves something at this moment, in either direction.
    pub fn is_moving(&self, slave: u64) -> io::Result<bool> {
        let master = self.memory.double(slave + self.at.link)?;
        for side in [slave, master] {
            let buffer = self.memory.double(side + self.at.port)? + self.at.buffer;
            let pending = self.memory.double(buffer + self.at.buffer_work)? & WORK_PENDING != 0;
            if pending || self.memory.double(buffer + self.at.buffer_lock)? != 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A pair, by its slave's side. Nobody uses it, and nothing moves.
    pub fn read(&self, slave: u64) -> io::Result<Pair> {
        let (at, memory) = (&self.at, self.memory);
        let master = memory.double(slave + at.link)?;
        let window = memory.read(slave + at.window, 8)?;
        let window =
            std::array::from_fn(|index| u16::from_ne_bytes([window[2 * index], window[2 * index + 1]]));
        let mut termios = [0u8; TERMIOS];
        termios.copy_from_slice(&memory.read(slave + at.termios, TERMIOS)?);
        let locked = memory.read(slave + at.termios_locked, TERMIOS)?;
        Ok(Pair {
            index: memory.word(slave + at.index)?,
            master: self.side(master)?,
            slave: self.side(slave)?,
            termios,
            termios_locked: locked.iter().any(|byte| *byte != 0),
            window,
            stopped: self.byte(slave + at.stopped)? != 0,
            stopped_by_call: self.byte(slave + at.stopped_by_call)? != 0,
            packet: self.byte(master + at.packet)? != 0,
            packet_status: self.byte(slave + at.packet_status)?,
            group: self.number(memory.double(slave + at.group)?)?,
            session: self.number(memory.double(slave + at.session)?)?,
        })
    }

    /// The innermost number of a `struct pid`. `struct upid` is a number and a pointer.
    fn number(&self, pid: u64) -> io::Result<Option<i32>> {
        if pid == 0 {
            return Ok(None);
        }
        let level = u64::from(self.memory.word(pid + self.at.pid_level)?);
        Ok(Some(self.memory.word(pid + self.at.pid_numbers + 16 * level)? as i32))
    }

    fn side(&self, tty: u64) -> io::Result<Side> {
        let flags = self.memory.double(tty + self.at.flags)?;
        Ok(Side {
            address: tty,
            waiting: self.waiting(tty)?,
            open: self.memory.word(tty + self.at.count)?,
            other_closed: flags >> OTHER_CLOSED & 1 != 0,
        })
    }

    fn waiting(&self, tty: u64) -> io::Result<Waiting> {
        let (at, memory) = (&self.at, self.memory);
        let discipline = memory.double(tty + at.discipline)?;
        let data = memory.double(tty + at.data)?;
        // Hung up for good: there is none.
        if discipline == 0 || data == 0 {
            return Ok(Waiting { usual: true, ..Waiting::default() });
        }
        let usual = memory.word(memory.double(discipline + at.discipline_ops)? + at.discipline_number)? == 0;
        if !usual {
            return Ok(Waiting::default());
        }
        let (head, tail) = (memory.double(data + at.read_head)?, memory.double(data + at.read_tail)?);
        let count = head.wrapping_sub(tail) as usize;
        if count > QUEUE {
            return Err(io::Error::other(format!("{count} bytes wait in a terminal's {QUEUE}")));
        }
        let bits = u32::from(self.byte(data + at.bits)?);
        let bit = |shift: u32| bits >> shift & 1 != 0;
        let place = |index: usize| (tail as usize).wrapping_add(index) % QUEUE;
        let (mut bytes, mut marks) = (Vec::new(), Vec::new());
        if count > 0 {
            let first = count.min(QUEUE - place(0));
            bytes = memory.read(data + at.read_buf + place(0) as u64, first)?;
            bytes.extend(memory.read(data + at.read_buf, count - first)?);
            if bit(self.bits.canonical) {
                let flags = memory.read(data + at.read_flags, QUEUE / 8)?;
                let marked = |index: &usize| flags[place(*index) / 8] >> (place(*index) % 8) & 1 != 0;
                marks = (0..count).filter(marked).map(|index| index as u16).collect();
            }
        }
        let (behind, marked) = self.behind(memory.double(tty + at.port)? + at.buffer)?;
        Ok(Waiting {
            bytes,
            marks,
            lines: memory.double(data + at.canon_head)?.wrapping_sub(tail).min(QUEUE as u64) as u16,
            push: bit(self.bits.push),
            quoting: bit(self.bits.quoting),
            erasing: bit(self.bits.erasing),
            canonical: bit(self.bits.canonical),
            behind,
            echoes: memory.double(data + at.echo_head)? != memory.double(data + at.echo_tail)?,
            column: memory.word(data + at.column)?,
            canon_column: memory.word(data + at.canon_column)?,
            usual,
            marked,
        })
    }

    fn behind(&self, buffer: u64) -> io::Result<(Vec<u8>, bool)> {
        let (at, memory) = (&self.at, self.memory);
        let (mut found, mut marked) = (Vec::new(), false);
        let mut piece = memory.double(buffer + at.buffer_head)?;
        for _ in 0..MOST_BUFFERS {
            if piece == 0 {
                return Ok((found, marked));
            }
            let read = memory.word(piece + at.piece_read)?;
            let end = memory.word(piece + at.piece_commit)?.max(memory.word(piece + at.piece_used)?);
            let length = end.saturating_sub(read) as usize;
            if found.len() + length > MOST_ON_ITS_WAY {
                return Err(io::Error::other("more is on its way in a terminal than the kernel allows"));
            }
            marked |= length > 0 && self.byte(piece + at.piece_flags)? != 0;
            found.extend(memory.read(piece + at.piece_data + u64::from(read), length)?);
            piece = memory.double(piece + at.piece_next)?;
        }
        Err(io::Error::other("a terminal has more buffers than the kernel allows"))
    }

    /// Whether the line discipline of this side has no room for what is behind.
    pub fn is_full(&self, tty: u64) -> io::Result<bool> {
        let data = self.memory.double(tty + self.at.data)?;
        Ok(data != 0 && self.byte(data + self.at.no_room)? != 0)
    }
}

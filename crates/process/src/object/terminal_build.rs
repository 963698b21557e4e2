//! Makes a pseudo-terminal again ([`super::terminal`]): with the same number, and with what waited in it written once
//! more, from the side from which it had come, under settings that let everything through as it is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{read, write};
use tracing::warn;

use super::descriptor::StatusFlags;
use super::file::open_in_root;
use super::terminal::{
    ADVICE, ECHO, ECHOE, ICANON, IEXTEN, IXON, Input, OPOST, SlaveUse, Terminal, Termios, describe, packet,
};
use crate::error::{Attempt, Error, Result};
use crate::sys::bpf::files::Lister;
use crate::sys::bpf::terminal::{QUEUE, Reader, TERMIOS};
use crate::sys::descriptor as sys;
use crate::sys::terminal::{self, Queue};

/// Most terminals of a host (`NR_UNIX98_PTY_DEFAULT`; `kernel.pty.max` may say more, but not to one workload).
const MOST: u32 = 4096;
/// For a worker of the kernel's, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_micros(20);
/// Columns are told apart up to here; beyond only by their distance to the next tab.
const COLUMNS: u32 = 1 << 15;
const TAB: u32 = 8;
/// Bytes of output written at once, and the smallest buffer of the kernel's.
const CHUNK: usize = 1024;
const SMALLEST: usize = 256;

// Places of special characters (`asm-generic/termbits.h`).
const VERASE: usize = 2;
const VEOF: usize = 4;
const VSTART: usize = 8;
const VSTOP: usize = 9;
const VEOL: usize = 11;
const VLNEXT: usize = 15;
const QUOTE: u8 = 0x16;
const END_OF_FILE: u8 = 0x04;
const ERASE: u8 = 0x7f;

/// Both sides, held by us. (The slave's has to stay open for as long as processes are controlled by it.)
#[derive(Debug)]
pub struct Pair {
    pub index: u32,
    /// Closed first: that takes the terminal from its session without a signal.
    pub slave: Option<OwnedFd>,
    pub master: OwnedFd,
}

impl Pair {
    /// The pair with this number, in the workload's own file system of terminals. The lowest free number is always the
    /// next, so those below are held until it comes.
    pub fn make(root: &Path, index: u32) -> Result<Self> {
        if index >= MOST {
            return Err(Error::Mismatch(format!("there is no terminal {index}")));
        }
        let flags = StatusFlags(libc::O_RDWR);
        let mut below = Vec::new();
        for _ in 0..=index {
            let opened = open_in_root(root, "/dev/ptmx", flags, libc::S_IFCHR)
                .or_else(|_| open_in_root(root, "/dev/pts/ptmx", flags, libc::S_IFCHR));
            let (master, _) = opened?;
            let attempt = || format!("make the terminal {index}");
            let got = terminal::index(master.as_fd()).attempt(attempt)?;
            if got == index {
                terminal::set_locked(master.as_fd(), false).attempt(attempt)?;
                return Ok(Self { index, slave: None, master });
            }
            below.push(master);
        }
        Err(Error::Mismatch(format!("the terminal {index} is there already")))
    }

    /// Our descriptor of the slave.
    pub fn slave(&mut self) -> Result<BorrowedFd<'_>> {
        let slave = match self.slave.take() {
            Some(slave) => slave,
            None => terminal::open_slave(self.master.as_fd(), libc::O_RDWR | libc::O_NONBLOCK)
                .attempt(|| format!("open the terminal {}", self.index))?,
        };
        let slave: &OwnedFd = self.slave.insert(slave);
        Ok(slave.as_fd())
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        let slave = self.slave.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Self { index: self.index, slave, master: self.master.try_clone()? })
    }

    /// Brings a new pair into the state that it was in. What cannot be so is said, and no reason to give up the workload.
    pub fn fill(&mut self, wanted: &Terminal, root: &Path) -> Result<()> {
        let attempt = || format!("fill the terminal {} again", wanted.index);
        if wanted.slave != SlaveUse::Never {
            self.slave()?;
        }
        let reader = Reader::shared().map_err(|why| Error::Unsupported {
            pid: 0,
            what: format!("a terminal, which cannot be looked into here ({why})"),
            advice: ADVICE,
        })?;
        let work = Work { reader, address: address(self.master.as_fd())?, pair: self };
        work.fill(wanted).attempt(attempt)?;
        let node = root.join(format!("dev/pts/{}", wanted.index));
        nix::unistd::chown(&node, Some(wanted.owner.0.into()), Some(wanted.owner.1.into()))
            .attempt(attempt)?;
        std::fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(wanted.mode))
            .attempt(attempt)?;
        let made = describe(&reader.read(work.address).attempt(attempt)?, wanted.mode, wanted.owner);
        if let Some(what) = difference(&made, wanted) {
            warn!(terminal = wanted.index, what, "a terminal is not in every respect as it was");
        }
        Ok(())
    }
}

/// Where the kernel keeps the slave of one of our masters.
fn address(master: BorrowedFd<'_>) -> Result<u64> {
    use std::os::fd::AsRawFd;
    let own = std::process::id() as i32;
    let find = || -> io::Result<u64> {
        let table = Lister::shared().map_err(io::Error::other)?.table(own).map_err(io::Error::other)?;
        let files = table.read()?;
        let file = files.iter().find(|file| file.fd == master.as_raw_fd());
        let file = file.ok_or_else(|| io::Error::other("it is not among our descriptors"))?.file;
        Ok(Reader::shared().map_err(io::Error::other)?.identify(file)?.0)
    };
    find().attempt(|| "find a terminal of our own".to_owned())
}

fn difference(made: &Terminal, wanted: &Terminal) -> Option<&'static str> {
    let differs = [
        ("its input", made.input != wanted.input),
        ("its output", made.output != wanted.output),
        ("its settings", made.termios != wanted.termios || made.window != wanted.window),
        ("its packet mode", made.packet != wanted.packet),
        (
            "its flow control",
            (made.stopped, made.stopped_by_call) != (wanted.stopped, wanted.stopped_by_call),
        ),
        ("its column", made.column % TAB != wanted.column % TAB),
    ];
    differs.into_iter().find(|(_, differs)| *differs).map(|(what, _)| what)
}

/// A terminal's settings while it is filled: what is not named lets everything through.
fn settings(
    base: &Termios,
    input: u32,
    output: u32,
    local: u32,
    characters: &[(usize, u8)],
) -> [u8; TERMIOS] {
    let mut raw = base.raw();
    for (index, word) in [(0, input), (1, output), (3, local)] {
        raw[4 * index..4 * index + 4].copy_from_slice(&word.to_ne_bytes());
    }
    raw[17..36].fill(0);
    for (index, character) in characters {
        raw[17 + index] = *character;
    }
    raw
}

/// What is done at the master, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Settings([u8; TERMIOS]),
    Write(Vec<u8>),
}

/// How to make input wait as it did. In canonical mode bytes that would do something are quoted.
fn steps(input: &Input, base: &Termios) -> Vec<Step> {
    let mut steps = vec![Step::Settings(settings(base, 0, 0, 0, &[]))];
    let mut add = |step: Step| match (steps.last_mut(), step) {
        (Some(Step::Write(bytes)), Step::Write(more)) => bytes.extend(more),
        (Some(Step::Settings(last)), Step::Settings(next)) => *last = next,
        (_, step) => steps.push(step),
    };
    if !input.canonical {
        add(Step::Write(input.bytes.clone()));
        return steps;
    }
    let first = match input.marks.first() {
        Some(mark) if input.push => usize::from(*mark) + 1,
        _ => 0,
    };
    // The change of mode marks the last of these.
    let first = first.min(input.bytes.len());
    add(Step::Write(input.bytes[..first].to_vec()));
    let with_end = |quote: u8, file: u8, end: u8| {
        let characters = [(VLNEXT, quote), (VEOF, file), (VEOL, end)];
        Step::Settings(settings(base, 0, 0, ICANON | IEXTEN, &characters))
    };
    add(with_end(QUOTE, END_OF_FILE, 0));
    for (index, byte) in input.bytes.iter().enumerate().skip(first) {
        let marked = input.marks.contains(&(index as u16));
        match *byte {
            b'\n' if marked => add(Step::Write(vec![b'\n'])),
            0 if marked => add(Step::Write(vec![END_OF_FILE])),
            other if marked => {
                // An end of line of its own (VEOL), which may be what stands for something else otherwise.
                let unless = |character: u8| if character == other { 0 } else { character };
                add(with_end(unless(QUOTE), unless(END_OF_FILE), other));
                add(Step::Write(vec![other]));
                add(with_end(QUOTE, END_OF_FILE, 0));
            }
            QUOTE | END_OF_FILE | b'\n' => add(Step::Write(vec![QUOTE, *byte])),
            other => add(Step::Write(vec![other])),
        }
    }
    if input.quoting {
        add(Step::Write(vec![QUOTE]));
    }
    steps
}

/// What moves output from one column to another.
fn movement(from: u32, to: u32) -> Vec<u8> {
    if to < from {
        return vec![b'\x08'; (from - to) as usize];
    }
    let (mut at, mut bytes) = (from, Vec::new());
    while at < to {
        let next = (at / TAB + 1) * TAB;
        let tab = next <= to;
        bytes.push(if tab { b'\t' } else { b' ' });
        at = if tab { next } else { at + 1 };
    }
    bytes
}

/// Output in pieces of which two fill a buffer of the kernel's: it takes another for each that does not fit (`tty_buffer_alloc`,
/// drivers/tty/tty_buffer.c, for up to 8 KiB in all, of which it uses twice as much).
fn in_steps(output: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (first, rest) = output.split_at(output.len().min(QUEUE - 1));
    first.chunks(SMALLEST).chain(rest.chunks(CHUNK))
}

struct Work<'a> {
    reader: &'static Reader,
    /// The slave's.
    address: u64,
    pair: &'a Pair,
}

impl Work<'_> {
    fn master(&self) -> BorrowedFd<'_> {
        self.pair.master.as_fd()
    }

    fn fill(&self, wanted: &Terminal) -> io::Result<()> {
        let termios = &wanted.termios;
        sys::set_status_flags(self.master(), libc::O_NONBLOCK)?;
        if let Some(slave) = &self.pair.slave {
            self.move_to_columns(wanted, slave.as_fd())?;
        }
        for step in steps(&wanted.input, termios) {
            match step {
                Step::Settings(raw) => {
                    self.settle()?;
                    terminal::set_termios(self.master(), &raw)?;
                }
                Step::Write(bytes) => self.put(self.master(), &bytes)?,
            }
        }
        self.settle()?;
        let local = termios.word(3) & ICANON;
        let by_character = wanted.stopped && !wanted.stopped_by_call;
        let told_of_stop = wanted.packet.is_none_or(|status| status & packet::STOP == 0);
        if let Some(slave) = &self.pair.slave {
            terminal::set_termios(slave.as_fd(), &settings(termios, 0, 0, local, &[]))?;
            // In steps, so that all of it fits: what the line discipline takes in, then what stays on its way.
            for chunk in in_steps(&wanted.output) {
                self.put(slave.as_fd(), chunk)?;
                self.settle()?;
            }
            if by_character && told_of_stop {
                self.stop_by_character(termios)?;
            }
        }
        terminal::set_window(self.master(), wanted.window)?;
        if let Some(status) = wanted.packet {
            self.tell(wanted, status, local)?;
        }
        if let Some(slave) = &self.pair.slave {
            if wanted.stopped_by_call {
                terminal::set_stopped(slave.as_fd(), true)?;
            }
            if by_character && !told_of_stop {
                self.stop_by_character(termios)?;
            }
        }
        terminal::set_termios(self.master(), &termios.raw())?;
        for chunk in wanted.input.behind.chunks(CHUNK) {
            self.put(self.master(), chunk)?;
            self.settle()?;
        }
        if wanted.exclusive.0 {
            terminal::set_exclusive(self.master())?;
        }
        if wanted.exclusive.1
            && let Some(slave) = &self.pair.slave
        {
            terminal::set_exclusive(slave.as_fd())?;
        }
        Ok(())
    }

    /// Settings in which output can be stopped without another change, so that it stays stopped.
    fn stop_by_character(&self, termios: &Termios) -> io::Result<()> {
        let local = termios.word(3) & ICANON;
        let stop = termios.character(VSTOP);
        let characters = [(VSTOP, stop), (VSTART, termios.character(VSTART))];
        terminal::set_termios(self.master(), &settings(termios, IXON, 0, local, &characters))?;
        self.put(self.master(), &[stop])?;
        self.settle()
    }

    /// Packet mode: what the master was not told yet.
    fn tell(&self, wanted: &Terminal, status: u8, local: u32) -> io::Result<()> {
        let termios = &wanted.termios;
        let flow_changed = status & (packet::DO_STOP | packet::NO_STOP) != 0;
        // Only a change from here to the settings in the end is told.
        let flow = termios.has_flow_control() != flow_changed;
        let characters = [(VSTOP, 0x13), (VSTART, 0x11)];
        let stopped = if wanted.stopped && !wanted.stopped_by_call { IXON } else { 0 };
        let before = match flow {
            true => settings(termios, IXON, 0, local, &characters),
            false => settings(termios, stopped, 0, local, &[]),
        };
        terminal::set_termios(self.master(), &before)?;
        terminal::set_packet_mode(self.master(), true)?;
        let Some(slave) = &self.pair.slave else { return Ok(()) };
        if status & packet::FLUSH_READ != 0 {
            terminal::flush(slave.as_fd(), Queue::Input)?;
        }
        if status & packet::FLUSH_WRITE != 0 {
            // What the line discipline has taken in stays.
            terminal::flush(slave.as_fd(), Queue::Output)?;
        }
        if status & packet::START != 0 {
            terminal::set_stopped(slave.as_fd(), true)?;
            terminal::set_stopped(slave.as_fd(), false)?;
        }
        Ok(())
    }

    /// First of all, for it is done by output, which is thrown away.
    fn move_to_columns(&self, wanted: &Terminal, slave: BorrowedFd<'_>) -> io::Result<()> {
        let within = |column: u32| if column < COLUMNS { column } else { COLUMNS + column % TAB };
        let (line, column) = (within(wanted.line_column), within(wanted.column));
        let termios = &wanted.termios;
        if line > 0 {
            let local = ICANON | IEXTEN | ECHO | ECHOE;
            terminal::set_termios(slave, &settings(termios, 0, OPOST, local, &[(VERASE, ERASE)]))?;
            self.show(slave, &movement(0, line))?;
            // The first byte of a line notes where it begins.
            self.put(self.master(), b"x")?;
            self.take()?;
            self.put(self.master(), &[ERASE])?;
            self.take()?;
        }
        if line != column {
            terminal::set_termios(slave, &settings(termios, 0, OPOST, 0, &[]))?;
            self.show(slave, &movement(line, column))?;
        }
        Ok(())
    }

    fn show(&self, slave: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(1024) {
            self.put(slave, chunk)?;
            self.take()?;
        }
        Ok(())
    }

    fn settle(&self) -> io::Result<()> {
        let begun = Instant::now();
        while self.reader.is_moving(self.address)? {
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other("what was written does not arrive"));
            }
            std::thread::sleep(REST);
        }
        Ok(())
    }

    fn put(&self, side: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
        let (begun, mut rest, mut full) = (Instant::now(), bytes, false);
        while !rest.is_empty() {
            match write(side, rest) {
                Ok(count) if count > 0 => rest = &rest[count..],
                // What does not fit in the end is seen when all is compared.
                Ok(_) | Err(Errno::EAGAIN) if full || begun.elapsed() > PATIENCE => return Ok(()),
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {
                    full = !self.reader.is_moving(self.address)?;
                    std::thread::sleep(REST);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Everything that can be read from the master.
    fn take(&self) -> io::Result<Vec<u8>> {
        let mut taken = Vec::new();
        let mut buffer = [0u8; 4096];
        loop {
            self.settle()?;
            match read(self.master(), &mut buffer) {
                Ok(0) | Err(Errno::EAGAIN) => return Ok(taken),
                Ok(count) => taken.extend_from_slice(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Brings a pair of this host's into a state, and says what the kernel has then.
    fn made(wanted: &Terminal) -> Terminal {
        let master = std::fs::OpenOptions::new().read(true).write(true).open("/dev/ptmx").unwrap();
        let master = OwnedFd::from(master);
        terminal::set_locked(master.as_fd(), false).unwrap();
        let mut pair = Pair { index: terminal::index(master.as_fd()).unwrap(), slave: None, master };
        pair.slave().unwrap();
        let reader = Reader::shared().unwrap();
        let address = address(pair.master.as_fd()).unwrap();
        Work { reader, address, pair: &pair }.fill(wanted).unwrap();
        let mut made = describe(&reader.read(address).unwrap(), 0o620, (0, 0));
        made.index = wanted.index;
        made.locked = terminal::is_locked(pair.master.as_fd()).unwrap();
        let exclusive = |fd: BorrowedFd<'_>| terminal::is_exclusive(fd).unwrap();
        made.exclusive = (exclusive(pair.master.as_fd()), exclusive(pair.slave().unwrap()));
        made
    }

    /// As a terminal is when it is new: `ICRNL IXON`, `OPOST ONLCR`, `ISIG ICANON ECHO …` (`tty_std_termios`).
    fn plain() -> Terminal {
        let mut raw = [0u8; TERMIOS];
        for (index, word) in [0x500u32, 0x5, 0xbf, 0x8a3b].into_iter().enumerate() {
            raw[4 * index..4 * index + 4].copy_from_slice(&word.to_ne_bytes());
        }
        let characters = [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0];
        raw[17..17 + characters.len()].copy_from_slice(&characters);
        raw[36..40].copy_from_slice(&38400u32.to_ne_bytes());
        raw[40..44].copy_from_slice(&38400u32.to_ne_bytes());
        Terminal {
            index: 0,
            master_open: true,
            slave: SlaveUse::Open,
            mode: 0o620,
            owner: (0, 0),
            locked: false,
            exclusive: (false, false),
            termios: Termios(raw.to_vec()),
            window: [24, 80, 0, 0],
            stopped: false,
            stopped_by_call: false,
            packet: None,
            column: 0,
            line_column: 0,
            input: Input { canonical: true, ..Input::default() },
            output: Vec::new(),
            session: None,
            group: None,
        }
    }

    fn again(wanted: &Terminal) {
        assert_eq!(&made(wanted), wanted);
    }

    #[test]
    fn lines_an_end_of_file_and_what_is_being_typed_wait_again() {
        let mut wanted = plain();
        let bytes = b"one\ntwo \x03\x16\x04\x7f\n\0tail\x11\n".to_vec();
        // The last newline was quoted; the zero is an end of file.
        wanted.input = Input { marks: vec![3, 12, 13], bytes, canonical: true, ..Input::default() };
        (wanted.column, wanted.line_column) = (21, 17);
        again(&wanted);
        wanted.input.quoting = true;
        again(&wanted);
    }

    #[test]
    fn ends_of_line_of_ones_own_wait_again() {
        let mut wanted = plain();
        let bytes = b"a;b\x16c\x04d".to_vec();
        wanted.input = Input { marks: vec![1, 3, 5], bytes, canonical: true, ..Input::default() };
        again(&wanted);
    }

    #[test]
    fn raw_bytes_wait_again_up_to_the_last_that_fits_and_beyond() {
        let mut wanted = plain();
        let mut raw = wanted.termios.raw();
        raw[12..16].copy_from_slice(&0u32.to_ne_bytes());
        raw[0..4].copy_from_slice(&0u32.to_ne_bytes());
        wanted.termios = Termios(raw.to_vec());
        let bytes: Vec<u8> = (0..4095u32).map(|index| index as u8).collect();
        wanted.input = Input { bytes, behind: vec![7; 3000], ..Input::default() };
        wanted.output = (0..20_400u32).map(|index| (index / 3) as u8).collect();
        wanted.column = 77;
        again(&wanted);
    }

    #[test]
    fn what_was_read_raw_waits_after_a_change_of_mode() {
        let mut wanted = plain();
        let bytes = b"raw\nbytesline\nrest".to_vec();
        wanted.input = Input { marks: vec![8, 13], bytes, canonical: true, push: true, ..Input::default() };
        again(&wanted);
    }

    #[test]
    fn stopped_output_and_packet_mode_are_so_again() {
        let mut wanted = plain();
        wanted.output = b"shown".to_vec();
        wanted.stopped = true;
        again(&wanted);
        for status in [0, packet::STOP, packet::FLUSH_WRITE, packet::DO_STOP, packet::DO_STOP | packet::STOP]
        {
            wanted.packet = Some(status);
            again(&wanted);
        }
        (wanted.stopped, wanted.stopped_by_call) = (true, true);
        wanted.packet = Some(packet::STOP);
        again(&wanted);
        (wanted.stopped, wanted.stopped_by_call) = (false, false);
        for status in [0, packet::START, packet::FLUSH_READ, packet::FLUSH_READ | packet::FLUSH_WRITE] {
            wanted.packet = Some(status);
            again(&wanted);
        }
        wanted.exclusive = (true, true);
        again(&wanted);
    }

    #[test]
    fn a_step_moves_to_the_column() {
        assert_eq!(movement(3, 17), b"\t\t ");
        assert_eq!(movement(5, 3), b"\x08\x08");
        assert_eq!(movement(4, 4), b"");
    }
}

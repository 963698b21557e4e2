//! The open files of a process in one read, with what the kernel knows of its TCP sockets.
//!
//! Asked through `/proc/PID/fd` and socket options, a hundred connections are a thousand system calls; this is one
//! pass of a BPF iterator over the descriptor table, some 0.5 µs a descriptor, and it changes nothing.

use std::io;
use std::sync::OnceLock;

use super::BpfError;
use super::asm::{If, Register::*, Width};
use super::iterator::{Draft, Iterator, Link, Plan, Unavailable};
use crate::sys::ptrace::Tid;

/// One descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFile {
    pub fd: i32,
    /// Where the kernel keeps the description, what it does with it, and its inode's number. Two descriptors with the same
    /// place, at one time, are one description; over time the place is used again, and all anonymous files have one inode.
    pub file: u64,
    pub operations: u64,
    pub inode: u64,
    /// As `F_GETFL` says.
    pub flags: i32,
    pub is_socket: bool,
    pub tcp: Option<TcpNumbers>,
    /// Of a socket that is not TCP.
    pub socket: Option<SocketNumbers>,
}

impl OpenFile {
    /// The same of the same description, looked at twice.
    pub fn identity(&self) -> (u64, u64, u64) {
        (self.file, self.operations, self.inode)
    }
}

/// A TCP socket's sequence numbers, windows and conditions (`struct tcp_sock`, include/linux/tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpNumbers {
    pub state: u8,
    pub shutdown: u8,
    pub pingpong: u8,
    pub urgent: u16,
    pub error: u32,
    pub errors_queued: u32,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub write_seq: u32,
    pub rcv_nxt: u32,
    pub copied_seq: u32,
    pub snd_wl1: u32,
    pub snd_wnd: u32,
    pub max_window: u32,
    pub rcv_wnd: u32,
    pub rcv_wup: u32,
    pub rcv_ssthresh: u32,
    pub window_clamp: u32,
    pub send_buffer: u32,
    pub receive_buffer: u32,
    /// What this connection's timestamps are ahead of the clock.
    pub timestamp_offset: u32,
    /// Of a listener.
    pub backlog: u32,
    pub waiting: u32,
    /// Behind the last urgent byte that was sent, or what is acknowledged (`tcp_urg_mode`, include/net/tcp.h).
    pub snd_up: u32,
}

impl TcpNumbers {
    /// An urgent byte was sent and is not acknowledged: in the queue it looks like any other.
    pub fn is_sending_urgent(&self) -> bool {
        let ahead = self.snd_up.wrapping_sub(self.snd_una);
        ahead != 0 && ahead <= self.write_seq.wrapping_sub(self.snd_una)
    }

    pub fn has_not_accepted(&self) -> bool {
        self.state == TCP_LISTEN && self.waiting > 0
    }
}

/// `include/net/tcp_states.h`.
const TCP_LISTEN: u8 = 10;

/// What the kernel knows of a socket of another kind (`struct sock`, include/net/sock.h, and what begins with it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketNumbers {
    pub family: u16,
    pub state: u8,
    pub shutdown: u8,
    /// `SOCK_BINDADDR_LOCK`, `SOCK_BINDPORT_LOCK` and which buffer sizes were set.
    pub user_locks: u8,
    pub error: u32,
    pub errors_queued: u32,
    /// Messages waiting, and the memory that they take.
    pub waiting: u32,
    pub memory: u32,
    /// Of UDP: what its reader has taken aside, and whether a message is being put together (`MSG_MORE`, `UDP_CORK`). Of
    /// netlink: whether a dump is under way. Of a packet socket: its memberships, rings and fanout group. Addresses of all.
    pub more: [u32; 14],
}

impl SocketNumbers {
    /// Datagrams waiting in a UDP socket.
    pub fn datagrams(&self) -> u32 {
        self.waiting.wrapping_add(self.more[0])
    }

    pub fn corked(&self) -> bool {
        self.more[1] != 0
    }

    pub fn multicast_interface(&self) -> u32 {
        self.more[2]
    }

    /// Of IP: the peer's address, in the order of the network.
    pub fn remote_addresses(&self) -> ([u8; 4], [u8; 16]) {
        let mut six = [0; 16];
        for (bytes, word) in six.chunks_exact_mut(4).zip(&self.more[6..10]) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        (self.more[3].to_ne_bytes(), six)
    }

    /// A netlink socket is in the middle of a dump.
    pub fn dumping(&self) -> bool {
        self.more[0] & 0xff != 0
    }

    /// A packet socket has memberships (promiscuous mode …).
    pub fn has_memberships(&self) -> bool {
        self.more[0] != 0 || self.more[1] != 0
    }

    /// A packet socket has rings in shared memory, or is in a fanout group.
    pub fn has_ring_or_fanout(&self) -> bool {
        self.more[2..8].iter().any(|word| *word != 0)
    }
}

/// What the program says of a descriptor: these places, in the machine's byte order.
mod place {
    pub const FD: usize = 0;
    /// What kind of file, of those below.
    pub const KIND: usize = 4;
    pub const FILE: usize = 8;
    pub const INODE: usize = 16;
    pub const OPERATIONS: usize = 24;
    pub const FLAGS: usize = 32;
    pub const STATE: usize = 36;
    pub const SHUTDOWN: usize = 37;
    pub const PINGPONG: usize = 38;
    /// Bits of the byte before that come before what is of interest.
    pub const SHIFT: usize = 39;
    pub const URGENT: usize = 40;
    /// From here on 32 bits each, in the order of [`super::WORDS`].
    pub const WORDS: usize = 44;
    pub const SIZE: usize = 128;
}

/// What stands at `place::KIND`; 0 is anything else.
const SOCKET: u32 = 1;
const TCP_SOCKET: u32 = 2;
const OTHER_SOCKET: u32 = 3;
/// `sk_userlocks` has four bits (include/net/sock.h), of a byte that it shares with others on older kernels.
const USER_LOCKS: u8 = 0xf;

/// Members of `tcp_sock` that are copied as they are.
const WORDS: [&str; 20] = [
    "inet_conn.icsk_inet.sk.sk_err",
    "inet_conn.icsk_inet.sk.sk_error_queue.qlen",
    "snd_una",
    "snd_nxt",
    "write_seq",
    "rcv_nxt",
    "copied_seq",
    "snd_wl1",
    "snd_wnd",
    "max_window",
    "rcv_wnd",
    "rcv_wup",
    "rcv_ssthresh",
    "window_clamp",
    "inet_conn.icsk_inet.sk.sk_sndbuf",
    "inet_conn.icsk_inet.sk.sk_rcvbuf",
    "tsoffset",
    "inet_conn.icsk_inet.sk.sk_max_ack_backlog",
    "inet_conn.icsk_inet.sk.sk_ack_backlog",
    "snd_up",
];
const _: () = assert!(place::WORDS + 4 * WORDS.len() <= place::SIZE && place::SIZE.is_multiple_of(8));

const PLAN: Plan =
    Plan { name: "outlive_files", target: "bpf_iter_task_file", object: CONTEXT_FILE, record: place::SIZE };

// Members of `struct bpf_iter__task_file`.
const CONTEXT_FD: i16 = 16;
const CONTEXT_FILE: i16 = 24;

/// `bpf_sock_from_file`, enum bpf_func_id.
const SOCK_FROM_FILE: i32 = 162;

/// The program, loaded.
#[derive(Debug)]
pub struct Lister {
    iterator: Iterator,
}

impl Lister {
    /// The one of this process, loaded at the first call: a program serves any number of tables.
    pub fn shared() -> Result<&'static Self, &'static Unavailable> {
        static SHARED: OnceLock<Result<Lister, Unavailable>> = OnceLock::new();
        SHARED.get_or_init(Self::load).as_ref()
    }

    fn load() -> Result<Self, Unavailable> {
        Ok(Self { iterator: Iterator::build(&PLAN, describe)? })
    }

    /// The descriptor table that a thread uses.
    pub fn table(&self, tid: Tid) -> Result<Table, BpfError> {
        self.iterator.of_thread(tid).map(|link| Table { link })
    }
}

/// One process's descriptor table.
#[derive(Debug)]
pub struct Table {
    link: Link,
}

impl Table {
    /// Its open descriptors now, by number. Whatever changes the table meanwhile should be stopped.
    pub fn read(&self) -> io::Result<Vec<OpenFile>> {
        let mut found = Vec::new();
        self.link.read(place::SIZE, |record| found.push(parse(record)))?;
        Ok(found)
    }
}

fn parse(record: &[u8]) -> OpenFile {
    // A record is of `place::SIZE`, and all places are within.
    fn bytes<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
        record.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
    }
    let word = |at| u32::from_ne_bytes(bytes(record, at));
    let double = |at| u64::from_ne_bytes(bytes(record, at));
    let number = |index: usize| word(place::WORDS + 4 * index);
    let tcp = (word(place::KIND) == TCP_SOCKET).then(|| TcpNumbers {
        state: record[place::STATE],
        shutdown: record[place::SHUTDOWN],
        pingpong: record[place::PINGPONG],
        urgent: u16::from_ne_bytes(bytes(record, place::URGENT)),
        error: number(0),
        errors_queued: number(1),
        snd_una: number(2),
        snd_nxt: number(3),
        write_seq: number(4),
        rcv_nxt: number(5),
        copied_seq: number(6),
        snd_wl1: number(7),
        snd_wnd: number(8),
        max_window: number(9),
        rcv_wnd: number(10),
        rcv_wup: number(11),
        rcv_ssthresh: number(12),
        window_clamp: number(13),
        send_buffer: number(14),
        receive_buffer: number(15),
        timestamp_offset: number(16),
        backlog: number(17),
        waiting: number(18),
        snd_up: number(19),
    });
    let socket = (word(place::KIND) == OTHER_SOCKET).then(|| SocketNumbers {
        family: u16::from_ne_bytes(bytes(record, place::URGENT)),
        state: record[place::STATE],
        shutdown: record[place::SHUTDOWN],
        user_locks: (record[place::PINGPONG] >> (record[place::SHIFT] & 7)) & USER_LOCKS,
        error: number(0),
        errors_queued: number(1),
        waiting: number(2),
        memory: number(3),
        more: std::array::from_fn(|index| number(4 + index)),
    });
    OpenFile {
        fd: word(place::FD) as i32,
        file: double(place::FILE),
        operations: double(place::OPERATIONS),
        inode: double(place::INODE),
        flags: word(place::FLAGS) as i32,
        is_socket: word(place::KIND) != 0,
        tcp,
        socket,
    }
}

/// Puts what is to be known of the file in R7 into the record.
fn describe(draft: &mut Draft<'_>) -> Result<(), Unavailable> {
    let write = draft.write;
    draft.program.load(Width::Word, R1, R6, CONTEXT_FD);
    draft.program.store(Width::Word, R10, draft.at(place::FD), R1);
    draft.program.store(Width::Double, R10, draft.at(place::FILE), R7);
    draft.copy(draft.at(place::FLAGS), 4, R7, draft.member("file", "f_flags")?);
    draft.copy(draft.at(place::OPERATIONS), 8, R7, draft.member("file", "f_op")?);
    draft.fetch(R8, 8, R7, draft.member("file", "f_inode")?);
    draft.copy(draft.at(place::INODE), 8, R8, draft.member("inode", "i_ino")?);

    draft.program.move_register(R1, R7);
    draft.program.call_helper(SOCK_FROM_FILE);
    draft.program.jump_if(R0, If::Equal, 0, write);
    draft.program.store_immediate(Width::Word, R10, draft.at(place::KIND), SOCKET as i32);
    // A call loses R0, and so does what a fetch does before it.
    draft.program.move_register(R9, R0);
    draft.fetch(R8, 8, R9, draft.member("socket", "sk")?);
    draft.program.jump_if(R8, If::Equal, 0, write);
    let other = draft.program.label();
    for (path, wanted) in [("sk_protocol", libc::IPPROTO_TCP), ("sk_type", libc::SOCK_STREAM)] {
        draft.fetch(R1, 2, R8, draft.member("sock", path)?);
        draft.program.jump_if(R1, If::NotEqual, wanted, other);
    }
    draft.program.store_immediate(Width::Word, R10, draft.at(place::KIND), TCP_SOCKET as i32);
    draft.copy(draft.at(place::STATE), 1, R8, draft.member("sock", "__sk_common.skc_state")?);
    draft.copy(draft.at(place::SHUTDOWN), 1, R8, draft.member("sock", "sk_shutdown")?);
    draft.copy(draft.at(place::PINGPONG), 1, R8, draft.member("tcp_sock", "inet_conn.icsk_ack.pingpong")?);
    draft.copy(draft.at(place::URGENT), 2, R8, draft.member("tcp_sock", "urg_data")?);
    for (index, path) in WORDS.into_iter().enumerate() {
        draft.copy(draft.at(place::WORDS + 4 * index), 4, R8, draft.member("tcp_sock", path)?);
    }
    draft.program.jump(write);
    draft.program.place(other);
    // A kernel that lacks one of these has sockets that are refused, not a list that is not to be had.
    if let Ok(members) = Others::of(draft) {
        members.describe(draft);
    }
    Ok(())
}

/// Offsets of what is told of sockets that are not TCP.
struct Others {
    family: i32,
    kind: i32,
    protocol: i32,
    locks: i32,
    locks_shift: u32,
    state: i32,
    shutdown: i32,
    words: [i32; 4],
    /// Place of the first word, size, and offset, by family.
    internet: Vec<(usize, i32, i32)>,
    udp: Vec<(usize, i32, i32)>,
    netlink: Vec<(usize, i32, i32)>,
    packet: Vec<(usize, i32, i32)>,
}

impl Others {
    fn of(draft: &Draft<'_>) -> Result<Self, Unavailable> {
        let sock = |path| draft.member("sock", path);
        Ok(Self {
            family: sock("__sk_common.skc_family")?,
            kind: sock("sk_type")?,
            protocol: sock("sk_protocol")?,
            locks: sock("sk_userlocks")?,
            locks_shift: draft.shift("sock", "sk_userlocks")?,
            state: sock("__sk_common.skc_state")?,
            shutdown: sock("sk_shutdown")?,
            words: [
                sock("sk_err")?,
                sock("sk_error_queue.qlen")?,
                sock("sk_receive_queue.qlen")?,
                sock("sk_backlog.rmem_alloc")?,
            ],
            internet: vec![
                (6, 4, draft.member("inet_sock", "mc_index")?),
                (7, 4, sock("__sk_common.skc_daddr")?),
                (8, 4, sock("__sk_common.skc_rcv_saddr")?),
                (9, 4, sock("__sk_common.skc_portpair")?),
                (10, 16, sock("__sk_common.skc_v6_daddr")?),
                (14, 16, sock("__sk_common.skc_v6_rcv_saddr")?),
            ],
            udp: vec![
                (4, 4, draft.member("udp_sock", "reader_queue.qlen")?),
                (5, 4, draft.member("udp_sock", "pending")?),
            ],
            netlink: vec![
                (4, 1, draft.member("netlink_sock", "cb_running")?),
                (5, 4, draft.member("netlink_sock", "portid")?),
                (6, 4, draft.member("netlink_sock", "dst_portid")?),
                (7, 4, draft.member("netlink_sock", "dst_group")?),
                (8, 4, draft.member("netlink_sock", "subscriptions")?),
            ],
            packet: vec![
                (4, 8, draft.member("packet_sock", "mclist")?),
                (6, 8, draft.member("packet_sock", "rx_ring.pg_vec")?),
                (8, 8, draft.member("packet_sock", "tx_ring.pg_vec")?),
                (10, 8, draft.member("packet_sock", "fanout")?),
                (12, 4, draft.member("packet_sock", "ifindex")?),
                (13, 2, draft.member("packet_sock", "num")?),
            ],
        })
    }

    fn describe(&self, draft: &mut Draft<'_>) {
        let write = draft.write;
        draft.program.store_immediate(Width::Word, R10, draft.at(place::KIND), OTHER_SOCKET as i32);
        draft.copy(draft.at(place::STATE), 1, R8, self.state);
        draft.copy(draft.at(place::SHUTDOWN), 1, R8, self.shutdown);
        draft.copy(draft.at(place::PINGPONG), 1, R8, self.locks);
        draft.program.store_immediate(Width::Byte, R10, draft.at(place::SHIFT), self.locks_shift as i32);
        draft.copy(draft.at(place::URGENT), 2, R8, self.family);
        for (index, offset) in self.words.into_iter().enumerate() {
            draft.copy(draft.at(place::WORDS + 4 * index), 4, R8, offset);
        }
        draft.fetch(R9, 2, R8, self.family);
        for (family, members) in [(libc::AF_NETLINK, &self.netlink), (libc::AF_PACKET, &self.packet)] {
            let next = draft.program.label();
            draft.program.jump_if(R9, If::NotEqual, family, next);
            copy_all(draft, members);
            draft.program.jump(write);
            draft.program.place(next);
        }
        let internet = draft.program.label();
        draft.program.jump_if(R9, If::Equal, libc::AF_INET, internet);
        draft.program.jump_if(R9, If::NotEqual, libc::AF_INET6, write);
        draft.program.place(internet);
        copy_all(draft, &self.internet);
        draft.fetch(R1, 2, R8, self.protocol);
        draft.program.jump_if(R1, If::NotEqual, libc::IPPROTO_UDP, write);
        draft.fetch(R1, 2, R8, self.kind);
        draft.program.jump_if(R1, If::NotEqual, libc::SOCK_DGRAM, write);
        copy_all(draft, &self.udp);
    }
}

fn copy_all(draft: &mut Draft<'_>, members: &[(usize, i32, i32)]) {
    for (word, size, offset) in members {
        draft.copy(draft.at(place::WORDS + 4 * word), *size, R8, *offset);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::tcp_repair as tcp;

    fn own_files() -> Vec<OpenFile> {
        let lister = Lister::shared().expect("load");
        let table = lister.table(std::process::id() as Tid).expect("own table");
        table.read().expect("read")
    }

    fn of(files: &[OpenFile], fd: &impl AsRawFd) -> OpenFile {
        *files.iter().find(|file| file.fd == fd.as_raw_fd()).expect("it is open")
    }

    #[test]
    fn numbers_are_those_that_the_socket_tells_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        client.write_all(b"hello").expect("write");
        let files = own_files();
        let numbers = of(&files, &server).tcp.expect("a TCP socket");
        assert_eq!(numbers.state, 1);
        assert_eq!(numbers.rcv_nxt.wrapping_sub(numbers.copied_seq), 5);
        assert_eq!(numbers.rcv_nxt, of(&files, &client).tcp.expect("a TCP socket").write_seq);
        // Set to values above all others while in repair; nothing was sent yet.
        tcp::set_repair(&server, tcp::Repair::On).expect("repair");
        assert_eq!(tcp::window(&server).expect("window").rcv_wnd, numbers.rcv_wnd);
        assert_eq!(tcp::window(&server).expect("window").rcv_wup, numbers.rcv_wup);
        tcp::select_queue(&server, tcp::Queue::Receive).expect("queue");
        assert_eq!(tcp::queue_seq(&server).expect("rcv_nxt"), numbers.rcv_nxt);
        tcp::select_queue(&server, tcp::Queue::Send).expect("queue");
        assert_eq!(tcp::queue_seq(&server).expect("write_seq"), numbers.write_seq);
        tcp::set_repair(&server, tcp::Repair::OffSilently).expect("leave repair");
        let size: u32 = tcp::get(&server, libc::SOL_SOCKET, libc::SO_RCVBUF).expect("size");
        assert_eq!(size, numbers.receive_buffer);
        let waiting = of(&files, &listener).tcp.expect("a TCP socket");
        assert_eq!((waiting.state, waiting.waiting, waiting.backlog), (10, 0, 128));
    }

    #[test]
    fn datagrams_are_counted() {
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let before = of(&own_files(), &receiver).socket.expect("a socket");
        for length in [0, 5, 1000] {
            sender.send_to(&vec![7; length], receiver.local_addr().expect("address")).expect("send");
        }
        let after = of(&own_files(), &receiver).socket.expect("a socket");
        assert_eq!((before.datagrams(), after.datagrams()), (0, 3));
        assert!(after.memory > before.memory && !after.corked());
        assert_eq!(i32::from(after.family), libc::AF_INET);
        // SOCK_BINDADDR_LOCK alone: the port was chosen by the kernel.
        assert_eq!(after.user_locks & 0xc, 4);
    }

    #[test]
    fn duplicates_are_the_same_description_and_others_are_not() {
        let one = std::fs::File::open("/dev/null").expect("open");
        let (duplicate, other) =
            (one.try_clone().expect("duplicate"), std::fs::File::open("/dev/null").expect("open"));
        let files = own_files();
        let key = |file: &std::fs::File| of(&files, file).identity();
        assert_eq!(key(&one), key(&duplicate));
        assert_ne!(key(&one), key(&other));
        assert!(of(&files, &one).tcp.is_none() && !of(&files, &one).is_socket);
        let (unix, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let seen = of(&own_files(), &unix);
        assert!(seen.is_socket && seen.tcp.is_none());
        assert_eq!(seen.socket.map(|numbers| numbers.family), Some(libc::AF_UNIX as u16));
        assert_eq!(of(&files, &one).flags & libc::O_ACCMODE, libc::O_RDONLY);
    }

    #[test]
    fn more_descriptors_than_one_read_holds_are_all_there() {
        let open: Vec<std::fs::File> =
            (0..700).map(|_| std::fs::File::open("/dev/null").expect("open")).collect();
        let files = own_files();
        assert!(open.iter().all(|file| files.iter().any(|seen| seen.fd == file.as_raw_fd())));
        assert!(files.windows(2).all(|pair| pair[0].fd < pair[1].fd));
    }
}

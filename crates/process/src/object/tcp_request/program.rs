//! The BPF program that hands the kernel what was agreed in a handshake, and its map.
//!
//! The program is a gate in front of the connections in the map, by what the kernel has under their addresses:
//!
//! | the kernel has | the frame | the program |
//! |---|---|---|
//! | a listener | the segment that ends the handshake: an ACK with exactly the expected two numbers | gives it the request; the kernel makes the connection |
//! | a listener | anything else | drops it: a SYN would begin another connection, the rest be answered by a reset |
//! | nothing | anything | drops it: the listener is not there yet, and a reset would end the connection |
//! | a connection with all the data that was acknowledged | anything | removes the entry, its work done; passes it |
//! | a connection without | anything | passes it |
//!
//! So an entry disappears when, and only when, its connection is restored: that is how the restorer knows.

use std::net::IpAddr;
use std::os::fd::AsFd;

use crate::sys::bpf::asm::{Assembler, BadJump, If, Register::*, Width};
use crate::sys::bpf::btf::{Btf, BtfError};
use crate::sys::bpf::{BpfError, Classifier, HashMap};

use super::PendingConnection;
use super::segment::{FourTuple, least_mss};

/// Why this machine cannot rebuild connections that have no descriptor.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    #[error(transparent)]
    TypeInformation(#[from] BtfError),
    #[error("the kernel has no {KERNEL_FUNCTION} (needs Linux 6.9 or newer)")]
    KernelFunction,
    #[error(
        "the kernel's {STRUCTURE} is {found} bytes, not {ATTRIBUTES_SIZE}: this kernel is newer than this program"
    )]
    Attributes { found: u32 },
    #[error("the kernel was built without CONFIG_SYN_COOKIES, which connections are rebuilt by")]
    SynCookies,
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    Program(#[from] BadJump),
}

/// Whether this machine can rebuild connections that have no descriptor: does all but attach the program.
pub fn supported() -> Result<(), Missing> {
    if !std::path::Path::new(SYN_COOKIES).exists() {
        return Err(Missing::SynCookies);
    }
    load(1).map(drop)
}

/// Must not be 0 in the workload's network namespace (`cookie_v4_check`, net/ipv4/syncookies.c). IPv6 uses it too.
pub(super) const SYN_COOKIES: &str = "/proc/sys/net/ipv4/tcp_syncookies";

const KERNEL_FUNCTION: &str = "bpf_sk_assign_tcp_reqsk";
const STRUCTURE: &str = "bpf_tcp_req_attrs";
/// `sizeof(struct bpf_tcp_req_attrs)`, include/net/tcp.h; the kernel function insists on it.
const ATTRIBUTES_SIZE: usize = 20;
/// `TCP_MAX_WSCALE`, include/net/tcp.h: the kernel reads a larger one as this (RFC 7323, 2.3).
const MAX_WINDOW_SCALE: u8 = 14;

/// Kernel functions are only for programs under a licence compatible with the GPL: this program (the instructions that
/// `assemble` emits, nothing else here) is offered under GPL-2.0 as well as under the project's own licence.
const LICENSE: &std::ffi::CStr = c"GPL";

/// Address family, then `struct bpf_sock_tuple` (include/uapi/linux/bpf.h) padded with zeros.
pub(super) const KEY_SIZE: usize = 40;
/// `struct bpf_tcp_req_attrs`, the two numbers of the final ACK in network order, and in host order the number that
/// the kernel must expect next before its work is done.
pub(super) const VALUE_SIZE: usize = ATTRIBUTES_SIZE + 3 * 4;
const VALUE_SEQUENCE: i16 = ATTRIBUTES_SIZE as i16;
const VALUE_ACKNOWLEDGMENT: i16 = VALUE_SEQUENCE + 4;
const VALUE_COMPLETE_AT: i16 = VALUE_ACKNOWLEDGMENT + 4;

/// The size of each family's half of `struct bpf_sock_tuple`.
const TUPLE_V4_SIZE: i32 = 12;
const TUPLE_V6_SIZE: i32 = 36;

pub(super) type RequestMap = HashMap<KEY_SIZE, VALUE_SIZE>;

/// Creates the map and loads the program that reads it.
pub(super) fn load(max_entries: u32) -> Result<(RequestMap, Classifier), Missing> {
    let found = Btf::of_running_kernel()?.find(KERNEL_FUNCTION, STRUCTURE)?;
    let function = found.function.ok_or(Missing::KernelFunction)?;
    match found.structure_size {
        Some(size) if size as usize == ATTRIBUTES_SIZE => {}
        other => return Err(Missing::Attributes { found: other.unwrap_or(0) }),
    }
    let map = RequestMap::create("outlive_request", max_entries.max(1))?;
    let program = assemble(&map, function)?;
    let classifier = Classifier::load("outlive_request", LICENSE, &program)?;
    Ok((map, classifier))
}

/// The map's key for a connection.
pub(super) fn key(tuple: &FourTuple) -> [u8; KEY_SIZE] {
    let mut key = [0; KEY_SIZE];
    let mut at = 4;
    let mut put = |bytes: &[u8]| {
        key[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    for address in [tuple.client, tuple.server] {
        match address {
            IpAddr::V4(address) => put(&address.octets()),
            IpAddr::V6(address) => put(&address.octets()),
        }
    }
    put(&tuple.client_port.to_be_bytes());
    put(&tuple.server_port.to_be_bytes());
    key[..4].copy_from_slice(&family(tuple.client).to_ne_bytes());
    key
}

/// The map's value for a connection.
pub(super) fn value(connection: &PendingConnection) -> [u8; VALUE_SIZE] {
    let timestamps = connection.timestamps;
    // A client with a smaller MSS than the kernel takes here gets segments of that size: rare, and repaired by path MTU
    // discovery where it matters, while refusing would lose the connection.
    let mss = connection.client_mss.min(connection.server_mss).max(least_mss(connection.tuple.client));
    let scale =
        |of: fn(super::WindowScale) -> u8| connection.window_scale.map_or(0, of).min(MAX_WINDOW_SCALE);

    let mut value = [0; VALUE_SIZE];
    // What the kernel will take as the client's latest timestamp, and as its own present one.
    value[0..4].copy_from_slice(&timestamps.map_or(0, |values| values.client).to_ne_bytes());
    value[4..8].copy_from_slice(&timestamps.map_or(0, |values| values.server).to_ne_bytes());
    value[8..10].copy_from_slice(&mss.to_ne_bytes());
    value[10] = scale(|scale| scale.server);
    value[11] = scale(|scale| scale.client);
    value[12] = connection.ecn.into();
    value[13] = connection.window_scale.is_some().into();
    value[14] = connection.sack.into();
    value[15] = timestamps.is_some().into();
    // 16: timestamps in microseconds, which need a route that says so (RTAX_FEATURE_TCP_USEC_TS); 17..20: reserved.
    let complete_at = connection.client_next().wrapping_add(connection.acknowledged);
    value[20..24].copy_from_slice(&connection.client_next().to_be_bytes());
    value[24..28].copy_from_slice(&connection.server_isn.wrapping_add(1).to_be_bytes());
    value[28..32].copy_from_slice(&complete_at.to_ne_bytes());
    value
}

fn family(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u32,
        IpAddr::V6(_) => libc::AF_INET6 as u32,
    }
}

// Stack offsets. The key lies at the top, so that its tuple is where the lookup of a socket takes it from.
const KEY: i16 = -(KEY_SIZE as i16);
const TUPLE: i16 = KEY + 4;
const IP: i16 = KEY - IPV6_HEADER;
const TCP: i16 = IP - TCP_HEADER;

const IPV4_HEADER: i16 = 20;
const IPV6_HEADER: i16 = 40;
const TCP_HEADER: i16 = 20;

// Helpers, enum bpf_func_id.
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_DELETE_ELEM: i32 = 3;
const SKB_LOAD_BYTES_RELATIVE: i32 = 68;
const SK_RELEASE: i32 = 86;
const TCP_SOCK: i32 = 96;
const SKC_LOOKUP_TCP: i32 = 99;
const SKC_TO_TCP_SOCK: i32 = 137;

/// `BPF_HDR_START_NET`: offsets count from the IP header.
const FROM_IP_HEADER: i32 = 1;
/// `BPF_F_CURRENT_NETNS`: the namespace of the device that received the frame.
const THIS_NAMESPACE: i32 = -1;
/// `TCX_NEXT`: on with the next program, or into the network stack.
const PASS: i32 = -1;
/// `TCX_DROP`.
const DROP: i32 = 2;

// Fields of the program's context and of what helpers return, include/uapi/linux/bpf.h.
const SKB_PROTOCOL: i16 = 16;
const SOCK_STATE: i16 = 72;
const TCP_SOCK_RCV_NXT: i16 = 16;
/// `TCP_LISTEN`, include/net/tcp_states.h.
const STATE_LISTEN: i32 = 10;

// Fields of headers (RFC 791, 8200, 9293).
const IPV4_FRAGMENT: i16 = 6;
const IPV4_PROTOCOL: i16 = 9;
const IPV4_ADDRESSES: i16 = 12;
const IPV6_NEXT_HEADER: i16 = 6;
const IPV6_ADDRESSES: i16 = 8;
const TCP_SEQUENCE: i16 = 4;
const TCP_ACKNOWLEDGMENT: i16 = 8;
const TCP_FLAGS: i16 = 13;
const FLAG_SYN: i32 = 0x02;
const FLAG_RST: i32 = 0x04;
const FLAG_ACK: i32 = 0x10;
/// More fragments, or a fragment's offset.
const FRAGMENTED: u16 = 0x3fff;

fn network_order(value: u16) -> i32 {
    i32::from(value.to_be())
}

/// Throughout: R6 the frame, R7 the entry, R8 the socket, R9 the length of the IP header, then of the tuple.
fn assemble(map: &RequestMap, function: u32) -> Result<Vec<crate::sys::bpf::asm::Instruction>, BadJump> {
    let mut asm = Assembler::new();
    let [ipv4, ipv6, keyed, listening, release_and_pass, release_and_drop, drop, pass] =
        std::array::from_fn(|_| asm.label());

    asm.move_register(R6, R1);
    for offset in (KEY..0).step_by(8) {
        asm.store_immediate(Width::Double, R10, offset, 0);
    }
    asm.load(Width::Word, R2, R6, SKB_PROTOCOL);
    asm.jump_if(R2, If::Equal, network_order(libc::ETH_P_IP as u16), ipv4);
    asm.jump_if(R2, If::Equal, network_order(libc::ETH_P_IPV6 as u16), ipv6);
    asm.jump(pass);

    asm.place(ipv4);
    asm.move_immediate(R9, 0);
    load_header(&mut asm, IP, IPV4_HEADER, pass);
    asm.load(Width::Byte, R2, R10, IP + IPV4_PROTOCOL);
    asm.jump_if(R2, If::NotEqual, libc::IPPROTO_TCP, pass);
    asm.load(Width::Half, R2, R10, IP + IPV4_FRAGMENT);
    asm.and(R2, network_order(FRAGMENTED));
    asm.jump_if(R2, If::NotEqual, 0, pass);
    // The header's length in words is in the low half of its first byte.
    asm.load(Width::Byte, R9, R10, IP);
    asm.and(R9, 0x0f);
    asm.shift_left(R9, 2);
    asm.store_immediate(Width::Word, R10, KEY, libc::AF_INET);
    for offset in (0..8).step_by(4) {
        asm.load(Width::Word, R2, R10, IP + IPV4_ADDRESSES + offset);
        asm.store(Width::Word, R10, TUPLE + offset, R2);
    }
    load_header(&mut asm, TCP, TCP_HEADER, pass);
    asm.load(Width::Word, R2, R10, TCP); // Both ports.
    asm.store(Width::Word, R10, TUPLE + 8, R2);
    asm.move_immediate(R9, TUPLE_V4_SIZE);
    asm.jump(keyed);

    asm.place(ipv6);
    asm.move_immediate(R9, 0);
    load_header(&mut asm, IP, IPV6_HEADER, pass);
    asm.load(Width::Byte, R2, R10, IP + IPV6_NEXT_HEADER);
    asm.jump_if(R2, If::NotEqual, libc::IPPROTO_TCP, pass);
    asm.move_immediate(R9, i32::from(IPV6_HEADER));
    asm.store_immediate(Width::Word, R10, KEY, libc::AF_INET6);
    for offset in (0..32).step_by(4) {
        asm.load(Width::Word, R2, R10, IP + IPV6_ADDRESSES + offset);
        asm.store(Width::Word, R10, TUPLE + offset, R2);
    }
    load_header(&mut asm, TCP, TCP_HEADER, pass);
    asm.load(Width::Word, R2, R10, TCP);
    asm.store(Width::Word, R10, TUPLE + 32, R2);
    asm.move_immediate(R9, TUPLE_V6_SIZE);

    asm.place(keyed);
    load_map_and_key(&mut asm, map);
    asm.call_helper(MAP_LOOKUP_ELEM);
    asm.jump_if(R0, If::Equal, 0, pass);
    asm.move_register(R7, R0);
    asm.move_register(R1, R6);
    address_of(&mut asm, R2, TUPLE);
    asm.move_register(R3, R9);
    asm.move_immediate(R4, THIS_NAMESPACE);
    asm.move_immediate(R5, 0);
    asm.call_helper(SKC_LOOKUP_TCP);
    asm.jump_if(R0, If::Equal, 0, drop);
    asm.move_register(R8, R0);
    asm.load(Width::Word, R2, R8, SOCK_STATE);
    asm.jump_if(R2, If::Equal, STATE_LISTEN, listening);

    // A connection. Is everything there that the client will not send again?
    asm.move_register(R1, R8);
    asm.call_helper(TCP_SOCK);
    asm.jump_if(R0, If::Equal, 0, release_and_pass);
    asm.load(Width::Word, R2, R0, TCP_SOCK_RCV_NXT);
    asm.load(Width::Word, R3, R7, VALUE_COMPLETE_AT);
    asm.subtract32(R2, R3);
    asm.jump_if(R2, If::Negative32, 0, release_and_pass);
    load_map_and_key(&mut asm, map);
    asm.call_helper(MAP_DELETE_ELEM);
    asm.jump(release_and_pass);

    asm.place(listening);
    asm.load(Width::Byte, R2, R10, TCP + TCP_FLAGS);
    asm.and(R2, FLAG_SYN | FLAG_RST | FLAG_ACK);
    asm.jump_if(R2, If::NotEqual, FLAG_ACK, release_and_drop);
    // The kernel takes both numbers of the connection from this segment: any other than the expected would shift them.
    for (in_header, in_value) in [(TCP_SEQUENCE, VALUE_SEQUENCE), (TCP_ACKNOWLEDGMENT, VALUE_ACKNOWLEDGMENT)]
    {
        asm.load(Width::Word, R2, R10, TCP + in_header);
        asm.load(Width::Word, R3, R7, in_value);
        asm.jump_if_register(R2, If::NotEqual, R3, release_and_drop);
    }
    asm.move_register(R1, R8);
    asm.call_helper(SKC_TO_TCP_SOCK);
    asm.jump_if(R0, If::Equal, 0, release_and_drop);
    asm.move_register(R2, R0);
    asm.move_register(R1, R6);
    asm.move_register(R3, R7);
    asm.move_immediate(R4, ATTRIBUTES_SIZE as i32);
    asm.call_kernel_function(function);
    asm.jump_if(R0, If::NotEqual, 0, release_and_drop);

    asm.place(release_and_pass);
    asm.move_register(R1, R8);
    asm.call_helper(SK_RELEASE);
    asm.place(pass);
    asm.move_immediate(R0, PASS);
    asm.exit();

    asm.place(release_and_drop);
    asm.move_register(R1, R8);
    asm.call_helper(SK_RELEASE);
    asm.place(drop);
    asm.move_immediate(R0, DROP);
    asm.exit();
    asm.finish()
}

/// Copies `length` bytes at R9 past the start of the IP header to the stack; on to `absent` if the frame is shorter.
fn load_header(asm: &mut Assembler, to: i16, length: i16, absent: crate::sys::bpf::asm::Label) {
    asm.move_register(R1, R6);
    asm.move_register(R2, R9);
    address_of(asm, R3, to);
    asm.move_immediate(R4, length.into());
    asm.move_immediate(R5, FROM_IP_HEADER);
    asm.call_helper(SKB_LOAD_BYTES_RELATIVE);
    asm.jump_if(R0, If::NotEqual, 0, absent);
}

fn load_map_and_key(asm: &mut Assembler, map: &RequestMap) {
    asm.load_map(R1, map.as_fd());
    address_of(asm, R2, KEY);
}

fn address_of(asm: &mut Assembler, to: crate::sys::bpf::asm::Register, stack_offset: i16) {
    asm.move_register(to, R10);
    asm.add(to, stack_offset.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_program() {
        supported().expect("supported");
    }

    #[test]
    fn keys_differ_by_every_part() {
        let address = |text: &str| text.parse::<IpAddr>().expect("address");
        let base = FourTuple {
            client: address("10.0.0.1"),
            client_port: 1,
            server: address("10.0.0.2"),
            server_port: 2,
        };
        let others = [
            FourTuple { client: address("10.0.0.3"), ..base },
            FourTuple { client_port: 3, ..base },
            FourTuple { server: address("10.0.0.3"), ..base },
            FourTuple { server_port: 3, ..base },
            FourTuple { client: address("a00:1::"), server: address("a00:2::"), ..base },
        ];
        for other in others {
            assert_ne!(key(&base), key(&other), "{other}");
        }
    }
}

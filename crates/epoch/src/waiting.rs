//! Which connections the kernel has that wait for a program to accept them.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{fs, io};

use outlive_process::object::tcp_request::FourTuple;

/// States in `/proc/net/tcp` (include/net/tcp_states.h) of a connection that nobody has accepted: in its handshake,
/// established, and that after the client's FIN.
const SYN_RECV: u8 = 3;
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// Of the network namespace of the calling thread.
pub fn waiting_connections() -> io::Result<HashSet<FourTuple>> {
    let mut found = HashSet::new();
    for file in ["tcp", "tcp6"] {
        match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(table) => found.extend(table.lines().skip(1).filter_map(waiting)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// A row of `/proc/net/tcp` (`tcp4_seq_show`, net/ipv4/tcp_ipv4.c), if its connection waits: what has no inode has no
/// socket of a program.
fn waiting(row: &str) -> Option<FourTuple> {
    let mut fields = row.split_ascii_whitespace().skip(1);
    let (server, server_port) = address(fields.next()?)?;
    let (client, client_port) = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    // Queues, timer, retransmissions, user, timeout, inode.
    let inode = fields.nth(5)?;
    (matches!(state, SYN_RECV | ESTABLISHED | CLOSE_WAIT) && inode == "0").then_some(FourTuple {
        client,
        client_port,
        server,
        server_port,
    })
}

/// Words of an address are printed as numbers of this machine, the port as a number.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..address.len() / 8)
        .map(|word| Some(u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect::<Option<_>>()?;
    let ip = match words[..] {
        [v4] => Ipv4Addr::from(v4).into(),
        [a, b, c, d] => IpAddr::from(Ipv6Addr::from_octets(join([a, b, c, d]))).to_canonical(),
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

fn join(words: [[u8; 4]; 4]) -> [u8; 16] {
    let mut octets = [0; 16];
    for (to, word) in octets.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word);
    }
    octets
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn tuple_of(client: &TcpStream) -> FourTuple {
        let (client, server) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let plain = |address: SocketAddr| address.ip().to_canonical();
        FourTuple {
            client: plain(client),
            client_port: client.port(),
            server: plain(server),
            server_port: server.port(),
        }
    }

    #[test]
    fn a_connection_waits_until_it_is_accepted() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"early").unwrap();
            let tuple = tuple_of(&client);
            assert!(waiting_connections().unwrap().contains(&tuple), "{tuple}");
            let accepted = listener.accept().unwrap();
            assert!(!waiting_connections().unwrap().contains(&tuple), "{tuple}");
            drop(accepted);
        }
    }

    #[test]
    fn a_connection_by_ipv4_to_a_listener_of_both_families_is_ipv4() {
        let Ok(listener) = TcpListener::bind("[::]:0") else { return };
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(waiting_connections().unwrap().contains(&tuple_of(&client)));
    }

    #[test]
    fn other_rows_are_passed_over() {
        let row = |state: &str, inode: &str| {
            format!(
                "0: 0100007F:1F90 0200007F:A001 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1 0"
            )
        };
        assert!(waiting(&row("03", "0")).is_some() && waiting(&row("08", "0")).is_some());
        for other in [row("01", "77"), row("0A", "0"), row("06", "0"), row("01", ""), String::new()] {
            assert_eq!(waiting(&other), None, "{other}");
        }
    }
}

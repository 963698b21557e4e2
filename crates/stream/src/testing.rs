//! Two nodes on the loopback, for tests.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::certificate::{Authority, Validity, create_authority, issue};
use crate::connection::Connection;
use crate::tls::{HandshakeError, Identity, Material};

/// Far beyond what anything here takes: only a test that hangs meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn authority() -> Authority {
    create_authority("test").unwrap()
}

/// An identity that others may well refuse: it is not checked.
pub fn identity(trusted: &Authority, issuer: &Authority, node: &str, validity: Validity) -> Identity {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("ca.pem"), &trusted.cert_pem).unwrap();
    issue(issuer, node, validity).unwrap().write_files(&path("cert.pem"), &path("key.pem")).unwrap();
    read_unchecked(directory.path())
}

fn read_unchecked(directory: &Path) -> Identity {
    let path = |name: &str| directory.join(name);
    Material::read(&path("ca.pem"), &path("cert.pem"), &path("key.pem")).unwrap().into_identity().unwrap()
}

pub fn good_identity(authority: &Authority, node: &str) -> Identity {
    identity(authority, authority, node, Validity::days(1))
}

/// What each of two nodes makes of the other.
pub fn meet(
    connecting: &Identity,
    accepting: &Identity,
    expected_node: &str,
) -> (Result<Connection, HandshakeError>, Result<Connection, HandshakeError>) {
    let (listener, address) = listener();
    thread::scope(|scope| {
        let accepted = scope.spawn(|| accepting.accept(listener.accept().unwrap().0, PATIENCE));
        let connected = connecting.connect(address, expected_node, PATIENCE);
        (connected, accepted.join().unwrap())
    })
}

/// Nodes `a` (which connected) and `b` (which accepted).
pub fn connected_pair() -> (Connection, Connection) {
    let authority = authority();
    let (a, b) = (good_identity(&authority, "a"), good_identity(&authority, "b"));
    let (connected, accepted) = meet(&a, &b, "b");
    (connected.unwrap(), accepted.unwrap())
}

/// On a port that the kernel chooses.
pub fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub fn raw_connection(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

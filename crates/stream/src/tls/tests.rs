//! R6, strangers are out: every way to be one is refused here, with an error of its own at either end.

use std::os::fd::AsRawFd;
use std::thread;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};

use super::*;
use crate::certificate::{Authority, Validity, create_authority, issue, sign};
use crate::testing::{PATIENCE, authority, good_identity, identity, listener, meet, raw_connection};

const HOUR: Duration = Duration::from_secs(3600);

fn expired() -> Validity {
    let now = SystemTime::now();
    Validity { not_before: now - 2 * HOUR, not_after: now - HOUR }
}

fn not_yet_valid() -> Validity {
    let now = SystemTime::now();
    Validity { not_before: now + HOUR, not_after: now + 2 * HOUR }
}

/// Each side's refusal, when `connecting` with `expected_node` in mind meets `accepting`.
fn refusals(
    connecting: &Identity,
    accepting: &Identity,
    expected_node: &str,
) -> (HandshakeError, HandshakeError) {
    let (connected, accepted) = meet(connecting, accepting, expected_node);
    (connected.unwrap_err(), accepted.unwrap_err())
}

macro_rules! assert_refused {
    ($refusal:expr, $pattern:pat $(if $guard:expr)?) => {{
        let refusal = $refusal;
        assert!(matches!(refusal, $pattern $(if $guard)?), "{refusal} ({refusal:?})");
    }};
}

#[test]
fn nodes_of_one_cluster_meet_and_know_each_other() {
    let authority = authority();
    let (connected, accepted) = meet(&good_identity(&authority, "a"), &good_identity(&authority, "b"), "b");
    assert_eq!(connected.unwrap().peer_node(), "b");
    assert_eq!(accepted.unwrap().peer_node(), "a");
}

#[test]
fn sockets_send_at_once_and_give_up_in_bounded_time() {
    let authority = authority();
    let (connected, accepted) = meet(&good_identity(&authority, "a"), &good_identity(&authority, "b"), "b");
    for connection in [connected.unwrap(), accepted.unwrap()] {
        let socket = connection.socket();
        assert!(socket.nodelay().unwrap());
        let user_timeout = nix::sys::socket::getsockopt(socket, sockopt::TcpUserTimeout).unwrap();
        assert_eq!(Duration::from_millis(user_timeout.into()), USER_TIMEOUT);
    }
}

#[test]
fn a_server_of_another_authority_is_refused() {
    let (ours, theirs) = (authority(), create_authority("other").unwrap());
    let (a, b) = refusals(&good_identity(&ours, "a"), &good_identity(&theirs, "b"), "b");
    assert_refused!(a, HandshakeError::NotOfThisCluster { .. });
    assert_refused!(b, HandshakeError::RefusedByPeer { refusal: Refusal::NotOfItsCluster, .. });
}

#[test]
fn a_client_of_another_authority_is_refused() {
    let (ours, theirs) = (authority(), create_authority("other").unwrap());
    let intruder = identity(&ours, &theirs, "a", Validity::days(1));
    let (a, b) = refusals(&intruder, &good_identity(&ours, "b"), "b");
    assert_refused!(a, HandshakeError::RefusedByPeer { refusal: Refusal::NotOfItsCluster, .. });
    assert_refused!(b, HandshakeError::NotOfThisCluster { .. });
}

#[test]
fn an_authority_made_anew_under_the_same_name_is_another() {
    let (ours, theirs) = (authority(), authority());
    let intruder = identity(&ours, &theirs, "a", Validity::days(1));
    let (a, b) = refusals(&intruder, &good_identity(&ours, "b"), "b");
    assert_refused!(a, HandshakeError::RefusedByPeer { refusal: Refusal::NotOfItsCluster, .. });
    assert_refused!(b, HandshakeError::NotOfThisCluster { .. });
    let (a, _) = refusals(&good_identity(&ours, "a"), &intruder, "a");
    assert_refused!(a, HandshakeError::NotOfThisCluster { .. });
}

#[test]
fn an_expired_certificate_is_refused() {
    let authority = authority();
    let stale = identity(&authority, &authority, "stale", expired());
    let good = good_identity(&authority, "good");
    let (connecting, accepting) = refusals(&good, &stale, "stale");
    assert_refused!(connecting, HandshakeError::Expired { .. });
    assert_refused!(accepting, HandshakeError::RefusedByPeer { refusal: Refusal::OutsideValidity, .. });
    let (connecting, accepting) = refusals(&stale, &good, "good");
    assert_refused!(connecting, HandshakeError::RefusedByPeer { refusal: Refusal::OutsideValidity, .. });
    assert_refused!(accepting, HandshakeError::Expired { .. });
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_refused() {
    let authority = authority();
    let early = identity(&authority, &authority, "early", not_yet_valid());
    let good = good_identity(&authority, "good");
    let (connecting, _) = refusals(&good, &early, "early");
    assert_refused!(connecting, HandshakeError::NotYetValid { .. });
    let (connecting, accepting) = refusals(&early, &good, "good");
    assert_refused!(connecting, HandshakeError::RefusedByPeer { refusal: Refusal::OutsideValidity, .. });
    assert_refused!(accepting, HandshakeError::NotYetValid { .. });
}

#[test]
fn another_node_than_the_expected_one_is_refused() {
    let authority = authority();
    let (a, b) = refusals(&good_identity(&authority, "a"), &good_identity(&authority, "b"), "c");
    assert_refused!(b, HandshakeError::RefusedByPeer { refusal: Refusal::BadCertificate, .. });
    let HandshakeError::WrongNode { expected, presented, .. } = &a else { panic!("{a:?}") };
    assert_eq!(expected, "c");
    assert!(presented.iter().any(|name| name.contains("b.outlive.internal")), "{presented:?}");
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let authority = authority();
    let b = good_identity(&authority, "b");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.cert_pem.as_bytes()).unwrap()).unwrap();
    let anonymous = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let anonymous = Identity { client: Arc::new(anonymous), ..good_identity(&authority, "a") };
    let (connecting, accepting) = refusals(&anonymous, &b, "b");
    assert_refused!(connecting, HandshakeError::RefusedByPeer { refusal: Refusal::NoCertificate, .. });
    assert_refused!(accepting, HandshakeError::NoCertificate { .. });
}

#[test]
fn the_authoritys_own_certificate_does_not_make_a_node() {
    let authority = authority();
    let posing = tempfile::tempdir().unwrap();
    let path = |name: &str| posing.path().join(name);
    authority.write_files(&path("ca.pem"), &path("ca.key")).unwrap();
    let refused = Identity::load(&path("ca.pem"), &path("ca.pem"), &path("ca.key")).unwrap_err();
    assert_refused!(refused, IdentityError::Certificate { .. });
}

#[test]
fn a_certificate_that_names_no_node_is_refused() {
    let authority = authority();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["two.labels.outlive.internal", "outlive.internal"] {
        fs::write(path("ca"), &authority.cert_pem).unwrap();
        let certificate = sign(&authority, name.to_owned(), "nobody", Validity::days(1)).unwrap();
        certificate.write_files(&path("cert"), &path("key")).unwrap();
        let refused = Identity::load(&path("ca"), &path("cert"), &path("key")).unwrap_err();
        assert_refused!(refused, IdentityError::Nameless { .. });
        // Who does not check its own certificate is refused by the others.
        let material = Material::read(&path("ca"), &path("cert"), &path("key")).unwrap();
        let nobody = material.identity_named("nobody").unwrap();
        let (connecting, accepting) = refusals(&nobody, &good_identity(&authority, "b"), "b");
        assert_refused!(connecting, HandshakeError::ClosedEarly { .. });
        assert_refused!(accepting, HandshakeError::Nameless { .. });
    }
}

#[test]
fn nodes_under_either_of_two_authorities_meet_while_one_replaces_the_other() {
    let (old, new) = (authority(), authority());
    let both = Authority { cert_pem: format!("{}{}", old.cert_pem, new.cert_pem), ..new.clone() };
    let a = identity(&both, &old, "a", Validity::days(1));
    let b = identity(&both, &new, "b", Validity::days(1));
    for (connecting, accepting, expected) in [(&a, &b, "b"), (&b, &a, "a")] {
        let (connected, accepted) = meet(connecting, accepting, expected);
        connected.unwrap();
        accepted.unwrap();
    }
}

/// What `b` makes of a peer that connects and does `talk`.
fn accept_from(talk: impl FnOnce(TcpStream) + Send, timeout: Duration) -> HandshakeError {
    let identity = good_identity(&authority(), "b");
    let (listener, address) = listener();
    thread::scope(|scope| {
        scope.spawn(|| talk(raw_connection(address)));
        identity.accept(listener.accept().unwrap().0, timeout).unwrap_err()
    })
}

#[test]
fn plain_text_from_a_client_is_refused() {
    let refused = accept_from(
        |mut socket| {
            socket.write_all(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n").unwrap();
            // Until the refusal: the answer is an alert or the end, never a page.
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer);
            assert!(!answer.starts_with(b"HTTP"));
        },
        PATIENCE,
    );
    assert_refused!(refused, HandshakeError::NotTls { .. });
}

#[test]
fn plain_text_from_a_server_is_refused() {
    let (listener, address) = listener();
    let refused = thread::scope(|scope| {
        scope.spawn(|| {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = socket.read_to_end(&mut Vec::new());
        });
        good_identity(&authority(), "a").connect(address, "b", PATIENCE).unwrap_err()
    });
    assert_refused!(refused, HandshakeError::NotTls { .. });
}

#[test]
fn tls_before_1_3_is_refused() {
    let refused = accept_from(
        |mut socket| {
            // A client that offers TLS 1.2 and no more: no supported_versions extension (RFC 5246, section
            // 7.4.1.2).
            let extensions = [
                &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17][..], // supported_groups: secp256r1
                &[0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03][..], // signature_algorithms: ECDSA P-256
            ]
            .concat();
            let mut hello = vec![0x03, 0x03];
            hello.extend([7; 32]);
            hello.extend([
                0x00,
                0x00,
                0x02,
                0xc0,
                0x2b,
                0x01,
                0x00,
                0x00,
                u8::try_from(extensions.len()).unwrap(),
            ]);
            hello.extend(extensions);
            let length = u8::try_from(hello.len()).unwrap();
            let mut record = vec![0x16, 0x03, 0x01, 0x00, length + 4, 0x01, 0x00, 0x00, length];
            record.extend(hello);
            socket.write_all(&record).unwrap();
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).unwrap();
            assert_eq!(answer.first(), Some(&0x15), "an alert");
        },
        PATIENCE,
    );
    assert_refused!(refused, HandshakeError::Incompatible { .. });
}

#[test]
fn a_client_that_says_nothing_is_given_up() {
    let refused = accept_from(
        |mut socket| {
            let _ = socket.read_to_end(&mut Vec::new());
        },
        Duration::from_millis(50),
    );
    assert_refused!(refused, HandshakeError::TimedOut { .. });
}

#[test]
fn a_client_that_drips_its_bytes_is_given_up() {
    let refused = accept_from(
        |mut socket| {
            // A record that never completes, one byte within each receive's timeout.
            let record = [0x16, 0x03, 0x01, 0x40, 0x00].into_iter().chain(std::iter::repeat(1));
            for byte in record {
                if socket.write_all(&[byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        },
        Duration::from_millis(50),
    );
    assert_refused!(refused, HandshakeError::TimedOut { .. });
}

#[test]
fn a_client_that_leaves_is_noticed() {
    let refused = accept_from(drop, PATIENCE);
    assert_refused!(refused, HandshakeError::ClosedEarly { .. });
}

#[test]
fn nobody_listening_is_unreachable() {
    // Bound, so that nobody else gets the port, and not listening.
    let bound = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    socket::bind(bound.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let address: SockaddrIn = socket::getsockname(bound.as_raw_fd()).unwrap();
    let address = SocketAddr::V4(address.into());
    let refused = good_identity(&authority(), "a").connect(address, "b", PATIENCE).unwrap_err();
    assert_refused!(refused, HandshakeError::Unreachable { .. });
}

#[test]
fn a_node_is_not_looked_for_under_an_impossible_name() {
    let (_listener, address) = listener();
    let refused = good_identity(&authority(), "a").connect(address, "b.example", PATIENCE).unwrap_err();
    assert_refused!(refused, HandshakeError::BadName { .. });
}

/// Files of a node as they should be, and what loading says after `spoil`.
fn load_spoilt(spoil: impl FnOnce(&Authority, &Path)) -> Result<Identity, IdentityError> {
    let authority = authority();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("ca"), &authority.cert_pem).unwrap();
    issue(&authority, "a", Validity::days(1)).unwrap().write_files(&path("cert"), &path("key")).unwrap();
    spoil(&authority, directory.path());
    Identity::load(&path("ca"), &path("cert"), &path("key"))
}

fn reissue(issuer: &Authority, directory: &Path, validity: Validity) {
    let node = issue(issuer, "a", validity).unwrap();
    node.write_files(&directory.join("cert"), &directory.join("key")).unwrap();
}

#[test]
fn an_identity_is_loaded_and_knows_its_name() {
    assert_eq!(load_spoilt(|_, _| ()).unwrap().node_name(), "a");
}

#[test]
fn a_key_that_others_can_read_is_not_loaded() {
    let spoilt = load_spoilt(|_, at| {
        fs::set_permissions(at.join("key"), fs::Permissions::from_mode(0o640)).unwrap();
    });
    assert_refused!(spoilt.unwrap_err(), IdentityError::KeyExposed { mode: 0o640, .. });
}

#[test]
fn an_identity_that_others_would_refuse_is_not_loaded() {
    let other = create_authority("test").unwrap();
    let spoilt = load_spoilt(|_, at| reissue(&other, at, Validity::days(1)));
    assert_refused!(spoilt.unwrap_err(), IdentityError::NotOfThisCluster { .. });
    let spoilt = load_spoilt(|authority, at| reissue(authority, at, expired()));
    assert_refused!(spoilt.unwrap_err(), IdentityError::Expired { .. });
    let spoilt = load_spoilt(|authority, at| reissue(authority, at, not_yet_valid()));
    assert_refused!(spoilt.unwrap_err(), IdentityError::NotYetValid { .. });
}

#[test]
fn damaged_files_are_not_loaded() {
    for name in ["ca", "cert", "key"] {
        let spoilt = load_spoilt(|_, at| fs::write(at.join(name), "nonsense").unwrap());
        assert_refused!(spoilt.unwrap_err(), IdentityError::Pem { .. });
        let spoilt = load_spoilt(|_, at| fs::remove_file(at.join(name)).unwrap());
        assert_refused!(spoilt.unwrap_err(), IdentityError::Read { .. });
    }
    let spoilt = load_spoilt(|authority, at| {
        fs::write(at.join("key"), issue(authority, "a", Validity::days(1)).unwrap().key_pem).unwrap();
    });
    assert_refused!(spoilt.unwrap_err(), IdentityError::KeyMismatch { .. });
}

//! Who is at the other end: TLS 1.3 with certificates on both sides, under the cluster's own authority.
//!
//! A connection is handed out only when both ends have accepted each other. In TLS 1.3 the connecting end is
//! done before the accepting end has seen its certificate, so the accepting end says one word ([`WELCOME`])
//! after it has: whoever is refused learns it from [`Identity::connect`], with the reason, and not from the
//! first use.
//!
//! A connection that was idle for longer than a retransmission timeout starts again with ten segments on the
//! way (`net.ipv4.tcp_slow_start_after_idle`, Documentation/networking/ip-sysctl.rst), which would cost a
//! large epoch several round trips. There is no socket option against it: set the sysctl to 0 on nodes, or
//! keep heartbeats closer together than 200 ms.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use webpki::{EndEntityCert, KeyUsage};

pub use crate::tls_refusal::{HandshakeError, Refusal};

use crate::certificate::{CertificateError, names_in, node_dns_name, node_of};
use crate::connection::{Connection, is_timeout, remaining};

/// What the accepting end sends, encrypted, once it has accepted the other's certificate.
const WELCOME: &[u8; 8] = b"welcome\n";

/// How long sent bytes may stay unacknowledged, or a peer's window shut, before the kernel gives the
/// connection up (`TCP_USER_TIMEOUT`, tcp(7)). Deaths are detected far sooner, by missing heartbeats; this
/// bounds what nobody watches.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// On an idle connection, ask after this long, and then as often, whether the peer is still there; after
/// [`USER_TIMEOUT`] without an answer it is not (which overrides the count of probes, tcp(7)).
const KEEP_ALIVE_SECONDS: u32 = 5;

/// A connection that is not answered is begun anew after this long: the kernel itself asks again only after a second, and then
/// later and later (`TCP_TIMEOUT_INIT` in include/net/tcp.h), long after a host has come back.
const BEGUN_ANEW: Duration = Duration::from_millis(500);

fn open(address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // No time at all would be an argument that `connect_timeout` does not take.
        let most = left.clamp(Duration::from_millis(1), BEGUN_ANEW);
        match TcpStream::connect_timeout(&address, most) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && left > BEGUN_ANEW => {}
            done => return done,
        }
    }
}

/// What this node is, and whom it trusts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    node_name: Arc<str>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the private key {path} can be read by others than its owner (mode {mode:03o}): run `chmod 600` on it, and \
         consider issuing a new one",
        path = path.display()
    )]
    KeyExposed { path: PathBuf, mode: u32 },
    #[error("{path} holds no usable PEM {what}; issue it again", path = path.display())]
    Pem { path: PathBuf, what: &'static str },
    #[error(
        "the certificate {path} was not issued by the authority in {ca}; issue one under this cluster's authority",
        path = path.display(), ca = ca.display()
    )]
    NotOfThisCluster { path: PathBuf, ca: PathBuf },
    #[error("the certificate {path} has expired; issue a new one", path = path.display())]
    Expired { path: PathBuf },
    #[error(
        "the certificate {path} is not valid yet; check this host's clock, or issue a new one",
        path = path.display()
    )]
    NotYetValid { path: PathBuf },
    #[error(
        "the certificate {path} names no node (it has {names:?}); issue one with a node's name",
        path = path.display()
    )]
    Nameless { path: PathBuf, names: Vec<String> },
    #[error("the certificate {path} cannot be used; issue it again", path = path.display())]
    Certificate { path: PathBuf, source: webpki::Error },
    #[error(
        "the private key {key} does not belong to the certificate {cert}; issue both together",
        key = key.display(), cert = cert.display()
    )]
    KeyMismatch { key: PathBuf, cert: PathBuf },
    #[error("TLS cannot be set up with {cert}", cert = cert.display())]
    Setup { cert: PathBuf, source: rustls::Error },
}

impl Identity {
    /// Read this node's certificate and key, and the authority (or authorities, during a change) it trusts.
    /// What others would refuse is refused here already.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let mode = fs::metadata(key).map_err(|source| read_error(key, source))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::KeyExposed { path: key.to_owned(), mode });
        }
        let material = Material::read(ca, cert, key)?;
        material.check(SystemTime::now())?;
        material.into_identity()
    }

    /// The name of this node, as its certificate has it.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Connect to a node, and to no other than `expected_node`. All of it takes at most `timeout`.
    pub fn connect(
        &self,
        address: SocketAddr,
        expected_node: &str,
        timeout: Duration,
    ) -> Result<Connection, HandshakeError> {
        let deadline = Instant::now() + timeout;
        let expected = name_of(expected_node)?;
        let mut attempt = Attempt { peer: address, expected: Some(expected_node), timeout, deadline };
        let socket = open(address, deadline).map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => attempt.timed_out(),
            _ => HandshakeError::Unreachable { peer: address, source },
        })?;
        let tls = rustls::ClientConnection::new(Arc::clone(&self.client), expected)
            .map_err(|source| attempt.tls_error(source))?;
        attempt.complete(socket, tls.into())
    }

    /// Complete a connection that came in on a listening socket, with any node of this cluster:
    /// see [`Connection::peer_node`] for which. All of it takes at most `timeout`.
    pub fn accept(&self, socket: TcpStream, timeout: Duration) -> Result<Connection, HandshakeError> {
        let peer = socket.peer_addr().map_err(HandshakeError::NoPeer)?;
        let mut attempt = Attempt { peer, expected: None, timeout, deadline: Instant::now() + timeout };
        let tls = rustls::ServerConnection::new(Arc::clone(&self.server))
            .map_err(|source| attempt.tls_error(source))?;
        attempt.complete(socket, tls.into())
    }
}

/// What the files hold, not yet checked against each other.
pub(crate) struct Material {
    ca_path: PathBuf,
    cert_path: PathBuf,
    key_path: PathBuf,
    authorities: Vec<CertificateDer<'static>>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Material {
    pub fn read(ca: &Path, cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let pem = |path: &Path, what| IdentityError::Pem { path: path.to_owned(), what };
        let read = |path: &Path| fs::read(path).map_err(|source| read_error(path, source));
        let authorities: Vec<_> = CertificateDer::pem_slice_iter(&read(ca)?)
            .collect::<Result<_, _>>()
            .map_err(|_| pem(ca, "certificate"))?;
        if authorities.is_empty() {
            return Err(pem(ca, "certificate"));
        }
        let certificate =
            CertificateDer::from_pem_slice(&read(cert)?).map_err(|_| pem(cert, "certificate"))?;
        let key_der = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| pem(key, "private key"))?;
        Ok(Self {
            ca_path: ca.to_owned(),
            cert_path: cert.to_owned(),
            key_path: key.to_owned(),
            authorities,
            certificate,
            key: key_der,
        })
    }

    /// Verify the own certificate as another node would.
    fn check(&self, now: SystemTime) -> Result<(), IdentityError> {
        let path = || self.cert_path.clone();
        let anchors: Vec<_> = self
            .authorities
            .iter()
            .map(webpki::anchor_from_trusted_cert)
            .collect::<Result<_, _>>()
            .map_err(|source| IdentityError::Certificate { path: self.ca_path.clone(), source })?;
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        EndEntityCert::try_from(&self.certificate)
            .and_then(|certificate| {
                certificate
                    .verify_for_usage(
                        provider().signature_verification_algorithms.all,
                        &anchors,
                        &[],
                        UnixTime::since_unix_epoch(since_epoch),
                        KeyUsage::server_auth(),
                        None,
                        None,
                    )
                    .map(|_path| ())
            })
            .map_err(|source| match source {
                webpki::Error::CertExpired { .. } => IdentityError::Expired { path: path() },
                webpki::Error::CertNotValidYet { .. } => IdentityError::NotYetValid { path: path() },
                webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                    IdentityError::NotOfThisCluster { path: path(), ca: self.ca_path.clone() }
                }
                source => IdentityError::Certificate { path: path(), source },
            })
    }

    pub fn into_identity(self) -> Result<Identity, IdentityError> {
        let node_name = node_of(&self.certificate).ok_or_else(|| IdentityError::Nameless {
            path: self.cert_path.clone(),
            names: names_in(&self.certificate),
        })?;
        self.identity_named(&node_name)
    }

    fn identity_named(self, node_name: &str) -> Result<Identity, IdentityError> {
        let setup = |source| match source {
            rustls::Error::InconsistentKeys(_) => {
                IdentityError::KeyMismatch { key: self.key_path.clone(), cert: self.cert_path.clone() }
            }
            source => IdentityError::Setup { cert: self.cert_path.clone(), source },
        };
        let unusable = |_| IdentityError::Pem { path: self.ca_path.clone(), what: "authority's certificate" };
        let mut roots = RootCertStore::empty();
        for authority in self.authorities {
            roots
                .add(authority)
                .map_err(|_| IdentityError::Pem { path: self.ca_path.clone(), what: "certificate" })?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(provider());
        let versions = &[&version::TLS13];

        let node_verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(unusable)?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(setup)?
            .with_webpki_verifier(node_verifier)
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(setup)?;
        // Every connection proves both names afresh: no tickets, no resumption, no early data.
        client.resumption = Resumption::disabled();

        let client_verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(unusable)?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(setup)?
            .with_client_cert_verifier(client_verifier)
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(setup)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        Ok(Identity { node_name: Arc::from(node_name), client: Arc::new(client), server: Arc::new(server) })
    }
}

fn read_error(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Read { path: path.to_owned(), source }
}

/// `ring`, with AES-128 before AES-256: both are beyond attack, and the first has ten rounds instead of
/// fourteen.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider
}

fn name_of(node: &str) -> Result<ServerName<'static>, HandshakeError> {
    let bad_name = || HandshakeError::BadName { node: node.to_owned() };
    let dns_name = node_dns_name(node).map_err(|_: CertificateError| bad_name())?;
    ServerName::try_from(dns_name).map_err(|_| bad_name())
}

/// One handshake, on either side.
struct Attempt<'a> {
    peer: SocketAddr,
    expected: Option<&'a str>,
    timeout: Duration,
    deadline: Instant,
}

impl Attempt<'_> {
    fn complete(
        &mut self,
        socket: TcpStream,
        mut tls: rustls::Connection,
    ) -> Result<Connection, HandshakeError> {
        prepare_socket(&socket).map_err(|source| self.io_error(source))?;
        // The writer takes ciphertext out after each portion: the bound lies there, and a partial write here
        // would cut frames.
        tls.set_buffer_limit(None);
        while tls.is_handshaking() {
            self.send(&socket, &mut tls)?;
            if tls.is_handshaking() {
                self.receive(&socket, &mut tls)?;
            }
        }
        let node = match self.peer_node(&tls) {
            Ok(node) => node,
            Err(refused) => {
                tls.send_close_notify();
                let _ = self.send(&socket, &mut tls);
                return Err(refused);
            }
        };
        match self.expected {
            None => {
                tls.writer().write_all(WELCOME).map_err(|source| self.io_error(source))?;
                self.send(&socket, &mut tls)?;
            }
            Some(_) => {
                // The certificate and the end of the handshake, which are still to be sent.
                self.send(&socket, &mut tls)?;
                self.await_welcome(&socket, &mut tls)?;
            }
        }
        Connection::new(socket, tls, &node, self.peer).map_err(|source| self.io_error(source))
    }

    fn await_welcome(&self, socket: &TcpStream, tls: &mut rustls::Connection) -> Result<(), HandshakeError> {
        let mut welcome = [0; WELCOME.len()];
        let mut filled = 0;
        while filled < welcome.len() {
            match tls.reader().read(&mut welcome[filled..]) {
                Ok(0) => return Err(HandshakeError::ClosedEarly { peer: self.peer }),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive(socket, tls)?,
                Err(source) => return Err(self.io_error(source)),
            }
        }
        if &welcome == WELCOME { Ok(()) } else { Err(HandshakeError::NotWelcomed { peer: self.peer }) }
    }

    /// The name proved by the certificate; the TLS library has verified everything else about it.
    fn peer_node(&self, tls: &rustls::Connection) -> Result<String, HandshakeError> {
        let certificate = tls.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.ok_or(HandshakeError::NoCertificate { peer: self.peer })?;
        let node = node_of(certificate)
            .ok_or_else(|| HandshakeError::Nameless { peer: self.peer, names: names_in(certificate) })?;
        match self.expected {
            // The TLS library has compared the DNS name; a second look costs nothing, and this is R6.
            Some(expected) if expected != node => Err(HandshakeError::WrongNode {
                peer: self.peer,
                expected: expected.to_owned(),
                presented: vec![node],
            }),
            _ => Ok(node),
        }
    }

    fn send(&self, socket: &TcpStream, tls: &mut rustls::Connection) -> Result<(), HandshakeError> {
        while tls.wants_write() {
            socket.set_write_timeout(Some(self.left()?)).map_err(|source| self.io_error(source))?;
            match tls.write_tls(&mut &*socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(self.timed_out()),
                Err(source) => return Err(self.io_error(source)),
            }
        }
        Ok(())
    }

    fn receive(&self, socket: &TcpStream, tls: &mut rustls::Connection) -> Result<(), HandshakeError> {
        socket.set_read_timeout(Some(self.left()?)).map_err(|source| self.io_error(source))?;
        match tls.read_tls(&mut &*socket) {
            Ok(0) => return Err(HandshakeError::ClosedEarly { peer: self.peer }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) if is_timeout(&error) => return Err(self.timed_out()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(HandshakeError::ClosedEarly { peer: self.peer });
            }
            Err(source) => return Err(self.io_error(source)),
        }
        tls.process_new_packets().map(|_state| ()).map_err(|source| {
            // The alert that tells the other end why. It may be gone already, and then need not know.
            let _ = self.send(socket, tls);
            let _ = socket.shutdown(Shutdown::Write);
            self.tls_error(source)
        })
    }

    fn left(&self) -> Result<Duration, HandshakeError> {
        remaining(self.deadline).ok_or_else(|| self.timed_out())
    }

    fn timed_out(&self) -> HandshakeError {
        HandshakeError::TimedOut { peer: self.peer, timeout: self.timeout }
    }

    fn io_error(&self, source: io::Error) -> HandshakeError {
        HandshakeError::Io { peer: self.peer, source }
    }

    fn tls_error(&self, source: rustls::Error) -> HandshakeError {
        HandshakeError::from_tls(self.peer, self.expected, source)
    }
}

fn prepare_socket(socket: &TcpStream) -> io::Result<()> {
    // A frame is complete when it is sent; waiting for more (Nagle) would only hold it back.
    socket.set_nodelay(true)?;
    let milliseconds = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    setsockopt(socket, sockopt::TcpUserTimeout, &milliseconds)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &KEEP_ALIVE_SECONDS)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &KEEP_ALIVE_SECONDS)?;
    Ok(())
}

#[cfg(test)]
mod tests;

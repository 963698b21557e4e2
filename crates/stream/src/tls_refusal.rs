//! Why two nodes did not connect, and what to do about it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("{node:?} cannot be a node's name: use the name its certificate was issued for")]
    BadName { node: String },
    #[error("the incoming connection was gone before it was answered")]
    NoPeer(#[source] io::Error),
    #[error("cannot reach {peer}; check that the agent runs there and that no firewall is between")]
    Unreachable { peer: SocketAddr, source: io::Error },
    #[error(
        "no agreement with {peer} within {timeout:?}; it may be stopped, overloaded, or no outlive agent"
    )]
    TimedOut { peer: SocketAddr, timeout: Duration },
    #[error("{peer} closed the connection before agreeing to it; its log says why if it is an outlive agent")]
    ClosedEarly { peer: SocketAddr },
    #[error("the connection with {peer} failed while it was being agreed on")]
    Io { peer: SocketAddr, source: io::Error },

    #[error("what {peer} sends is not TLS; check that address and port are those of an outlive agent")]
    NotTls { peer: SocketAddr },
    #[error("{peer} speaks no version of TLS that is accepted here (only 1.3); it is no outlive agent")]
    Incompatible { peer: SocketAddr, source: rustls::Error },
    #[error(
        "{peer} cannot prove that it belongs to this cluster: its certificate comes from another authority; \
         issue one to it under this cluster's authority"
    )]
    NotOfThisCluster { peer: SocketAddr },
    #[error(
        "the certificate of {peer} has expired; issue a new one to that node, or check this host's clock"
    )]
    Expired { peer: SocketAddr },
    #[error("the certificate of {peer} is not valid yet; check the clocks of both hosts")]
    NotYetValid { peer: SocketAddr },
    #[error(
        "{peer} is not node {expected}: its certificate is for {presented:?}; correct the address or the name"
    )]
    WrongNode { peer: SocketAddr, expected: String, presented: Vec<String> },
    #[error("the certificate of {peer} names no node (it has {names:?}); issue one with a node's name to it")]
    Nameless { peer: SocketAddr, names: Vec<String> },
    #[error("{peer} showed no certificate; only nodes of this cluster may connect")]
    NoCertificate { peer: SocketAddr },
    #[error("the certificate of {peer} is not acceptable")]
    Certificate { peer: SocketAddr, source: rustls::Error },
    #[error("{peer} refused this node: {refusal}")]
    RefusedByPeer { peer: SocketAddr, refusal: Refusal },
    #[error("{peer} completed TLS but does not greet like an outlive agent; check address and port")]
    NotWelcomed { peer: SocketAddr },
    #[error("TLS with {peer} failed")]
    Tls { peer: SocketAddr, source: rustls::Error },
}

/// What the other end says was wrong with us (a TLS alert: RFC 8446, section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it trusts another authority; issue this node's certificate under that cluster's authority")]
    NotOfItsCluster,
    #[error(
        "this node's certificate is expired or not valid yet by its clock; renew it, or check both clocks"
    )]
    OutsideValidity,
    #[error("this node is not the one it wants to talk to, or its certificate is damaged")]
    BadCertificate,
    #[error("it demands a certificate")]
    NoCertificate,
    #[error("it speaks no common version of TLS")]
    Incompatible,
    #[error("its TLS says {0:?}")]
    Other(AlertDescription),
}

impl HandshakeError {
    /// One refusal each, with what the TLS library knows about it.
    pub(crate) fn from_tls(peer: SocketAddr, expected: Option<&str>, error: rustls::Error) -> Self {
        use rustls::Error as Tls;
        match error {
            Tls::InvalidCertificate(reason) => match reason {
                // A bad signature is what an authority of the same name with another key leaves.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    Self::NotOfThisCluster { peer }
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired { peer },
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid { peer }
                }
                CertificateError::NotValidForNameContext { presented, .. } => {
                    Self::WrongNode { peer, expected: expected.unwrap_or_default().to_owned(), presented }
                }
                reason => Self::Certificate { peer, source: Tls::InvalidCertificate(reason) },
            },
            Tls::NoCertificatesPresented => Self::NoCertificate { peer },
            // Anything that is not even a record: the first bytes of a banner or of an HTTP request.
            Tls::InvalidMessage(_) => Self::NotTls { peer },
            source @ Tls::PeerIncompatible(_) => Self::Incompatible { peer, source },
            Tls::AlertReceived(alert) => Self::RefusedByPeer { peer, refusal: Refusal::from(alert) },
            source => Self::Tls { peer, source },
        }
    }
}

impl From<AlertDescription> for Refusal {
    fn from(alert: AlertDescription) -> Self {
        match alert {
            // decrypt_error: a signature that does not verify; again the authority of the same name.
            AlertDescription::UnknownCA | AlertDescription::DecryptError => Self::NotOfItsCluster,
            AlertDescription::CertificateExpired => Self::OutsideValidity,
            AlertDescription::BadCertificate => Self::BadCertificate,
            AlertDescription::CertificateRequired => Self::NoCertificate,
            AlertDescription::ProtocolVersion => Self::Incompatible,
            other => Self::Other(other),
        }
    }
}

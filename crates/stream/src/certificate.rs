//! The cluster's own certificate authority, and the certificates it gives to nodes.
//!
//! A node is its name: the one DNS name `<node>.outlive.internal` in its certificate (`.internal` is reserved
//! for private use and never delegated: ICANN resolution 2024.07.29.06). An authority carries its
//! cluster's name the same way, one level deeper, so that a node can never be named like it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

/// The zone under which all names in certificates lie.
const ZONE: &str = "outlive.internal";

/// The longest DNS label (RFC 1035, section 2.3.4).
const NAME_MAX: usize = 63;

/// How far back a certificate made "from now" is valid, so that a node whose clock is behind accepts it at
/// once. An hour is what one wrong daylight-saving setting costs.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Verifiers take the authority as a trust anchor, whose own end of validity they do not check (RFC 5280,
/// section 6.1.1 d); this is only what tools show: about twenty years.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Who may sign names in a cluster. Whoever has the key can be any node: keep it off nodes that do not issue.
#[derive(Clone)]
pub struct Authority {
    pub cert_pem: String,
    pub key_pem: String,
}

/// What a node shows to others.
#[derive(Clone)]
pub struct NodeCertificate {
    pub cert_pem: String,
    pub key_pem: String,
}

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Validity {
    /// From now, with tolerance for clocks that are behind, for this many days.
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        Self { not_before: now - CLOCK_TOLERANCE, not_after: now + DAY * days }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error(
        "{what} name {name:?} cannot be used: it must be 1 to {NAME_MAX} lower-case letters, digits and hyphens, \
         with no hyphen at either end"
    )]
    Name { what: &'static str, name: String },
    #[error(
        "a certificate cannot be valid from {not_before:?} to {not_after:?}: give an end after the start"
    )]
    Validity { not_before: SystemTime, not_after: SystemTime },
    #[error("cannot generate {what}")]
    Generate { what: &'static str, source: rcgen::Error },
    #[error("the {what} is not a usable PEM block; restore it from a backup")]
    Pem { what: &'static str },
    #[error("the certificate given as authority was not made by outlive: it carries no cluster name")]
    NotAnAuthority,
    #[error("the authority's key does not belong to its certificate; restore the pair from one backup")]
    AuthorityMismatch,
    #[error("cannot write {path}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{path} exists and would be overwritten; an authority that is replaced locks every node out: move it \
         away first if that is meant",
        path = path.display()
    )]
    Exists { path: PathBuf },
}

/// Make a cluster's authority: done once in the life of a cluster.
pub fn create_authority(cluster_name: &str) -> Result<Authority, CertificateError> {
    let what = "the authority's certificate";
    let failed = |source| CertificateError::Generate { what, source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = authority_params(cluster_name)?;
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_TOLERANCE).into();
    params.not_after = (now + AUTHORITY_VALIDITY).into();
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Authority { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

/// Make a certificate by which `node_name` is known in the authority's cluster.
pub fn issue(
    authority: &Authority,
    node_name: &str,
    validity: Validity,
) -> Result<NodeCertificate, CertificateError> {
    sign(authority, node_dns_name(node_name)?, node_name, validity)
}

pub(crate) fn sign(
    authority: &Authority,
    dns_name: String,
    title: &str,
    validity: Validity,
) -> Result<NodeCertificate, CertificateError> {
    let Validity { not_before, not_after } = validity;
    if not_after <= not_before || not_before < UNIX_EPOCH {
        return Err(CertificateError::Validity { not_before, not_after });
    }
    let authority_der = parse_certificate(&authority.cert_pem, "authority's certificate")?;
    let cluster_name = authority_cluster(&authority_der)?;
    let authority_key = KeyPair::from_pem(&authority.key_pem)
        .map_err(|_| CertificateError::Pem { what: "authority's private key" })?;
    // The issuer's name and key identifier follow from the cluster's name and the key alone, so the
    // authority's certificate need not be taken apart to sign like it; `verify_issued` checks that it agrees.
    let issuer_params = authority_params(&cluster_name)?;
    let issuer = Issuer::from_params(&issuer_params, &authority_key);

    let what = "the node's certificate";
    let failed = |source| CertificateError::Generate { what, source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(vec![dns_name]).map_err(failed)?;
    params.distinguished_name = common_name(title.to_owned());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Each node both connects and accepts.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;

    verify_issued(certificate.der(), &authority_der, not_before)?;
    Ok(NodeCertificate { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

/// The name a certificate for `node_name` carries.
pub(crate) fn node_dns_name(node_name: &str) -> Result<String, CertificateError> {
    check_name("node", node_name)?;
    Ok(format!("{node_name}.{ZONE}"))
}

/// The node that a (verified) certificate is for; `None` if it is not for exactly one.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_dns_names();
    let node_name = names.next()?.strip_suffix(ZONE)?.strip_suffix('.')?;
    check_name("node", node_name).ok()?;
    match names.next() {
        None => Some(node_name.to_owned()),
        Some(_) => None,
    }
}

/// The DNS names in a certificate, for messages.
pub(crate) fn names_in(certificate: &CertificateDer<'_>) -> Vec<String> {
    EndEntityCert::try_from(certificate)
        .map(|certificate| certificate.valid_dns_names().map(str::to_owned).collect())
        .unwrap_or_default()
}

impl Authority {
    /// Write both files, the key readable by its owner alone; never over an existing one.
    pub fn write_files(&self, cert_path: &Path, key_path: &Path) -> Result<(), CertificateError> {
        for path in [cert_path, key_path] {
            if path.symlink_metadata().is_ok() {
                return Err(CertificateError::Exists { path: path.to_owned() });
            }
        }
        write_new(key_path, &self.key_pem, PRIVATE)?;
        write_new(cert_path, &self.cert_pem, PUBLIC)
    }

    /// The name given to [`create_authority`].
    pub fn cluster_name(&self) -> Result<String, CertificateError> {
        authority_cluster(&parse_certificate(&self.cert_pem, "authority's certificate")?)
    }
}

impl NodeCertificate {
    /// Write both files, the key readable by its owner alone; earlier ones are replaced (a renewal).
    /// A crash between the two leaves a key that does not match, which loading reports.
    pub fn write_files(&self, cert_path: &Path, key_path: &Path) -> Result<(), CertificateError> {
        replace(key_path, &self.key_pem, PRIVATE)?;
        replace(cert_path, &self.cert_pem, PUBLIC)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCertificate").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), CertificateError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=NAME_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good { Ok(()) } else { Err(CertificateError::Name { what, name: name.to_owned() }) }
}

fn cluster_dns_name(cluster_name: &str) -> Result<String, CertificateError> {
    check_name("cluster", cluster_name)?;
    Ok(format!("{cluster_name}.cluster.{ZONE}"))
}

fn authority_params(cluster_name: &str) -> Result<CertificateParams, CertificateError> {
    let what = "the authority's certificate";
    let mut params = CertificateParams::new(vec![cluster_dns_name(cluster_name)?])
        .map_err(|source| CertificateError::Generate { what, source })?;
    params.distinguished_name = common_name(format!("outlive cluster {cluster_name}"));
    // No authority below it, and no name outside the zone: a stolen cluster key is of no use elsewhere.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(ZONE.to_owned())],
        excluded_subtrees: Vec::new(),
    });
    Ok(params)
}

fn common_name(name: String) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

fn authority_cluster(authority: &CertificateDer<'_>) -> Result<String, CertificateError> {
    let suffix = format!(".cluster.{ZONE}");
    names_in(authority)
        .iter()
        .find_map(|name| name.strip_suffix(&suffix))
        .map(str::to_owned)
        .ok_or(CertificateError::NotAnAuthority)
}

fn parse_certificate(pem: &str, what: &'static str) -> Result<CertificateDer<'static>, CertificateError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CertificateError::Pem { what })
}

/// A certificate that no node would accept must not leave here: it would be found out only when nodes meet.
fn verify_issued(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
    at: SystemTime,
) -> Result<(), CertificateError> {
    let anchor = webpki::anchor_from_trusted_cert(authority).map_err(|_| CertificateError::NotAnAuthority)?;
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    EndEntityCert::try_from(certificate)
        .and_then(|certificate| {
            certificate
                .verify_for_usage(
                    rustls::crypto::ring::default_provider().signature_verification_algorithms.all,
                    &[anchor],
                    &[],
                    UnixTime::since_unix_epoch(since_epoch),
                    KeyUsage::server_auth(),
                    None,
                    None,
                )
                .map(|_path| ())
        })
        .map_err(|_| CertificateError::AuthorityMismatch)
}

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    // O_EXCL: never through a link or onto a file somebody else laid out; the mode holds from the first byte
    // on.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| sync_directory_of(path))
        .map_err(|source| CertificateError::Write { path: path.to_owned(), source })
}

fn replace(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let mut file_name = path.file_name().unwrap_or_default().to_owned();
    file_name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(file_name);
    // Left over from a crash of a process with the same id, if it exists at all.
    let _ = fs::remove_file(&new);
    write_new(&new, text, mode)?;
    fs::rename(&new, path)
        .and_then(|()| sync_directory_of(path))
        .map_err(|source| CertificateError::Write { path: path.to_owned(), source })
}

/// A file's name is durable only when its directory is (fsync(2)).
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn names_that_cannot_be_one_dns_label_are_refused() {
        let authority = create_authority("prod").unwrap();
        let long = "x".repeat(NAME_MAX + 1);
        for name in ["", "-a", "a-", "A", "a.b", "a b", "ä", "a\0", "*", &long] {
            let refused = issue(&authority, name, Validity::days(1)).unwrap_err();
            assert!(matches!(refused, CertificateError::Name { what: "node", .. }), "{name:?}: {refused}");
            assert!(matches!(create_authority(name), Err(CertificateError::Name { what: "cluster", .. })));
        }
        for name in ["a", "node-1", "0", &"x".repeat(NAME_MAX)] {
            issue(&authority, name, Validity::days(1)).unwrap();
        }
    }

    #[test]
    fn a_certificate_is_for_the_node_it_was_issued_to() {
        let authority = create_authority("prod").unwrap();
        let issued = issue(&authority, "node-1", Validity::days(1)).unwrap();
        assert_eq!(node_of(&parse_certificate(&issued.cert_pem, "").unwrap()).unwrap(), "node-1");
        assert_eq!(authority.cluster_name().unwrap(), "prod");
    }

    #[test]
    fn an_authority_is_no_node() {
        let authority = create_authority("prod").unwrap();
        assert_eq!(node_of(&parse_certificate(&authority.cert_pem, "").unwrap()), None);
    }

    #[test]
    fn an_authority_with_the_key_of_another_is_refused() {
        let mut authority = create_authority("prod").unwrap();
        authority.key_pem = create_authority("prod").unwrap().key_pem;
        let refused = issue(&authority, "a", Validity::days(1)).unwrap_err();
        assert!(matches!(refused, CertificateError::AuthorityMismatch), "{refused}");
    }

    #[test]
    fn a_node_cannot_issue() {
        let authority = create_authority("prod").unwrap();
        let node = issue(&authority, "a", Validity::days(1)).unwrap();
        let posing = Authority { cert_pem: node.cert_pem, key_pem: node.key_pem };
        let refused = issue(&posing, "b", Validity::days(1)).unwrap_err();
        assert!(matches!(refused, CertificateError::NotAnAuthority), "{refused}");
    }

    #[test]
    fn a_validity_that_ends_before_it_starts_is_refused() {
        let authority = create_authority("prod").unwrap();
        let now = SystemTime::now();
        let refused = issue(&authority, "a", Validity { not_before: now, not_after: now }).unwrap_err();
        assert!(matches!(refused, CertificateError::Validity { .. }), "{refused}");
    }

    #[test]
    fn private_keys_are_their_owners_alone_and_a_renewal_replaces_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
        let authority = create_authority("prod").unwrap();
        authority.write_files(&path("ca.pem"), &path("ca.key")).unwrap();
        assert_eq!(mode("ca.key"), PRIVATE);
        let refused = authority.write_files(&path("ca.pem"), &path("ca.key")).unwrap_err();
        assert!(matches!(refused, CertificateError::Exists { .. }), "{refused}");

        fs::write(path("a.key"), "an old key, left readable").unwrap();
        fs::set_permissions(path("a.key"), fs::Permissions::from_mode(0o644)).unwrap();
        let node = issue(&authority, "a", Validity::days(1)).unwrap();
        node.write_files(&path("a.pem"), &path("a.key")).unwrap();
        assert_eq!(mode("a.key"), PRIVATE);
        assert_eq!(fs::read_to_string(path("a.key")).unwrap(), node.key_pem);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4, "no temporary file stays");
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let authority = create_authority("prod").unwrap();
        let node = issue(&authority, "a", Validity::days(1)).unwrap();
        assert!(!format!("{authority:?}{node:?}").contains("PRIVATE KEY"));
    }
}

//! `outlive cert`: the cluster's authority and its nodes' certificates, as files.

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use outlive_stream::certificate::{Authority, CertificateError, Validity, create_authority, issue};

use super::print;
use crate::cli::Cert;
use crate::error::{Context, Failure, Result, chain};

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const NODE_CERTIFICATE: &str = "node.pem";
const NODE_KEY: &str = "node.key";

pub fn run(command: &Cert) -> Result<()> {
    match command {
        Cert::Authority { out, cluster } => authority(out, cluster),
        Cert::Node { ca, name, out, days } => node(ca, name, out, *days),
    }
}

fn authority(out: &Path, cluster: &str) -> Result<()> {
    let authority = create_authority(cluster).map_err(of_certificate)?;
    make_directory(out)?;
    authority.write_files(&out.join(CA_CERTIFICATE), &out.join(CA_KEY)).map_err(of_certificate)?;
    let shown = out.display();
    print(&format!("{shown}/{CA_CERTIFICATE} and {shown}/{CA_KEY} are the authority of cluster {cluster}"));
    Ok(())
}

fn node(ca: &Path, name: &str, out: &Path, days: u32) -> Result<()> {
    let read = |file: &str| {
        let path = ca.join(file);
        fs::read_to_string(&path).map_err(|error| {
            let shown = path.display();
            Failure::failed(format!(
                "cannot read {shown} ({error}): name the directory of `outlive cert authority` with --ca"
            ))
        })
    };
    let authority = Authority { cert_pem: read(CA_CERTIFICATE)?, key_pem: read(CA_KEY)? };
    let issued = issue(&authority, name, Validity::days(days)).map_err(of_certificate)?;
    make_directory(out)?;
    write_authority(&out.join(CA_CERTIFICATE), &authority.cert_pem)?;
    issued.write_files(&out.join(NODE_CERTIFICATE), &out.join(NODE_KEY)).map_err(of_certificate)?;
    let shown = out.display();
    print(&format!(
        "{shown}/{{{CA_CERTIFICATE},{NODE_CERTIFICATE},{NODE_KEY}}} are for node {name}, for {days} days"
    ));
    Ok(())
}

/// The authority's certificate is public. Another one's is not replaced: that would lock the node out.
fn write_authority(path: &Path, pem: &str) -> Result<()> {
    let shown = path.display();
    match fs::read_to_string(path) {
        Ok(there) if there == pem => return Ok(()),
        Ok(_) => {
            return Err(Failure::refused(format!(
                "{shown} is another authority's certificate: move it away if that is meant"
            )));
        }
        Err(_) => {}
    }
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    written
        .and_then(|mut file| file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()))
        .or_failed(|| format!("write {shown}"))
}

fn make_directory(path: &Path) -> Result<()> {
    // Keys are their owner's alone by their own mode; the directory says so too.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.or_failed(|| format!("make the directory {}", path.display()))
}

fn of_certificate(error: CertificateError) -> Failure {
    let message = chain(&error);
    match error {
        CertificateError::Name { .. } | CertificateError::Validity { .. } => Failure::usage(message),
        CertificateError::Exists { .. } => Failure::refused(message),
        _ => Failure::failed(message),
    }
}

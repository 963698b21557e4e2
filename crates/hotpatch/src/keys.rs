//! Key files: one line of text, `outlive-patch-key` or `outlive-patch-public-key` and 64 hexadecimal digits.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::{SigningKey, VerifyingKey};

use crate::error::{Error, FileContext, Result};
use crate::patch::hex;

const SECRET: &str = "outlive-patch-key";
const PUBLIC: &str = "outlive-patch-public-key";
/// Where a key is trusted without being named.
pub const TRUSTED_FOLDER: &str = "/etc/outlive/patch-keys";

/// Makes a pair: `patch.key`, which only its owner can read, and `patch.pub`.
pub fn create(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    fs::create_dir_all(folder).or_file("create", folder)?;
    let random = Path::new("/dev/urandom");
    let mut seed = [0u8; 32];
    File::open(random).and_then(|mut file| file.read_exact(&mut seed)).or_file("read", random)?;
    let key = SigningKey::from_bytes(&seed);
    let secret = folder.join("patch.key");
    let public = folder.join("patch.pub");
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&secret)
        .or_file("create", &secret)?;
    writeln!(file, "{SECRET} {}", hex(&seed)).or_file("write", &secret)?;
    fs::write(&public, format!("{PUBLIC} {}\n", hex(key.verifying_key().as_bytes())))
        .or_file("write", &public)?;
    Ok((secret, public))
}

pub fn read_secret(path: &Path) -> Result<SigningKey> {
    Ok(SigningKey::from_bytes(&read(path, SECRET)?))
}

pub fn read_public(path: &Path) -> Result<VerifyingKey> {
    let bytes = read(path, PUBLIC)?;
    VerifyingKey::from_bytes(&bytes).map_err(|e| Error::malformed(path.display().to_string(), e))
}

/// The keys named, or else those in [`TRUSTED_FOLDER`].
pub fn trusted(named: &[PathBuf]) -> Result<Vec<VerifyingKey>> {
    if !named.is_empty() {
        return named.iter().map(|path| read_public(path)).collect();
    }
    let folder = Path::new(TRUSTED_FOLDER);
    let mut keys = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(keys),
        entries => entries.or_file("list", folder)?,
    };
    for entry in entries {
        let path = entry.or_file("list", folder)?.path();
        if path.extension().is_some_and(|extension| extension == "pub") {
            keys.push(read_public(&path)?);
        }
    }
    Ok(keys)
}

fn read(path: &Path, kind: &str) -> Result<[u8; 32]> {
    let text = fs::read_to_string(path).or_file("read", path)?;
    let wrong = || Error::malformed(path.display().to_string(), format!("it is no {kind}"));
    let digits = text.strip_prefix(kind).and_then(|rest| rest.strip_prefix(' ')).ok_or_else(wrong)?.trim();
    if digits.len() != 64 || !digits.is_ascii() {
        return Err(wrong());
    }
    let mut bytes = [0u8; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pair_is_made_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let (secret, public) = create(folder.path()).unwrap();
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_secret(&secret).unwrap().verifying_key(), read_public(&public).unwrap());
        assert_eq!(trusted(std::slice::from_ref(&public)).unwrap().len(), 1);
        assert!(create(folder.path()).is_err(), "a key would be lost");
        assert!(read_secret(&public).is_err() && read_public(&secret).is_err());
        fs::write(&public, "outlive-patch-public-key zz").unwrap();
        assert!(read_public(&public).is_err());
    }
}

//! The patch file: what it holds, how it is written, signed, and read as if an enemy had written it.
//!
//! `OUTLIVEP`, version (u32), length of the body (u64), body (postcard), public key (32 bytes), signature (64 bytes, ed25519
//! over everything before it). Integers are little-endian.

use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::refusal::Refusal;
use crate::unit::{PAD_LEN, PAD_OPEN};

const MAGIC: &[u8; 8] = b"OUTLIVEP";
/// Raised when the body changes its form.
const VERSION: u32 = 3;
const HEAD: usize = 20;
const TAIL: usize = 96;
/// Largest patch that is read: far above any fix, far below what would hurt.
pub const MAX_FILE: usize = 64 << 20;
/// Largest sum of what a part occupies in the process: the reach of a jump is 2 GiB, and a region must find room in it.
pub const MAX_MAPPED: u64 = 256 << 20;
/// Build-IDs are 16 (md5, uuid) or 20 (sha1) bytes, by `ld --build-id`; others may be given by hand.
const MAX_BUILD_ID: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// As `ls` shows it.
    pub name: String,
    /// Unix time, seconds.
    pub built: u64,
    /// Replaces what other patches did to the same programs, also where this one does nothing.
    pub is_cumulative: bool,
    /// Its functions switch at one instant, in which no thread is in any of them.
    pub is_together: bool,
    /// The change in the source, if it was given: for whoever inspects the patch.
    pub diff: Option<String>,
    /// What the user took responsibility for.
    pub allowed: Vec<Refusal>,
    pub warnings: Vec<String>,
    /// One for each program or library that the change touches.
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The program's path in the recorded build.
    pub program: String,
    pub build_id: ByteBuf,
    /// It lies where it was linked: addresses may be 32 bits wide.
    pub is_fixed: bool,
    pub pieces: Vec<Piece>,
    pub switches: Vec<Switch>,
    /// The program's code that is no longer executed when nobody is in it any more.
    pub replaced: Vec<Replaced>,
    /// Names that the dynamic linker would look up.
    pub imports: Vec<Import>,
    /// Code of the patch that is called when it is applied or reverted.
    pub hooks: Vec<Hook>,
}

/// The table of fields beside objects (`include/outlive_shadow.h`): one for all patches of a program that know it by this name.
pub const SHADOWS: &str = "outlive_patch_shadows_1";

/// When a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// Before any entry is switched.
    Before,
    /// When all are.
    After,
    /// Before any is switched back.
    Revert,
}

impl When {
    /// The function that a change brings along for it: `void NAME(void)`.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "outlive_patch_before" => Some(Self::Before),
            "outlive_patch_after" => Some(Self::After),
            "outlive_patch_revert" => Some(Self::Revert),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    pub when: When,
    pub piece: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub name: String,
    /// Zero if nobody has it.
    pub is_weak: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PieceKind {
    Code,
    ReadOnly,
    /// `.eh_frame`: at most one piece of a part.
    Unwind,
    Data,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub name: String,
    /// The object that it is from.
    pub unit: String,
    pub kind: PieceKind,
    pub align: u32,
    pub bytes: ByteBuf,
    /// Zero bytes that follow.
    pub zeros: u64,
    pub fixups: Vec<Fixup>,
    /// Why it is in the patch.
    pub reason: String,
}

impl Piece {
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64 + self.zeros
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FixupKind {
    /// The address, 8 bytes.
    Absolute64,
    /// The address, 4 bytes, zero-extended by who reads it.
    Absolute32,
    /// The address, 4 bytes, sign-extended by who reads it.
    Signed32,
    /// The distance, 4 bytes.
    Relative32,
    /// The distance, 8 bytes.
    Relative64,
    /// The distance, 4 bytes, to 8 bytes that hold the address.
    Slot32,
}

impl FixupKind {
    pub fn size(self) -> u64 {
        match self {
            Self::Absolute64 | Self::Relative64 => 8,
            _ => 4,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    Piece(u32),
    /// In the program, at the address at which it was linked.
    Program(u64),
    Import(u32),
    /// A number, not an address (the distance of a thread-local variable).
    Number(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixup {
    pub offset: u64,
    pub kind: FixupKind,
    pub target: Target,
    pub addend: i64,
}

/// An entry of the program that is led to a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    pub name: String,
    /// Where its pad was linked.
    pub pad: u64,
    pub piece: u32,
    /// The pad of the new function, for a patch over this one.
    pub next_pad: Option<u32>,
}

/// Code of a function that the patch has a new one of, at the addresses at which it was linked. Its entry is part of it: who stands
/// there may have been sent by another old function, by a jump that leaves no return address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    pub name: String,
    pub start: u64,
    pub end: u64,
}

/// A patch as it was read, and what it is known by.
#[derive(Debug, Clone)]
pub struct Signed {
    pub patch: Patch,
    /// SHA-256 of the whole file.
    pub id: [u8; 32],
    pub key: VerifyingKey,
}

/// Writes a patch with its signature.
pub fn write(patch: &Patch, key: &SigningKey) -> Result<Vec<u8>> {
    patch.check().map_err(|why| Error::malformed("the patch", why))?;
    let body = postcard::to_stdvec(patch).map_err(|e| Error::malformed("the patch", e))?;
    let mut file = Vec::with_capacity(HEAD + body.len() + TAIL);
    file.extend(MAGIC);
    file.extend(VERSION.to_le_bytes());
    file.extend((body.len() as u64).to_le_bytes());
    file.extend(body);
    file.extend(key.verifying_key().to_bytes());
    let signature = key.sign(&file);
    file.extend(signature.to_bytes());
    if file.len() > MAX_FILE {
        return Err(Error::malformed(
            "the patch",
            format!("it has {} bytes, more than {MAX_FILE}", file.len()),
        ));
    }
    Ok(file)
}

/// Reads a patch that one of `trusted` has signed. Nothing of its body is looked at before the signature is.
pub fn read(file: &[u8], trusted: &[VerifyingKey]) -> Result<Signed> {
    let no = |why: &str| Err(Error::NotTrusted(why.to_owned()));
    if file.len() > MAX_FILE {
        return no("is too large");
    }
    let Some(head) = file.first_chunk::<HEAD>() else { return no("is cut off") };
    if &head[..8] != MAGIC {
        return no("is no patch of outlive");
    }
    let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    if version != VERSION {
        return Err(Error::NotTrusted(format!("is of version {version}, and this is version {VERSION}")));
    }
    let mut length = [0u8; 8];
    length.copy_from_slice(&head[12..20]);
    let length = u64::from_le_bytes(length);
    if length.checked_add((HEAD + TAIL) as u64) != Some(file.len() as u64) {
        return no("is cut off, or has something behind its end");
    }
    let (signed, signature) = file.split_at(file.len() - 64);
    let (body, key_bytes) = signed[HEAD..].split_at(signed.len() - HEAD - 32);
    let Some(key) = key_bytes.first_chunk::<32>().and_then(|bytes| VerifyingKey::from_bytes(bytes).ok())
    else {
        return no("has no key");
    };
    if !trusted.contains(&key) {
        return no("is signed by a key that is not trusted here: name its public key with --trust");
    }
    let Ok(signature) = Signature::from_slice(signature) else { return no("has no signature") };
    if key.verify(signed, &signature).is_err() {
        return no("was altered after it was signed");
    }
    let patch: Patch =
        postcard::from_bytes(body).map_err(|e| Error::NotTrusted(format!("cannot be understood: {e}")))?;
    patch.check().map_err(|why| Error::NotTrusted(format!("makes no sense: {why}")))?;
    Ok(Signed { patch, id: Sha256::digest(file).into(), key })
}

impl Patch {
    /// Whether everything that is named by number or offset is there, so that nobody after this has to ask.
    pub fn check(&self) -> Result<(), String> {
        if self.parts.is_empty() {
            return Err("it changes no program".to_owned());
        }
        self.parts.iter().try_for_each(Part::check)
    }
}

impl Part {
    fn check(&self) -> Result<(), String> {
        if self.build_id.is_empty() || self.build_id.len() > MAX_BUILD_ID {
            return Err(format!("{} has a Build-ID of {} bytes", self.program, self.build_id.len()));
        }
        let mut whole = 0u64;
        for piece in &self.pieces {
            let name = &piece.name;
            if !piece.align.is_power_of_two() || piece.align > 4096 {
                return Err(format!("{name} is aligned to {}", piece.align));
            }
            if piece.zeros > MAX_MAPPED {
                return Err(format!("{name} is too large"));
            }
            whole = whole.saturating_add(piece.len() + u64::from(piece.align));
            for fixup in &piece.fixups {
                let end = fixup.offset.checked_add(fixup.kind.size());
                if end.is_none_or(|end| end > piece.bytes.len() as u64) {
                    return Err(format!("a reference in {name} lies outside of it"));
                }
                let is_there = match fixup.target {
                    Target::Piece(piece) => (piece as usize) < self.pieces.len(),
                    Target::Import(import) => (import as usize) < self.imports.len(),
                    Target::Program(_) | Target::Number(_) => true,
                };
                if !is_there {
                    return Err(format!("{name} refers to what is not in the patch"));
                }
            }
        }
        if whole > MAX_MAPPED {
            return Err(format!("{} would get {whole} bytes", self.program));
        }
        if self.pieces.iter().filter(|piece| piece.kind == PieceKind::Unwind).count() > 1 {
            return Err(format!("{} has unwind tables twice", self.program));
        }
        for hook in &self.hooks {
            let piece = self.pieces.get(hook.piece as usize);
            if piece.is_none_or(|piece| piece.kind != PieceKind::Code || piece.is_empty()) {
                return Err("a hook does not lead to code".to_owned());
            }
        }
        if let Some(replaced) = self.replaced.iter().find(|replaced| replaced.start > replaced.end) {
            return Err(format!("the code of {} ends before it begins", replaced.name));
        }
        let mut pads = std::collections::BTreeSet::new();
        for switch in &self.switches {
            let Some(piece) = self.pieces.get(switch.piece as usize) else {
                return Err(format!("{} leads to what is not in the patch", switch.name));
            };
            if piece.kind != PieceKind::Code || piece.is_empty() {
                return Err(format!("{} does not lead to code", switch.name));
            }
            if let Some(pad) = switch.next_pad {
                let at = pad as usize;
                let bytes = at.checked_add(PAD_LEN as usize).and_then(|end| piece.bytes.get(at..end));
                if bytes != Some(&[PAD_OPEN, 0, 0, 0, 0]) {
                    return Err(format!("{} has no pad where it says", switch.name));
                }
            }
            if !pads.insert(switch.pad) {
                return Err(format!("{} is switched twice", switch.name));
            }
        }
        Ok(())
    }

    pub fn build_id_text(&self) -> String {
        hex(&self.build_id)
    }
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests;

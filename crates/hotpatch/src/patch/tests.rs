//! Files that were cut, altered, signed by others, or made to hurt.

use proptest::prelude::*;

use super::*;
use crate::running::lay_out;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn sample() -> Patch {
    let mut code = vec![PAD_OPEN, 0, 0, 0, 0];
    code.extend([0xe8, 0, 0, 0, 0, 0xc3]);
    let fixup = Fixup { offset: 6, kind: FixupKind::Relative32, target: Target::Program(0x1000), addend: -4 };
    let piece = Piece {
        name: "f".to_owned(),
        unit: "a.o".to_owned(),
        kind: PieceKind::Code,
        align: 16,
        bytes: ByteBuf::from(code),
        zeros: 0,
        fixups: vec![fixup],
        reason: "its code changed".to_owned(),
    };
    let switch = Switch { name: "f".to_owned(), pad: 0x2000, piece: 0, next_pad: Some(0) };
    let part = Part {
        program: "a".to_owned(),
        build_id: ByteBuf::from(vec![7; 20]),
        is_fixed: false,
        pieces: vec![piece],
        switches: vec![switch],
        replaced: vec![Replaced { name: "f".to_owned(), start: 0x2001, end: 0x2020 }],
        imports: Vec::new(),
        hooks: vec![Hook { when: When::Before, piece: 0 }],
    };
    Patch {
        name: "fix".to_owned(),
        built: 1,
        is_cumulative: false,
        is_together: false,
        diff: Some("-a\n+b\n".to_owned()),
        allowed: Vec::new(),
        warnings: Vec::new(),
        parts: vec![part],
    }
}

#[test]
fn what_is_written_is_read_by_who_trusts_the_key() {
    let file = write(&sample(), &key(1)).unwrap();
    let read_back = read(&file, &[key(2).verifying_key(), key(1).verifying_key()]).unwrap();
    assert_eq!(read_back.patch, sample());
    let error = read(&file, &[key(2).verifying_key()]).unwrap_err().to_string();
    assert!(error.contains("not trusted"), "{error}");
    assert!(read(&file, &[]).is_err());
}

#[test]
fn every_cut_and_every_changed_byte_is_noticed() {
    let file = write(&sample(), &key(1)).unwrap();
    let trusted = [key(1).verifying_key()];
    for length in 0..file.len() {
        assert!(read(&file[..length], &trusted).is_err(), "cut to {length} bytes");
    }
    for at in 0..file.len() {
        let mut altered = file.clone();
        altered[at] ^= 1 << (at % 8);
        assert!(read(&altered, &trusted).is_err(), "byte {at} was altered");
    }
    let mut longer = file;
    longer.push(0);
    assert!(read(&longer, &trusted).is_err());
}

/// A change to a patch that makes no sense, and the word that the refusal has.
type Spoil = (&'static str, fn(&mut Part));

#[test]
fn a_patch_that_makes_no_sense_is_neither_written_nor_read() {
    let spoilt: [Spoil; 12] = [
        ("outside", |part| part.pieces[0].fixups[0].offset = 8),
        ("outside", |part| part.pieces[0].fixups[0].offset = u64::MAX - 1),
        ("not in the patch", |part| part.pieces[0].fixups[0].target = Target::Piece(1)),
        ("not in the patch", |part| part.pieces[0].fixups[0].target = Target::Import(0)),
        ("aligned", |part| part.pieces[0].align = 3),
        ("too large", |part| part.pieces[0].zeros = u64::MAX),
        ("leads to", |part| part.switches[0].piece = 1),
        ("no pad", |part| part.switches[0].next_pad = Some(u32::MAX)),
        ("twice", |part| part.switches.push(part.switches[0].clone())),
        ("not lead to code", |part| part.pieces[0].kind = PieceKind::Data),
        ("before it begins", |part| part.replaced[0].start = 0x2021),
        ("Build-ID", |part| part.build_id.clear()),
    ];
    for (word, spoil) in spoilt {
        let mut patch = sample();
        spoil(&mut patch.parts[0]);
        let why = patch.check().unwrap_err();
        assert!(why.contains(word), "{why} has not {word}");
        assert!(write(&patch, &key(1)).is_err());
        // Signed all the same, by somebody who has the key.
        let file = sign_unchecked(&postcard::to_stdvec(&patch).unwrap());
        assert!(read(&file, &[key(1).verifying_key()]).is_err());
    }
}

/// A file with any body, signed by a trusted key: the parser must hold where the signature does not help.
fn sign_unchecked(body: &[u8]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    file.extend(VERSION.to_le_bytes());
    file.extend((body.len() as u64).to_le_bytes());
    file.extend(body);
    file.extend(key(1).verifying_key().to_bytes());
    let signature = key(1).sign(&file);
    file.extend(signature.to_bytes());
    file
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&bytes, &[key(1).verifying_key()]).is_err());
    }

    #[test]
    fn any_body_under_a_good_signature_is_refused_or_consistent(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut body = postcard::to_stdvec(&sample()).unwrap();
        for (at, value) in cuts {
            let at = at.index(body.len());
            body[at] = value;
        }
        if is_cut {
            body.truncate(length.index(body.len()));
        }
        if let Ok(read_back) = read(&sign_unchecked(&body), &[key(1).verifying_key()]) {
            prop_assert!(read_back.patch.check().is_ok());
            for part in &read_back.patch.parts {
                lay_out(part);
            }
        }
    }

    #[test]
    fn a_file_that_was_cut_up_and_put_together_again_is_refused_or_consistent(
        cuts in proptest::collection::vec(cut(), 1..8),
        is_signed in any::<bool>(),
    ) {
        let file = write(&rich(), &key(1)).unwrap();
        let whole = HEAD..file.len() - TAIL;
        let mut altered = if is_signed { file[whole].to_vec() } else { file.clone() };
        for (from, to, length, bytes) in cuts {
            let from = from.index(altered.len() + 1);
            let end = from.saturating_add(length).min(altered.len());
            let taken: Vec<u8> = altered.splice(from..end, bytes).collect();
            let to = to.index(altered.len() + 1);
            altered.splice(to..to, taken);
        }
        let is_same = altered == file;
        let altered = if is_signed { sign_unchecked(&altered) } else { altered };
        match read(&altered, &[key(1).verifying_key()]) {
            Ok(read_back) => {
                prop_assert!(is_signed || is_same, "an altered file was accepted");
                prop_assert!(read_back.patch.check().is_ok());
                for part in &read_back.patch.parts {
                    lay_out(part);
                }
            }
            Err(error) => prop_assert!(matches!(error, Error::NotTrusted(_)), "{error}"),
        }
    }
}

/// What is taken out and put in elsewhere, and what comes in its place.
fn cut() -> impl Strategy<Value = (prop::sample::Index, prop::sample::Index, usize, Vec<u8>)> {
    let bytes = proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xff), Just(0x80), Just(0)], 0..12);
    (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0usize..40, bytes)
}

/// A patch with some of everything.
fn rich() -> Patch {
    let mut patch = sample();
    let part = &mut patch.parts[0];
    part.imports = vec![Import { name: "puts".to_owned(), is_weak: true }];
    let kinds = [
        FixupKind::Absolute64,
        FixupKind::Absolute32,
        FixupKind::Signed32,
        FixupKind::Relative32,
        FixupKind::Relative64,
        FixupKind::Slot32,
    ];
    let targets = [Target::Piece(0), Target::Program(0x4000), Target::Import(0), Target::Number(-8)];
    for (kind, name) in
        [(PieceKind::ReadOnly, ".rodata"), (PieceKind::Unwind, ".eh_frame"), (PieceKind::Data, "d")]
    {
        let fixups = kinds.iter().zip(targets.iter().cycle()).enumerate().map(|(index, (kind, target))| {
            Fixup { offset: 8 * index as u64, kind: *kind, target: *target, addend: -4 }
        });
        part.pieces.push(Piece {
            name: name.to_owned(),
            unit: "a.o".to_owned(),
            kind,
            align: 32,
            bytes: ByteBuf::from(vec![1; 64]),
            zeros: 100,
            fixups: fixups.collect(),
            reason: "f refers to it".to_owned(),
        });
    }
    patch.is_together = true;
    patch.parts.push(patch.parts[0].clone());
    patch
}

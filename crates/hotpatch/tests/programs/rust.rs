//! A program that cargo builds, with a stable compiler.

use std::fs;
use std::path::Path;

use libtest_mimic::Trial;
use outlive_hotpatch::build::Options;

use super::lab::{Recorded, sources};
use super::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("a_rust_program_is_patched_and_panics_through_new_functions", patched),
        trial("a_variant_more_of_a_rust_type_is_refused", refused),
    ]
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let place = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &place);
        } else {
            fs::copy(&path, &place).unwrap();
        }
    }
}

/// `$FLAGS` says which version it is, as in the C programs.
const BUILD: &str = "cd tree && case \"$FLAGS\" in \
                     -DFIXED) sed -i s/false/true/ src/version.rs;; \
                     -DVARIANT) sed -i 's/.. A variant more comes here./Flat(u64),/' src/lib.rs;; \
                     esac && cargo build --release --offline && cp target/release/program ../program";

fn recorded() -> Recorded {
    Recorded::with(BUILD, |folder| copy(&sources().join("rust"), &folder.join("tree")))
}

fn patched() {
    let recorded = recorded();
    let mut running = recorded.start();
    assert_eq!(running.ask("a"), "1 a 1 1");
    let signed = recorded.patch();
    let switched: Vec<&str> = signed
        .patch
        .parts
        .iter()
        .flat_map(|part| &part.switches)
        .map(|switch| switch.name.as_str())
        .collect();
    assert!(switched.iter().any(|name| name.contains("risky")), "{switched:?}");
    assert!(switched.iter().any(|name| name.contains("5Table3add")), "{switched:?}");
    running.apply(&signed);
    assert!(running.regions()[0].notes.is_unwindable);
    assert_eq!(running.ask("b"), "2 <b> 2 20");
    assert_eq!(running.ask("c"), "3 <c> 9 3 is odd");
    running.revert();
    assert_eq!(running.ask("d"), "4 d 4 4");
    running.apply(&signed);
    assert_eq!(running.ask("e"), "5 <e> 25 5 is odd");
}

fn refused() {
    let recorded = recorded();
    let error = recorded.build("-DVARIANT", Options::default()).unwrap_err().to_string();
    assert!(error.contains("[layout]") && error.contains("kept::Shape"), "{error}");
    assert!(error.contains("variant"), "{error}");
}

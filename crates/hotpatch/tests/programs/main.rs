//! Small programs that are built twice, patched while they run and reverted: one per construct, said by its first lines
//! (`constructs.rs`), and what takes more than one program or process (`patching.rs`, `threads.rs`).
//!
//! This binary stands in for the compiler while it records a build, as `outlive` does.

mod constructs;
mod lab;
mod patching;
mod rust;
mod threads;
mod together;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use outlive_hotpatch::record::wrapper;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    if wrapper::is_stand_in(&name) {
        return wrapper::main(&name);
    }
    if let Some(step) = std::env::var_os(patching::DIE_AT) {
        return patching::apply_and_die(&step.to_string_lossy());
    }
    let mut trials = constructs::trials();
    trials.extend(patching::trials());
    trials.extend(threads::trials());
    trials.extend(together::trials());
    trials.extend(rust::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A test that fails with a panic's message.
fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Failed::from(
                text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default(),
            )
        })
    })
}

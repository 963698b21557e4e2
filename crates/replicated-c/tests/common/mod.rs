//! The library as C programs get it, and the compilers.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

pub fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The static library, built as this test is.
pub fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // target/PROFILE/deps/TEST
        let test = std::env::current_exe().unwrap();
        let folder = test.parent().unwrap().parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "outlive-replicated-c", "--target-dir"]);
        cargo.arg(folder.parent().unwrap()).current_dir(home());
        // What cargo says of this test's package is not that one's: with it, crates would be built anew, there and back.
        for (name, _) in std::env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR")
            {
                cargo.env_remove(name);
            }
        }
        cargo
            .env_remove("CARGO_MANIFEST_PATH")
            .env_remove("CARGO_MANIFEST_LINKS")
            .env_remove("CARGO_CRATE_NAME");
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "the library cannot be built");
        folder.join("liboutlive_replicated.a")
    })
}

/// What a language needs to be told.
pub fn flags(compiler: &str) -> &'static [&'static str] {
    match compiler {
        "gcc" => &["-std=c11", "-xc"],
        "g++" => &["-std=c++17", "-xc++"],
        other => panic!("{other}"),
    }
}

/// Compiles a program; `more` are further flags.
pub fn compile(compiler: &str, source: &Path, to: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(compiler);
    command.args(flags(compiler)).args(["-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g"]);
    command.arg(format!("-I{}", home().join("include").display())).args(more).arg(source);
    command.args(["-xnone", "-o"]).arg(to).arg(library()).args(["-lpthread", "-ldl", "-lm"]);
    command.output().unwrap()
}

#[track_caller]
pub fn compiled(compiler: &str, source: &Path, to: &Path, more: &[&str]) {
    let output = compile(compiler, source, to, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

//! The launcher alone, for tests of this crate: the `outlive` binary has the same behind a hidden subcommand.

fn main() {
    outlive_process::launch::launcher_main()
}

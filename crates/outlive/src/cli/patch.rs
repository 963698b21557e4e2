//! `outlive patch …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use outlive_hotpatch::refusal::{KINDS, Kind};

use super::Reach;

#[derive(Debug, Subcommand)]
pub enum Patch {
    /// Make a pair of keys: patches are signed with one, and trusted by the other
    Key {
        /// Where patch.key and patch.pub are written; keep patch.key off the machines that are patched
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Build a program so that it can be patched, and keep what a patch is built from
    Record(RecordBuild),
    /// Build the program with the change, and make a patch of what differs
    Build(BuildPatch),
    /// Say all that `apply` would find wrong, and change nothing
    Check(PatchAndProcess),
    /// Apply a patch to a running process
    Apply(PatchAndProcess),
    /// Revert the patch of a process that was applied last, or all
    Revert(AllOrLast),
    /// List the patches in a process
    Ls(Process),
    /// Show what is in a patch file, or in a process in full
    Inspect(InspectPatch),
}

#[derive(Debug, Args)]
pub struct RecordBuild {
    /// Where the record is kept; it must be there for as long as the program may be patched
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The command that builds, from a clean tree, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct BuildPatch {
    /// The record of the build that runs
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// The patch file
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The key it is signed with (see `outlive patch key`)
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// What it is called [default: the file's name]
    #[arg(long)]
    pub name: Option<String>,
    /// The change in the source, to be kept in the patch for whoever inspects it
    #[arg(long, value_name = "FILE")]
    pub diff: Option<PathBuf>,
    /// Take responsibility for a kind of change that is refused; may be given again
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    pub allow: Vec<Kind>,
    /// It replaces all earlier patches of the same programs, also where it changes nothing
    #[arg(long)]
    pub cumulative: bool,
    /// Its functions must switch at one instant: wherever it is applied or reverted, all threads are stopped for a moment in which
    /// none is in any of them; if there is none within some seconds, it is refused
    #[arg(long)]
    pub together: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The command that builds, after `--`; it need only build what changed
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PatchAndProcess {
    /// The patch file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub process: Process,
    /// A public key whose patches are trusted; may be given again [default: those in /etc/outlive/patch-keys]
    #[arg(long, value_name = "FILE")]
    pub trust: Vec<PathBuf>,
    /// All functions switch at one instant, also if the patch does not ask for it (see `outlive patch build --help`)
    #[arg(long)]
    pub together: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("whom").required(true))]
pub struct Process {
    /// The process
    #[arg(long, group = "whom", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// The workload, on the node where it runs: all of its processes that the patch is for
    #[arg(long, group = "whom", value_name = "NAME")]
    pub workload: Option<String>,
    #[command(flatten)]
    pub reach: Reach,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Whom a command is about.
pub struct Whom<'a> {
    pub pid: Option<i32>,
    pub workload: Option<&'a str>,
    pub reach: &'a Reach,
}

impl Process {
    pub fn whom(&self) -> Whom<'_> {
        Whom { pid: self.pid, workload: self.workload.as_deref(), reach: &self.reach }
    }
}

impl InspectPatch {
    pub fn whom(&self) -> Whom<'_> {
        Whom { pid: self.pid, workload: self.workload.as_deref(), reach: &self.reach }
    }
}

#[derive(Debug, Args)]
pub struct AllOrLast {
    #[command(flatten)]
    pub process: Process,
    /// All patches, not only the last
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct InspectPatch {
    /// The patch file
    #[arg(value_name = "FILE", group = "what")]
    pub file: Option<PathBuf>,
    /// The process
    #[arg(long, group = "what", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// The workload, on the node where it runs: all of its processes that have a patch
    #[arg(long, group = "what", value_name = "NAME")]
    pub workload: Option<String>,
    #[command(flatten)]
    pub reach: Reach,
    /// A public key whose patches are trusted; may be given again [default: those in /etc/outlive/patch-keys]
    #[arg(long, value_name = "FILE")]
    pub trust: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    let can_be_allowed = || KINDS.into_iter().filter(|kind| kind.can_be_allowed());
    can_be_allowed().find(|kind| kind.name() == text).ok_or_else(|| {
        let names: Vec<&str> = can_be_allowed().map(Kind::name).collect();
        format!("what can be allowed is {}", names.join(", "))
    })
}

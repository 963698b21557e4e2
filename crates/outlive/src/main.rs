//! The one binary: command line and agent. It parses, resolves and calls; what it calls is in the other crates.

mod agent;
mod capabilities;
mod cli;
mod command;
mod config;
mod control;
mod error;
mod output_log;
mod supervise;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command};
use error::{Failure, Result};

fn main() -> ExitCode {
    // While a build is recorded, this program stands in for the compiler, under its name.
    let name = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    if outlive_hotpatch::record::wrapper::is_stand_in(&name) {
        return outlive_hotpatch::record::wrapper::main(&name);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_command_line(&error),
    };
    match run(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("outlive: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match command {
        Command::Agent(args) => done(agent::run(&args.config)),
        Command::Run(args) => done(command::run::run(*args)),
        Command::Ps(args) => done(command::ps::run(&args)),
        Command::Inspect(args) => done(command::inspect::run(&args)),
        Command::Logs(args) => done(command::logs::run(&args)),
        Command::Stop(args) => done(command::stop::stop(&args)),
        Command::Kill(args) => done(command::stop::kill(&args)),
        Command::Switchover(args) => done(command::moves::switchover(&args)),
        Command::Failover(args) => done(command::moves::failover(&args)),
        Command::RestartLost(args) => done(command::moves::restart_lost(&args)),
        Command::Completions { shell } => done(command::manual::completions(shell)),
        Command::Man { out } => done(command::manual::pages(&out)),
        Command::Check(args) => command::check::run(*args),
        Command::Cert(args) => done(command::cert::run(&args)),
        Command::Seed(args) => done(command::seed::run(&args)),
        Command::Replicated(args) => done(command::replicated::run(&args)),
        Command::Patch(args) => done(command::patch::run(&args)),
        Command::Supervise { .. } => Ok(supervise::main()),
        Command::WorkloadInit => outlive_process::launch::launcher_main(),
        Command::Probe { what } => done(command::check::probe::run(&what)),
    }
}

/// Help and version as they are; an error on one line, with the command that explains more.
fn refuse_command_line(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Standard output may be closed: nobody is left to tell.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            let message = "no command was given: see `outlive --help`, or begin with `outlive check`";
            eprintln!("outlive: {message}");
            return ExitCode::from(error::Kind::Usage as u8);
        }
        _ => {}
    }
    let rendered = error.to_string();
    // The error itself comes first, up to an empty line; usage and tips follow.
    let message: Vec<&str> = rendered.lines().take_while(|line| !line.trim().is_empty()).collect();
    let message = message.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let known = std::env::args().nth(1).filter(|name| !name.starts_with('-'));
    let known = known
        .filter(|_| error.kind() != ErrorKind::InvalidSubcommand)
        .map_or(String::new(), |name| name + " ");
    let failure = Failure::usage(format!("{message}; see `outlive {known}--help`"));
    eprintln!("outlive: {failure}");
    ExitCode::from(failure.exit_code())
}

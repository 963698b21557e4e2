//! What the user types. What it means is decided where it is used: see the `resolve` functions in `command`.

mod patch;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use outlive_net::{Mac, Route};

pub use patch::{AllOrLast, BuildPatch, InspectPatch, Patch, PatchAndProcess, Process, RecordBuild, Whom};

/// Exit codes, part of the help of every command.
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 tried and failed, 2 wrong command line or configuration, 3 an agent cannot be reached, \
4 no such workload, 5 refused as things are (name taken, address in use, still alive).";

#[derive(Debug, Parser)]
#[command(
    name = "outlive",
    version,
    about = "Keeps Linux services running through the death of the machine under them",
    after_help = EXIT_CODES,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run this node's agent, in the foreground
    Agent(Agent),
    /// Start a workload, and wait until it is protected
    #[command(after_help = EXIT_CODES)]
    Run(Box<Run>),
    /// List the workloads of this node
    Ps(Ps),
    /// Show one workload: state, generation, epoch, lag, pauses and dirty pages
    Inspect(Inspect),
    /// Print a workload's standard output and error
    Logs(Logs),
    /// End a workload, everywhere
    Stop(Stop),
    /// Send a signal to a workload's first process
    Kill(Kill),
    /// Move a workload to its backup's node, or to another, without anybody noticing
    #[command(after_help = EXIT_CODES)]
    Switchover(Switchover),
    /// Let the backup take over although its primary may live: it is silenced
    #[command(after_help = EXIT_CODES)]
    Failover(Failover),
    /// Start a workload anew, from nothing, whose last copy has died
    #[command(after_help = EXIT_CODES)]
    RestartLost(RestartLost),
    /// Say whether this host is fit, and how to make it so; or what a program uses, and whether that can be protected
    #[command(after_help = EXIT_CODES)]
    Check(Box<Check>),
    /// Make the cluster's certificate authority, and each node's certificate
    #[command(subcommand)]
    Cert(Cert),
    /// Seed nodes: who has a vote in arbitration
    #[command(subcommand)]
    Seed(Seed),
    /// Programs made with `#[replicated]`, by their own configuration
    #[command(subcommand)]
    Replicated(Replicated),
    /// Print a completion script, to be loaded by a shell
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages, one for each command
    Man {
        /// An existing directory, such as /usr/local/share/man/man1
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Fix a running program without a restart and without a pause
    #[command(subcommand)]
    Patch(Patch),
    /// One supervisor; started by the agent, which says what to do on standard input
    #[command(hide = true)]
    Supervise {
        /// The workload's name, for whoever lists processes
        name: Option<String>,
    },
    /// The launcher of a workload; started by its supervisor
    #[command(hide = true)]
    WorkloadInit,
    /// One trial of `check`, in a process that may be spoilt by it
    #[command(hide = true)]
    Probe { what: String },
}

/// How to find the agent.
#[derive(Debug, Clone, Default, Args)]
pub struct Reach {
    /// The agent's control socket [default: that of --config, or $OUTLIVE_SOCKET, or /run/outlive/agent.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The agent's configuration, to find its control socket
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Agent {
    /// The node's configuration
    #[arg(long, value_name = "FILE", default_value = crate::config::DEFAULT_FILE)]
    pub config: PathBuf,
}

/// How a workload is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Its memory and kernel objects are kept in step, a checkpoint per epoch
    Epoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhenExposed {
    /// Go on without protection
    Run,
    /// Keep its output until there is a backup again
    Wait,
}

#[derive(Debug, Args)]
pub struct Run {
    /// The workload's name, unique in the cluster
    #[arg(long)]
    pub name: String,
    /// How it is protected
    #[arg(long, value_enum, default_value = "epoch")]
    pub level: Level,
    /// An address of its own, with the prefix length of the network, as in 192.0.2.10/24 (IPv4, IPv6 or both)
    #[arg(long = "ip", value_name = "CIDR", required = true)]
    pub addresses: Vec<IpNet>,
    /// Its Ethernet address [default: derived from the cluster's and the workload's name]
    #[arg(long)]
    pub mac: Option<Mac>,
    /// A route, as in default=192.0.2.1 or 10.0.0.0/8=192.0.2.1; may be given again
    #[arg(long = "route", value_name = "DEST=GATEWAY", value_parser = parse_route)]
    pub routes: Vec<Route>,
    /// The MTU of its interface; at most that of the bridge, or of the interface it is on by macvtap
    #[arg(long, default_value_t = outlive_net::DEFAULT_MTU)]
    pub mtu: u16,
    /// The node that is to hold the backup [default: any peer]
    #[arg(long, value_name = "NODE")]
    pub backup: Option<String>,
    /// What it does while it has no backup
    #[arg(long, value_enum, default_value = "run")]
    pub when_exposed: WhenExposed,
    /// A directory it may write, in memory and kept in step; it must exist on every node, or be under /tmp, /run
    /// or /dev/shm; may be given again
    #[arg(long, value_name = "DIR")]
    pub scratch: Vec<PathBuf>,
    /// An environment variable; may be given again. Nothing is inherited; PATH and HOME have defaults
    #[arg(long = "env", value_name = "K=V", value_parser = parse_variable)]
    pub environment: Vec<(String, String)>,
    /// The directory it starts in
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub cwd: PathBuf,
    /// The user it runs as, by name or number
    #[arg(long, default_value = "root")]
    pub user: String,
    /// Do not wait until it is protected
    #[arg(long)]
    pub detach: bool,
    /// How many seconds to wait until it is protected
    #[arg(long, value_name = "SECONDS", default_value_t = 60, conflicts_with = "detach")]
    pub timeout: u32,
    #[command(flatten)]
    pub reach: Reach,
    /// The program and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Ps {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Go on, and show it again whenever something has changed; with --json one line of it each time
    #[arg(short, long)]
    pub watch: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
pub struct Inspect {
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
pub struct Logs {
    pub name: String,
    /// Go on printing what is written
    #[arg(short, long)]
    pub follow: bool,
    /// Put the time (UTC) before each line
    #[arg(short, long)]
    pub timestamps: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
pub struct Stop {
    pub name: String,
    /// Vouch that these nodes are dead for good: of a workload whose last nodes do not answer, it gives the name free.
    /// If it still runs on one of them, two will speak with its address
    #[arg(long, value_name = "NODE,NODE", value_delimiter = ',')]
    pub dead: Vec<String>,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
pub struct Kill {
    pub name: String,
    /// The signal, by name (HUP or SIGHUP) or number
    #[arg(short, long, default_value = "TERM")]
    pub signal: String,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
pub struct Switchover {
    pub name: String,
    /// The node that it is to run on [default: that of its backup]. Another one is given a copy first, and meanwhile nothing
    /// protects the workload
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
pub struct Failover {
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
pub struct RestartLost {
    pub name: String,
    /// The node that it is to run on [default: this one, or else any that can]
    #[arg(long, value_name = "NODE")]
    pub on: Option<String>,
    /// Vouch that these nodes, which do not answer, are dead for good. If it still runs on one of them, two will speak with its
    /// address
    #[arg(long, value_name = "NODE,NODE", value_delimiter = ',')]
    pub dead: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub reach: Reach,
}

#[derive(Debug, Args)]
pub struct Check {
    /// The node's configuration [default: /etc/outlive/agent.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The bridge to check [default: that of the configuration]
    #[arg(long, conflicts_with = "macvtap")]
    pub bridge: Option<String>,
    /// The interface to check on which workloads are to have macvtap devices [default: that of the configuration]
    #[arg(long, value_name = "INTERFACE")]
    pub macvtap: Option<String>,
    /// Not the host: run the program after `--` for a while as a workload runs, in namespaces of its own and without a way
    /// out, and list what it uses: kept, hidden from it, or refused. What it prints goes to standard error; end it
    /// with ctrl-C. Exit code 5 if something is refused
    #[arg(long, requires = "command", conflicts_with_all = ["pid", "config", "bridge", "macvtap"])]
    pub program: bool,
    /// Not the host: the same of a program that runs already, and of all processes below it, as far as can be seen
    #[arg(long, value_name = "PID", conflicts_with_all = ["config", "bridge", "macvtap"])]
    pub pid: Option<i32>,
    /// How many seconds the program runs at most
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 10, requires = "program")]
    pub seconds: u32,
    /// An address that the program has, as for `run` [default: 192.0.2.2/24]; may be given again
    #[arg(long = "ip", value_name = "CIDR", requires = "program")]
    pub addresses: Vec<IpNet>,
    /// A directory that it may write, as for `run`; may be given again
    #[arg(long, value_name = "DIR")]
    pub scratch: Vec<PathBuf>,
    /// An environment variable, as for `run`; may be given again
    #[arg(long = "env", value_name = "K=V", value_parser = parse_variable, requires = "program")]
    pub environment: Vec<(String, String)>,
    /// The directory it starts in
    #[arg(long, value_name = "DIR", default_value = "/", requires = "program")]
    pub cwd: PathBuf,
    /// The user it runs as, by name or number
    #[arg(long, default_value = "root", requires = "program")]
    pub user: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The program and its arguments, after `--`
    #[arg(last = true, value_name = "CMD", requires = "program")]
    pub command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Cert {
    /// Make the cluster's authority: once in the life of a cluster
    Authority {
        /// Where ca.pem and ca.key are written; keep ca.key off nodes that do not issue certificates
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The cluster's name
        #[arg(long, value_name = "NAME", default_value = "outlive")]
        cluster: String,
    },
    /// Make a node's certificate: ca.pem, node.pem and node.key; again to renew it
    Node {
        /// Where `cert authority` wrote ca.pem and ca.key
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The node's name, as in its configuration
        #[arg(long, value_name = "NODE")]
        name: String,
        /// Where the files are written; the node needs all three
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// For how many days it is good
        #[arg(long, value_name = "DAYS", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
}

#[derive(Debug, Subcommand)]
pub enum Seed {
    /// Begin a new cluster, once: tells every seed node of it, through this node's agent
    Bootstrap {
        /// The seed nodes, the same as in every node's configuration
        #[arg(long, value_name = "NODE,NODE,NODE", value_delimiter = ',', required = true)]
        seeds: Vec<String>,
        #[command(flatten)]
        reach: Reach,
    },
    /// Give this node, a seed node whose state directory was lost, its vote back: the others teach it
    Rejoin {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show each seed node and whether it votes
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Debug, Subcommand)]
pub enum Replicated {
    /// Show a live pair: objects, bytes, commits per second, lag
    #[command(after_help = EXIT_CODES)]
    Inspect {
        /// The program's configuration, that of any of its nodes
        #[arg(value_name = "FILE")]
        config: PathBuf,
        /// Over how many milliseconds commits and bytes are counted
        #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
        over: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Go on without processes that are dead for good, on your word: what they alone held is lost
    #[command(after_help = EXIT_CODES)]
    Forget {
        /// The program's configuration, that of any of its nodes
        #[arg(value_name = "FILE")]
        config: PathBuf,
        /// The nodes whose processes are dead for good: that of the primary, and each whose word the others wait for
        #[arg(value_name = "NODE", required = true)]
        nodes: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn parse_route(text: &str) -> Result<Route, String> {
    let wanted = "write DESTINATION=GATEWAY, as in default=192.0.2.1 or 10.0.0.0/8=192.0.2.1";
    let (destination, via) = text.split_once('=').ok_or(wanted)?;
    let via: IpAddr =
        via.trim().parse().map_err(|_| format!("{:?} is not an address; {wanted}", via.trim()))?;
    let everything = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    let destination = match destination.trim() {
        "default" => everything,
        network => network,
    };
    let destination = destination
        .parse::<IpNet>()
        .map_err(|_| format!("{destination:?} is not a network; {wanted}"))?
        .trunc();
    Ok(Route { destination, via })
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn routes() {
        let route = |text| parse_route(text).map(|route| format!("{} {}", route.destination, route.via));
        assert_eq!(route("default=192.0.2.1").unwrap(), "0.0.0.0/0 192.0.2.1");
        assert_eq!(route("default=fe80::1").unwrap(), "::/0 fe80::1");
        assert_eq!(route("10.1.2.3/8=192.0.2.1").unwrap(), "10.0.0.0/8 192.0.2.1");
        for wrong in ["", "default", "default=", "10.0.0.0/33=192.0.2.1", "x=192.0.2.1"] {
            assert!(route(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_whole_run_command_is_understood() {
        let cli = Cli::try_parse_from([
            "outlive",
            "run",
            "--name",
            "db",
            "--level",
            "epoch",
            "--ip",
            "10.77.0.129/24",
            "--ip",
            "fd00::1/64",
            "--mac",
            "02:00:00:00:00:01",
            "--route",
            "default=10.77.0.254",
            "--mtu",
            "1400",
            "--backup",
            "b",
            "--when-exposed",
            "wait",
            "--scratch",
            "/srv/a",
            "--scratch",
            "/tmp/b",
            "--env",
            "A=B=C",
            "--cwd",
            "/srv",
            "--user",
            "nobody",
            "--socket",
            "/tmp/s",
            "--",
            "redis-server",
            "--port",
            "6379",
        ])
        .unwrap();
        let Command::Run(run) = cli.command else { panic!("not `run`") };
        assert_eq!(run.addresses.len(), 2);
        assert_eq!(run.environment, [("A".to_owned(), "B=C".to_owned())]);
        assert_eq!(run.command, ["redis-server", "--port", "6379"]);
        assert_eq!(run.when_exposed, WhenExposed::Wait);
    }
}

//! A bridge to PostgreSQL: sessions of clients, each with a connection of its own, one request a line, over TCP.
//!
//!     pgbridge CONFIG LISTEN URL
//!
//! Run it on two nodes. A session's connection is opened by a replicated function, so the backup has opened its own when the
//! client is told that the session is open; after a failover that one serves it, with nothing to be connected first.
//!
//! | request | reply |
//! |---|---|
//! | `open SESSION` | `ok`, once both nodes have a connection for it |
//! | `open-as SESSION URL` | likewise, with another connection string, in which `;` stands for a space |
//! | `add SESSION NUMBER VALUE` | the sum of the session's values; asked again under its number it is answered again, and added once |
//! | `pid SESSION` | the process of PostgreSQL behind the connection that serves the session |
//! | `close SESSION` | `ok`; both nodes' connections end |
//! | `status` | the generation, and whether a backup is in step |
//!
//! What is in PostgreSQL is PostgreSQL's to keep: a failover repeats a request of which nobody knows whether it was done, and
//! the table's key makes that harmless.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;

use outlive_replicated::{
    CallError, CommitError, Config, Handle, Local, Map, commit, replicated, rollback, start, status,
};
use postgres::{Client, NoTls};

type Failure = Box<dyn std::error::Error>;

/// Opens a session's connection: called by the primary, and with the same arguments by its backup.
#[replicated(eager, on_error = fail, undo = disconnect)]
fn connect(url: String, session: String) -> Result<Client, String> {
    let config = url.parse::<postgres::Config>().map(|mut config| {
        config.application_name(&session);
        config
    });
    let mut client = config.and_then(|config| config.connect(NoTls)).map_err(|error| said(&error))?;
    // What belongs to the session on the server's side is part of opening it.
    client.batch_execute("SET statement_timeout = '10s'").map_err(|error| said(&error))?;
    Ok(client)
}

/// The server's own words, where it has any.
fn said(error: &postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

fn disconnect(client: Client) {
    if let Err(error) = client.close() {
        tracing::info!(%error, "a connection to PostgreSQL had ended before it was closed");
    }
}

#[replicated]
struct Session {
    connection: Handle<Client>,
    /// The highest number of its requests that was answered.
    answered: u64,
}

#[replicated]
static SESSIONS: Map<String, Session> = Map::new();

const TABLE: &str = "CREATE TABLE IF NOT EXISTS entries \
     (session text, number bigint, value bigint NOT NULL, PRIMARY KEY (session, number))";
const ADD: &str = "INSERT INTO entries VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
const SUM: &str = "SELECT coalesce(sum(value), 0)::bigint FROM entries WHERE session = $1 AND number <= $2";

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, listen, url] = &arguments[..] else {
        return Err("usage: pgbridge CONFIG LISTEN URL".into());
    };
    start(Config::load(Path::new(config))?)?;
    Client::connect(url, NoTls)?.batch_execute(TABLE)?;
    let listener = TcpListener::bind(listen)?;
    for stream in listener.incoming() {
        let (stream, url) = (stream?, url.clone());
        std::thread::spawn(move || {
            // A client that leaves in the middle is its own business.
            let _ = serve(&stream, &url);
        });
    }
    Ok(())
}

fn serve(mut stream: &TcpStream, url: &str) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    for line in BufReader::new(stream).lines() {
        let reply = match answer(&line?, url) {
            Ok(reply) => reply,
            Err(Refusal::Lost(error)) => {
                // Another process has taken over, and clients find it.
                eprintln!("error: {error}");
                std::process::exit(1)
            }
            Err(Refusal::No(why)) => format!("no {}", why.replace('\n', " ")),
        };
        stream.write_all(format!("{reply}\n").as_bytes())?;
    }
    Ok(())
}

/// Why a request has no answer but a word.
enum Refusal {
    No(String),
    Lost(CommitError),
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        match error {
            // The transaction was undone, and this process goes on.
            CommitError::CallFailed { .. } => Self::No(error.to_string()),
            error => Self::Lost(error),
        }
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        Self::No(error.to_string())
    }
}

impl From<postgres::Error> for Refusal {
    fn from(error: postgres::Error) -> Self {
        Self::No(said(&error))
    }
}

/// This node's connection of a session, to be used while others use theirs.
fn connection_of(session: &str) -> Result<Local<Client>, Refusal> {
    let sessions = SESSIONS.read();
    let found = sessions.get(session).map(|session| session.connection.local());
    found.ok_or_else(|| Refusal::No("such session".into()))
}

fn answer(line: &str, url: &str) -> Result<String, Refusal> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match &words[..] {
        ["open", session] => open(session, url.to_owned()),
        // By another role or to another database, with `;` for the spaces.
        ["open-as", session, url] => open(session, url.replace(';', " ")),
        ["add", session, number, value] => {
            let (number, value) = (parse(number)?, parse(value)?);
            let sum = add(session, number, value)?;
            let known = match SESSIONS.write().get_mut(&(*session).to_owned()) {
                Some(mut session) => {
                    session.answered = session.answered.max(number.unsigned_abs());
                    true
                }
                None => false,
            };
            if !known {
                rollback()?;
                return Err(Refusal::No("such session any more".into()));
            }
            commit()?;
            Ok(sum.to_string())
        }
        ["pid", session] => {
            let connection = connection_of(session)?;
            let pid: i32 = connection.lock()?.query_one("SELECT pg_backend_pid()", &[])?.get(0);
            commit()?;
            Ok(pid.to_string())
        }
        ["close", session] => {
            SESSIONS.write().remove(&(*session).to_owned());
            commit()?;
            Ok("ok".into())
        }
        ["status"] => {
            let status = status().ok_or_else(|| Refusal::No("status".into()))?;
            Ok(format!("{} {:?}", status.generation, status.phase))
        }
        _ => Err(Refusal::No("such request".into())),
    }
}

fn open(session: &str, url: String) -> Result<String, Refusal> {
    let session = session.to_owned();
    if !SESSIONS.read().contains_key(&session) {
        let connection = connect(url, session.clone())?;
        let mut sessions = SESSIONS.write();
        // Another client may have been first; then ours is closed when it is dropped.
        if !sessions.contains_key(&session) {
            sessions.insert(session, Session { connection, answered: 0 });
        }
    }
    commit()?;
    Ok("ok".into())
}

fn parse(text: &str) -> Result<i64, Refusal> {
    text.parse().map_err(|_| Refusal::No(format!("{text:?} is no number")))
}

fn add(session: &str, number: i64, value: i64) -> Result<i64, Refusal> {
    let connection = connection_of(session)?;
    let mut client = connection.lock()?;
    client.execute(ADD, &[&session, &number, &value])?;
    Ok(client.query_one(SUM, &[&session, &number])?.get(0))
}

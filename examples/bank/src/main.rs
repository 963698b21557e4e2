//! A bank: accounts and transfers, one request a line, over TCP.
//!
//!     bank CONFIG LISTEN ACCOUNTS AMOUNT
//!
//! Run it on two nodes. One serves, the other follows, and serves when the first dies. The whole of its high availability
//! is: two `#[replicated]`, one `start`, and that replies leave after their commit.
//!
//! | request | reply |
//! |---|---|
//! | `CLIENT NUMBER transfer FROM TO AMOUNT` | `ok`, or `no` and why; asked again it is answered again, and done once |
//! | `balance ACCOUNT` | the balance |
//! | `all` | every balance, in order |
//! | `status` | the generation, and whether a backup is in step |

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;

use outlive_replicated::{
    Config, OrderedMap, RequestError, RequestId, Started, commit, once, replicated, start, status,
};

type Failure = Box<dyn std::error::Error>;

#[replicated]
struct Account {
    balance: u64,
}

#[replicated]
impl Account {
    fn withdraw(&mut self, amount: u64) -> Result<(), &'static str> {
        self.balance = self.balance.checked_sub(amount).ok_or("not enough")?;
        Ok(())
    }

    fn deposit(&mut self, amount: u64) -> Result<(), &'static str> {
        self.balance = self.balance.checked_add(amount).ok_or("too much")?;
        Ok(())
    }
}

#[replicated]
static ACCOUNTS: OrderedMap<u64, Account> = OrderedMap::new();

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
    let [config, listen, accounts, amount] = &arguments[..] else {
        return Err("usage: bank CONFIG LISTEN ACCOUNTS AMOUNT".into());
    };
    let (accounts, amount): (u64, u64) = (accounts.parse()?, amount.parse()?);
    if start(Config::load(Path::new(config))?)? == Started::Fresh {
        for number in 0..accounts {
            ACCOUNTS.write().insert(number, Account { balance: amount });
        }
        commit()?;
    }
    let listener = TcpListener::bind(listen)?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // A client that leaves in the middle is its own business.
            let _ = serve(&stream);
        });
    }
    Ok(())
}

fn serve(mut stream: &TcpStream) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    for line in BufReader::new(stream).lines() {
        let reply = answer(&line?).unwrap_or_else(|error| error);
        stream.write_all(format!("{reply}\n").as_bytes())?;
    }
    Ok(())
}

/// What has to be ended when nothing is acknowledged any more: another process has taken over, and clients find it.
fn step_down(error: &dyn std::error::Error) -> ! {
    eprintln!("error: {error}");
    std::process::exit(1)
}

fn answer(line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("no {text:?} is no number"));
    match &words[..] {
        ["balance", account] => {
            let account = number(account)?;
            let balance = ACCOUNTS.read().get(&account).map(|account| account.balance);
            // What was read is said when it is safe.
            commit().unwrap_or_else(|error| step_down(&error));
            balance.map(|balance| balance.to_string()).ok_or("no such account".into())
        }
        ["all"] => {
            let all: Vec<String> =
                ACCOUNTS.read().read().values().map(|account| account.balance.to_string()).collect();
            commit().unwrap_or_else(|error| step_down(&error));
            Ok(all.join(" "))
        }
        ["status"] => {
            let status = status().ok_or("no status")?;
            Ok(format!("{} {:?}", status.generation, status.phase))
        }
        [client, request, "transfer", from, to, amount] => {
            let client = client.parse().map_err(|_| format!("no {client:?} is no client"))?;
            let id = RequestId { client, number: number(request)? };
            let (from, to, amount) = (number(from)?, number(to)?, number(amount)?);
            match once(id, || transfer(from, to, amount).map(|()| b"ok".to_vec())) {
                Ok(reply) => Ok(String::from_utf8_lossy(&reply).into_owned()),
                Err(RequestError::Work(why)) => Err(format!("no {why}")),
                Err(RequestError::Passed(number)) => Err(format!("no answer to {number} any more")),
                Err(RequestError::Commit(error)) => step_down(&error),
            }
        }
        _ => Err("no such request".into()),
    }
}

/// Part of a transaction: an error takes back what was done before it.
fn transfer(from: u64, to: u64, amount: u64) -> Result<(), &'static str> {
    let mut accounts = ACCOUNTS.write();
    accounts.get_mut(&from).ok_or("no such account")?.withdraw(amount)?;
    accounts.get_mut(&to).ok_or("no such account")?.deposit(amount)
}

//! The bank is killed again and again while its clients transfer money.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outlive_replicated::Node;
use outlive_replicated::testing::{Cluster, free_address};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const ACCOUNTS: u64 = 64;
const AMOUNT: u64 = 1000;
const CLIENTS: u64 = 100;
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program on one node.
struct Place {
    config: PathBuf,
    serves: SocketAddr,
    child: Option<Child>,
}

impl Place {
    fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bank"));
        command.arg(&self.config).arg(self.serves.to_string());
        command.args([ACCOUNTS.to_string(), AMOUNT.to_string()]);
        // Its log is of use only where the test is debugged.
        if std::env::var_os("OUTLIVE_LOUD").is_none() {
            command.stderr(Stdio::null());
        }
        self.child = Some(command.spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn status(&self) -> Option<String> {
        Connection::to(self.serves)?.ask("status")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    fn to(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        Some(Self { reader: BufReader::new(stream) })
    }

    /// `None`: nobody can know whether it was done.
    fn ask(&mut self, request: &str) -> Option<String> {
        self.reader.get_mut().write_all(format!("{request}\n").as_bytes()).ok()?;
        let mut reply = String::new();
        let count = self.reader.read_line(&mut reply).ok()?;
        (count > 0 && reply.ends_with('\n')).then(|| reply.trim_end().to_owned())
    }
}

/// Asks whoever answers, again and again.
struct Client {
    serves: [SocketAddr; 2],
    connection: Option<Connection>,
    next: usize,
    longest: Duration,
}

impl Client {
    fn new(serves: [SocketAddr; 2]) -> Self {
        Self { serves, connection: None, next: 0, longest: Duration::ZERO }
    }

    fn ask(&mut self, request: &str) -> String {
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < PATIENCE, "nobody answers {request:?}");
            if self.connection.is_none() {
                self.next += 1;
                self.connection = Connection::to(self.serves[self.next % 2]);
            }
            let Some(reply) = self.connection.as_mut().and_then(|connection| connection.ask(request)) else {
                self.connection = None;
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            self.longest = self.longest.max(since.elapsed());
            return reply;
        }
    }
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Which of both speaks, with a backup in step.
fn protected(places: &[Place]) -> usize {
    until("the pair is protected", || {
        places
            .iter()
            .position(|place| place.status().is_some_and(|status| status.ends_with("Some(Protected)")))
    })
}

/// What one client knows to have happened: by account, what came in or went out.
fn transfer_until(
    over: &AtomicBool,
    number: u64,
    serves: [SocketAddr; 2],
) -> (BTreeMap<u64, i64>, u64, Duration) {
    let mut rng = SmallRng::seed_from_u64(number);
    let mut client = Client::new(serves);
    let (mut moved, mut count) = (BTreeMap::new(), 0);
    while !over.load(Ordering::Relaxed) {
        let (from, to) = (rng.random_range(0..ACCOUNTS), rng.random_range(0..ACCOUNTS));
        let amount = rng.random_range(1..50);
        count += 1;
        match client.ask(&format!("{number} {count} transfer {from} {to} {amount}")).as_str() {
            "ok" => {
                *moved.entry(from).or_insert(0) -= amount;
                *moved.entry(to).or_insert(0) += amount;
            }
            "no not enough" => {}
            other => panic!("{other}"),
        }
        // People think, too.
        std::thread::sleep(Duration::from_millis(2));
    }
    (moved, count, client.longest)
}

fn balances(client: &mut Client) -> Vec<i64> {
    client.ask("all").split(' ').map(|balance| balance.parse().unwrap()).collect()
}

fn pair(cluster: &Cluster) -> Vec<Place> {
    let nodes = ["a", "b"].map(|name| Node { name: name.into(), address: free_address() });
    let place = |node: &Node| {
        let config = cluster.config_file("bank", node, &nodes);
        Place { config, serves: free_address(), child: None }
    };
    let mut places: Vec<Place> = nodes.iter().map(place).collect();
    places.iter_mut().for_each(Place::start);
    places
}

#[test]
fn money_is_conserved_and_every_acknowledged_transfer_happened_once() {
    let kills: usize = std::env::var("OUTLIVE_KILLS").map_or(10, |kills| kills.parse().unwrap());
    let cluster = Cluster::new();
    let mut places = pair(&cluster);
    let serves = [places[0].serves, places[1].serves];

    let over = AtomicBool::new(false);
    let looks = AtomicU64::new(0);
    let outcomes = std::thread::scope(|scope| {
        // Ends the clients also when this fails.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let guard = Over(&over);
        let over = &over;
        let clients: Vec<_> =
            (1..=CLIENTS).map(|number| scope.spawn(move || transfer_until(over, number, serves))).collect();
        let looks = &looks;
        scope.spawn(move || {
            let mut client = Client::new(serves);
            while !over.load(Ordering::Relaxed) {
                let total: i64 = balances(&mut client).iter().sum();
                assert_eq!(total, (ACCOUNTS * AMOUNT) as i64, "money was made or lost");
                looks.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut rng = SmallRng::from_os_rng();
        for _ in 0..kills {
            let primary = protected(&places);
            std::thread::sleep(Duration::from_millis(rng.random_range(0..200)));
            places[primary].kill();
            places[primary].start();
        }
        protected(&places);
        drop(guard);
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });

    let mut expected = vec![AMOUNT as i64; ACCOUNTS as usize];
    let (mut transfers, mut longest) = (0, Duration::ZERO);
    for (moved, count, stall) in outcomes {
        for (account, by) in moved {
            expected[account as usize] += by;
        }
        transfers += count;
        longest = longest.max(stall);
    }
    assert_eq!(balances(&mut Client::new(serves)), expected);
    let looks = looks.load(Ordering::Relaxed);
    assert!(looks > 0 && transfers > CLIENTS);
    eprintln!(
        "{kills} kills, {transfers} transfers, {looks} looks at all accounts, longest wait {} ms",
        longest.as_millis()
    );
}

/// Its host stands still for longer than the backup waits, and goes on: what it is asked then, and what it was asked
/// before, it must not answer any more, for others know better.
#[test]
fn r2_one_voice_a_primary_that_was_stalled_answers_nobody() {
    let cluster = Cluster::new();
    let mut places = pair(&cluster);
    let old = protected(&places);
    let mut reading = Connection::to(places[old].serves).unwrap();
    let mut writing = Connection::to(places[old].serves).unwrap();
    for number in 1..=10 {
        assert_eq!(writing.ask(&format!("7 {number} transfer 1 2 1")).unwrap(), "ok");
    }
    let balance = AMOUNT + 10;
    assert_eq!(reading.ask("balance 2").unwrap(), balance.to_string());

    let child = places[old].child.as_ref().unwrap().id();
    signal(child, "STOP");
    let serves = [places[1 - old].serves; 2];
    let mut client = Client::new(serves);
    assert_eq!(client.ask("7 11 transfer 1 2 1"), "ok");
    // Asked again, the new one answers what the old one did.
    assert_eq!(client.ask("7 11 transfer 1 2 1"), "ok");
    assert_eq!(client.ask("balance 2"), (balance + 1).to_string());

    reading.reader.get_mut().write_all(b"balance 2\n").unwrap();
    writing.reader.get_mut().write_all(b"7 12 transfer 1 2 1\n").unwrap();
    signal(child, "CONT");
    for connection in [&mut reading, &mut writing] {
        connection.reader.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reply = String::new();
        // Cut off, without a word.
        let outcome = connection.reader.read_line(&mut reply);
        assert!(
            reply.is_empty()
                && !matches!(&outcome, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        );
    }
    let status = places[old].child.take().unwrap().wait().unwrap();
    assert_eq!(status.code(), Some(1), "it ends by itself");
    assert_eq!(client.ask("balance 2"), (balance + 1).to_string());
    places[old].start();
    protected(&places);
}

fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), process.to_string()]).status().unwrap();
    assert!(status.success());
}

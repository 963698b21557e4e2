//! The bank is killed again and again while its clients transfer money.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use outlive_replicated::testing::{Client, Cluster, Line, Place};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const ACCOUNTS: u64 = 64;
const AMOUNT: u64 = 1000;
const CLIENTS: u64 = 100;

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
    Place::pair(cluster, "bank", env!("CARGO_BIN_EXE_bank"), &[ACCOUNTS.to_string(), AMOUNT.to_string()])
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
            let primary = Place::protected(&places);
            std::thread::sleep(Duration::from_millis(rng.random_range(0..200)));
            places[primary].kill();
            places[primary].start();
        }
        Place::protected(&places);
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
    let old = Place::protected(&places);
    let mut reading = Line::to(places[old].serves).unwrap();
    let mut writing = Line::to(places[old].serves).unwrap();
    for number in 1..=10 {
        assert_eq!(writing.ask(&format!("7 {number} transfer 1 2 1")).unwrap(), "ok");
    }
    let balance = AMOUNT + 10;
    assert_eq!(reading.ask("balance 2").unwrap(), balance.to_string());

    let child = places[old].process().unwrap();
    signal(child, "STOP");
    let serves = [places[1 - old].serves; 2];
    let mut client = Client::new(serves);
    assert_eq!(client.ask("7 11 transfer 1 2 1"), "ok");
    // Asked again, the new one answers what the old one did.
    assert_eq!(client.ask("7 11 transfer 1 2 1"), "ok");
    assert_eq!(client.ask("balance 2"), (balance + 1).to_string());

    reading.say("balance 2").unwrap();
    writing.say("7 12 transfer 1 2 1").unwrap();
    signal(child, "CONT");
    assert!(reading.is_cut_off() && writing.is_cut_off());
    let status = places[old].ended().unwrap();
    assert_eq!(status.code(), Some(1), "it ends by itself");
    assert_eq!(client.ask("balance 2"), (balance + 1).to_string());
    places[old].start();
    Place::protected(&places);
}

fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), process.to_string()]).status().unwrap();
    assert!(status.success());
}

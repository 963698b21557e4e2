//! What clients see of the bank over kills could have come from one bank that does one thing after the other.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outlive_replicated::testing::{Client, Cluster, Place};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const ACCOUNTS: usize = 5;
/// Little, so that transfers are refused as well.
const AMOUNT: u64 = 20;
const CLIENTS: u64 = 6;

/// What one client asked and was answered.
#[derive(Clone, Debug)]
enum Did {
    Transfer { from: usize, to: usize, amount: u64, done: bool },
    Looked(Vec<u64>),
}

/// With when it was asked first and when it was answered.
#[derive(Clone, Debug)]
struct Operation {
    asked: Duration,
    answered: Duration,
    did: Did,
}

/// What the bank is after it, if it may have been so.
fn after(balances: &[u64], did: &Did) -> Option<Vec<u64>> {
    let mut next = balances.to_vec();
    match did {
        Did::Looked(seen) => (seen == balances).then_some(next),
        Did::Transfer { from, amount, done: false, .. } => (balances[*from] < *amount).then_some(next),
        Did::Transfer { from, to, amount, done: true } => {
            next[*from] = next[*from].checked_sub(*amount)?;
            next[*to] += amount;
            Some(next)
        }
    }
}

/// An order of all operations in which each happens between its question and its answer, and the bank is as they saw it.
/// Exact: it tries every order, and none from a point that it has been at (Wing and Gong's search, with Lowe's memory).
/// If there is none, how far the best try came.
fn linearize(clients: &[Vec<Operation>]) -> Result<usize, usize> {
    let all: usize = clients.iter().map(Vec::len).sum();
    let begin = (vec![0usize; clients.len()], vec![AMOUNT; ACCOUNTS]);
    let mut seen = HashSet::from([begin.clone()]);
    let mut open = vec![begin];
    let mut furthest = 0;
    while let Some((places, balances)) = open.pop() {
        let count = places.iter().sum();
        furthest = furthest.max(count);
        if count == all {
            return Ok(seen.len());
        }
        let next = |client: usize| clients[client].get(places[client]);
        // Nothing may come before what was answered before it was asked.
        let first = (0..clients.len()).filter_map(next).map(|operation| operation.answered).min();
        for client in 0..clients.len() {
            if let Some(operation) = next(client)
                && Some(operation.asked) <= first
                && let Some(balances) = after(&balances, &operation.did)
            {
                let mut places = places.clone();
                places[client] += 1;
                let point = (places, balances);
                if seen.insert(point.clone()) {
                    open.push(point);
                }
            }
        }
    }
    Err(furthest)
}

fn use_bank(over: &AtomicBool, since: Instant, number: u64, mut client: Client) -> Vec<Operation> {
    let mut rng = SmallRng::seed_from_u64(number);
    let mut did = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let asked = since.elapsed();
        let what = if rng.random_bool(0.3) {
            let reply = client.ask("all");
            Did::Looked(reply.split(' ').map(|balance| balance.parse().unwrap()).collect())
        } else {
            let from = rng.random_range(0..ACCOUNTS);
            let to = (from + rng.random_range(1..ACCOUNTS)) % ACCOUNTS;
            let amount = rng.random_range(1..15);
            let request = format!("{number} {} transfer {from} {to} {amount}", did.len() + 1);
            let done = match client.ask(&request).as_str() {
                "ok" => true,
                "no not enough" => false,
                other => panic!("{other}"),
            };
            Did::Transfer { from, to, amount, done }
        };
        did.push(Operation { asked, answered: since.elapsed(), did: what });
        std::thread::sleep(Duration::from_millis(rng.random_range(0..3)));
    }
    did
}

#[test]
fn the_history_of_the_bank_is_linearizable_over_kills() {
    let kills: usize = std::env::var("OUTLIVE_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let cluster = Cluster::new();
    let arguments = [ACCOUNTS.to_string(), AMOUNT.to_string()];
    let mut places = Place::pair(&cluster, "bank", env!("CARGO_BIN_EXE_bank"), &arguments);
    Place::protected(&places);
    let (over, since) = (AtomicBool::new(false), Instant::now());
    let clients = std::thread::scope(|scope| {
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let guard = Over(&over);
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|number| {
                let (over, client) = (&over, Client::of(&places));
                scope.spawn(move || use_bank(over, since, number, client))
            })
            .collect();
        for _ in 0..kills {
            let primary = Place::protected(&places);
            std::thread::sleep(Duration::from_millis(150));
            places[primary].kill();
            places[primary].start();
        }
        Place::protected(&places);
        drop(guard);
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    let count: usize = clients.iter().map(Vec::len).sum();
    match linearize(&clients) {
        Ok(points) => eprintln!("{kills} kills, {count} operations, {points} points looked at"),
        Err(furthest) => panic!("no order explains more than {furthest} of {count} operations: {clients:#?}"),
    }
    // The checker can say no: of this very history, one look that saw money that was not there yet.
    let mut false_history = clients;
    let looked = false_history.iter_mut().flatten().find_map(|operation| match &mut operation.did {
        Did::Looked(balances) => Some(balances),
        Did::Transfer { .. } => None,
    });
    looked.unwrap()[0] += 1;
    assert!(linearize(&false_history).is_err());
}

#[test]
fn the_checker_knows_what_no_bank_can_do() {
    let operation = |asked, answered, did| Operation {
        asked: Duration::from_millis(asked),
        answered: Duration::from_millis(answered),
        did,
    };
    let moved = Did::Transfer { from: 0, to: 1, amount: 5, done: true };
    let (before, afterwards) = (Did::Looked(vec![20; 5]), Did::Looked(vec![15, 25, 20, 20, 20]));
    // While it is under way both are right, each after the other alone one way.
    let history = |first: &Did, second: &Did| {
        vec![
            vec![operation(0, 10, moved.clone())],
            vec![operation(1, 2, first.clone()), operation(3, 4, second.clone())],
        ]
    };
    assert!(linearize(&history(&before, &afterwards)).is_ok());
    assert!(linearize(&history(&afterwards, &before)).is_err());
    // Answered, and not seen.
    let stale = vec![vec![operation(0, 1, moved)], vec![operation(2, 3, before)]];
    assert_eq!(linearize(&stale), Err(1));
    let refused = Did::Transfer { from: 0, to: 1, amount: 5, done: false };
    assert!(linearize(&[vec![operation(0, 1, refused)]]).is_err());
}

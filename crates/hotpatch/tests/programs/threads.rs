//! A function that every thread is always in, patched and reverted again and again.

use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::lab::{Recorded, Running};
use super::together::together;
use super::trial;

/// Cycles of apply and revert.
const CYCLES: usize = 10_000;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("ten_thousand_cycles_under_sixteen_threads_lose_no_call", cycles),
        trial("an_allocator_that_all_threads_are_in_is_patched_and_nothing_is_lost", allocator),
        trial("calls_reach_the_new_function_and_say_what_that_costs", cost),
    ]
}

/// What a call costs without a pad, with one, and patched: printed, for a time is no verdict.
fn cost() {
    let recorded = Recorded::simple("cost");
    let plain = recorded.folder().join("plain");
    let source = recorded.folder().join("cost.c");
    let status = Command::new("gcc").args(["-O2", "-o"]).args([&plain, &source]).status().unwrap();
    assert!(status.success());
    let (mut plain, mut running) = (Running::start(&mut Command::new(plain)), recorded.start());
    let signed = recorded.patch();
    let ask = |running: &mut Running, wanted: &str| -> i64 {
        let answer = running.ask("?");
        let (cost, is_new) = answer.split_once(' ').unwrap();
        assert_eq!(is_new, wanted);
        cost.parse().unwrap()
    };
    let without = ask(&mut plain, "0");
    let with = ask(&mut running, "0");
    running.apply(&signed);
    let patched = ask(&mut running, "1");
    running.revert();
    ask(&mut running, "0");
    running.apply(&together(&recorded));
    let gated = ask(&mut running, "1");
    eprintln!(
        "a call costs {without} ps without a pad, {with} ps with one, {patched} ps patched, {gated} ps by way of a gate"
    );
    running.revert();
    ask(&mut running, "0");
}

/// Memory that the old functions gave out is freed by the new ones, and the other way. A moment in which nobody is in them does not come.
fn allocator() {
    let recorded = Recorded::new("gcc -O2 -fno-builtin-malloc -pthread $FLAGS -o program allocator.c");
    let mut running = recorded.start();
    let mut longest = 0;
    let signed = recorded.patch();
    for cycle in 0..200 {
        longest = longest.max(running.apply(&signed).longest_hold_us);
        let (counted, least) = allocations(&mut running);
        await_rounds(&mut running, least);
        assert!(allocations(&mut running).0 > counted, "no thread is in the new functions in cycle {cycle}");
        longest = longest.max(running.revert().longest_hold_us);
        let (counted, least) = allocations(&mut running);
        assert_eq!(counted, 0, "the old function says so");
        await_rounds(&mut running, least);
    }
    eprintln!("an allocator was patched 200 times, longest hold {longest} us");
    let error = running.patcher().apply(&together(&recorded)).unwrap_err().to_string();
    assert!(error.contains("had no moment"), "{error}");
    assert_eq!(allocations(&mut running).0, 0);
}

/// Allocations that the new functions have counted, and how far the thread is that is furthest behind.
fn allocations(running: &mut Running) -> (u64, u64) {
    let answer = running.ask("?");
    let words: Vec<u64> = answer.split(' ').map(|word| word.parse().unwrap()).collect();
    assert_eq!(words[0], 0, "memory that was somebody else's as well: {answer}");
    (words[1], words[2])
}

/// Until every thread has gone on.
fn await_rounds(running: &mut Running, from: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while allocations(running).1 == from {
        assert!(Instant::now() < deadline, "a thread does not go on");
    }
}

fn cycles() {
    let recorded = Recorded::simple("threads");
    let mut running = recorded.start();
    let signed = recorded.patch();
    let calls = |answer: &str| -> Vec<u64> {
        let numbers: Vec<u64> = answer.split(' ').map(|word| word.parse().unwrap()).collect();
        assert_eq!(numbers[0], 0, "calls that returned something else: {answer}");
        numbers[2..].to_vec()
    };
    let mut before = calls(&running.ask("?"));
    let mut longest = 0;
    let begun = Instant::now();
    let mut patcher = running.patcher();
    for cycle in 0..CYCLES {
        longest = longest.max(patcher.apply(&signed).unwrap().longest_hold_us);
        if cycle % 1000 == 0 {
            assert!(running.ask("?").starts_with("0 2 "));
        }
        longest = longest.max(patcher.revert(false).unwrap().longest_hold_us);
        if cycle % 1000 == 0 {
            let answer = running.ask("?");
            assert!(answer.starts_with("0 1 "));
            let now = calls(&answer);
            // Every thread goes on; on a busy machine one may have to wait for its turn.
            let deadline = Instant::now() + Duration::from_secs(60);
            while calls(&running.ask("?")).iter().zip(&before).any(|(now, before)| now <= before) {
                assert!(Instant::now() < deadline, "a thread stands still: {now:?} after {before:?}");
            }
            before = now;
        }
    }
    eprintln!("{CYCLES} cycles in {:?}, longest hold {longest} us", begun.elapsed());
    assert_eq!(running.regions().len(), 1);
}

//! Functions that switch at one instant: what two of them agree on holds for every call, and who is in the way is named.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;
use outlive_hotpatch::build::Options;
use outlive_hotpatch::patch::Signed;
use outlive_hotpatch::running::{Patcher, State};

use super::lab::{Recorded, Running, preferred_threads, sign};
use super::patching::die_at_every_step;
use super::trial;

/// Switches one after the other until a call is seen that was half old and half new; and switches at one instant.
const CYCLES: usize = 200;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("functions_that_switch_together_agree_at_every_call", agree),
        trial("a_thread_that_stays_in_a_function_is_named_and_nothing_is_switched", stays),
        trial("a_thread_whose_name_is_no_text_is_looked_at_as_well", named_by_bytes),
        trial("threads_stay_ordinary_and_uninterrupted_beside_one_that_does_not_stop", waiters),
        trial("a_patch_over_one_that_switched_together_is_switched_together_as_well", over_each_other),
        trial("a_patcher_may_die_at_any_step_of_what_switches_together", || {
            die_at_every_step("pair", "0 1 ", "0 2 ", 20)
        }),
    ]
}

/// A patch whose functions switch at one instant.
pub fn together(recorded: &Recorded) -> Signed {
    let options = Options { name: "fix".to_owned(), is_together: true, ..Options::default() };
    sign(&recorded.build("-DFIXED", options).unwrap())
}

/// Calls whose two sides did not agree, and what a call says now.
fn seen(running: &mut Running) -> (u64, u64) {
    let answer = running.ask("?");
    let mut words = answer.split(' ').map(|word| word.parse().unwrap());
    (words.next().unwrap(), words.next().unwrap())
}

fn agree() {
    let recorded = Recorded::simple("pair");
    let mut running = recorded.start();
    let signed = together(&recorded);
    assert!(signed.patch.is_together);
    let mut longest = 0;
    for cycle in 0..CYCLES {
        longest = longest.max(running.apply(&signed).longest_hold_us);
        if cycle % 10 == 0 {
            assert_eq!(seen(&mut running), (0, 2), "in cycle {cycle}");
        }
        longest = longest.max(running.revert().longest_hold_us);
        if cycle % 10 == 0 {
            assert_eq!(seen(&mut running), (0, 1), "in cycle {cycle}");
        }
    }
    assert_eq!(running.regions().len(), 1, "what is applied again takes no more memory");
    eprintln!("{CYCLES} cycles at one instant, longest hold {longest} us");
    // The same functions, one after the other: the program does see when they do not agree. A patcher that waits after each gives it
    // the time.
    let plain = recorded.patch();
    let wait = |step: &'static str| {
        if step == "switched" {
            thread::sleep(Duration::from_millis(100));
        }
    };
    let mut patcher = Patcher::open_with_steps(running.pid(), &wait).unwrap();
    patcher.apply(&plain).unwrap();
    drop(patcher);
    assert!(
        seen(&mut running).0 > 0,
        "functions were switched one after the other, and no call was half old"
    );
}

fn stays() {
    let recorded = Recorded::simple("stays");
    let mut running = recorded.start();
    let signed = together(&recorded);
    assert_eq!(running.ask("i"), "1");
    let error = running.patcher().apply(&signed).unwrap_err().to_string();
    assert!(error.contains("(server) was in serve") && error.contains("no moment"), "{error}");
    assert!(error.ends_with("fix was interrupted while it was applied, and is reverted"), "{error}");
    assert!(!error.contains("was in value"), "{error}");
    assert_eq!(running.states(), [State::Reverted]);
    assert_eq!(running.ask("?"), "1");
    running.ask("o");
    running.apply(&signed);
    assert_eq!(running.ask("?"), "2");
    // The other way as well: it is in the new function.
    assert_eq!(running.ask("i"), "2");
    let error = running.patcher().revert(false).unwrap_err().to_string();
    assert!(error.contains("(server) was in the code of fix"), "{error}");
    assert_eq!(running.ask("u"), "0", "what is refused calls no hook");
    assert_eq!(running.states(), [State::Applied]);
    assert_eq!(running.ask("?"), "2");
    running.ask("o");
    running.revert();
    assert_eq!(running.ask("?"), "1");
    assert_eq!(running.ask("u"), "1");
    // The user may ask for it where the patch does not.
    let plain = recorded.patch();
    assert_eq!(running.ask("i"), "1");
    let mut patcher = running.patcher();
    patcher.switch_together();
    let error = patcher.apply(&plain).unwrap_err().to_string();
    assert!(error.contains("(server) was in serve"), "{error}");
    drop(patcher);
    running.apply(&plain);
    assert_eq!(running.ask("?"), "2");
}

fn named_by_bytes() {
    let recorded = Recorded::simple("stays");
    let mut running = recorded.start();
    running.ask("n");
    assert_eq!(running.ask("i"), "1");
    let error = running.patcher().apply(&together(&recorded)).unwrap_err().to_string();
    assert!(error.contains("was in serve"), "{error}");
    assert_eq!(running.ask("?"), "1");
}

fn waiters() {
    let recorded = Recorded::simple("waiters");
    let mut running = recorded.start();
    let signed = together(&recorded);
    assert_eq!(running.ask("v"), "1, 0 interrupted");
    running.await_thread("holder", 'D');
    let pid = running.pid();
    let preferred = Mutex::new(0);
    let look = |step: &'static str| {
        if step == "all let go" {
            *preferred.lock().unwrap() += preferred_threads(pid);
        }
    };
    let error = Patcher::open_with_steps(pid, &look).unwrap().apply(&signed).unwrap_err().to_string();
    assert!(error.contains("(holder) was in a system call, in which it sleeps"), "{error}");
    assert_eq!(*preferred.lock().unwrap(), 0, "threads that were left preferred");
    assert_eq!(running.ask("o"), "1, 0 interrupted");
    running.apply(&signed);
    assert_eq!(running.ask("?"), "2, 0 interrupted");
    running.revert();
    assert_eq!(running.ask("?"), "1, 0 interrupted");
}

fn over_each_other() {
    let recorded = Recorded::simple("layers");
    let mut running = recorded.start();
    let version = |number: u32| {
        let name = format!("version {number}");
        let options = Options { name, is_together: true, ..Options::default() };
        sign(&recorded.build(&format!("-DVERSION={number}"), options).unwrap())
    };
    let (second, third) = (version(2), version(3));
    for _ in 0..3 {
        assert_eq!(running.ask("?"), "1 1");
        running.apply(&second);
        assert_eq!(running.ask("?"), "2 2");
        running.apply(&third);
        assert_eq!(running.ask("?"), "3 2");
        running.revert();
        assert_eq!(running.ask("?"), "2 2");
        running.revert();
        // In the other order: other entries lead to other gates.
        running.apply(&third);
        assert_eq!(running.ask("?"), "3 1");
        running.apply(&second);
        assert_eq!(running.ask("?"), "2 2");
        running.patcher().revert(true).unwrap();
    }
    assert_eq!(running.ask("?"), "1 1");
}

//! How transactions end: with pointers that are still held, with parts that have failed, with others that wait.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::*;

/// An address of a static, for another thread.
#[derive(Clone, Copy)]
struct Known(*const outlive_static);
// SAFETY: the library's statics are used by any thread.
unsafe impl Send for Known {}

impl Known {
    fn get(self) -> *const outlive_static {
        self.0
    }
}

/// Runs `work` in a thread of its own, which ends: what waits for itself would wait for ever.
#[track_caller]
fn ends<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let (to, from) = mpsc::channel();
    let thread = thread::spawn(move || to.send(work()));
    match from.recv_timeout(Duration::from_secs(20)) {
        Ok(result) => {
            let _ = thread.join();
            result
        }
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("it sends before it ends"),
        },
        Err(RecvTimeoutError::Timeout) => panic!("it waits for ever"),
    }
}

fn variable(name: &'static std::ffi::CStr) -> Known {
    Known(declare(name, outlive_form::OUTLIVE_FORM_VARIABLE, true))
}

fn counter(name: &'static std::ffi::CStr) -> Known {
    Known(declare(name, outlive_form::OUTLIVE_FORM_COUNTER, false))
}

/// Adds to the number of a variable's struct.
///
/// # Safety
/// `it` is a variable, and no pointer into it is held.
unsafe fn add(it: *const outlive_static, number: u32) {
    // SAFETY: as the caller promises.
    unsafe {
        let writing = outlive_variable_write(it).cast::<Thing>();
        assert!(!writing.is_null(), "{:?}", std::ffi::CStr::from_ptr(outlive_last_error()));
        (*writing).count += number;
        assert_eq!(outlive_end(writing.cast()), Code::OUTLIVE_OK);
    }
}

/// # Safety
/// `it` is a variable, which no other thread writes to.
unsafe fn count(it: *const outlive_static) -> u32 {
    // SAFETY: as the caller promises.
    unsafe {
        let reading = outlive_variable_read(it);
        let count = (*reading.cast::<Thing>()).count;
        assert_eq!(outlive_end(reading), Code::OUTLIVE_OK);
        count
    }
}

#[test]
fn what_failed_is_not_forgotten_while_a_pointer_is_alive() {
    let (one, hits) = (variable(c"endings_forgotten"), counter(c"endings_forgotten_hits"));
    let map = declare(c"endings_forgotten_map", outlive_form::OUTLIVE_FORM_MAP, true);
    // SAFETY: as a program in C uses them.
    unsafe {
        assert_eq!(outlive_counter_add(hits.0, 1), Code::OUTLIVE_OK);
        let writing = outlive_variable_write(one.0);
        assert_eq!(outlive_map_put(map, lend(&1u8), lend(&1u8)), Code::OUTLIVE_MISUSE);
        assert_eq!(outlive_commit(), Code::OUTLIVE_GUARD_ALIVE);
        assert_eq!(outlive_end(writing), Code::OUTLIVE_OK);
        assert_eq!(outlive_commit(), Code::OUTLIVE_MISUSE, "half of it is not committed");
        assert_eq!((outlive_counter_get(hits.0), outlive_commit()), (0, Code::OUTLIVE_OK));
    }
}

/// What the works below are given.
#[repr(C)]
struct Context {
    one: *const outlive_static,
    returns: c_int,
    pointer: *const c_void,
}

// SAFETY: called by the library alone, as its type says.
unsafe extern "C" fn leaves_a_read_pointer(context: *mut c_void) -> c_int {
    // SAFETY: the test gives one.
    unsafe {
        let context = &mut *context.cast::<Context>();
        add(context.one, 1);
        context.pointer = outlive_variable_read(context.one);
        context.returns
    }
}

// SAFETY: called by the library alone, as its type says.
unsafe extern "C" fn leaves_a_write_pointer(context: *mut c_void) -> c_int {
    // SAFETY: the test gives one.
    unsafe {
        let context = &mut *context.cast::<Context>();
        add(context.one, 1);
        context.pointer = outlive_variable_write(context.one);
        context.returns
    }
}

// SAFETY: called by the library alone, as its type says.
unsafe extern "C" fn rolls_back(_: *mut c_void, _: outlive_bytes, _: outlive_bytes) -> c_int {
    assert_eq!(outlive_rollback(), Code::OUTLIVE_GUARD_ALIVE);
    0
}

#[test]
fn undoing_does_not_wait_for_a_pointer_of_its_own_thread() {
    let one = variable(c"endings_own_read");
    let map = Known(declare(c"endings_own_read_map", outlive_form::OUTLIVE_FORM_MAP, true));
    ends(move || {
        // SAFETY: as a program in C uses them.
        unsafe {
            add(one.get(), 1);
            let reading = outlive_variable_read(one.get());
            assert_eq!(outlive_rollback(), Code::OUTLIVE_GUARD_ALIVE);
            assert_eq!((*reading.cast::<Thing>()).count, 1, "it is what it was");
            // A commit that fails.
            assert!(outlive_variable_write(one.get()).is_null());
            assert_eq!(outlive_commit(), Code::OUTLIVE_GUARD_ALIVE);
            assert_eq!(outlive_end(reading), Code::OUTLIVE_OK);
            assert_eq!((outlive_commit(), count(one.get())), (Code::OUTLIVE_GUARD_ALIVE, 0));
            assert_eq!(outlive_commit(), Code::OUTLIVE_OK);
            // One that does not.
            add(one.get(), 1);
            let reading = outlive_variable_read(one.get());
            assert_eq!((outlive_commit(), outlive_end(reading)), (Code::OUTLIVE_OK, Code::OUTLIVE_OK));

            // The work of a transaction, which fails, or not.
            let mut context = Context { one: one.get(), returns: -1, pointer: null() };
            let to = (&raw mut context).cast();
            assert_eq!(outlive_transaction(Some(leaves_a_read_pointer), to), Code::OUTLIVE_GUARD_ALIVE);
            assert_eq!(outlive_commit(), Code::OUTLIVE_GUARD_ALIVE);
            assert_eq!(outlive_end(context.pointer), Code::OUTLIVE_OK);
            assert_eq!((outlive_commit(), count(one.get())), (Code::OUTLIVE_WORK_FAILED, 1));
            for returns in [0, -1] {
                context.returns = returns;
                let to = (&raw mut context).cast();
                assert_eq!(outlive_transaction(Some(leaves_a_write_pointer), to), Code::OUTLIVE_GUARD_ALIVE);
                assert_eq!(outlive_end(context.pointer), Code::OUTLIVE_OK);
                assert_ne!(outlive_commit(), Code::OUTLIVE_OK);
                assert_eq!((count(one.get()), outlive_commit()), (1, Code::OUTLIVE_OK));
            }

            // While elements are shown.
            let thing = Thing { count: 3, name: *b"abcd", local: null() };
            assert_eq!(outlive_map_put(map.get(), lend(&1u8), lend(&thing)), Code::OUTLIVE_OK);
            let from = lend(&[0u8; 0]);
            assert_eq!(outlive_map_each(map.get(), from, Some(rolls_back), null_mut()), Code::OUTLIVE_OK);
            assert_eq!((outlive_rollback(), outlive_count(map.get())), (Code::OUTLIVE_OK, 0));
        }
    });
}

#[test]
fn a_second_read_does_not_wait_behind_a_writer_that_waits_for_the_first() {
    let one = variable(c"endings_twice");
    ends(move || {
        // SAFETY: as a program in C uses them.
        unsafe {
            let first = outlive_variable_read(one.get());
            let writer = thread::spawn(move || {
                add(one.get(), 1);
                assert_eq!(outlive_commit(), Code::OUTLIVE_OK);
            });
            // Until it waits: not to be seen from here.
            thread::sleep(Duration::from_millis(300));
            let second = outlive_variable_read(one.get());
            assert_eq!((*second.cast::<Thing>()).count, 0, "what the first has seen");
            assert_eq!((outlive_end(first), outlive_end(second)), (Code::OUTLIVE_OK, Code::OUTLIVE_OK));
            writer.join().unwrap();
            assert_eq!((count(one.get()), outlive_commit()), (1, Code::OUTLIVE_OK));
        }
    });
}

#[test]
fn who_holds_a_pointer_for_reading_waits_for_nobody_who_waits_for_it() {
    let (one, other) = (variable(c"endings_reader"), variable(c"endings_reader_other"));
    ends(move || {
        let (to, from) = mpsc::channel();
        // SAFETY: as a program in C uses them.
        unsafe {
            let reading = outlive_variable_read(one.get());
            let writer = thread::spawn(move || {
                add(other.get(), 1);
                to.send(()).unwrap();
                add(one.get(), 1);
                assert_eq!(outlive_commit(), Code::OUTLIVE_OK);
            });
            from.recv().unwrap();
            thread::sleep(Duration::from_millis(100));
            assert!(outlive_variable_read(other.get()).is_null(), "it is the other's, who waits for us");
            assert!(outlive_variable_write(other.get()).is_null());
            assert_eq!(outlive_end(reading), Code::OUTLIVE_OK);
            assert_eq!(outlive_commit(), Code::OUTLIVE_DEADLOCK);
            writer.join().unwrap();
            assert_eq!((count(one.get()), count(other.get()), outlive_commit()), (1, 1, Code::OUTLIVE_OK));
        }
    });
}

/// Each reads what the other is to write: nobody owns anything that the other waits for.
#[test]
fn two_that_write_what_the_other_reads_do_not_wait_for_ever() {
    let (one, other) = (variable(c"endings_crossed"), variable(c"endings_crossed_other"));
    ends(move || {
        let both = std::sync::Arc::new(std::sync::Barrier::new(2));
        let threads = [(one, other), (other, one)].map(|(reads, writes)| {
            let both = std::sync::Arc::clone(&both);
            // SAFETY: as a program in C uses them.
            thread::spawn(move || unsafe {
                let reading = outlive_variable_read(reads.get());
                both.wait();
                let writing = outlive_variable_write(writes.get());
                if !writing.is_null() {
                    (*writing.cast::<Thing>()).count += 1;
                }
                assert_eq!(outlive_end(writing), Code::OUTLIVE_OK);
                assert_eq!(outlive_end(reading), Code::OUTLIVE_OK);
                outlive_commit()
            })
        });
        let codes = threads.map(|thread| thread.join().unwrap());
        assert!(codes.contains(&Code::OUTLIVE_DEADLOCK), "{codes:?}");
        // SAFETY: as a program in C uses them.
        let total = unsafe { count(one.get()) + count(other.get()) } as usize;
        assert_eq!(total, codes.iter().filter(|code| **code == Code::OUTLIVE_OK).count());
    });
}

/// Two statics, in the order in which a work takes them, and how often it ran.
struct Both {
    first: *const outlive_static,
    second: *const outlive_static,
    met: Option<std::sync::Arc<std::sync::Barrier>>,
    runs: u32,
}

// SAFETY: called by the library alone, as its type says.
unsafe extern "C" fn takes_both(context: *mut c_void) -> c_int {
    // SAFETY: the test gives one.
    unsafe {
        let both = &mut *context.cast::<Both>();
        both.runs += 1;
        for (place, it) in [both.first, both.second].into_iter().enumerate() {
            let writing = outlive_variable_write(it).cast::<Thing>();
            if writing.is_null() {
                return -1;
            }
            (*writing).count += 1;
            outlive_end(writing.cast());
            if place == 0
                && let Some(met) = both.met.take()
            {
                met.wait();
            }
        }
    }
    0
}

#[test]
fn what_was_changed_before_a_transaction_is_not_lost_when_it_meets_a_deadlock() {
    let (one, other) = (variable(c"endings_before"), variable(c"endings_before_other"));
    let hits = counter(c"endings_before_hits");
    ends(move || {
        let mut unlucky = 0;
        for round in 1..=6 {
            let met = std::sync::Arc::new(std::sync::Barrier::new(2));
            let threads = [(one, other, true), (other, one, false)].map(|(first, second, before)| {
                let met = Some(std::sync::Arc::clone(&met));
                thread::spawn(move || {
                    let mut both = Both { first: first.get(), second: second.get(), met, runs: 0 };
                    // SAFETY: as a program in C uses them.
                    unsafe {
                        if before {
                            assert_eq!(outlive_counter_add(hits.get(), 1), Code::OUTLIVE_OK);
                        }
                        outlive_transaction(Some(takes_both), (&raw mut both).cast())
                    }
                })
            });
            let [with, without] = threads.map(|thread| thread.join().unwrap());
            assert_eq!(without, Code::OUTLIVE_OK, "it is run again");
            unlucky += i64::from(with == Code::OUTLIVE_DEADLOCK);
            // SAFETY: as a program in C uses them.
            let (total, hits) = unsafe { (count(one.get()), outlive_counter_get(hits.get())) };
            assert_eq!(hits, round - unlucky, "{with:?}: all of it, or nothing");
            assert_eq!(i64::from(total), 2 * round - unlucky);
            assert_eq!(outlive_commit(), Code::OUTLIVE_OK);
        }
    });
}

// SAFETY: called by the library alone, as its type says.
unsafe extern "C" fn replies(context: *mut c_void, reply: *mut outlive_reply) -> c_int {
    // SAFETY: the test and the library give both.
    unsafe {
        *context.cast::<u32>() += 1;
        outlive_reply_append(reply, lend(b"done"));
    }
    0
}

#[test]
fn a_request_does_not_commit_what_failed_before_it() {
    let hits = counter(c"endings_once_hits");
    let request = outlive_request { client_high: 0, client_low: 0xe4d, number: 1 };
    let (mut runs, mut said) = (0u32, outlive_buffer { data: null_mut(), length: 0 });
    // SAFETY: as a program in C uses them.
    unsafe {
        let context = (&raw mut runs).cast();
        assert_eq!(outlive_once(request, Some(replies), context, &raw mut said), Code::OUTLIVE_OK);
        outlive_buffer_free(&raw mut said);
        assert_eq!(outlive_counter_add(hits.0, 1), Code::OUTLIVE_OK);
        assert!(outlive_variable_read(null()).is_null(), "a part that fails");
        // Answered before: what it would commit is what was changed so far.
        let context = (&raw mut runs).cast();
        assert_eq!(outlive_once(request, Some(replies), context, &raw mut said), Code::OUTLIVE_MISUSE);
        assert_eq!((runs, outlive_counter_get(hits.0)), (1, 0));
        let context = (&raw mut runs).cast();
        assert_eq!(outlive_once(request, Some(replies), context, &raw mut said), Code::OUTLIVE_OK);
        outlive_buffer_free(&raw mut said);
        assert_eq!(runs, 1);
    }
}

#[test]
fn a_reply_that_cannot_be_appended_fails_its_transaction() {
    let hits = counter(c"endings_reply_hits");
    // SAFETY: as a program in C uses them.
    unsafe {
        assert_eq!(outlive_counter_add(hits.0, 1), Code::OUTLIVE_OK);
        assert_eq!(outlive_reply_append(null_mut(), lend(b"x")), Code::OUTLIVE_MISUSE);
        assert_eq!((outlive_commit(), outlive_counter_get(hits.0)), (Code::OUTLIVE_MISUSE, 0));
    }
}

#[test]
fn nothing_is_told_from_within_a_block_that_writes() {
    let one = variable(c"endings_told");
    let map = declare(c"endings_told_map", outlive_form::OUTLIVE_FORM_MAP, true);
    let list = declare(c"endings_told_list", outlive_form::OUTLIVE_FORM_LIST, true);
    // SAFETY: as a program in C uses them.
    unsafe {
        let thing = Thing { count: 3, name: *b"abcd", local: null() };
        assert_eq!(outlive_map_put(map, lend(&1u8), lend(&thing)), Code::OUTLIVE_OK);
        assert_eq!(outlive_list_push(list, lend(&thing), 0), Code::OUTLIVE_OK);
        assert_eq!((outlive_commit(), outlive_output_check()), (Code::OUTLIVE_OK, Code::OUTLIVE_OK));
        let begin: [fn(*const outlive_static) -> *mut c_void; 3] = [
            |one| outlive_variable_write(one),
            |map| outlive_map_write(map, lend(&1u8)),
            |list| outlive_list_write(list, 0),
        ];
        for (begin, it) in begin.into_iter().zip([one.0, map, list]) {
            let writing = begin(it).cast::<Thing>();
            (*writing).count += 1;
            assert_eq!(outlive_output_check(), Code::OUTLIVE_UNCOMMITTED);
            assert_eq!(outlive_end(writing.cast()), Code::OUTLIVE_OK);
            assert_eq!((outlive_commit(), outlive_output_check()), (Code::OUTLIVE_OK, Code::OUTLIVE_OK));
        }
    }
}

#[test]
fn each_pointer_to_no_bytes_is_one_of_its_own() {
    let map = declare(c"endings_empty_map", outlive_form::OUTLIVE_FORM_MAP, false);
    let list = declare(c"endings_empty_list", outlive_form::OUTLIVE_FORM_LIST, false);
    let none = outlive_bytes { data: null(), length: 0 };
    // SAFETY: as a program in C uses them.
    unsafe {
        assert_eq!(outlive_map_put(map, lend(&1u8), none), Code::OUTLIVE_OK);
        assert_eq!(outlive_list_push(list, none, 0), Code::OUTLIVE_OK);
        let (mut length, mut other) = (7, 7);
        let of_map = outlive_map_read(map, lend(&1u8), &raw mut length);
        let of_list = outlive_list_read(list, 0, &raw mut other);
        assert!(!of_map.is_null() && !of_list.is_null() && of_map != of_list);
        assert_eq!((length, other), (0, 0));
        assert_eq!(outlive_end(of_map), Code::OUTLIVE_OK);
        assert_eq!(outlive_map_remove(map, lend(&1u8)), Code::OUTLIVE_OK, "nothing of the map is held");
        assert_eq!((outlive_end(of_list), outlive_commit()), (Code::OUTLIVE_OK, Code::OUTLIVE_OK));
    }
}

/// The library's variables of a thread end one after the other: a pointer before the transaction that it is part of.
#[test]
fn a_thread_that_ends_with_a_pointer_is_undone() {
    let map = Known(declare(c"endings_thread_map", outlive_form::OUTLIVE_FORM_MAP, true));
    let thing = Thing { count: 3, name: *b"abcd", local: null() };
    // SAFETY: as a program in C uses them.
    unsafe {
        assert_eq!(outlive_map_put(map.0, lend(&1u8), lend(&thing)), Code::OUTLIVE_OK);
        assert_eq!(outlive_commit(), Code::OUTLIVE_OK);
        let ended = thread::spawn(move || {
            // Of what a thread keeps, its pointers are the first.
            assert!(outlive_map_read(map.get(), lend(&2u8), null_mut()).is_null());
            let writing = outlive_map_write(map.get(), lend(&1u8)).cast::<Thing>();
            (*writing).count = 99;
        });
        ended.join().unwrap();
        let mut copy = Thing { count: 0, ..thing };
        let to = (&raw mut copy).cast();
        assert_eq!(outlive_map_copy(map.0, lend(&1u8), to, size_of::<Thing>()), Code::OUTLIVE_OK);
        assert_eq!((copy.count, outlive_commit()), (3, Code::OUTLIVE_OK));
    }
}

//! Pointers that a thread of the program holds to replicated memory, until it ends them.
//!
//! A pointer is valid until `outlive_end`, on the thread that asked for it. What would wait for the thread itself (writing
//! what it reads, reading what it writes) is refused: it would wait for ever. Reading what it reads is not.

use std::cell::RefCell;
use std::ffi::c_void;

use outlive_replicated::dynamic::{
    SequenceRead, SequenceWrite, TableRead, TableWrite, VariableRead, VariableWrite, ready_thread,
};

use crate::code::{Code, Failure, code, outlive_code};
use crate::function::InUse;

/// What keeps a pointer valid. Its content is only there to be dropped.
#[expect(dead_code, reason = "held, and dropped in the end")]
pub enum Guard {
    ReadVariable(VariableRead),
    WriteVariable(VariableWrite),
    ReadMap(TableRead),
    WriteMap(TableWrite),
    ReadList(SequenceRead),
    WriteList(SequenceWrite),
    Handle(InUse),
    /// While a function of the program looks at all elements.
    Visit,
}

impl Guard {
    fn writes(&self) -> bool {
        matches!(self, Self::WriteVariable(_) | Self::WriteMap(_) | Self::WriteList(_))
    }
}

struct Held {
    pointer: *const c_void,
    /// The static, by its address.
    of: *const c_void,
    guard: Guard,
    /// What the pointer leads to, if it leads to nothing: no other has that address.
    _mark: Option<Box<u8>>,
}

thread_local! {
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

/// What the thread holds. At its end that is let go of before its transaction is undone, which would wait for it.
fn with_held<R>(then: impl FnOnce(&mut Vec<Held>) -> R) -> R {
    ready_thread();
    HELD.with_borrow_mut(then)
}

/// Whether this thread may begin to read, or to write, a static.
pub fn may_begin(of: *const c_void, name: &str, writes: bool) -> Result<(), Failure> {
    let in_the_way = with_held(|held| {
        let mut same = held.iter().filter(|held| held.of == of);
        same.any(|held| writes || held.guard.writes())
    });
    if in_the_way {
        let words = format!("this thread holds a pointer into `{name}`: `outlive_end` it first");
        return Err(Failure::new(Code::OUTLIVE_GUARD_ALIVE, words));
    }
    Ok(())
}

/// Keeps `guard` until the pointer is ended.
pub fn hold(pointer: *const c_void, of: *const c_void, guard: Guard) {
    with_held(|held| held.push(Held { pointer, of, guard, _mark: None }));
}

/// Keeps `guard` until the pointer to bytes that it gives access to is ended. None at all have a pointer of their own as well:
/// in memory of theirs they have none.
pub fn hold_bytes(pointer: *const c_void, length: usize, of: *const c_void, guard: Guard) -> *const c_void {
    let mark = (length == 0).then(|| Box::new(0u8));
    let pointer = mark.as_deref().map_or(pointer, |mark| std::ptr::from_ref(mark).cast());
    with_held(|held| held.push(Held { pointer, of, guard, _mark: mark }));
    pointer
}

/// Ends the last one of a pointer; `false` if there is none.
pub fn end(pointer: *const c_void) -> bool {
    let ended = with_held(|held| {
        let place = held.iter().rposition(|held| std::ptr::eq(held.pointer, pointer))?;
        Some(held.remove(place))
    });
    // Outside of the borrow: what ends with it may come back here.
    ended.is_some()
}

/// Ends a pointer to replicated memory that one of this library's functions returned to this thread. NULL is nothing.
/// What was changed through it is part of the thread's transaction.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_end(pointer: *const c_void) -> outlive_code {
    if pointer.is_null() || std::thread::panicking() {
        return Code::OUTLIVE_OK;
    }
    code(|| match end(pointer) {
        true => Ok(Code::OUTLIVE_OK),
        false => {
            Err(Failure::misuse("this thread holds no such pointer: one is ended once, where it was begun"))
        }
    })
}

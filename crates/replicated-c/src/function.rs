//! Replicated functions and what they opened.
//!
//! A function of C is called by one of three marked functions of this crate, one for each way of calling it: by its name and
//! with its arguments, which are bytes. What it opened is a pointer, which each side has for itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

use outlive_replicated::dynamic::announce_function;
use outlive_replicated::{Handle, replicated};
use parking_lot::lock_api::ArcMutexGuard;
use parking_lot::{Mutex, RawMutex};

use crate::blob::Blob;
use crate::code::{Code, Failure, code, outlive_code, part, text};
use crate::describe::{Object, declared, keep_failure, outlive_static};
use crate::guard::{Guard, hold, may_begin};
use crate::state::outlive_bytes;

/// When a backup calls a replicated function, and what it does about an error there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum outlive_policy {
    /// Before the commit that the handle is part of is acknowledged; an error on the backup fails that commit.
    OUTLIVE_EAGER = 0,
    /// Soon after that; an error is said in the log and in the status, and it is tried again.
    OUTLIVE_EAGER_RETRY = 1,
    /// At takeover, or when the value is first used after that.
    OUTLIVE_LAZY = 2,
}

/// Opens something: by arguments that were given by the program, on whichever side. Returns 0 and the value, which must
/// not be NULL; or something else, and says why by `outlive_fail`. A backup calls it on a thread of the library.
pub type outlive_open =
    Option<unsafe extern "C" fn(arguments: outlive_bytes, value: *mut *mut c_void) -> c_int>;

/// Ends what was opened.
pub type outlive_undo = Option<unsafe extern "C" fn(value: *mut c_void)>;

/// A replicated function, as `OUTLIVE_FUNCTION` declares it.
#[repr(C)]
pub struct outlive_function {
    /// Its name, the same in every version of the program.
    pub name: *const c_char,
    /// An `outlive_policy`.
    pub policy: u32,
    /// What it does.
    pub open: outlive_open,
    /// What undoes it; NULL for nothing.
    pub undo: outlive_undo,
}

/// A function, once it is registered.
#[derive(Clone, Copy)]
struct Known {
    policy: u32,
    open: unsafe extern "C" fn(outlive_bytes, *mut *mut c_void) -> c_int,
    undo: outlive_undo,
}

static KNOWN: Mutex<BTreeMap<String, Known>> = Mutex::new(BTreeMap::new());

const EAGER: u32 = outlive_policy::OUTLIVE_EAGER as u32;
const EAGER_RETRY: u32 = outlive_policy::OUTLIVE_EAGER_RETRY as u32;
const LAZY: u32 = outlive_policy::OUTLIVE_LAZY as u32;

thread_local! {
    /// What the function that runs says of its failure.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes a replicated function known. The macro calls it before `main`; what went wrong is said by `outlive_start`.
///
/// # Safety
/// `it` is what the macro has declared, and lives as long as the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_register_function(it: *const outlive_function) -> outlive_code {
    code(|| {
        let register = || {
            // SAFETY: as the caller promises.
            let it = unsafe { it.as_ref() }.ok_or_else(|| Failure::misuse("no function is given"))?;
            // SAFETY: a literal.
            let name = unsafe { text(it.name, "the name of a function") }?;
            let open = it.open.filter(|_| it.policy <= LAZY);
            let open = open.ok_or_else(|| Failure::misuse(format!("`{name}` does nothing that is known")))?;
            announce_function(&format!("C function {name}"))?;
            KNOWN.lock().insert(name.to_owned(), Known { policy: it.policy, open, undo: it.undo });
            Ok(Code::OUTLIVE_OK)
        };
        keep_failure(register())
    })
}

/// Says why a replicated function fails, from within it; returns 1, for it to return.
///
/// # Safety
/// `why` is NULL or a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_fail(why: *const c_char) -> c_int {
    // SAFETY: as the caller promises.
    let why = unsafe { text(why, "the reason") }.unwrap_or("no reason that is a text").to_owned();
    let _ = SAID.try_with(|said| said.replace(Some(why)));
    1
}

pub struct Pointer(*mut c_void);

// SAFETY: the value is the program's, which knows that it is opened, used and undone by different threads, one at a time.
unsafe impl Send for Pointer {}

/// What a function has opened on this side.
pub struct Opened {
    value: Arc<Mutex<Pointer>>,
    undo: outlive_undo,
}

/// While a thread of the program uses it.
pub type InUse = ArcMutexGuard<RawMutex, Pointer>;

fn call(function: &str, arguments: &Blob) -> Result<Opened, String> {
    let known = KNOWN.lock().get(function).copied();
    let known = known.ok_or_else(|| format!("this program has no replicated function `{function}`"))?;
    let mut value = std::ptr::null_mut();
    let _ = SAID.try_with(RefCell::take);
    // SAFETY: the program has declared it as such a function; both arguments live through the call.
    let returned = unsafe { (known.open)(outlive_bytes::lent(&arguments.0), &raw mut value) };
    let said = SAID.try_with(RefCell::take).ok().flatten();
    match (returned, value.is_null()) {
        (0, false) => Ok(Opened { value: Arc::new(Mutex::new(Pointer(value))), undo: known.undo }),
        (0, true) => Err("it returned 0 and opened nothing".into()),
        (number, _) => Err(said.unwrap_or_else(|| format!("it returned {number}"))),
    }
}

fn undo(opened: Opened) {
    // Waits for who uses it. Who waits to use it finds that it is gone.
    let value = std::mem::replace(&mut opened.value.lock().0, std::ptr::null_mut());
    if let Some(undo) = opened.undo {
        // SAFETY: the program has declared it to undo what its function opened; it is called once, for the value goes.
        unsafe { undo(value) };
    }
}

/// Keeps what is opened for this thread alone; that may have been undone since it was found.
fn begin_use(value: &Arc<Mutex<Pointer>>) -> Result<*mut c_void, Failure> {
    let of: *const c_void = Arc::as_ptr(value).cast();
    may_begin(of, "what is in use", true)?;
    let guard = value.lock_arc();
    let pointer = guard.0;
    if pointer.is_null() {
        let words = "what was to be used is closed: its handle is no longer part of the state";
        return Err(Failure::new(Code::OUTLIVE_CALL_FAILED, words));
    }
    hold(pointer, of, Guard::Handle(guard));
    Ok(pointer)
}

#[replicated(eager, on_error = fail, undo = undo, name = "outlive.c.eager")]
fn open_eagerly(function: String, arguments: Blob) -> Result<Opened, String> {
    call(&function, &arguments)
}

#[replicated(eager, on_error = retry, undo = undo, name = "outlive.c.eager_retry")]
fn open_soon(function: String, arguments: Blob) -> Result<Opened, String> {
    call(&function, &arguments)
}

#[replicated(lazy, undo = undo, name = "outlive.c.lazy")]
fn open_lazily(function: String, arguments: Blob) -> Result<Opened, String> {
    call(&function, &arguments)
}

type Handles = outlive_replicated::Root<outlive_replicated::Map<Blob, Handle<Opened>>>;

fn handles(it: &'static crate::describe::Static) -> Result<&'static Handles, Failure> {
    match &it.object {
        Object::Handles(handles) => Ok(handles),
        _ => Err(Failure::misuse(format!("`{}` has no handles", it.name))),
    }
}

/// Calls a replicated function, and keeps what it opened under a key: as part of this thread's transaction, whose commit
/// has the backup call it as well. What was under the key before is undone, on both sides.
///
/// # Safety
/// `it` and `function` were declared by macros, the bytes can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_handle_open(
    it: *const outlive_static,
    key: outlive_bytes,
    function: *const outlive_function,
    arguments: outlive_bytes,
) -> outlive_code {
    let outcome = part(|| {
        // SAFETY: as the caller promises.
        let (it, key, arguments) = unsafe { (declared(it)?, key.get()?, arguments.get()?) };
        // SAFETY: as the caller promises.
        let function = unsafe { function.as_ref() }.ok_or_else(|| Failure::misuse("no function is given"))?;
        // SAFETY: a literal.
        let name = unsafe { text(function.name, "the name of a function") }?.to_owned();
        let handles = handles(it)?;
        let policy = KNOWN.lock().get(&name).map(|known| known.policy);
        let arguments = Blob::from(arguments);
        let handle = match policy {
            Some(EAGER) => open_eagerly(name, arguments)?,
            Some(EAGER_RETRY) => open_soon(name, arguments)?,
            Some(LAZY) => open_lazily(name, arguments)?,
            _ => return Err(Failure::misuse(format!("`{name}` is not registered"))),
        };
        handles.try_write()?.insert(Blob::from(key), handle);
        Ok(Code::OUTLIVE_OK)
    });
    outcome.unwrap_or_else(|code| code)
}

/// Lets go of what is under a key: undone on both sides, here once the commit of this is acknowledged. `OUTLIVE_NONE`: there
/// is nothing.
///
/// # Safety
/// `it` was declared by a macro, the key can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_handle_close(it: *const outlive_static, key: outlive_bytes) -> outlive_code {
    let outcome = part(|| {
        // SAFETY: as the caller promises.
        let (it, key) = unsafe { (declared(it)?, key.get()?) };
        let gone = handles(it)?.try_write()?.remove(&Blob::from(key));
        Ok(if gone.is_some() { Code::OUTLIVE_OK } else { Code::OUTLIVE_NONE })
    });
    outcome.unwrap_or_else(|code| code)
}

/// This side's value under a key, for this thread alone until `outlive_end`; opened now if this process has taken over and
/// it is not there yet. NULL if there is none, or if that fails.
///
/// # Safety
/// `it` was declared by a macro, the key can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_handle_use(it: *const outlive_static, key: outlive_bytes) -> *mut c_void {
    let pointer = part(|| {
        // SAFETY: as the caller promises.
        let (it, key) = unsafe { (declared(it)?, key.get()?) };
        let local = handles(it)?.read().get(key).map(|handle| handle.local());
        let Some(local) = local else { return Ok(std::ptr::null_mut()) };
        let value = Arc::clone(&local.lock()?.value);
        begin_use(&value)
    });
    pointer.unwrap_or(std::ptr::null_mut())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::end;

    // SAFETY: called by the library alone, with what the test has made.
    unsafe extern "C" fn free(value: *mut c_void) {
        // SAFETY: as above, once.
        drop(unsafe { Box::from_raw(value.cast::<u8>()) });
    }

    #[test]
    fn what_is_closed_between_finding_and_using_it_is_not_used() {
        let pointer: *mut c_void = Box::into_raw(Box::new(7u8)).cast();
        let opened = Opened { value: Arc::new(Mutex::new(Pointer(pointer))), undo: Some(free) };
        // As a thread has it that has found the handle and not locked its value yet.
        let found = Arc::clone(&opened.value);
        assert_eq!(begin_use(&found).ok(), Some(pointer));
        assert!(end(pointer));
        undo(opened);
        assert_eq!(begin_use(&found).err().map(|failure| failure.code), Some(Code::OUTLIVE_CALL_FAILED));
    }
}

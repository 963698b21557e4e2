//! What functions return, and the words for it.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use outlive_replicated::dynamic::{BadType, NotDeclared};
use outlive_replicated::{CallError, CommitError, WriteError};

/// What a function of this library returns. `outlive_last_error()` has the words for all but the first two.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum outlive_code {
    /// It was done.
    OUTLIVE_OK = 0,
    /// It is not known yet: ask again.
    OUTLIVE_PENDING = 1,
    /// There is no such element.
    OUTLIVE_NONE = 2,
    /// Another process has taken over: this one must not answer anybody any more, and is to end.
    OUTLIVE_DEPOSED = 10,
    /// The program was stopped.
    OUTLIVE_STOPPED = 11,
    /// A transaction could not be undone: this process is to end.
    OUTLIVE_BROKEN = 12,
    /// This transaction and another wait for each other's objects, to change them or while one holds a pointer for reading.
    /// `outlive_transaction` tries again by itself, unless something was changed before it.
    OUTLIVE_DEADLOCK = 20,
    /// A pointer is held and not ended: for writing; or for reading what this transaction has changed, which cannot be undone
    /// meanwhile. Nothing is committed or undone: end it, then ask again.
    OUTLIVE_GUARD_ALIVE = 21,
    /// The transaction is too large; it was undone.
    OUTLIVE_TOO_LARGE = 22,
    /// A replicated function failed on the backup; the transaction was undone.
    OUTLIVE_CALL_FAILED = 23,
    /// The work of a transaction returned something else than 0; it was undone.
    OUTLIVE_WORK_FAILED = 24,
    /// The client has asked for something later since.
    OUTLIVE_PASSED = 25,
    /// This thread has changed replicated state and not committed.
    OUTLIVE_UNCOMMITTED = 30,
    /// What this thread committed last is not acknowledged yet.
    OUTLIVE_UNACKNOWLEDGED = 31,
    /// An argument that cannot be, or something that was not declared or not begun.
    OUTLIVE_MISUSE = 40,
    /// A declaration that cannot be, or that comes too late.
    OUTLIVE_BAD_DECLARATION = 41,
    /// A configuration that cannot be used.
    OUTLIVE_BAD_CONFIG = 42,
    /// This process could not take part.
    OUTLIVE_NOT_STARTED = 43,
    /// The primary runs a program whose state this one cannot hold.
    OUTLIVE_INCOMPATIBLE = 44,
    /// A defect of this library, caught at its edge.
    OUTLIVE_PANICKED = 50,
}

pub use outlive_code as Code;

/// Why something was not done.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: Code,
    pub words: String,
}

impl Failure {
    pub fn new(code: Code, words: impl Into<String>) -> Self {
        Self { code, words: words.into() }
    }

    pub fn misuse(words: impl Into<String>) -> Self {
        Self::new(Code::OUTLIVE_MISUSE, words)
    }
}

/// With everything that lies behind it.
pub fn all_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        next = error.source();
    }
    words
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        let code = match &error {
            CommitError::Deposed => Code::OUTLIVE_DEPOSED,
            CommitError::Stopped => Code::OUTLIVE_STOPPED,
            CommitError::GuardAlive => Code::OUTLIVE_GUARD_ALIVE,
            CommitError::Panicked => Code::OUTLIVE_PANICKED,
            CommitError::TooLarge(_) => Code::OUTLIVE_TOO_LARGE,
            CommitError::Deadlock(_) => Code::OUTLIVE_DEADLOCK,
            CommitError::CallFailed { .. } => Code::OUTLIVE_CALL_FAILED,
            CommitError::Broken(_) => Code::OUTLIVE_BROKEN,
        };
        Self::new(code, all_words(&error))
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        let code = match &error {
            WriteError::Deadlock(_) => Code::OUTLIVE_DEADLOCK,
            WriteError::GuardAlive => Code::OUTLIVE_GUARD_ALIVE,
            _ => Code::OUTLIVE_MISUSE,
        };
        Self::new(code, error.to_string())
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Write(error) => error.into(),
            error => Self::new(Code::OUTLIVE_CALL_FAILED, error.to_string()),
        }
    }
}

impl From<NotDeclared> for Failure {
    fn from(error: NotDeclared) -> Self {
        Self::new(Code::OUTLIVE_BAD_DECLARATION, error.to_string())
    }
}

impl From<BadType> for Failure {
    fn from(error: BadType) -> Self {
        Self::new(Code::OUTLIVE_BAD_DECLARATION, error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
    /// Why this thread's transaction cannot be committed, if something in it failed.
    static FAILED: RefCell<Option<Failure>> = const { RefCell::new(None) };
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The words for the last code of this thread that was neither `OUTLIVE_OK` nor `OUTLIVE_PENDING`; "" if there was none.
/// They are valid until the thread's next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_last_error() -> *const c_char {
    let words = LAST.try_with(|last| last.try_borrow().map(|last| last.as_ptr()));
    words.ok().and_then(Result::ok).unwrap_or(c"".as_ptr())
}

pub fn remember_words(failure: &Failure) -> Code {
    let words = failure.words.replace('\0', " ");
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = CString::new(words).unwrap_or_default();
        }
    });
    failure.code
}

/// The failure that a panic is: the library unwinds where a reader meets a deadlock.
pub fn of_panic(panic: &(dyn Any + Send)) -> Failure {
    if let Some(error) = panic.downcast_ref::<WriteError>() {
        return (*error).into();
    }
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "a panic without words".into());
    Failure::new(Code::OUTLIVE_PANICKED, text)
}

/// What every function that C calls does: no panic gets out, and the words of an error are kept.
pub fn run<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Code> {
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(of_panic(&*panic)));
    outcome.map_err(|failure| remember_words(&failure))
}

/// The same, for what only returns a code.
pub fn code(work: impl FnOnce() -> Result<Code, Failure>) -> Code {
    run(work).unwrap_or_else(|code| code)
}

/// The same, for part of a transaction: when it fails, so does the transaction.
pub fn part<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Code> {
    run(|| {
        let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(of_panic(&*panic)));
        outcome.inspect_err(fail)
    })
}

/// This thread's transaction cannot be committed any more. The first reason is kept.
pub fn fail(failure: &Failure) {
    let _ = FAILED.try_with(|failed| failed.borrow_mut().get_or_insert_with(|| failure.clone()).code);
}

/// Why this thread's transaction failed.
pub fn failure() -> Option<Failure> {
    FAILED.try_with(|failed| failed.borrow().clone()).ok().flatten()
}

/// Why this thread's transaction failed, which is forgotten with this.
pub fn take_failure() -> Option<Failure> {
    FAILED.try_with(|failed| failed.borrow_mut().take()).ok().flatten()
}

/// How deep this thread is in transactions that are work of others.
pub fn depth() -> u32 {
    DEPTH.get()
}

/// Runs `work` as the work of a transaction.
pub fn within<R>(work: impl FnOnce() -> R) -> R {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get().saturating_sub(1));
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    let _leave = Leave;
    work()
}

/// A text that C gave; `None` for NULL.
///
/// # Safety
/// `text` is NULL or leads to a text that ends with a zero and does not change while the result lives.
pub unsafe fn optional_text<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| Failure::misuse(format!("{what} is not UTF-8")))
}

/// A text that C gave.
///
/// # Safety
/// As for [`optional_text`].
pub unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: as the caller promises.
    unsafe { optional_text(text, what) }?.ok_or_else(|| Failure::misuse(format!("{what} is NULL")))
}

/// Bytes that C gave; NULL may be given for none.
///
/// # Safety
/// `data` is NULL, or `length` bytes can be read from it that do not change while the result lives.
pub unsafe fn bytes<'a>(data: *const std::ffi::c_void, length: usize) -> Result<&'a [u8], Failure> {
    match (data.is_null(), length) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::misuse(format!("{length} bytes at NULL"))),
        _ if length > isize::MAX as usize => Err(Failure::misuse(format!("{length} bytes"))),
        // SAFETY: not NULL, and as the caller promises.
        _ => Ok(unsafe { std::slice::from_raw_parts(data.cast(), length) }),
    }
}

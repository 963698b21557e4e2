//! Commits and transactions.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::panic::resume_unwind;
use std::thread;

use outlive_replicated::{
    Commit, CommitError, Deadlock, RequestError, RequestId, TransactionError, WriteError, commit_async, once,
    rollback, transaction,
};
use parking_lot::{Condvar, Mutex};

use crate::code::{Code, Failure, code, depth, fail, failure, outlive_code, part, take_failure, within};
use crate::state::{outlive_buffer, outlive_bytes};

/// The work of a transaction: it returns 0 to have it committed.
pub type outlive_work = Option<unsafe extern "C" fn(context: *mut c_void) -> c_int>;

/// The work of a request: it returns 0 to have it committed, together with what it has put into `reply`.
pub type outlive_request_work =
    Option<unsafe extern "C" fn(context: *mut c_void, reply: *mut outlive_reply) -> c_int>;

/// Is told how a commit ended: `OUTLIVE_OK` when it is acknowledged. Called by a thread of the library, one after the other.
pub type outlive_told = Option<unsafe extern "C" fn(context: *mut c_void, number: u64, code: outlive_code)>;

/// What a request is answered with.
pub struct outlive_reply(Vec<u8>);

/// Which request of which client.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct outlive_request {
    /// The client: 128 bits, random, made by it once and kept over its connections.
    pub client_high: u64,
    /// The lower half.
    pub client_low: u64,
    /// Its requests, one after the other: each number is higher than the one before.
    pub number: u64,
}

impl outlive_request {
    fn client(self) -> u128 {
        u128::from(self.client_high) << 64 | u128::from(self.client_low)
    }
}

fn not_within(what: &str) -> Result<(), Failure> {
    match depth() {
        0 => Ok(()),
        _ => Err(Failure::misuse(format!(
            "{what} within a transaction's work: it ends by what the work returns"
        ))),
    }
}

/// Undoes a transaction of which something failed, and says what. It is not forgotten before it is undone: what was changed
/// would be committed without what failed.
fn undo_what_failed() -> Result<(), Failure> {
    if failure().is_some() {
        rollback()?;
    }
    take_failure().map_or(Ok(()), Err)
}

fn begin_commit() -> Result<Commit, Failure> {
    not_within("a commit")?;
    undo_what_failed()?;
    Ok(commit_async()?)
}

/// Ends this thread's transaction, and returns when as many backups hold it as are waited for. With nothing changed
/// it waits until what was read may be answered with. If anything in the transaction failed, it is undone, and the code says
/// what failed.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_commit() -> outlive_code {
    code(|| {
        begin_commit()?.wait()?;
        Ok(Code::OUTLIVE_OK)
    })
}

/// Ends this thread's transaction, and says the commit's number: to be asked for by `outlive_commit_poll`, waited for by
/// `outlive_commit_wait`, or told of by `outlive_commit_then`. Nothing may be answered before.
///
/// # Safety
/// `number` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_commit_async(number: *mut u64) -> outlive_code {
    code(|| {
        // SAFETY: as the caller promises.
        let number = unsafe { number.as_mut() };
        let number =
            number.ok_or_else(|| Failure::misuse("there is no place for the number of the commit"))?;
        *number = begin_commit()?.number();
        Ok(Code::OUTLIVE_OK)
    })
}

/// Whether a commit is acknowledged: `OUTLIVE_PENDING` while that is not known.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_commit_poll(number: u64) -> outlive_code {
    code(|| match Commit::of_number(number).try_wait() {
        None => Ok(Code::OUTLIVE_PENDING),
        Some(outcome) => outcome.map(|()| Code::OUTLIVE_OK).map_err(Failure::from),
    })
}

/// Waits until a commit is acknowledged.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_commit_wait(number: u64) -> outlive_code {
    code(|| {
        Commit::of_number(number).wait()?;
        Ok(Code::OUTLIVE_OK)
    })
}

struct Told {
    number: u64,
    told: unsafe extern "C" fn(*mut c_void, u64, outlive_code),
    context: *mut c_void,
}

// SAFETY: the program gives the pointer to be handed to its function by a thread of this library.
unsafe impl Send for Told {}

/// Who is to be told, and whether a thread tells.
struct Queue {
    waiting: VecDeque<Told>,
    attended: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { waiting: VecDeque::new(), attended: false });
static MORE: Condvar = Condvar::new();

/// Has `told` called when a commit has ended, however. It gets `context`, and must not wait for long: others are told by
/// the same thread.
///
/// # Safety
/// `told` can be called with `context` by another thread, until it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_commit_then(
    number: u64,
    told: outlive_told,
    context: *mut c_void,
) -> outlive_code {
    code(|| {
        let told = told.ok_or_else(|| Failure::misuse("nobody is given to be told"))?;
        let mut queue = QUEUE.lock();
        if !queue.attended {
            let started = thread::Builder::new().name("replicated tells".into()).spawn(attend);
            started.map_err(|error| Failure::misuse(format!("no thread can be started: {error}")))?;
            queue.attended = true;
        }
        queue.waiting.push_back(Told { number, told, context });
        MORE.notify_one();
        Ok(Code::OUTLIVE_OK)
    })
}

/// For ever.
fn attend() {
    loop {
        let next = {
            let mut queue = QUEUE.lock();
            loop {
                match queue.waiting.pop_front() {
                    Some(next) => break next,
                    None => MORE.wait(&mut queue),
                }
            }
        };
        let code = outlive_commit_wait(next.number);
        // SAFETY: as `outlive_commit_then` was promised.
        unsafe { (next.told)(next.context, next.number, code) };
    }
}

/// Undoes what this thread changed since its last commit, and forgets what failed.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_rollback() -> outlive_code {
    code(|| {
        not_within("undoing")?;
        rollback()?;
        take_failure();
        Ok(Code::OUTLIVE_OK)
    })
}

/// How the work ended: its failure is kept until it is undone. A deadlock unwinds, and is tried again by who called.
fn settle(returned: c_int) -> Result<(), ()> {
    if returned != 0 {
        let words = format!("the work of a transaction returned {returned}");
        fail(&Failure::new(Code::OUTLIVE_WORK_FAILED, words));
    }
    match failure() {
        Some(failure) if failure.code == Code::OUTLIVE_DEADLOCK => {
            resume_unwind(Box::new(WriteError::Deadlock(Deadlock)))
        }
        Some(_) => Err(()),
        None => Ok(()),
    }
}

/// The failure of a transaction that did not take place. One that could be neither committed nor undone for a pointer that its
/// work has left cannot be committed after this either: only undone.
fn ended(error: Option<CommitError>) -> Failure {
    match error {
        Some(CommitError::GuardAlive) => {
            let alive = Failure::from(CommitError::GuardAlive);
            fail(&alive);
            alive
        }
        Some(error) => {
            take_failure();
            error.into()
        }
        None => take_failure()
            .unwrap_or_else(|| Failure::new(Code::OUTLIVE_WORK_FAILED, "the work of a transaction failed")),
    }
}

/// Runs `work` as one transaction: committed if it returns 0 and nothing in it failed, undone else, and run again if it and
/// another wait for each other's objects. Returns when it is acknowledged. What was changed before is part of it; with
/// `OUTLIVE_DEADLOCK` all of it is undone, for that cannot be run again. `OUTLIVE_GUARD_ALIVE`: the work has left a pointer,
/// and all of it is undone by the next commit or rollback after that is ended.
///
/// # Safety
/// `work` can be called with `context`, more than once, and leaves by returning.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_transaction(work: outlive_work, context: *mut c_void) -> outlive_code {
    code(|| {
        not_within("a transaction")?;
        let work = work.ok_or_else(|| Failure::misuse("no work is given"))?;
        undo_what_failed()?;
        let outcome = transaction(|| {
            // What failed the time before is undone.
            take_failure();
            // SAFETY: as the caller promises.
            settle(within(|| unsafe { work(context) }))
        });
        match outcome {
            Ok(()) => Ok(Code::OUTLIVE_OK),
            Err(TransactionError::Work(())) => Err(ended(None)),
            Err(TransactionError::Commit(error)) => Err(ended(Some(error))),
        }
    })
}

/// Puts bytes at the end of a reply.
///
/// # Safety
/// `reply` is what the work was given, the bytes can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_reply_append(
    reply: *mut outlive_reply,
    bytes: outlive_bytes,
) -> outlive_code {
    let appended = part(|| {
        // SAFETY: as the caller promises.
        let (reply, bytes) = unsafe { (reply.as_mut(), bytes.get()?) };
        reply.ok_or_else(|| Failure::misuse("no reply is given"))?.0.extend_from_slice(bytes);
        Ok(Code::OUTLIVE_OK)
    });
    appended.unwrap_or_else(|code| code)
}

/// Does `work` once, however often the request is asked for, by whichever process: as one transaction together with the
/// recording of its reply, which a repeated request gets. Of each client the last reply is kept.
///
/// # Safety
/// `work` can be called with `context`, more than once, and leaves by returning; `reply` can be written and holds nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_once(
    request: outlive_request,
    work: outlive_request_work,
    context: *mut c_void,
    reply: *mut outlive_buffer,
) -> outlive_code {
    code(|| {
        not_within("a request")?;
        let work = work.ok_or_else(|| Failure::misuse("no work is given"))?;
        // SAFETY: as the caller promises.
        let to = unsafe { reply.as_mut() }.ok_or_else(|| Failure::misuse("no buffer is given"))?;
        let id = RequestId { client: request.client(), number: request.number };
        undo_what_failed()?;
        let outcome = once(id, || {
            take_failure();
            let mut reply = outlive_reply(Vec::new());
            // SAFETY: as the caller promises.
            settle(within(|| unsafe { work(context, &raw mut reply) }))?;
            Ok(reply.0)
        });
        match outcome {
            Ok(reply) => {
                *to = outlive_buffer::of(reply.into());
                Ok(Code::OUTLIVE_OK)
            }
            Err(RequestError::Work(())) => Err(ended(None)),
            Err(RequestError::Commit(error)) => Err(ended(Some(error))),
            Err(RequestError::Passed(number)) => {
                let words =
                    format!("the client has had its answer to request {number}: a later one is known");
                Err(Failure::new(Code::OUTLIVE_PASSED, words))
            }
        }
    })
}

/// A client that will not come back: its last reply is dropped, with the next commit.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_forget_client(client_high: u64, client_low: u64) -> outlive_code {
    let client = u128::from(client_high) << 64 | u128::from(client_low);
    let known = part(|| Ok(outlive_replicated::forget_client(client)));
    known.map_or_else(|code| code, |known| if known { Code::OUTLIVE_OK } else { Code::OUTLIVE_NONE })
}

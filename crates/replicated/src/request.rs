//! Requests that are repeated after a failover are answered by the recorded reply.
//!
//! A client that got no answer cannot know whether what it asked for has happened. It asks again, with the same
//! [`RequestId`]; the table of replies is marked state like any other, so that a request and its reply are committed
//! together, or neither.

use crate::transaction::{CommitError, TransactionError, transaction};
use crate::{Map, commit, replicated};

/// Which request of which client.
///
/// ```
/// use outlive_replicated::RequestId;
///
/// // Asked once more, it is the same; what is asked next has the next number.
/// let id = RequestId { client: 0x5eed, number: 1 };
/// assert_ne!(id, RequestId { number: id.number + 1, ..id });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The client: random, made by it once, and kept over its connections.
    pub client: u128,
    /// Its requests, one after the other: each number is higher than the one before, and the next is only used when
    /// the one before is answered.
    pub number: u64,
}

#[replicated(name = "outlive::Recorded")]
struct Recorded {
    number: u64,
    reply: Vec<u8>,
}

/// The last reply to each client.
#[replicated(name = "outlive::REPLIES")]
static REPLIES: Map<u128, Recorded> = Map::new();

/// Why a request has no reply.
///
/// ```
/// use outlive_replicated::{once, RequestError, RequestId};
///
/// let ask = |number| once(RequestId { client: 1, number }, || Ok::<_, ()>(vec![1]));
/// assert_eq!(ask(2), Ok(vec![1]));
/// assert_eq!(ask(1), Err(RequestError::Passed(1)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError<E> {
    /// What the work itself returned; its changes were undone, and nothing is recorded.
    #[error("the work of a request failed")]
    Work(E),
    /// It was not acknowledged.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The client has asked for something later since, so this one was answered.
    #[error("the client has had its answer to request {0}: a later one of it is known")]
    Passed(u64),
}

enum Met<E> {
    Work(E),
    Passed(u64),
    Recorded(Vec<u8>),
}

/// Does `work` once, however often it is asked for: as one [`transaction`], together with the recording of its reply. A
/// repeated request gets that reply, also from another process than the one that did the work.
///
/// Of each client the last reply is kept, until [`forget_client`].
///
/// ```
/// use outlive_replicated::{Counter, RequestId, once, replicated};
///
/// #[replicated]
/// static SOLD: Counter = Counter::new();
///
/// let id = RequestId { client: 7, number: 1 };
/// for _ in 0..3 {
///     let reply = once(id, || {
///         SOLD.write().add(1);
///         Ok::<_, ()>(SOLD.read().get().to_string().into_bytes())
///     });
///     assert_eq!(reply, Ok(b"1".to_vec()));
/// }
/// assert_eq!(SOLD.read().get(), 1);
/// ```
pub fn once<E>(
    id: RequestId,
    mut work: impl FnMut() -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, RequestError<E>> {
    match known(id) {
        Some(Met::Recorded(reply)) => {
            // It may have been recorded by a commit that is not acknowledged yet.
            commit()?;
            return Ok(reply);
        }
        Some(Met::Passed(number)) => return Err(RequestError::Passed(number)),
        Some(Met::Work(never)) => match never {},
        None => {}
    }
    let outcome = transaction(|| {
        let reply = work().map_err(Met::Work)?;
        // Last, so that requests of different clients meet for a moment only.
        let mut replies = REPLIES.write();
        // The same request may have come over two connections.
        if let Some(met) = replies.get(&id.client).and_then(|recorded| met(&recorded, id)) {
            return Err(met);
        }
        replies.insert(id.client, Recorded { number: id.number, reply: reply.clone() });
        Ok(reply)
    });
    match outcome {
        Ok(reply) => Ok(reply),
        Err(TransactionError::Work(Met::Work(error))) => Err(RequestError::Work(error)),
        Err(TransactionError::Work(Met::Passed(number))) => Err(RequestError::Passed(number)),
        Err(TransactionError::Work(Met::Recorded(reply))) => {
            commit()?;
            Ok(reply)
        }
        Err(TransactionError::Commit(error)) => Err(error.into()),
    }
}

fn known(id: RequestId) -> Option<Met<std::convert::Infallible>> {
    REPLIES.read().get(&id.client).and_then(|recorded| met(&recorded, id))
}

fn met<E>(recorded: &Recorded, id: RequestId) -> Option<Met<E>> {
    match recorded.number.cmp(&id.number) {
        std::cmp::Ordering::Less => None,
        std::cmp::Ordering::Equal => Some(Met::Recorded(recorded.reply.clone())),
        std::cmp::Ordering::Greater => Some(Met::Passed(id.number)),
    }
}

/// A client that will not come back: its last reply is dropped, with the next commit. Whether there was one.
///
/// ```
/// use outlive_replicated::{commit, forget_client, once, RequestId};
///
/// once(RequestId { client: 7, number: 1 }, || Ok::<_, ()>(b"done".to_vec())).unwrap();
/// assert!(forget_client(7));
/// commit()?;
/// assert!(!forget_client(7));
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub fn forget_client(client: u128) -> bool {
    REPLIES.write().remove(&client).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;

    #[replicated(name = "request_tests::DONE")]
    static DONE: Counter = Counter::new();

    fn ask(client: u128, number: u64) -> Result<Vec<u8>, RequestError<&'static str>> {
        once(RequestId { client, number }, || {
            DONE.write().add(1);
            if number == 13 { Err("unlucky") } else { Ok(number.to_string().into_bytes()) }
        })
    }

    #[test]
    fn a_request_is_done_once_however_often_it_comes() {
        let before = DONE.read().get();
        assert_eq!(ask(1, 1), Ok(b"1".to_vec()));
        assert_eq!(ask(1, 1), Ok(b"1".to_vec()));
        assert_eq!(ask(2, 1), Ok(b"1".to_vec()), "another client's");
        assert_eq!(ask(1, 12), Ok(b"12".to_vec()));
        assert_eq!(ask(1, 1), Err(RequestError::Passed(1)));
        // What fails is not recorded, and may be tried again.
        assert_eq!(ask(1, 13), Err(RequestError::Work("unlucky")));
        assert_eq!(ask(1, 12), Ok(b"12".to_vec()));
        assert_eq!(DONE.read().get() - before, 3);

        // The same request over many connections at once.
        let replies = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| ask(3, 5))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(replies, vec![Ok(b"5".to_vec()); 4]);
        assert_eq!(DONE.read().get() - before, 4);
        assert!(forget_client(3) && !forget_client(3));
        commit().unwrap();
    }
}

//! A question and its answer, one at a time on a connection.
//!
//! A request is the number of the call (8 bytes) and its bytes; a response the same number, a status, and its
//! bytes. The number pairs them: an answer to anything but the question just asked is an error, never taken
//! for its answer.

use std::io;
use std::time::{Duration, Instant};

use crate::connection::{Connection, Reader, ReceiveError, SendError, Writer};
use crate::frame::{FrameError, FrameReader, FrameSendError, FrameWriter, Kind, KindSet, PAYLOAD_MAX};
use crate::hello::{HelloError, Stream, VERSIONS};
use crate::wire::Fields;

/// What a connection for calls is opened for.
pub const PURPOSE: &str = "rpc";

/// Kinds that the end that serves may receive.
pub const SERVER_KINDS: KindSet = KindSet::of(&[Kind::REQUEST]);
/// Kinds that the end that calls may receive.
pub const CLIENT_KINDS: KindSet = KindSet::of(&[Kind::RESPONSE]);

const CALL_LENGTH: usize = size_of::<u64>();

/// The longest request, and the longest response: what fits a frame.
pub const MESSAGE_MAX: usize = PAYLOAD_MAX - CALL_LENGTH - 1;

/// How long an accepted connection may take to say what it is for: many round trips of any network in use.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

const ANSWERED: u8 = 0;
const RESPONSE_TOO_LONG: u8 = 1;

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("a request of {length} bytes is too long; the most is {MESSAGE_MAX}")]
    TooLong { length: usize },
    #[error("an earlier call on this connection failed; connect again")]
    AfterFailure,
    #[error("{peer} did not answer in time; whether it did what was asked is not known")]
    TimedOut { peer: String },
    #[error("the time limit cannot be set on the connection to {peer}; connect again")]
    Limit { peer: String, source: io::Error },
    #[error("{peer} could not be asked; connect again")]
    Send { peer: String, source: FrameSendError },
    #[error(
        "{peer} was asked and its answer could not be received; whether it did what was asked is not known"
    )]
    Receive { peer: String, source: FrameError },
    #[error("{peer} did what was asked, and its answer is longer than {MESSAGE_MAX} bytes")]
    ResponseTooLong { peer: String },
    #[error("{peer} answered another question than was asked; both ends may not run the same version")]
    Unpaired { peer: String },
}

impl CallError {
    /// Whether the other end may have done what was asked, for all that is known here.
    pub fn may_have_happened(&self) -> bool {
        !matches!(self, Self::TooLong { .. } | Self::AfterFailure)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the connection did not come to calls")]
    Hello(#[from] HelloError),
    #[error("a request from {peer} could not be received")]
    Receive { peer: String, source: FrameError },
    #[error("a response to {peer} could not be sent")]
    Send { peer: String, source: FrameSendError },
    #[error("a request from {peer} is malformed; both ends may not run the same version")]
    Malformed { peer: String },
}

/// The end that asks. After a failure it is of no more use: a late answer must not meet a later question.
#[derive(Debug)]
pub struct Client {
    peer: String,
    writer: FrameWriter<Writer>,
    reader: FrameReader<Reader>,
    next_call: u64,
    failed: bool,
}

impl Client {
    /// Open a connection for calls.
    pub fn open(connection: Connection, timeout: Duration) -> Result<Self, HelloError> {
        Ok(Self::over(Stream::open(connection, VERSIONS, PURPOSE, CLIENT_KINDS, timeout)?))
    }

    /// On a stream opened for calls with a purpose of its own, and [`CLIENT_KINDS`].
    pub fn over(stream: Stream) -> Self {
        let Stream { peer_node, writer, reader, .. } = stream;
        Self { peer: peer_node, writer, reader, next_call: 0, failed: false }
    }

    pub fn peer_node(&self) -> &str {
        &self.peer
    }

    /// Ask, and wait for the answer until `deadline`.
    pub fn call(&mut self, request: &[u8], deadline: Instant) -> Result<Vec<u8>, CallError> {
        if self.failed {
            return Err(CallError::AfterFailure);
        }
        if request.len() > MESSAGE_MAX {
            return Err(CallError::TooLong { length: request.len() });
        }
        let outcome = self.exchange(request, deadline);
        self.failed = !matches!(outcome, Ok(_) | Err(CallError::ResponseTooLong { .. }));
        outcome
    }

    fn exchange(&mut self, request: &[u8], deadline: Instant) -> Result<Vec<u8>, CallError> {
        let call = self.next_call.to_le_bytes();
        self.next_call += 1;
        let limit = |peer: &str, source| CallError::Limit { peer: peer.to_owned(), source };
        self.writer.get_mut().set_deadline(Some(deadline)).map_err(|source| limit(&self.peer, source))?;
        self.reader.get_mut().set_deadline(Some(deadline)).map_err(|source| limit(&self.peer, source))?;
        self.writer.send(Kind::REQUEST, &[&call, request]).map_err(|source| match source {
            FrameSendError::Send(SendError::TimedOut { .. }) => {
                CallError::TimedOut { peer: self.peer.clone() }
            }
            source => CallError::Send { peer: self.peer.clone(), source },
        })?;
        let frame = self.reader.next().map_err(|source| match source {
            FrameError::TimedOut(_) => CallError::TimedOut { peer: self.peer.clone() },
            source => CallError::Receive { peer: self.peer.clone(), source },
        })?;
        let mut fields = Fields(&frame.payload);
        let answered = fields.array::<CALL_LENGTH>();
        match fields.u8() {
            Some(ANSWERED) if answered == Some(call) => Ok(fields.0.to_vec()),
            Some(RESPONSE_TOO_LONG) if answered == Some(call) => {
                Err(CallError::ResponseTooLong { peer: self.peer.clone() })
            }
            _ => Err(CallError::Unpaired { peer: self.peer.clone() }),
        }
    }
}

/// Answer the calls of an accepted connection, until the other end leaves or the connection is shut down.
/// `handler` gets the other node's name and a request. For whoever serves other purposes as well:
/// [`serve_stream`].
pub fn serve(connection: Connection, handler: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Result<(), ServeError> {
    let admit = |_node: &str, purpose: &str| match purpose {
        PURPOSE => Ok(SERVER_KINDS),
        _ => Err(format!("only {PURPOSE:?} is served here")),
    };
    serve_stream(Stream::answer(connection, VERSIONS, HELLO_TIMEOUT, admit)?, handler)
}

/// Like [`serve`], on a stream that was admitted with [`SERVER_KINDS`].
pub fn serve_stream(stream: Stream, handler: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Result<(), ServeError> {
    let Stream { peer_node: peer, mut writer, mut reader, .. } = stream;
    loop {
        let mut request = match reader.next() {
            Ok(frame) => frame.payload,
            // Between two calls, however it comes: there is nothing left to answer.
            Err(
                FrameError::Closed { .. }
                | FrameError::Receive(ReceiveError::Cut { .. } | ReceiveError::ShutDown { .. }),
            ) => return Ok(()),
            Err(source) => return Err(ServeError::Receive { peer, source }),
        };
        let Some(call) = Fields(&request).array::<CALL_LENGTH>() else {
            return Err(ServeError::Malformed { peer });
        };
        request.drain(..CALL_LENGTH);
        let response = handler(&peer, request);
        let (status, response) = match response.len() <= MESSAGE_MAX {
            true => (ANSWERED, &response[..]),
            false => (RESPONSE_TOO_LONG, &[][..]),
        };
        if let Err(source) = writer.send(Kind::RESPONSE, &[&call, &[status], response]) {
            return Err(ServeError::Send { peer, source });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::testing::{PATIENCE, connected_pair};

    fn soon() -> Instant {
        Instant::now() + PATIENCE
    }

    /// A client of `handler`, and what serving came to.
    fn with_server<T>(
        handler: impl Fn(&str, Vec<u8>) -> Vec<u8> + Send,
        ask: impl FnOnce(Client) -> T,
    ) -> (T, Result<(), ServeError>) {
        let (a, b) = connected_pair();
        thread::scope(|scope| {
            let served = scope.spawn(move || serve(b, handler));
            let outcome = ask(Client::open(a, PATIENCE).unwrap());
            (outcome, served.join().unwrap())
        })
    }

    #[test]
    fn questions_are_answered() {
        let upper = |peer: &str, request: Vec<u8>| [peer.as_bytes(), &request.to_ascii_uppercase()].concat();
        let ((), served) = with_server(upper, |mut client| {
            assert_eq!(client.peer_node(), "b");
            assert_eq!(client.call(b"one", soon()).unwrap(), b"aONE");
            assert_eq!(client.call(b"", soon()).unwrap(), b"a");
            let long = vec![b'x'; MESSAGE_MAX];
            // One byte too many comes back, for the peer's name.
            assert!(matches!(client.call(&long, soon()), Err(CallError::ResponseTooLong { .. })));
            assert_eq!(client.call(&long[1..], soon()).unwrap().len(), MESSAGE_MAX);
        });
        served.unwrap();
    }

    #[test]
    fn a_question_that_is_too_long_is_not_asked() {
        let (refused, served) = with_server(
            |_, request| request,
            |mut client| {
                let refused = client.call(&vec![0; MESSAGE_MAX + 1], soon()).unwrap_err();
                assert_eq!(client.call(b"next", soon()).unwrap(), b"next");
                refused
            },
        );
        assert!(matches!(refused, CallError::TooLong { .. }) && !refused.may_have_happened(), "{refused}");
        served.unwrap();
    }

    #[test]
    fn an_answer_that_is_late_ends_the_client() {
        let (release, released) = mpsc::channel::<()>();
        let answer_late = move |_: &str, request| {
            let _ = released.recv();
            request
        };
        let ((), served) = with_server(answer_late, |mut client| {
            let late = client.call(b"one", Instant::now() + Duration::from_millis(20)).unwrap_err();
            assert!(matches!(late, CallError::TimedOut { .. }) && late.may_have_happened(), "{late}");
            drop(release);
            let after = client.call(b"two", soon()).unwrap_err();
            assert!(matches!(after, CallError::AfterFailure), "{after}");
        });
        // The late answer met an open or a closed connection; both are possible.
        assert!(matches!(served, Ok(()) | Err(ServeError::Receive { .. } | ServeError::Send { .. })));
    }

    #[test]
    fn a_server_that_leaves_is_noticed() {
        let (a, b) = connected_pair();
        thread::scope(|scope| {
            scope.spawn(|| Stream::answer(b, VERSIONS, PATIENCE, |_, _| Ok(SERVER_KINDS)).map(drop));
            let mut client = Client::open(a, PATIENCE).unwrap();
            let gone = client.call(b"one", soon()).unwrap_err();
            assert!(matches!(gone, CallError::Receive { .. } | CallError::Send { .. }), "{gone}");
        });
    }

    #[test]
    fn an_answer_to_another_question_is_not_taken() {
        let (a, b) = connected_pair();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = Stream::answer(b, VERSIONS, PATIENCE, |_, _| Ok(SERVER_KINDS)).unwrap();
                stream.reader.next().unwrap();
                stream.writer.send(Kind::RESPONSE, &[&7u64.to_le_bytes(), &[ANSWERED], b"seven"]).unwrap();
                // Until the client has seen it.
                let _ = stream.reader.next();
            });
            let mut client = Client::open(a, PATIENCE).unwrap();
            let unpaired = client.call(b"one", soon()).unwrap_err();
            assert!(matches!(unpaired, CallError::Unpaired { .. }), "{unpaired}");
        });
    }

    #[test]
    fn a_malformed_question_ends_the_connection() {
        let (a, b) = connected_pair();
        let served = thread::scope(|scope| {
            let served = scope.spawn(|| serve(b, |_, request| request));
            let mut stream = Stream::open(a, VERSIONS, PURPOSE, CLIENT_KINDS, PATIENCE).unwrap();
            stream.writer.send(Kind::REQUEST, &[b"short"]).unwrap();
            served.join().unwrap()
        });
        assert!(matches!(served, Err(ServeError::Malformed { .. })), "{served:?}");
    }

    #[test]
    fn another_purpose_is_refused() {
        let (a, b) = connected_pair();
        thread::scope(|scope| {
            let served = scope.spawn(|| serve(b, |_, request| request));
            let refused = Stream::open(a, VERSIONS, "replicate:db", CLIENT_KINDS, PATIENCE).unwrap_err();
            assert!(matches!(refused, HelloError::RefusedByPeer { .. }), "{refused}");
            assert!(matches!(served.join().unwrap(), Err(ServeError::Hello(HelloError::Refused { .. }))));
        });
    }
}

//! The backup's side of the link.
//!
//! What arrives is applied, then acknowledged: a backup has nothing left to do when it takes over. Whoever has noticed
//! that the link ended acknowledges nothing more on it, and only then asks for the primary's place (R2).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use outlive_cluster::Holder;
use outlive_stream::compact::{CompactReader, CompactWriter};
use outlive_stream::connection::{Reader, Writer};
use outlive_stream::frame::{Frame, FrameError, FrameReader};
use outlive_stream::hello::{Stream, VERSIONS};
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::message::{
    ACK, BEAT, CALLED, DATA, FROM_PRIMARY, HELLO, Hello, Item, ItemError, Items, READY, START, VERSION,
    WELCOME, Welcome, number, only_number,
};
use crate::rights::{HANDSHAKE, purpose};
use crate::schema::{Incompatible, Plans};
use crate::ship::Core;
use crate::store::Store;
use crate::wire::Short;

/// How following a primary ended.
pub(crate) enum Followed {
    /// It could not begin; the primary may be asked again.
    NotNow(String),
    /// This program cannot hold what the primary has.
    Incompatible(Incompatible),
    /// Both sides run versions of this library that do not speak with each other.
    OtherVersion(u16),
    /// It ended. `complete`: the state is whole, with all that there was up to this commit.
    Ended { complete: Option<u64>, why: String, noticed: Instant },
}

pub(crate) fn follow(core: &Core, me: &Holder, primary: &Holder, address: SocketAddr) -> Followed {
    match begin(core, me, primary, address) {
        Ok((stream, plans)) => run(core, stream, &plans),
        Err(ended) => ended,
    }
}

fn begin(
    core: &Core,
    me: &Holder,
    primary: &Holder,
    address: SocketAddr,
) -> Result<(Stream, Plans), Followed> {
    let not_now = |error: &dyn std::fmt::Display| Followed::NotNow(error.to_string());
    let connection = core
        .config
        .identity
        .connect(address, primary.node.as_str(), HANDSHAKE)
        .map_err(|error| not_now(&error))?;
    let mut stream = Stream::open(connection, VERSIONS, &purpose(core), FROM_PRIMARY, HANDSHAKE)
        .map_err(|error| not_now(&error))?;
    let hello = Hello { version: VERSION, backup: me.clone() };
    let bytes = postcard::to_stdvec(&hello).map_err(|error| not_now(&error))?;
    stream.writer.send(HELLO, &[&bytes]).map_err(|error| not_now(&error))?;
    stream.reader.get_mut().set_timeout(Some(HANDSHAKE)).map_err(|error| not_now(&error))?;
    let frame = stream.reader.next().map_err(|error| not_now(&error))?;
    if frame.kind != WELCOME {
        return Err(Followed::NotNow("the primary did not say what it has".into()));
    }
    let schema = match postcard::from_bytes(&frame.payload).map_err(|error| not_now(&error))? {
        Welcome::NotNow(reason) => return Err(Followed::NotNow(reason)),
        Welcome::OtherVersion(version) => return Err(Followed::OtherVersion(version)),
        Welcome::Joins { version, .. } if version != VERSION => return Err(Followed::OtherVersion(version)),
        Welcome::Joins { primary: other, .. } if other.incarnation != primary.incarnation => {
            return Err(Followed::NotNow("another process answers at the primary's address".into()));
        }
        Welcome::Joins { schema, .. } => schema,
    };
    let plans = core.store.schema().plans((*schema).clone()).map_err(Followed::Incompatible)?;
    core.store.follow(&schema);
    // From here on nothing is left of what this process held before.
    core.state().holds = Some(me.incarnation);
    stream.writer.send(READY, &[]).map_err(|error| Followed::Ended {
        complete: None,
        why: error.to_string(),
        noticed: Instant::now(),
    })?;
    Ok((stream, plans))
}

fn run(core: &Core, stream: Stream, plans: &Plans) -> Followed {
    let Stream { writer, reader, closer, .. } = stream;
    let writer = Arc::new(Mutex::new(writer.compact()));
    let over = AtomicBool::new(false);
    let beat = core.config.beat();
    let reports = Arc::clone(&writer);
    core.store.report_calls_to(Some(Arc::new(move |report| {
        // A link that has failed is noticed by who reads from it.
        if let Ok(bytes) = postcard::to_stdvec(report) {
            let _ = reports.lock().send(CALLED, &[&bytes]);
        }
    })));
    let mut copy = Copy::new(&core.store, plans, 0);
    let why = thread::scope(|scope| {
        // However long something takes to be applied, the primary hears that this process lives.
        let beats = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                thread::park_timeout(beat);
                if writer.lock().send(BEAT, &[]).is_err() {
                    return;
                }
            }
        });
        let why = receive(core, reader, &writer, &mut copy);
        // Nothing is acknowledged from here on.
        over.store(true, Ordering::Relaxed);
        closer.shutdown();
        beats.thread().unpark();
        why
    });
    core.store.report_calls_to(None);
    let complete = copy.whole();
    info!(why, commit = copy.commit, ?complete, "the link to the primary has ended");
    Followed::Ended { complete, why, noticed: Instant::now() }
}

/// Returns why it ended.
fn receive(
    core: &Core,
    mut reader: FrameReader<Reader>,
    writer: &Mutex<CompactWriter<Writer>>,
    copy: &mut Copy<'_>,
) -> String {
    let (beat, detection) = (core.config.beat(), core.config.detection);
    match reader.next() {
        Ok(Frame { kind: START, payload }) => match only_number(&payload) {
            Some(after) => (copy.commit, copy.batched) = (after, after),
            None => return "the primary began with what is no number".into(),
        },
        Ok(_) => return "the primary did not say where it begins".into(),
        Err(error) => return error.to_string(),
    }
    let mut reader: CompactReader<Reader> = reader.compact();
    if let Err(error) = reader.get_mut().set_timeout(Some(beat)) {
        return error.to_string();
    }
    let mut heard = Instant::now();
    loop {
        match reader.next() {
            Ok(Frame { kind: DATA, payload }) => {
                let ended = match copy.take(&payload) {
                    Ok(ended) => ended,
                    Err(reason) => {
                        warn!(reason, "what came from the primary cannot be followed");
                        return reason;
                    }
                };
                heard = Instant::now();
                core.note_applied(copy.commit, payload.len());
                if ended && let Err(error) = writer.lock().send(ACK, &[Short::of(copy.commit).bytes()]) {
                    return error.to_string();
                }
            }
            Ok(Frame { kind: BEAT, .. }) => heard = Instant::now(),
            Ok(_) => return "the primary sent what a primary does not send".into(),
            Err(FrameError::TimedOut(_)) if heard.elapsed() <= detection => {}
            Err(FrameError::TimedOut(_)) => {
                return format!("no sign of life for {} ms", heard.elapsed().as_millis());
            }
            Err(error) => return error.to_string(),
        }
    }
}

/// The state as it is here.
pub(crate) struct Copy<'a> {
    store: &'a Arc<Store>,
    plans: &'a Plans,
    items: Items,
    commit: u64,
    /// The last commit of the batch before.
    batched: u64,
    /// All images have come.
    complete: bool,
    /// Something could not be applied, and a part of it may have been.
    torn: bool,
}

impl<'a> Copy<'a> {
    pub fn new(store: &'a Arc<Store>, plans: &'a Plans, commit: u64) -> Self {
        Self { store, plans, items: Items::default(), commit, batched: commit, complete: false, torn: false }
    }

    /// The last commit, if everything up to it is here and nothing of another: only such a state may be taken over.
    pub fn whole(&self) -> Option<u64> {
        (self.complete && !self.torn).then_some(self.commit)
    }

    /// Whether a batch ended with it. After an error nothing more is to be made of this copy.
    pub fn take(&mut self, payload: &[u8]) -> Result<bool, String> {
        let outcome = self.apply(payload);
        self.torn |= outcome.is_err();
        outcome
    }

    fn apply(&mut self, payload: &[u8]) -> Result<bool, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let Some((said, length)) = number(payload).map_err(|error| text(&error))? else {
            return Err("a frame ends within its number".into());
        };
        self.items.push(&payload[length..]);
        while let Some((item, records)) = self.items.next().map_err(|error| text(&error))? {
            match item {
                Item::Image if records.is_empty() => {
                    if !self.store.has_arrived() {
                        return Err("the last image has come, and some statics have not".into());
                    }
                    self.complete = true;
                }
                Item::Image if self.complete => return Err("an image came after the last one".into()),
                Item::Image => {
                    self.store.apply(records, Some(self.plans), true).map_err(|error| text(&error))?;
                }
                Item::Call => {
                    let called = self.store.prepare_call(records, Some(self.plans));
                    called.map_err(|error| format!("a call cannot be carried out: {error}"))?;
                }
                Item::Discard => match only_number(records) {
                    Some(id) => self.store.discard_call(id),
                    None => return Err("a call is taken back by what is no number".into()),
                },
                Item::Commit => {
                    let joining = !self.complete;
                    self.store
                        .apply(records, Some(self.plans), joining)
                        .map_err(|error| format!("commit {} cannot be applied: {error}", self.commit + 1))?;
                    self.commit += 1;
                }
            }
        }
        // Both count: a stream that lost or gained a commit is not followed further.
        let counted = self.commit - self.batched;
        if said == 0 {
            return Ok(false);
        }
        if said - 1 != counted {
            return Err(text(&ItemError::Count { said: said - 1, counted }));
        }
        self.batched = self.commit;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{append, encoded};
    use crate::object::Shared;
    use crate::store::kind;
    use crate::wire::{Mode, Writer};

    fn store() -> Arc<Store> {
        let store = Store::new();
        store.add_root("number", &Shared::new(7u64));
        store.follow(&store.schema());
        store
    }

    fn copy<'a>(store: &'a Arc<Store>, plans: &'a Plans) -> Copy<'a> {
        Copy::new(store, plans, 4)
    }

    /// A frame: what it says to be complete, and its items.
    fn frame(said: u64, items: &[(Item, &[u8])]) -> Vec<u8> {
        let mut payload = encoded(said);
        for (item, records) in items {
            append(&mut payload, *item, records);
        }
        payload
    }

    fn image_of(id: u64, value: u64) -> Vec<u8> {
        let mut record = Writer::new(Mode::Content, None);
        record.number(id * kind::COUNT + kind::IMAGE);
        record.number(value);
        let mut records = Writer::new(Mode::Content, None);
        records.sized(&record.bytes);
        records.bytes
    }

    #[test]
    fn a_stream_that_no_primary_sends_is_refused() {
        let store = store();
        let schema = store.schema();
        let id = schema.roots["number"].id;
        let plans = schema.plans(schema.clone()).unwrap();
        let (image, foreign, none): (_, _, &[u8]) = (image_of(id, 9), image_of(id + 5, 9), &[]);

        let mut good = copy(&store, &plans);
        let whole = [(Item::Image, &image[..]), (Item::Image, none), (Item::Commit, none)];
        assert_eq!(good.take(&frame(2, &whole)), Ok(true));
        assert_eq!(good.whole(), Some(5));
        // After that: an image, an object that nobody has, a lost commit, one too many.
        let mut refused = |payload: &[u8]| good.take(payload).unwrap_err();
        assert!(refused(&frame(0, &[(Item::Image, &image)])).contains("after the last"));
        assert!(refused(&frame(0, &[(Item::Commit, &foreign)])).contains("commit 6"));
        assert!(refused(&frame(4, &[(Item::Commit, none)])).contains("has 3 commits, and 1"));
        assert!(refused(&[0x80]).contains("ends within"));
        assert_eq!(good.whole(), None);

        let again = self::store();
        let early = copy(&again, &plans).take(&frame(1, &[(Item::Image, none)]));
        assert!(early.unwrap_err().contains("have not"));
    }

    proptest! {
        #[test]
        fn any_frames_are_followed_or_refused(frames in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..60), 0..8
        )) {
            let store = store();
            let plans = store.schema().plans(store.schema()).unwrap();
            let mut copy = copy(&store, &plans);
            for payload in &frames {
                if copy.take(payload).is_err() {
                    break;
                }
            }
        }

        /// Of a stream that was good, one bit.
        #[test]
        fn a_damaged_stream_does_no_harm(at in 0usize..400, bit in 0u8..8) {
            let store = store();
            let id = store.schema().roots["number"].id;
            let plans = store.schema().plans(store.schema()).unwrap();
            let image = image_of(id, 1 << 40);
            let mut payload = frame(2, &[(Item::Image, &image), (Item::Image, &[]), (Item::Commit, &[])]);
            let place = at % payload.len();
            payload[place] ^= 1 << bit;
            // The frame's hash finds it before; this must not rely on that.
            let _ = copy(&store, &plans).take(&payload);
        }
    }
}

//! The stream of a primary as nobody sends it: real streams, recorded, changed at random, and given to a backup.
//!
//! What comes off the wire is parsed as hostile (R6): whatever it is, it is followed or refused, and does not panic. How much memory
//! and time that takes is not measured here, and the streams have no handle before they are changed. A seed is printed;
//! `OUTLIVE_FUZZ_SECONDS=600` goes on for so long with ever new ones, `OUTLIVE_SEED` begins with that one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::dynamic::{FieldType, Kind, Of, RecordType, Sequence, Table, Variable};
use crate::follow::Copy;
use crate::message::{Item, append, encoded};
use crate::object::Shared;
use crate::schema::{Plans, Schema};
use crate::store::{Role, Sink, Store};
use crate::transaction::commit;
use crate::{Bytes, CommitError, Counter, Deque, Handle, List, Map, OrderedMap, Ref, Set, Text, replicated};

#[replicated(name = "fuzz::Kind")]
#[derive(Clone, PartialEq)]
enum Choice {
    Nothing,
    Number(u64),
    Named { name: String, more: Vec<Option<i16>> },
}

#[replicated(name = "fuzz::Leaf")]
struct Leaf {
    choice: Choice,
    wide: u128,
    share: f64,
    next: Option<Ref<Leaf>>,
}

#[replicated(name = "fuzz::All")]
struct All {
    leaf: Leaf,
    counter: Counter,
    text: Text,
    bytes: Bytes,
    list: List<u32>,
    deque: Deque<(bool, char)>,
    set: Set<String>,
    maps: Map<u64, OrderedMap<i8, Leaf>>,
    handle: Option<Handle<u64>>,
}

#[replicated(lazy, name = "fuzz::open")]
fn open(number: u64) -> u64 {
    number
}

/// Another version, whose fields are fewer and in another order, so that the ways of passing over what is not here are met. It
/// does not fit the program that then reads by it: a schema comes off the wire as well.
fn newer(schema: &Schema) -> Schema {
    let mut schema = schema.clone();
    for definition in schema.types.values_mut() {
        for variant in &mut definition.variants {
            variant.fields.iter_mut().for_each(|field| field.has_default = true);
            if !definition.is_enum && variant.fields.len() > 2 {
                variant.fields.remove(1);
            }
            variant.fields.reverse();
        }
    }
    schema
}

fn all() -> All {
    All {
        leaf: leaf(0),
        counter: Counter::new(),
        text: Text::new(),
        bytes: Bytes::new(),
        list: List::new(),
        deque: Deque::new(),
        set: Set::new(),
        maps: Map::new(),
        handle: None,
    }
}

fn leaf(number: u64) -> Leaf {
    let choice = match number % 3 {
        0 => Choice::Nothing,
        1 => Choice::Number(number << 40),
        _ => Choice::Named { name: format!("n{number}"), more: vec![Some(-3), None, Some(number as i16)] },
    };
    Leaf { choice, wide: u128::MAX / (u128::from(number) + 1), share: number as f64 / 3.0, next: None }
}

fn thing() -> Arc<RecordType> {
    let field = |name: &str, offset, kind, count| FieldType {
        name: name.into(),
        offset,
        kind,
        count,
        has_default: false,
        was: None,
    };
    let point = vec![field("x", 0, Kind::Signed(4), None), field("y", 4, Kind::Float(4), None)];
    let point = RecordType::new("fuzz_point", 8, 4, point).unwrap();
    let fields = vec![
        field("number", 0, Kind::Unsigned(8), None),
        field("name", 8, Kind::Chars(8), None),
        field("at", 16, Kind::Record(point), Some(2)),
        field("open", 32, Kind::Bool, None),
        field("key", 33, Kind::Bytes(3), None),
    ];
    RecordType::new("fuzz_thing", 40, 8, fields).unwrap()
}

impl Drop for State {
    fn drop(&mut self) {
        self.store.dismantle();
    }
}

struct State {
    store: Arc<Store>,
    all: Arc<Shared<All>>,
    variable: Variable,
    table: Table,
    sequence: Sequence,
}

/// A process, before it takes part.
fn state() -> State {
    let store = Store::new();
    let all = Shared::new(self::all());
    store.add_root("all", &all);
    let variable = Variable::declare_in(&store, "variable", &thing()).unwrap();
    let table = Table::declare_in(&store, "table", Of::Record(thing())).unwrap();
    let sequence = Sequence::declare_in(&store, "sequence", Of::Bytes).unwrap();
    State { store, all, variable, table, sequence }
}

#[derive(Default)]
struct Recorder(Mutex<Vec<Vec<u8>>>);

impl Sink for Recorder {
    fn submit(&self, records: &[u8]) -> Result<u64, CommitError> {
        self.0.lock().push(records.to_vec());
        Ok(0)
    }
    fn last(&self) -> u64 {
        0
    }
    fn wait(&self, _number: u64) -> Result<(), CommitError> {
        Ok(())
    }
    fn poll(&self, _number: u64, _waker: &std::task::Waker) -> std::task::Poll<Result<(), CommitError>> {
        std::task::Poll::Ready(Ok(()))
    }
}

/// What a primary says to a backup that joins while it works: the payloads of its frames, in order.
fn recorded(state: &State, rng: &mut SmallRng) -> Vec<Vec<u8>> {
    let sink = Arc::new(Recorder::default());
    assert!(state.store.set_sink(Arc::clone(&sink) as _));
    state.store.set_role(Role::Primary);
    let mut frames = Vec::new();
    for round in 0..12u64 {
        {
            let mut all = crate::write::Write::begin(&state.all).unwrap();
            all.leaf = leaf(rng.random_range(0..100));
            all.counter.add(rng.random_range(-300..300));
            all.text.push_str("täxt");
            all.bytes.push(&[round as u8; 5]);
            all.list.push(rng.random());
            all.deque.push_front((round % 2 == 0, 'ß'));
            all.set.insert(format!("{}", round % 5));
            let mut inner = OrderedMap::new();
            inner.insert(rng.random(), leaf(round));
            all.maps.insert(round % 4, inner);
            if let Some(mut inner) = all.maps.get_mut(&(round % 3)) {
                inner.insert(1, leaf(round + 1));
                if let Some(mut leaf) = inner.get_mut(&1) {
                    leaf.wide += 1;
                }
            }
            if round == 3 {
                all.list.truncate(1);
                all.set.clear();
            }
            if round == 8 {
                all.leaf.next = Some(Ref::new_in(&state.store, leaf(9)).unwrap());
            }
        }
        state.variable.write().unwrap().record().bytes_mut()[..8].copy_from_slice(&rng.random::<[u8; 8]>());
        let element = state.table.of().element(&[round as u8 % 2; 40]).unwrap();
        state.table.put(&[round as u8 % 3], element).unwrap();
        if let Some(mut thing) = state.table.write(&[1]).unwrap() {
            thing.record().unwrap().bytes_mut()[20] ^= 1;
        }
        state.sequence.push(Of::Bytes.element(&[7; 3]).unwrap(), round % 2 == 0).unwrap();
        commit().unwrap();
        if round == 4 {
            let mut images = encoded(0);
            state.store.images(|records| append(&mut images, Item::Image, records));
            append(&mut images, Item::Image, &[]);
            frames.push(images);
            sink.0.lock().clear();
        }
        if round > 4 {
            let mut commits = encoded(2);
            append(&mut commits, Item::Commit, &sink.0.lock().pop().unwrap());
            frames.push(commits);
        }
    }
    frames
}

/// What a stream with one thing wrong with it may have.
fn damage(frames: &mut Vec<Vec<u8>>, rng: &mut SmallRng) {
    let which = rng.random_range(0..frames.len());
    let other = frames[rng.random_range(0..frames.len())].clone();
    let frame = &mut frames[which];
    let at = rng.random_range(0..=frame.len());
    /// Numbers at whose edges something may be wrong.
    const EDGES: [u64; 9] = [0, 1, 0x7f, 0x80, 0xffff, 1 << 32, (1 << 34) - 1, i64::MAX as u64, u64::MAX];
    match rng.random_range(0..9) {
        0 if at < frame.len() => frame[at] ^= 1 << rng.random_range(0..8),
        1 if at < frame.len() => frame[at] = rng.random(),
        2 => frame.truncate(at),
        3 => {
            frame.splice(at..at, encoded(EDGES[rng.random_range(0..EDGES.len())]));
        }
        4 if at < frame.len() => {
            frame.splice(at..=at, encoded(EDGES[rng.random_range(0..EDGES.len())]));
        }
        5 if !other.is_empty() => {
            let from = rng.random_range(0..other.len());
            let to = rng.random_range(from..other.len());
            frame.splice(at..at, other[from..to].iter().copied());
        }
        6 => {
            let end = rng.random_range(at..=frame.len());
            drop(frame.drain(at..end));
        }
        7 => frames.insert(which, other),
        _ => drop(frames.remove(which)),
    }
    if frames.is_empty() {
        frames.push(other_frame(rng));
    }
}

fn other_frame(rng: &mut SmallRng) -> Vec<u8> {
    (0..rng.random_range(0..64)).map(|_| rng.random()).collect()
}

/// How one stream was taken.
#[derive(Default)]
struct Taken {
    followed: u64,
    refused: u64,
}

fn follow(frames: &[Vec<u8>], schema: &Schema, plans: &Plans, taken: &mut Taken) {
    let state = state();
    state.store.follow(schema);
    let mut copy = Copy::new(&state.store, plans, 0);
    for payload in frames {
        if copy.take(payload).is_err() {
            taken.refused += 1;
            return;
        }
    }
    taken.followed += 1;
}

/// One seed: a stream, and a few hundred damaged ones.
fn run(seed: u64, taken: &mut Taken) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let primary = state();
    let schema = primary.store.schema();
    let frames = recorded(&primary, &mut rng);
    let same = schema.plans(schema.clone()).unwrap();
    let other = newer(&schema).plans(schema.clone()).unwrap();

    let mut whole = Taken::default();
    follow(&frames, &schema, &same, &mut whole);
    assert_eq!(whole.followed, 1, "the stream itself is followed");
    for _ in 0..300 {
        let mut damaged = frames.clone();
        for _ in 0..rng.random_range(1..4) {
            damage(&mut damaged, &mut rng);
        }
        follow(&damaged, &schema, &same, taken);
        follow(&damaged, &schema, &other, taken);
    }
}

#[test]
fn a_stream_that_was_tampered_with_is_followed_or_refused() {
    let for_long = std::env::var("OUTLIVE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let first = std::env::var("OUTLIVE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let since = Instant::now();
    let (mut seed, mut taken) = (first, Taken::default());
    loop {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, &mut taken)));
        if let Err(panic) = outcome {
            eprintln!("OUTLIVE_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        seed += 1;
        let more = for_long.map_or(seed < first + 4, |long| since.elapsed() < Duration::from_secs(long));
        if !more {
            break;
        }
    }
    eprintln!(
        "seeds {first} to {}: {} streams followed, {} refused",
        seed - 1,
        taken.followed,
        taken.refused
    );
    assert!(taken.followed > 0 && taken.refused > 0);
}

/// The function of this test is one that can be called.
#[test]
fn what_the_stream_may_call_is_there() {
    assert_eq!(*open(3).unwrap().lock().unwrap(), 3);
}

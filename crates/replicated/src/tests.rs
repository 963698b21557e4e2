//! Both sides in one process: random operations against the standard collections, undone, shipped, and taken over at
//! a random point.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use proptest::prelude::*;

use crate::object::Shared;
use crate::reference::collect_garbage_in;
use crate::store::{Role, Sink, Store, kind};
use crate::wire::{Mode, Writer};
use crate::write::Write;
use crate::{
    Bytes, CommitError, Counter, Deque, List, Map, OrderedMap, Ref, Set, Text, Value, WireError, commit,
    replicated, rollback,
};

#[derive(Default)]
struct Log(Mutex<Vec<Vec<u8>>>);

impl Sink for Log {
    fn submit(&self, records: &[u8]) -> Result<u64, CommitError> {
        let mut log = self.0.lock();
        log.push(records.to_vec());
        Ok(log.len() as u64)
    }

    fn last(&self) -> u64 {
        self.0.lock().len() as u64
    }

    fn wait(&self, _number: u64) -> Result<(), CommitError> {
        Ok(())
    }

    fn poll(&self, _number: u64, _waker: &Waker) -> Poll<Result<(), CommitError>> {
        Poll::Ready(Ok(()))
    }
}

#[replicated(name = "tests::Part")]
#[derive(Clone, Debug, PartialEq)]
struct Part {
    count: u64,
    name: String,
    kind: Kind,
}

#[replicated(name = "tests::Kind")]
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Plain,
    Sized { by: i32 },
    Both(bool, Option<u8>),
}

#[replicated(name = "tests::All")]
#[derive(Default)]
struct All {
    number: i64,
    map: Map<u8, Part>,
    ordered: OrderedMap<String, u32>,
    list: List<u16>,
    nested: List<List<u8>>,
    deque: Deque<String>,
    set: Set<u8>,
    counter: Counter,
    text: Text,
    bytes: Bytes,
    reference: Option<Ref<Part>>,
    #[local(7)]
    local: u32,
}

/// What the same operations make of standard collections.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    number: i64,
    map: HashMap<u8, Part>,
    ordered: BTreeMap<String, u32>,
    list: Vec<u16>,
    nested: Vec<Vec<u8>>,
    deque: VecDeque<String>,
    set: HashSet<u8>,
    counter: i64,
    text: String,
    bytes: Vec<u8>,
    reference: Option<Part>,
}

#[derive(Clone, Debug)]
enum Step {
    Number(i64),
    MapInsert(u8, Part),
    MapRemove(u8),
    MapChange(u8, u64),
    MapClear,
    OrderedInsert(String, u32),
    OrderedRemove(String),
    ListPush(u16),
    ListPop,
    ListInsert(usize, u16),
    ListRemove(usize),
    ListChange(usize, u16),
    ListTruncate(usize),
    NestedPush(Vec<u8>),
    NestedInner(usize, u8),
    NestedRemove(usize),
    /// A collection is moved out of its place and back in at another, as `mem::take` allows.
    NestedReplace(usize),
    DequePush(bool, String),
    DequePop(bool),
    SetInsert(u8),
    SetRemove(u8),
    Count(i64),
    TextReplace(usize, usize, String),
    BytesPush(Vec<u8>),
    RefNew(Part),
    RefChange(u64),
    RefNone,
    Commit,
    Rollback,
    Collect,
}

fn part() -> impl Strategy<Value = Part> {
    let kind = prop_oneof![
        Just(Kind::Plain),
        any::<i32>().prop_map(|by| Kind::Sized { by }),
        any::<(bool, Option<u8>)>().prop_map(|(a, b)| Kind::Both(a, b)),
    ];
    (any::<u64>(), "[a-zä]{0,3}", kind).prop_map(|(count, name, kind)| Part { count, name, kind })
}

fn step() -> impl Strategy<Value = Step> {
    use Step::*;
    prop_oneof![
        any::<i64>().prop_map(Number),
        (0..6u8, part()).prop_map(|(k, v)| MapInsert(k, v)),
        (0..6u8).prop_map(MapRemove),
        (0..6u8, any::<u64>()).prop_map(|(k, v)| MapChange(k, v)),
        Just(MapClear),
        ("[a-c]{1,2}", any::<u32>()).prop_map(|(k, v)| OrderedInsert(k, v)),
        "[a-c]{1,2}".prop_map(OrderedRemove),
        any::<u16>().prop_map(ListPush),
        Just(ListPop),
        (0..6usize, any::<u16>()).prop_map(|(p, v)| ListInsert(p, v)),
        (0..6usize).prop_map(ListRemove),
        (0..6usize, any::<u16>()).prop_map(|(p, v)| ListChange(p, v)),
        (0..6usize).prop_map(ListTruncate),
        any::<Vec<u8>>().prop_map(NestedPush),
        (0..4usize, any::<u8>()).prop_map(|(p, v)| NestedInner(p, v)),
        (0..4usize).prop_map(NestedRemove),
        (0..4usize).prop_map(NestedReplace),
        (any::<bool>(), "[a-z]{0,3}").prop_map(|(f, v)| DequePush(f, v)),
        any::<bool>().prop_map(DequePop),
        (0..6u8).prop_map(SetInsert),
        (0..6u8).prop_map(SetRemove),
        any::<i64>().prop_map(Count),
        (0..5usize, 0..3usize, "[a-zß]{0,200}").prop_map(|(a, b, t)| TextReplace(a, b, t)),
        any::<Vec<u8>>().prop_map(BytesPush),
        part().prop_map(RefNew),
        any::<u64>().prop_map(RefChange),
        Just(RefNone),
        Just(Commit),
        Just(Commit),
        Just(Commit),
        Just(Rollback),
        Just(Collect),
    ]
}

type All_ = Arc<Shared<All>>;

struct Side {
    store: Arc<Store>,
    all: All_,
}

impl Side {
    fn new() -> Self {
        let store = Store::new();
        let all = Shared::new(All::default());
        store.add_root("all", &all);
        Self { store, all }
    }

    fn write(&self) -> crate::WriteGuard<'_, All> {
        Write::begin(&self.all).unwrap()
    }

    fn seen(&self) -> Model {
        let all = crate::reading::read_arc(&self.all).0;
        Model {
            number: all.number,
            map: all.map.read().clone_plain(),
            ordered: all.ordered.read().clone(),
            list: all.list.read().to_vec(),
            nested: all.nested.read().iter().map(|inner| inner.read().to_vec()).collect(),
            deque: all.deque.read().clone(),
            set: all.set.read().clone(),
            counter: all.counter.get(),
            text: all.text.read().to_owned(),
            bytes: all.bytes.read().to_vec(),
            reference: all.reference.map(|to| (*to.try_read_in(&self.store).unwrap()).clone()),
        }
    }

    /// As the primary does it, and the model beside it.
    fn take(&self, step: &Step, model: &mut Model) {
        match step.clone() {
            Step::Number(number) => {
                self.write().number = number;
                model.number = number;
            }
            Step::MapInsert(key, value) => {
                assert_eq!(self.write().map.insert(key, value.clone()), model.map.insert(key, value));
            }
            Step::MapRemove(key) => assert_eq!(self.write().map.remove(&key), model.map.remove(&key)),
            Step::MapChange(key, count) => {
                if let Some(mut part) = self.write().map.get_mut(&key) {
                    part.count = count;
                    part.kind = Kind::Both(true, None);
                }
                if let Some(part) = model.map.get_mut(&key) {
                    part.count = count;
                    part.kind = Kind::Both(true, None);
                }
            }
            Step::MapClear => {
                self.write().map.clear();
                model.map.clear();
            }
            Step::OrderedInsert(key, value) => {
                let old = self.write().ordered.insert(key.clone(), value);
                assert_eq!(old, model.ordered.insert(key, value));
            }
            Step::OrderedRemove(key) => {
                assert_eq!(self.write().ordered.remove(&key), model.ordered.remove(&key));
            }
            Step::ListPush(value) => {
                self.write().list.push(value);
                model.list.push(value);
            }
            Step::ListPop => assert_eq!(self.write().list.pop(), model.list.pop()),
            Step::ListInsert(place, value) => {
                if self.write().list.insert(place, value).is_ok() {
                    model.list.insert(place, value);
                }
            }
            Step::ListRemove(place) => {
                let gone = self.write().list.remove(place);
                assert_eq!(gone, (place < model.list.len()).then(|| model.list.remove(place)));
            }
            Step::ListChange(place, value) => {
                if let Some(mut slot) = self.write().list.get_mut(place) {
                    *slot = value;
                }
                if let Some(slot) = model.list.get_mut(place) {
                    *slot = value;
                }
            }
            Step::ListTruncate(length) => {
                self.write().list.truncate(length);
                model.list.truncate(length);
            }
            Step::NestedPush(values) => {
                self.write().nested.push(values.iter().copied().collect());
                model.nested.push(values);
            }
            Step::NestedInner(place, value) => {
                if let Some(mut inner) = self.write().nested.get_mut(place) {
                    inner.push(value);
                }
                if let Some(inner) = model.nested.get_mut(place) {
                    inner.push(value);
                }
            }
            Step::NestedRemove(place) => {
                let gone = self.write().nested.remove(place).map(|gone| gone.read().to_vec());
                assert_eq!(gone, (place < model.nested.len()).then(|| model.nested.remove(place)));
            }
            Step::NestedReplace(place) => {
                let mut all = self.write();
                let taken = all.nested.get_mut(place).map(|mut inner| std::mem::take(&mut *inner));
                if let Some(mut taken) = taken {
                    taken.push(1);
                    all.nested.push(taken);
                    let moved = std::mem::take(&mut model.nested[place]);
                    model.nested.push([moved, vec![1]].concat());
                }
            }
            Step::DequePush(front, value) => {
                if front {
                    self.write().deque.push_front(value.clone());
                    model.deque.push_front(value);
                } else {
                    self.write().deque.push_back(value.clone());
                    model.deque.push_back(value);
                }
            }
            Step::DequePop(front) => {
                if front {
                    assert_eq!(self.write().deque.pop_front(), model.deque.pop_front());
                } else {
                    assert_eq!(self.write().deque.pop_back(), model.deque.pop_back());
                }
            }
            Step::SetInsert(value) => assert_eq!(self.write().set.insert(value), model.set.insert(value)),
            Step::SetRemove(value) => assert_eq!(self.write().set.remove(&value), model.set.remove(&value)),
            Step::Count(by) => {
                self.write().counter.add(by);
                model.counter = model.counter.wrapping_add(by);
            }
            Step::TextReplace(start, length, text) => {
                let range = start..start + length;
                if self.write().text.replace(range.clone(), &text) {
                    model.text.replace_range(range, &text);
                } else {
                    assert!(model.text.get(range).is_none());
                }
            }
            Step::BytesPush(bytes) => {
                self.write().bytes.push(&bytes);
                model.bytes.extend(bytes);
            }
            Step::RefNew(part) => {
                let new = Ref::new_in(&self.store, part.clone()).unwrap();
                self.write().reference = Some(new);
                model.reference = Some(part);
            }
            Step::RefChange(count) => {
                let reference = crate::reading::read_arc(&self.all).0.reference;
                if let (Some(to), Some(part)) = (reference, &mut model.reference) {
                    to.try_write_in(&self.store).unwrap().count = count;
                    part.count = count;
                }
            }
            Step::RefNone => {
                self.write().reference = None;
                model.reference = None;
            }
            Step::Commit | Step::Rollback | Step::Collect => {}
        }
    }
}

trait ClonePlain {
    fn clone_plain(&self) -> HashMap<u8, Part>;
}

impl ClonePlain for HashMap<u8, Part> {
    fn clone_plain(&self) -> HashMap<u8, Part> {
        self.clone()
    }
}

/// Ends like a primary that dies: what was not committed is lost to it as well.
fn run(steps: &[Step], taken_over_after: usize) {
    let primary = Side::new();
    let log = Arc::new(Log::default());
    assert!(primary.store.set_sink(Arc::clone(&log) as _));
    primary.store.set_role(Role::Primary);
    let backup = Side::new();
    backup.store.follow(&primary.store.schema());

    let mut model = Model::default();
    let mut committed = Model::default();
    let mut shipped = 0;
    let ship = |shipped: &mut usize, backup: &Side| {
        let log = log.0.lock();
        for records in &log[*shipped..] {
            backup.store.apply(records, None, false).unwrap();
        }
        *shipped = log.len();
    };
    // The backup joins with everything as it is.
    image(&primary, &backup);
    for (place, step) in steps.iter().enumerate() {
        if place == taken_over_after {
            break;
        }
        match step {
            Step::Commit => {
                commit().unwrap();
                committed = model.clone();
                ship(&mut shipped, &backup);
                assert_eq!(backup.seen(), committed, "the backup differs after a commit");
            }
            Step::Rollback => {
                rollback().unwrap();
                model = committed.clone();
            }
            Step::Collect => {
                rollback().unwrap();
                model = committed.clone();
                let freed = collect_garbage_in(&primary.store, std::time::Duration::ZERO).unwrap();
                assert!(freed.is_some());
                ship(&mut shipped, &backup);
                let reached = 1 + usize::from(committed.reference.is_some());
                assert_eq!(primary.store.tops().len(), reached);
                assert_eq!(backup.store.tops().len(), reached);
            }
            step => primary.take(step, &mut model),
        }
        assert_eq!(primary.seen(), model, "the primary differs after {step:?}");
    }
    rollback().unwrap();
    assert_eq!(primary.seen(), committed, "undone");
    assert_eq!(primary.store.objects(), backup.store.objects(), "objects left over");

    // The takeover: the backup goes on where the last commit left it, and its successor follows it.
    let log = Arc::new(Log::default());
    assert!(backup.store.set_sink(Arc::clone(&log) as _));
    backup.store.take_over();
    let next = Side::new();
    next.store.follow(&backup.store.schema());
    image(&backup, &next);
    let mut model = committed;
    for step in &steps[taken_over_after.min(steps.len())..] {
        match step {
            Step::Commit | Step::Rollback | Step::Collect => {
                commit().unwrap();
                for records in log.0.lock().drain(..) {
                    next.store.apply(&records, None, false).unwrap();
                }
                assert_eq!(next.seen(), model);
            }
            step => backup.take(step, &mut model),
        }
        assert_eq!(backup.seen(), model);
    }
    commit().unwrap();
    assert_eq!(next.all.body.read().local, 7, "a local field is rebuilt");
}

/// Everything, as a backup that joins gets it.
fn image(from: &Side, to: &Side) {
    from.store.images(|records| to.store.apply(records, None, true).unwrap());
    assert!(to.store.has_arrived());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn both_sides_are_what_the_standard_collections_are(
        steps in proptest::collection::vec(step(), 0..60), after in 0..60usize,
    ) {
        run(&steps, after);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let side = Side::new();
        side.store.follow(&Side::new().store.schema());
        let _ = side.store.apply(&bytes, None, false);
        let _ = side.store.apply(&bytes, None, true);
    }

    #[test]
    fn damaged_transactions_are_refused_without_a_panic(
        steps in proptest::collection::vec(step(), 0..20), at in any::<usize>(), with in any::<u8>(),
    ) {
        let primary = Side::new();
        let log = Arc::new(Log::default());
        assert!(primary.store.set_sink(Arc::clone(&log) as _));
        primary.store.set_role(Role::Primary);
        let backup = Side::new();
        backup.store.follow(&primary.store.schema());
        image(&primary, &backup);
        let mut model = Model::default();
        for step in &steps {
            primary.take(step, &mut model);
        }
        commit().unwrap();
        for records in log.0.lock().iter() {
            let mut damaged = records.clone();
            let at = at % damaged.len();
            damaged[at] ^= with;
            let _ = backup.store.apply(&damaged, None, false);
        }
    }
}

#[test]
fn a_changed_u64_is_a_few_bytes() {
    let primary = Side::new();
    let log = Arc::new(Log::default());
    assert!(primary.store.set_sink(Arc::clone(&log) as _));
    primary.store.set_role(Role::Primary);
    primary.write().number = 1_000_000;
    commit().unwrap();
    // Length, object, field, four bytes of number, end.
    assert_eq!(log.0.lock()[0].len(), 7);
    primary.write().number = 1_000_000;
    commit().unwrap();
    assert_eq!(log.0.lock().len(), 1, "what did not change is not shipped");
}

#[test]
fn a_push_ships_one_element() {
    let primary = Side::new();
    let log = Arc::new(Log::default());
    assert!(primary.store.set_sink(Arc::clone(&log) as _));
    primary.store.set_role(Role::Primary);
    primary.write().list = (0..10_000).collect();
    commit().unwrap();
    primary.write().list.push(1);
    commit().unwrap();
    assert!(log.0.lock()[1].len() <= 6, "{:?}", log.0.lock()[1]);
}

#[test]
fn unknown_objects_are_errors_unless_they_are_yet_to_come() {
    let side = Side::new();
    let mut record = Writer::new(Mode::Content, None);
    record.number(99 * kind::COUNT + kind::CHANGE);
    let mut records = Writer::new(Mode::Content, None);
    records.sized(&record.bytes);
    assert_eq!(side.store.apply(&records.bytes, None, false), Err(WireError::UnknownObject(99)));
    assert_eq!(side.store.apply(&records.bytes, None, true), Ok(()));
}

#[test]
fn a_guard_that_lives_holds_the_commit_up() {
    let side = Side::new();
    let guard = side.write();
    assert_eq!(commit(), Err(CommitError::GuardAlive));
    assert_eq!(rollback(), Err(CommitError::GuardAlive));
    assert_eq!(Write::begin(&side.all).err(), Some(crate::WriteError::GuardAlive));
    drop(guard);
    commit().unwrap();
}

#[test]
fn what_a_panic_interrupted_is_undone() {
    let side = Side::new();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut all = side.write();
        all.number = 5;
        panic!("half-way");
    }));
    assert!(panicked.is_err());
    assert_eq!(commit(), Err(CommitError::Panicked));
    assert_eq!(side.seen().number, 0);
}

#[test]
fn a_thread_that_ends_leaves_nothing_uncommitted() {
    let side = Side::new();
    // Joined by hand: a scope ends with the closures, before the ends of what threads have for themselves.
    std::thread::scope(|scope| scope.spawn(|| side.write().number = 5).join().unwrap());
    assert_eq!(side.seen().number, 0);
    assert!(side.all.owner.is_free());
}

#[test]
fn tasks_on_one_thread_have_their_own_transactions() {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Context;

    let (a, b) = (Side::new(), Side::new());
    let pause = || {
        let mut first = true;
        poll_fn(move |_| if std::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) })
    };
    let work = |side: Side, commits: bool| {
        let seen = Arc::clone(&side.all);
        let task = crate::task(async move {
            side.write().number = 1;
            pause().await;
            if commits {
                commit().unwrap();
            }
        });
        (task, seen)
    };
    let ((first, a), (second, b)) = (work(a, true), work(b, false));
    let mut context = Context::from_waker(Waker::noop());
    {
        let (mut first, mut second) = (pin!(first), pin!(second));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_ready());
        assert!(first.as_mut().poll(&mut context).is_ready());
    }
    assert_eq!((crate::reading::read_arc(&a).0.number, crate::reading::read_arc(&b).0.number), (1, 0));
}

#[test]
fn circles_are_collected_and_what_is_reached_is_not() {
    #[replicated(name = "tests::Node")]
    struct Node {
        next: Option<Ref<Node>>,
    }
    let store = Store::new();
    let first = Shared::new(None::<Ref<Node>>);
    store.add_root("first", &first);
    let ring = |store: &Arc<Store>| {
        let a = Ref::new_in(store, Node { next: None }).unwrap();
        let b = Ref::new_in(store, Node { next: Some(a) }).unwrap();
        a.try_write_in(store).unwrap().next = Some(b);
        a
    };
    let (kept, lost) = (ring(&store), ring(&store));
    *Write::begin(&first).unwrap() = Some(kept);
    commit().unwrap();
    assert_eq!(collect_garbage_in(&store, std::time::Duration::ZERO), Ok(Some(2)));
    assert!(lost.try_read_in(&store).is_err() && kept.try_read_in(&store).is_ok());
}

#[test]
fn schemas_are_compared_by_name() {
    mod old {
        use crate::replicated;
        #[replicated(name = "tests::Evolving")]
        #[derive(Default)]
        pub struct Evolving {
            pub gone: crate::List<u32>,
            pub kept: u64,
            pub was: String,
        }
    }
    mod new {
        use crate::replicated;
        #[replicated(name = "tests::Evolving")]
        #[derive(Default)]
        pub struct Evolving {
            #[replicated(default = 9)]
            pub added: u32,
            #[replicated(was = "was")]
            pub now: String,
            pub kept: u64,
        }
    }
    mod other {
        use crate::replicated;
        #[replicated(name = "tests::Evolving")]
        #[derive(Default)]
        pub struct Evolving {
            pub kept: String,
        }
    }
    fn side<T: Value + Default>() -> (Arc<Store>, Arc<Shared<T>>) {
        let (store, shared) = (Store::new(), Shared::new(T::default()));
        store.add_root("root", &shared);
        (store, shared)
    }
    let (primary, of_primary) = side::<old::Evolving>();
    let log = Arc::new(Log::default());
    assert!(primary.set_sink(Arc::clone(&log) as _));
    primary.set_role(Role::Primary);

    let (backup, of_backup) = side::<new::Evolving>();
    let plans = backup.schema().plans(primary.schema()).unwrap();
    backup.follow(&primary.schema());
    primary.images(|records| backup.apply(records, Some(&plans), true).unwrap());

    {
        let mut root = Write::begin(&of_primary).unwrap();
        root.gone.push(4);
        root.kept = 5;
        root.was = "text".into();
    }
    commit().unwrap();
    {
        let mut root = Write::begin(&of_primary).unwrap();
        root.gone = List::new();
        root.gone.push(4);
    }
    commit().unwrap();
    Write::begin(&of_primary).unwrap().gone.push(4);
    commit().unwrap();
    for records in log.0.lock().iter() {
        backup.apply(records, Some(&plans), false).unwrap();
    }
    let seen = of_backup.body.read();
    assert_eq!((seen.added, seen.kept, seen.now.as_str()), (9, 5, "text"));

    let refused = side::<other::Evolving>().0.schema().plans(primary.schema()).err().unwrap();
    assert_eq!(
        refused.to_string(),
        "field `kept` of `tests::Evolving` is a u64 on the primary and a String here: give the new field another name"
    );
    let refused = primary.schema().plans(backup.schema()).err().unwrap();
    assert!(matches!(refused, crate::Incompatible::NoDefault { .. }), "{refused}");
}

/// A backup that joins while four threads go on committing, and each of them moves what the backup has not seen yet.
#[test]
fn a_backup_joins_while_the_primary_goes_on() {
    let primary = Side::new();
    let log = Arc::new(Log::default());
    assert!(primary.store.set_sink(Arc::clone(&log) as _));
    primary.store.set_role(Role::Primary);
    for _ in 0..20 {
        let part = Part { count: 1, name: String::new(), kind: Kind::Plain };
        let new = Ref::new_in(&primary.store, part).unwrap();
        primary.write().reference = Some(new);
    }
    commit().unwrap();
    let backup = Side::new();
    backup.store.follow(&primary.store.schema());
    let (joined_at, mut synced_at) = (log.0.lock().len(), 0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let (primary, done) = (&primary, &done);
            scope.spawn(move || {
                let mut round = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) || round < 50 {
                    let mut all = primary.write();
                    all.counter.add(1);
                    all.list.push(u16::from(thread));
                    all.nested.push([thread].into_iter().collect());
                    if round % 3 == 2 {
                        all.nested.remove(0);
                    }
                    drop(all);
                    commit().unwrap();
                    round += 1;
                }
            });
        }
        primary.store.images(|records| {
            let mut log = log.0.lock();
            log.push(records.to_vec());
            synced_at = log.len();
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    for (place, records) in log.0.lock().iter().enumerate().skip(joined_at) {
        backup.store.apply(records, None, place < synced_at).unwrap();
    }
    assert!(backup.store.has_arrived());
    assert_eq!(backup.seen(), primary.seen());
    assert!(backup.seen().counter >= 200);
}

/// Frames as a primary sends them, each by itself.
#[derive(Clone, Default)]
struct Frames(Arc<Mutex<Vec<Vec<u8>>>>);

impl outlive_stream::connection::ByteSink for Frames {
    fn send(&mut self, parts: &[&[u8]]) -> Result<(), outlive_stream::connection::SendError> {
        self.0.lock().push(parts.concat());
        Ok(())
    }
}

/// A stream: everything as it is, then each commit; and what was there after each frame.
fn stream_of(steps: &[Step]) -> (Side, Vec<Vec<u8>>, Vec<Model>) {
    use crate::message::{DATA, Item, append, encoded};
    let primary = Side::new();
    let log = Arc::new(Log::default());
    assert!(primary.store.set_sink(Arc::clone(&log) as _));
    primary.store.set_role(Role::Primary);
    let frames = Frames::default();
    let mut writer =
        outlive_stream::compact::CompactWriter::new(frames.clone(), outlive_stream::frame::End::Answering);
    let mut first = encoded(1);
    primary.store.images(|records| append(&mut first, Item::Image, records));
    append(&mut first, Item::Image, &[]);
    writer.send(DATA, &[&first]).unwrap();
    let mut model = Model::default();
    let mut seen = vec![model.clone()];
    for step in steps {
        match step {
            Step::Rollback | Step::Collect => {}
            Step::Commit => {
                commit().unwrap();
                for records in log.0.lock().drain(..) {
                    let mut batch = encoded(2);
                    append(&mut batch, Item::Commit, &records);
                    writer.send(DATA, &[&batch]).unwrap();
                    seen.push(model.clone());
                }
            }
            step => primary.take(step, &mut model),
        }
    }
    rollback().unwrap();
    let frames = std::mem::take(&mut *frames.0.lock());
    (primary, frames, seen)
}

#[derive(Clone, Debug)]
enum Harm {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Lose(prop::sample::Index),
    Double(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Foreign(prop::sample::Index),
}

fn harm() -> impl Strategy<Value = Harm> {
    use prop::sample::Index;
    prop_oneof![
        any::<Index>().prop_map(Harm::Cut),
        (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Harm::Flip(at, bit)),
        any::<Index>().prop_map(Harm::Lose),
        any::<Index>().prop_map(Harm::Double),
        any::<(Index, Index)>().prop_map(|(a, b)| Harm::Swap(a, b)),
        any::<Index>().prop_map(Harm::Foreign),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever becomes of a stream, a backup is at every moment as its primary was after some commit, in order; and it
    /// follows no further than the stream is whole.
    #[test]
    fn a_stream_is_followed_as_far_as_it_is_whole(
        steps in proptest::collection::vec(step(), 0..40),
        others in proptest::collection::vec(step(), 0..10),
        harm in harm(),
    ) {
        let (primary, mut frames, seen) = stream_of(&steps);
        let count = frames.len();
        let whole = match &harm {
            Harm::Cut(at) => {
                let place = at.index(count);
                let length = at.index(frames[place].len());
                frames[place].truncate(length);
                frames.truncate(place + 1);
                place
            }
            Harm::Flip(at, bit) => {
                let place = at.index(count);
                let byte = at.index(frames[place].len());
                frames[place][byte] ^= 1 << bit;
                place
            }
            Harm::Lose(at) => {
                frames.remove(at.index(count));
                at.index(count)
            }
            Harm::Double(at) => {
                let place = at.index(count);
                frames.insert(place + 1, frames[place].clone());
                place + 1
            }
            Harm::Swap(a, b) => {
                let (a, b) = (a.index(count), b.index(count));
                frames.swap(a, b);
                if a == b { count } else { a.min(b) }
            }
            Harm::Foreign(at) => {
                let (_other, foreign, _) = stream_of(&others);
                let place = at.index(count);
                // Another pair's, which TLS keeps out: found by its place as well.
                match foreign.get(place + 1).or(foreign.first().filter(|_| place > 0)) {
                    Some(frame) => frames[place] = frame.clone(),
                    None => frames[place][0] ^= 0x40,
                }
                place
            }
        };
        let backup = Side::new();
        let plans = backup.store.schema().plans(primary.store.schema()).unwrap();
        backup.store.follow(&primary.store.schema());
        let mut copy = crate::follow::Copy::new(&backup.store, &plans, 0);
        let bytes = frames.concat();
        let mut reader = outlive_stream::compact::CompactReader::new(
            &bytes[..], outlive_stream::frame::End::Answering, crate::message::FROM_PRIMARY,
        );
        let mut followed = 0;
        while let Ok(frame) = reader.next() {
            prop_assert_eq!(copy.take(&frame.payload), Ok(true));
            prop_assert_eq!(&backup.seen(), &seen[followed]);
            followed += 1;
        }
        prop_assert_eq!(followed, whole.min(count));
    }
}

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::schema::Incompatible;
use crate::transaction::{commit, rollback};
use crate::{Schema, Sink};

fn field(name: &str, offset: usize, kind: Kind) -> FieldType {
    FieldType { name: name.into(), offset, kind, count: None, has_default: false, was: None }
}

/// `struct point { int32_t x; int32_t y; }`
fn point() -> Arc<RecordType> {
    let fields = vec![field("x", 0, Kind::Signed(4)), field("y", 4, Kind::Signed(4))];
    RecordType::new("point", 8, 4, fields).unwrap()
}

/// With a hole at 1 to 8, and 8 bytes of its own at the end.
fn thing() -> Arc<RecordType> {
    let days = FieldType { count: Some(3), ..field("days", 24, Kind::Unsigned(2)) };
    let fields = vec![
        field("open", 0, Kind::Bool),
        field("balance", 8, Kind::Unsigned(8)),
        field("name", 16, Kind::Chars(8)),
        days,
        field("key", 30, Kind::Bytes(2)),
        field("at", 32, Kind::Record(point())),
        field("share", 40, Kind::Float(8)),
    ];
    RecordType::new("thing", 56, 8, fields).unwrap()
}

/// What a primary ships and its backup applies.
#[derive(Default)]
struct Shipped(parking_lot::Mutex<Vec<Vec<u8>>>);

impl Sink for Shipped {
    fn submit(&self, records: &[u8]) -> Result<u64, crate::CommitError> {
        self.0.lock().push(records.to_vec());
        Ok(0)
    }
    fn last(&self) -> u64 {
        0
    }
    fn wait(&self, _number: u64) -> Result<(), crate::CommitError> {
        Ok(())
    }
    fn poll(
        &self,
        _number: u64,
        _waker: &std::task::Waker,
    ) -> std::task::Poll<Result<(), crate::CommitError>> {
        std::task::Poll::Ready(Ok(()))
    }
}

fn primary(store: &Arc<Store>) -> Arc<Shipped> {
    let shipped = Arc::new(Shipped::default());
    assert!(store.set_sink(Arc::clone(&shipped) as _));
    store.set_role(Role::Primary);
    shipped
}

fn follow(store: &Arc<Store>, theirs: &Schema) -> crate::Plans {
    let plans = store.schema().plans(theirs.clone()).unwrap();
    store.follow(theirs);
    plans
}

#[test]
fn a_struct_is_shipped_field_by_field_and_what_is_no_field_is_nobodys() {
    let (store, other) = (Store::new(), Store::new());
    let variable = Variable::declare_in(&store, "v", &thing()).unwrap();
    let copy = Variable::declare_in(&other, "v", &thing()).unwrap();
    let schema = store.schema();
    let shipped = primary(&store);
    let plans = follow(&other, &schema);

    let mut writing = variable.write().unwrap();
    let memory = writing.record().bytes_mut();
    assert_eq!(memory.as_ptr().addr() % 16, 0);
    memory[8..16].copy_from_slice(&(1u64 << 40).to_ne_bytes());
    memory[16..21].copy_from_slice(b"ab\0cd");
    memory[36..40].copy_from_slice(&(-3i32).to_ne_bytes());
    memory[40..48].copy_from_slice(&1.5f64.to_ne_bytes());
    memory[3] = 9;
    memory[50] = 9;
    assert!(matches!(variable.write(), Err(WriteError::GuardAlive)));
    drop(writing);
    commit().unwrap();
    let records = shipped.0.lock().pop().unwrap();
    assert!(records.len() < 40, "{records:?}");
    other.apply(&records, Some(&plans), false).unwrap();
    let mut expected = variable.read().bytes().to_vec();
    (expected[3], expected[50]) = (0, 0);
    expected[19..21].fill(0);
    assert_eq!(copy.read().bytes(), expected);

    // Only what nobody owns: no change.
    variable.write().unwrap().record().bytes_mut()[20] = 7;
    commit().unwrap();
    assert!(shipped.0.lock().is_empty());

    variable.write().unwrap().record().bytes_mut()[0] = 1;
    rollback().unwrap();
    assert_eq!(variable.read().bytes()[0], 0);
}

#[test]
fn a_newer_program_reads_a_struct_by_the_names_of_its_fields() {
    let theirs = Store::new();
    let of = RecordType::new(
        "s",
        24,
        8,
        vec![field("a", 0, Kind::Unsigned(8)), field("b", 8, Kind::Record(point()))],
    );
    let variable = Variable::declare_in(&theirs, "v", &of.unwrap()).unwrap();
    let schema = theirs.schema();
    let shipped = primary(&theirs);

    let ours = Store::new();
    let fields = vec![
        FieldType { has_default: true, ..field("new", 0, Kind::Unsigned(4)) },
        FieldType { was: Some("a".into()), ..field("renamed", 8, Kind::Unsigned(8)) },
    ];
    let of = RecordType::new("s", 16, 8, fields).unwrap();
    let copy = Variable::declare_in(&ours, "v", &of).unwrap();
    let plans = follow(&ours, &schema);
    let mut writing = variable.write().unwrap();
    writing.record().bytes_mut()[0] = 5;
    writing.record().bytes_mut()[12] = 6;
    drop(writing);
    commit().unwrap();
    let mut images = Vec::new();
    theirs.images(|records| images.push(records.to_vec()));
    for records in images.iter().chain(shipped.0.lock().iter()) {
        ours.apply(records, Some(&plans), false).unwrap();
    }
    assert_eq!(copy.read().bytes()[8], 5);

    let other = |field: FieldType| {
        let store = Store::new();
        let of = RecordType::new("s", 16, 8, vec![field]).unwrap();
        Variable::declare_in(&store, "v", &of).unwrap();
        store.schema().plans(schema.clone()).err()
    };
    assert!(
        matches!(other(field("a", 0, Kind::Unsigned(4))), Some(Incompatible::OtherType { field, .. }) if field == "a")
    );
    assert!(
        matches!(other(field("c", 0, Kind::Unsigned(4))), Some(Incompatible::NoDefault { field, .. }) if field == "c")
    );
}

#[test]
fn what_does_not_lie_in_the_struct_is_refused() {
    let of = |fields| RecordType::new("s", 8, 8, fields).map(drop);
    let named = |what: fn(String, String) -> BadType, field: &str| Err(what("s".into(), field.into()));
    assert_eq!(of(vec![field("a", 4, Kind::Unsigned(8))]), named(BadType::Field, "a"));
    assert_eq!(of(vec![field("a", usize::MAX, Kind::Bool)]), named(BadType::Field, "a"));
    assert_eq!(of(vec![field("a", 0, Kind::Unsigned(3))]), named(BadType::Field, "a"));
    let huge = FieldType { count: Some(usize::MAX / 2), ..field("a", 0, Kind::Unsigned(4)) };
    assert_eq!(of(vec![huge]), named(BadType::Field, "a"));
    let twice = vec![field("a", 0, Kind::Bool), field("a", 1, Kind::Bool)];
    assert_eq!(of(twice), named(BadType::Name, "a"));
    let over = vec![field("a", 0, Kind::Unsigned(4)), field("b", 3, Kind::Bool)];
    assert_eq!(of(over), named(BadType::Overlap, "b"));
    assert!(matches!(RecordType::new("s", 0, 1, Vec::new()), Err(BadType::Size(..))));
    assert!(matches!(RecordType::new("s", 64, 32, Vec::new()), Err(BadType::Alignment(..))));

    let store = Store::new();
    Variable::declare_in(&store, "v", &point()).unwrap();
    let again = Table::declare_in(&store, "v", Of::Bytes).map(drop);
    assert_eq!(again, Err(NotDeclared::Taken("v".into())));
    let other = RecordType::new("point", 1, 1, vec![field("x", 0, Kind::Bool)]).unwrap();
    assert!(matches!(Variable::declare_in(&store, "w", &other).map(drop), Err(NotDeclared::OtherType(_))));
    primary(&store);
    assert!(matches!(Variable::declare_in(&store, "z", &point()).map(drop), Err(NotDeclared::TooLate(_))));
}

fn a_point(x: u8) -> Element {
    Of::Record(point()).element(&[x, 0, 0, 0, 1, 1, 1, 1]).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Patch(u8, u8),
    Remove(u8),
    Push(u8, bool),
    Pop(bool),
    Clear,
    Commit,
    Rollback,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..6, any::<u8>()).prop_map(|(key, x)| Step::Put(key, x)),
        3 => (0u8..6, any::<u8>()).prop_map(|(key, x)| Step::Patch(key, x)),
        2 => (0u8..6).prop_map(Step::Remove),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(x, front)| Step::Push(x, front)),
        2 => any::<bool>().prop_map(Step::Pop),
        1 => Just(Step::Clear),
        3 => Just(Step::Commit),
        1 => Just(Step::Rollback),
    ];
    proptest::collection::vec(step, 0..60)
}

type Model = (BTreeMap<Vec<u8>, Vec<u8>>, VecDeque<Vec<u8>>);

fn seen(table: &Table, sequence: &Sequence) -> Model {
    let table =
        table.read().from(&[]).map(|(key, element)| (key.to_vec(), element.bytes().to_vec())).collect();
    (table, sequence.read().iter().map(|element| element.bytes().to_vec()).collect())
}

proptest! {
    /// Against the standard collections, here and on a backup.
    #[test]
    fn tables_and_sequences_are_what_the_standard_ones_are_on_both_sides(steps in steps(), bytes in any::<bool>()) {
        let of = || if bytes { Of::Bytes } else { Of::Record(point()) };
        let make = |x| if bytes { Of::Bytes.element(&[x; 3]).unwrap() } else { a_point(x) };
        let declare = |store: &Arc<Store>| {
            (Table::declare_in(store, "t", of()).unwrap(), Sequence::declare_in(store, "s", of()).unwrap())
        };
        let (store, other) = (Store::new(), Store::new());
        let ((table, sequence), copies) = (declare(&store), declare(&other));
        let schema = store.schema();
        let shipped = primary(&store);
        let plans = follow(&other, &schema);
        let (mut model, mut committed) = (Model::default(), Model::default());
        for step in &steps {
            match step {
                Step::Put(key, x) => {
                    table.put(&[*key], make(*x)).unwrap();
                    model.0.insert(vec![*key], make(*x).bytes().to_vec());
                    let place = usize::from(*key);
                    let there = sequence.put(place, make(*x)).unwrap();
                    prop_assert_eq!(there, place < model.1.len());
                    if there {
                        model.1[place] = make(*x).bytes().to_vec();
                    }
                }
                Step::Patch(key, x) => {
                    let written = table.write(&[*key]).unwrap();
                    prop_assert_eq!(written.is_some(), !bytes && model.0.contains_key(&vec![*key]));
                    if let Some(mut written) = written {
                        written.record().unwrap().bytes_mut()[4] = *x;
                        model.0.get_mut(&vec![*key]).unwrap()[4] = *x;
                    }
                    if let Some(mut written) = sequence.write(usize::from(*key)).unwrap() {
                        written.record().unwrap().bytes_mut()[4] = *x;
                        model.1[usize::from(*key)][4] = *x;
                    }
                }
                Step::Remove(key) => {
                    let gone = table.remove(&[*key]).unwrap();
                    prop_assert_eq!(gone.map(|gone| gone.bytes().to_vec()), model.0.remove(&vec![*key]));
                }
                Step::Push(x, front) => {
                    sequence.push(make(*x), *front).unwrap();
                    let element = make(*x).bytes().to_vec();
                    if *front { model.1.push_front(element) } else { model.1.push_back(element) }
                }
                Step::Pop(front) => {
                    let gone = sequence.pop(*front).unwrap().map(|gone| gone.bytes().to_vec());
                    let expected = if *front { model.1.pop_front() } else { model.1.pop_back() };
                    prop_assert_eq!(gone, expected);
                }
                Step::Clear => {
                    table.clear().unwrap();
                    sequence.clear().unwrap();
                    model = Model::default();
                }
                Step::Commit => {
                    commit().unwrap();
                    committed = model.clone();
                    for records in shipped.0.lock().drain(..) {
                        other.apply(&records, Some(&plans), false).unwrap();
                    }
                    // Read at its own time: what it shows is the backup's.
                    other.set_role(Role::Primary);
                    prop_assert_eq!(&seen(&copies.0, &copies.1), &committed);
                    other.set_role(Role::Backup);
                }
                Step::Rollback => {
                    rollback().unwrap();
                    model = committed.clone();
                }
            }
            prop_assert_eq!(&seen(&table, &sequence), &model);
        }
        rollback().unwrap();
        // A backup that joins now gets all of it.
        let late = Store::new();
        let copies = declare(&late);
        let plans = follow(&late, &schema);
        store.images(|records| late.apply(records, Some(&plans), true).unwrap());
        prop_assert_eq!(seen(&copies.0, &copies.1), committed);
    }

    #[test]
    fn any_bytes_are_a_change_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let store = Store::new();
        Variable::declare_in(&store, "v", &thing()).unwrap();
        Table::declare_in(&store, "t", Of::Record(thing())).unwrap();
        Sequence::declare_in(&store, "s", Of::Bytes).unwrap();
        let schema = store.schema();
        let plans = follow(&store, &schema);
        let mut record = Writer::new(crate::wire::Mode::Content, None);
        record.sized(&bytes);
        let _ = store.apply(&record.bytes, Some(&plans), false);
    }
}

/// Each of them would wait for the guard of its own thread, for ever.
#[test]
fn what_this_thread_writes_to_is_not_changed_past_its_guard() {
    fn refused<T>(outcome: Result<T, WriteError>) -> bool {
        matches!(outcome, Err(WriteError::GuardAlive))
    }
    let store = Store::new();
    let table = Table::declare_in(&store, "t", Of::Record(point())).unwrap();
    let sequence = Sequence::declare_in(&store, "s", Of::Record(point())).unwrap();
    let _shipped = primary(&store);
    table.put(b"a", a_point(1)).unwrap();
    sequence.push(a_point(1), false).unwrap();

    let writing = table.write(b"a").unwrap().unwrap();
    assert!(refused(table.put(b"a", a_point(2))));
    assert!(refused(table.remove(b"a")));
    assert!(refused(table.clear()));
    assert!(refused(table.write(b"a")));
    drop(writing);
    let writing = sequence.write(0).unwrap().unwrap();
    assert!(refused(sequence.push(a_point(2), false)));
    assert!(refused(sequence.pop(false)));
    assert!(refused(sequence.put(0, a_point(2))));
    assert!(refused(sequence.clear()));
    assert!(refused(sequence.write(0)));
    drop(writing);

    table.put(b"a", a_point(2)).unwrap();
    assert!(sequence.pop(false).unwrap().is_some());
    commit().unwrap();
}

/// A primary could not say to its backup what such an array is: what it says of its types has to fit one frame.
#[test]
fn an_array_of_too_many_elements_is_refused_when_it_is_declared() {
    let large = |count| {
        let many = FieldType { count: Some(count), ..field("many", 0, Kind::Unsigned(1)) };
        RecordType::new("large", count, 1, vec![many])
    };
    assert!(large(200_000).is_ok());
    assert!(matches!(large(300_000), Err(BadType::TooMany(_, field)) if field == "many"));
    let of_structs = FieldType { count: Some(50_000), ..field("points", 0, Kind::Record(point())) };
    assert!(matches!(RecordType::new("large", 400_000, 4, vec![of_structs]), Err(BadType::TooMany(..))));
    let bytes = field("bytes", 0, Kind::Bytes(1 << 20));
    assert!(RecordType::new("large", 1 << 20, 1, vec![bytes]).is_ok());
}

/// Also of what is not declared by this module, which asks: counters, texts and handles of C.
#[test]
fn nothing_is_declared_once_the_program_takes_part() {
    let store = Store::new();
    assert_eq!(may_declare_in(&store, "late"), Ok(()));
    let _shipped = primary(&store);
    assert_eq!(may_declare_in(&store, "late"), Err(NotDeclared::TooLate("late".into())));
}

//! Types that must not be replicated, each with what to use instead. This is for better words only: the trait bound
//! refuses them as well, under whatever name.

use syn::visit::Visit;
use syn::{Error, Result, Type, TypePath};

struct Finder(Option<Error>);

/// The last part of a type's path, and what to say.
const NAMES: &[(&[&str], &str)] = &[
    (
        &["Rc", "Weak"],
        "cannot be replicated: a reference between replicated objects is a `Ref<T>`, an owned value a plain field",
    ),
    (
        &["Arc"],
        "cannot be replicated: a reference between replicated objects is a `Ref<T>`, an owned value a plain field",
    ),
    (
        &["RefCell", "Cell", "UnsafeCell", "OnceCell", "LazyCell"],
        "cannot be replicated, for it changes without being noticed: use a plain field and a write guard",
    ),
    (
        &["Mutex", "RwLock", "Condvar", "Once", "OnceLock", "LazyLock", "Barrier", "Semaphore"],
        "cannot be replicated: every replicated object has a lock of its own; a lock for each side is a `#[local]` field",
    ),
    (
        &[
            "AtomicBool",
            "AtomicU8",
            "AtomicU16",
            "AtomicU32",
            "AtomicU64",
            "AtomicUsize",
            "AtomicI8",
            "AtomicI16",
            "AtomicI32",
            "AtomicI64",
            "AtomicIsize",
            "AtomicPtr",
        ],
        "cannot be replicated, for it changes without being noticed: use a plain number or a `Counter`",
    ),
    (
        &[
            "File",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "UnixStream",
            "UnixListener",
            "UnixDatagram",
            "OwnedFd",
            "BorrowedFd",
            "RawFd",
            "Child",
            "Stdin",
            "Stdout",
            "Stderr",
        ],
        "cannot be replicated, for it belongs to one process: make it a `#[local]` field that is rebuilt on each side",
    ),
    (
        &["ThreadId", "JoinHandle", "Thread"],
        "cannot be replicated, for threads belong to one process: make it a `#[local]` field",
    ),
    (
        &["Sender", "Receiver", "SyncSender", "UnboundedSender", "UnboundedReceiver"],
        "cannot be replicated: use a `Deque`, or a `#[local]` field",
    ),
    (
        &["Instant"],
        "cannot be replicated, for its clock is one machine's: use the time since 1970 as a `Duration`",
    ),
    (&["HashMap"], "would be shipped whole at every change: use `Map`, which ships what changed"),
    (&["BTreeMap"], "would be shipped whole at every change: use `OrderedMap`, which ships what changed"),
    (&["HashSet", "BTreeSet"], "would be shipped whole at every change: use `Set`, which ships what changed"),
    (
        &["VecDeque", "LinkedList", "BinaryHeap"],
        "would be shipped whole at every change: use `Deque` or `OrderedMap`, which ship what changed",
    ),
    (&["NonNull"], "cannot be replicated, for addresses never travel: use a `Ref<T>`"),
];

impl<'ast> Visit<'ast> for Finder {
    fn visit_type(&mut self, of: &'ast Type) {
        let words = match of {
            Type::Reference(_) => "a reference cannot be replicated: use a `Ref<T>`, or an owned value",
            Type::Ptr(_) => "a raw pointer cannot be replicated, for addresses never travel: use a `Ref<T>`",
            Type::BareFn(_) => {
                "a function pointer cannot be replicated, for addresses never travel: use an enum of what can be called"
            }
            Type::TraitObject(_) => "a trait object cannot be replicated: use an enum of what it can be",
            _ => "",
        };
        if !words.is_empty() {
            self.0.get_or_insert(Error::new_spanned(of, words));
        }
        syn::visit::visit_type(self, of);
    }

    fn visit_type_path(&mut self, path: &'ast TypePath) {
        if let Some(last) = path.path.segments.last() {
            // What a handle leads to never travels: that is what it is for.
            if last.ident == "Handle" {
                return;
            }
            let found = NAMES.iter().find(|(names, _)| names.iter().any(|name| last.ident == name));
            if let Some((_, words)) = found {
                self.0.get_or_insert(Error::new_spanned(path, format!("`{}` {words}", last.ident)));
            }
        }
        syn::visit::visit_type_path(self, path);
    }
}

/// Says what to use instead of a type that must not be replicated.
pub fn check(of: &Type) -> Result<()> {
    let mut finder = Finder(None);
    finder.visit_type(of);
    finder.0.map_or(Ok(()), Err)
}

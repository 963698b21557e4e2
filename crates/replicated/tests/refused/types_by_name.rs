use outlive_replicated::replicated;

#[replicated]
struct Shared {
    field: std::sync::Arc<u64>,
}

#[replicated]
struct Counted {
    field: std::sync::atomic::AtomicU64,
}

#[replicated]
struct Channel {
    field: std::sync::mpsc::Sender<u64>,
}

#[replicated]
struct When {
    field: std::time::Instant,
}

#[replicated]
struct Address {
    field: std::ptr::NonNull<u64>,
}

#[replicated]
struct Queue {
    field: std::collections::VecDeque<u64>,
}

#[replicated]
struct Any {
    field: Box<dyn Send>,
}

fn main() {}

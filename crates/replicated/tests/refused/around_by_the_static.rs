use outlive_replicated::{List, replicated};

#[replicated]
struct State {
    number: u64,
    list: List<u64>,
}

#[replicated]
static STATE: State = State { number: 0, list: List::new() };

fn main() {
    STATE.number = 1;
}

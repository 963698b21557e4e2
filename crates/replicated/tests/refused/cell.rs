use outlive_replicated::replicated;

#[replicated]
struct State {
    field: std::cell::Cell<u64>,
}

fn main() {}

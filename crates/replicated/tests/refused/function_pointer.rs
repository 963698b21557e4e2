use outlive_replicated::replicated;

#[replicated]
struct State {
    field: fn(u64) -> u64,
}

fn main() {}

use outlive_replicated::replicated;

#[replicated]
struct State {
    field: std::collections::HashMap<u64, u64>,
}

fn main() {}

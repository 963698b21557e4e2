use outlive_replicated::replicated;

#[replicated]
struct State {
    field: std::sync::Mutex<u64>,
}

fn main() {}

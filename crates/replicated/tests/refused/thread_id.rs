use outlive_replicated::replicated;

#[replicated]
struct State {
    field: std::thread::ThreadId,
}

fn main() {}

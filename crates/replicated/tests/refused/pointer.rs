use outlive_replicated::replicated;

#[replicated]
struct State {
    field: *const u8,
}

fn main() {}

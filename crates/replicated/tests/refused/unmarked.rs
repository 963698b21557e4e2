use outlive_replicated::replicated;

struct Unmarked;

#[replicated]
struct State {
    field: Unmarked,
}

fn main() {}

use outlive_replicated::replicated;

#[replicated]
struct State {
    field: &'static str,
}

fn main() {}

use std::rc::Rc as Innocent;

use outlive_replicated::replicated;

#[replicated]
struct State {
    field: Innocent<u64>,
}

fn main() {}

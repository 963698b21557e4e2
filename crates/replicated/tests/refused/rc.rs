use outlive_replicated::replicated;

#[replicated]
struct State {
    field: std::rc::Rc<u64>,
}

fn main() {}

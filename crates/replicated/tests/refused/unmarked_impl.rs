use outlive_replicated::replicated;

struct Unmarked;

#[replicated]
impl Unmarked {
    fn change(&mut self) {}
}

fn main() {}

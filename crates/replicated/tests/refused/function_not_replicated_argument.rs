use outlive_replicated::replicated;

struct Plain;

#[replicated(eager)]
fn open(plain: Plain) -> u64 {
    drop(plain);
    7
}

fn main() {}

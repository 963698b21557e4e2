use outlive_replicated::replicated;

#[replicated]
// SAFETY: it does not compile.
unsafe fn of_danger() -> u64 {
    7
}

#[replicated]
extern "C" fn of_another() -> u64 {
    7
}

#[replicated]
const fn of_the_compiler() -> u64 {
    7
}

#[replicated]
fn of_a_pattern((one, other): (u64, u64)) -> u64 {
    one + other
}

fn main() {}

use outlive_replicated::replicated;

#[replicated]
static mut STATE: u64 = 0;

fn main() {}

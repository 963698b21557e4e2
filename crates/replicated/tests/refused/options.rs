use outlive_replicated::replicated;

#[replicated(color = "red")]
struct Type {
    field: u64,
}

#[replicated]
struct Field {
    #[replicated(color = "red")]
    field: u64,
}

#[replicated]
struct Local {
    #[local = 7]
    field: u64,
}

#[replicated(name = "methods")]
impl Field {}

#[replicated(often)]
fn open() -> u64 {
    7
}

fn main() {}

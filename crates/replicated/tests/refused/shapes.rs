use outlive_replicated::replicated;

#[replicated]
struct Generic<T> {
    field: T,
}

#[replicated]
enum Never {}

#[replicated]
enum OfOneSide {
    One {
        #[local(0)]
        field: u64,
    },
}

#[replicated]
trait Other {}

fn main() {}

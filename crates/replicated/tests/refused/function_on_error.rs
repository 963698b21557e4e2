use outlive_replicated::replicated;

#[replicated(eager, on_error = ignore)]
fn open(name: String) -> String {
    name
}

fn main() {}

use outlive_replicated::replicated;

#[replicated(eager, lazy)]
fn open(name: String) -> String {
    name
}

fn main() {}

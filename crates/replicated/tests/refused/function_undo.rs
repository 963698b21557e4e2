use outlive_replicated::replicated;

fn close(name: u64) {
    drop(name);
}

#[replicated(eager, undo = close)]
fn open(name: String) -> String {
    name
}

fn main() {}

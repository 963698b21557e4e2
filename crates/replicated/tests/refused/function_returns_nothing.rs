use outlive_replicated::replicated;

#[replicated(eager)]
fn notify(name: String) {
    drop(name);
}

fn main() {}

use outlive_replicated::replicated;

#[replicated(eager)]
fn open<T: ToString>(name: T) -> String {
    name.to_string()
}

fn main() {}

use outlive_replicated::replicated;

#[replicated(eager)]
fn open(name: &str) -> Result<u64, String> {
    Ok(name.len() as u64)
}

fn main() {}

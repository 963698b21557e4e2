use outlive_replicated::replicated;

#[replicated(eager)]
fn read(file: std::fs::File) -> Result<u64, String> {
    drop(file);
    Ok(7)
}

fn main() {}

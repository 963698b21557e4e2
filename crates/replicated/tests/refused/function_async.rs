use outlive_replicated::replicated;

#[replicated(eager)]
async fn open(name: String) -> Result<u64, String> {
    Ok(name.len() as u64)
}

fn main() {}

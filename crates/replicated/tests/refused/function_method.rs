use outlive_replicated::replicated;

struct Files;

impl Files {
    #[replicated(eager)]
    fn open(&self, name: String) -> Result<u64, String> {
        Ok(name.len() as u64)
    }
}

fn main() {}

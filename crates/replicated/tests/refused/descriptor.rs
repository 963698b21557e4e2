use outlive_replicated::replicated;

#[replicated]
struct State {
    field: std::os::fd::OwnedFd,
}

fn main() {}

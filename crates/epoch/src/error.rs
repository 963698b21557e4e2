//! What stops a supervisor.

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Process(#[from] outlive_process::Error),
    #[error(transparent)]
    Namespace(#[from] outlive_net::NamespaceError),
    #[error(transparent)]
    Port(#[from] outlive_net::PortError),
    #[error(transparent)]
    Pump(#[from] outlive_net::PumpError),
    #[error("the workload's output cannot be released: {0}")]
    Plug(#[from] outlive_net::PlugError),
    #[error(transparent)]
    Identity(#[from] outlive_stream::tls::IdentityError),
    #[error("{attempt}: {source}")]
    System { attempt: String, source: std::io::Error },
    #[error("{0}")]
    Arbitration(String),
    #[error("the stream from the primary cannot be used: {0}")]
    Stream(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) trait Attempt<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Attempt<T> for std::io::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::System { attempt: what(), source })
    }
}

impl<T> Attempt<T> for nix::Result<T> {
    fn attempt(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::System { attempt: what(), source: errno.into() })
    }
}

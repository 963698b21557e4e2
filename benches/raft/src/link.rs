//! What members say to each other: one request after the other on a connection.

use std::net::SocketAddr;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, Raft, RaftNetwork, RaftNetworkFactory};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Types;

#[derive(Serialize, Deserialize)]
enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<Types>),
}

async fn send(stream: &mut TcpStream, what: &impl Serialize) -> std::io::Result<()> {
    // The length in front, in the same write.
    let mut bytes = postcard::to_extend(what, vec![0; 4]).map_err(std::io::Error::other)?;
    let length = bytes.len() as u32 - 4;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&bytes).await
}

async fn receive<T: DeserializeOwned>(stream: &mut TcpStream) -> std::io::Result<T> {
    let mut bytes = vec![0; stream.read_u32_le().await? as usize];
    stream.read_exact(&mut bytes).await?;
    postcard::from_bytes(&bytes).map_err(std::io::Error::other)
}

pub async fn serve(raft: Raft<Types>, listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let raft = raft.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            while let Ok(request) = receive::<Request>(&mut stream).await {
                let sent = match request {
                    Request::Append(rpc) => send(&mut stream, &raft.append_entries(rpc).await).await,
                    Request::Vote(rpc) => send(&mut stream, &raft.vote(rpc).await).await,
                    Request::Snapshot(rpc) => send(&mut stream, &raft.install_snapshot(rpc).await).await,
                };
                if sent.is_err() {
                    return;
                }
            }
        });
    }
}

pub struct Peers(pub Vec<SocketAddr>);

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Peer {
        Peer { target, address: self.0[target as usize], stream: None }
    }
}

pub struct Peer {
    target: u64,
    address: SocketAddr,
    stream: Option<TcpStream>,
}

impl Peer {
    async fn ask<T, E>(&mut self, request: &Request) -> Result<T, RPCError<u64, BasicNode, E>>
    where
        T: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address).await;
            let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
            self.stream = Some(stream.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))?);
        }
        let Some(stream) = &mut self.stream else {
            return Err(RPCError::Network(NetworkError::new(&std::io::Error::other("no connection"))));
        };
        let outcome = match send(stream, request).await {
            Ok(()) => receive::<Result<T, E>>(stream).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(RPCError::RemoteError(RemoteError::new(self.target, error))),
            Err(error) => {
                self.stream = None;
                Err(RPCError::Network(NetworkError::new(&error)))
            }
        }
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        self.ask(&Request::Append(rpc)).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RPCError<u64, BasicNode, RaftError<u64, InstallSnapshotError>>>
    {
        self.ask(&Request::Snapshot(rpc)).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        self.ask(&Request::Vote(rpc)).await
    }
}

//! etcd as Debian has it: three members, default settings, their files in memory (`/dev/shm`), so that no disk is measured.
//! Clients speak gRPC with the member that answers a lone client soonest: as a rule the leader, which others ask.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;

use crate::{CLIENTS, FOR, Failure, ROUNDS};

struct Members {
    children: Vec<Child>,
    clients: Vec<SocketAddr>,
    _folder: tempfile::TempDir,
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start() -> Result<Members, Failure> {
    let listeners: Vec<_> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses: Vec<_> = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    drop(listeners);
    let (clients, peers) = addresses.split_at(3);
    let all: Vec<_> = (0..3).map(|number| format!("m{number}=http://{}", peers[number])).collect();
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let mut members = Members { children: Vec::new(), clients: clients.to_vec(), _folder: folder };
    for number in 0..3 {
        let mut command = Command::new("etcd");
        command.args(["--name", &format!("m{number}"), "--initial-cluster-state", "new"]);
        command.arg("--data-dir").arg(members._folder.path().join(number.to_string()));
        command.args(["--initial-cluster", &all.join(",")]);
        for (option, address) in [
            ("--listen-client-urls", clients[number]),
            ("--advertise-client-urls", clients[number]),
            ("--listen-peer-urls", peers[number]),
            ("--initial-advertise-peer-urls", peers[number]),
        ] {
            command.args([option, &format!("http://{address}")]);
        }
        members.children.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    }
    Ok(members)
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Bytes>, Failure> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (send, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    Ok(send)
}

/// `etcdserverpb.KV/Put` with a key of 8 bytes and a value of 8, as gRPC has it: a flag, the length, the message.
async fn put(
    send: SendRequest<Bytes>,
    address: SocketAddr,
    key: u32,
    value: u64,
) -> Result<SendRequest<Bytes>, Failure> {
    let mut send = send.ready().await?;
    let request = Request::post(format!("http://{address}/etcdserverpb.KV/Put"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut message = vec![0, 0, 0, 0, 20, 0x0a, 8];
    message.extend_from_slice(format!("{key:08x}").as_bytes());
    message.extend_from_slice(&[0x12, 8]);
    message.extend_from_slice(&value.to_le_bytes());
    let (response, mut body) = send.send_request(request, false)?;
    body.send_data(message.into(), true)?;
    let mut body = response.await?.into_body();
    let mut length = 0;
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        length += part.len();
    }
    let trailers = body.trailers().await?;
    let status =
        trailers.as_ref().and_then(|all| all.get("grpc-status")).map(|value| value.as_bytes().to_vec());
    if length == 0 || status.as_deref() != Some(b"0") {
        return Err(format!("etcd answers {length} bytes, {trailers:?}").into());
    }
    Ok(send)
}

async fn updates_by(address: SocketAddr, clients: usize, time: Duration) -> Result<f64, Failure> {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(connect(address).await?);
    }
    let since = Instant::now();
    let tasks: Vec<_> = connections
        .into_iter()
        .enumerate()
        .map(|(key, mut send)| {
            tokio::spawn(async move {
                let mut count = 0u64;
                while since.elapsed() < time {
                    count += 1;
                    send = put(send, address, key as u32, count).await?;
                }
                Ok::<u64, Failure>(count)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok(total as f64 / since.elapsed().as_secs_f64())
}

pub async fn measure() -> Result<(), Failure> {
    let members = start()?;
    let since = Instant::now();
    for address in &members.clients {
        while updates_by(*address, 1, Duration::ZERO).await.is_err()
            || put(connect(*address).await?, *address, 0, 0).await.is_err()
        {
            if since.elapsed() > Duration::from_secs(60) {
                return Err("etcd does not answer".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let mut best = (0.0, members.clients[0]);
    for address in &members.clients {
        let rate = updates_by(*address, 1, Duration::from_millis(500)).await?;
        if rate > best.0 {
            best = (rate, *address);
        }
    }
    let mut rates = Vec::new();
    for clients in CLIENTS {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(updates_by(best.1, clients, FOR).await?);
        }
        rounds.sort_by(f64::total_cmp);
        rates.push(rounds[ROUNDS / 2]);
    }
    println!("{rates:.0?}");
    Ok(())
}

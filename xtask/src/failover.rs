//! Redis as the service of the scenario of kills.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use outlive_lab::Lab;
use outlive_lab::client::redis::{Fill, Load, RedisClient};
use outlive_lab::client::stats::{Report, Stats};
use outlive_lab::cluster::Cluster;
use outlive_lab::scenario::{
    self, Command, Moves, Outcome, Place, ScenarioError, Service, Traffic, seed, wait_for,
};

pub const WORKLOAD: &str = "redis";
pub const REDIS_PORT: u16 = 6379;
pub const REDIS: [&str; 9] =
    ["redis-server", "--save", "", "--appendonly", "no", "--bind", "0.0.0.0", "--protected-mode", "no"];

/// From a reply to the next request on the same connection: also the resolution of a stall.
const PACE: Duration = Duration::from_millis(10);

pub struct Plan {
    pub program: PathBuf,
    pub kills: usize,
    pub clients: usize,
    /// Bytes of values that Redis holds besides those of the clients.
    pub resident: u64,
}

/// Of a planned move, which takes little longer than that, more is to be seen.
const MOVE_PACE: Duration = Duration::from_millis(2);

/// The scenario of planned moves: as many as there were to be kills.
pub fn switch(plan: &Plan, say: &dyn Fn(&str)) -> Result<Moves> {
    let mut redis = Redis { clients: plan.clients, resident: plan.resident, pace: MOVE_PACE, fill: None };
    Ok(scenario::switch(&plan.program, &mut redis, plan.kills, say)?)
}

/// Runs the scenario, and tells `say` what happens.
pub fn run(plan: &Plan, say: &dyn Fn(&str)) -> Result<Outcome> {
    let mut redis = Redis { clients: plan.clients, resident: plan.resident, pace: PACE, fill: None };
    Ok(scenario::run(&plan.program, &mut redis, plan.kills, seed(), say)?)
}

struct Redis {
    clients: usize,
    resident: u64,
    pace: Duration,
    fill: Option<Fill>,
}

impl Service for Redis {
    fn name(&self) -> &str {
        WORKLOAD
    }

    fn install(&mut self, _: &Lab) -> Result<Command, ScenarioError> {
        Ok(Command { words: REDIS.map(str::to_owned).to_vec(), ..Command::default() })
    }

    fn prepare(&mut self, place: &Place<'_>, say: &dyn Fn(&str)) -> Result<(), ScenarioError> {
        wait_for_redis(place.cluster, place.address)?;
        let target = SocketAddr::from((place.address, REDIS_PORT));
        let fill = Fill::write(Some(&place.from), target, self.resident).map_err(|source| {
            ScenarioError::Io { attempt: format!("fill redis with {} bytes", self.resident), source }
        })?;
        self.fill = Some(fill);
        say(&format!("it holds {} more bytes of values", self.resident));
        Ok(())
    }

    fn connect(&mut self, place: &Place<'_>) -> Result<Box<dyn Traffic>, ScenarioError> {
        let target = SocketAddr::from((place.address, REDIS_PORT));
        let load = Load { connections: self.clients, pace: self.pace, ..Load::new(target) };
        let client = RedisClient::start(Some(&place.from), load)
            .map_err(|source| ScenarioError::Io { attempt: "start the clients".to_owned(), source })?;
        Ok(Box::new(Clients { client, fill: self.fill.take(), from: place.from.clone() }))
    }
}

struct Clients {
    client: RedisClient,
    fill: Option<Fill>,
    from: outlive_lab::NetNs,
}

impl Traffic for Clients {
    fn stats(&self) -> &Stats {
        self.client.stats()
    }

    fn finish(self: Box<Self>) -> io::Result<Report> {
        let mut report = self.client.finish()?;
        if let Some(fill) = self.fill {
            let lost = fill.count_lost(Some(&self.from)).unwrap_or_else(|error| {
                report
                    .findings
                    .push(format!("the values that redis was filled with cannot be read back: {error}"));
                fill.writes()
            });
            report.acked_writes += fill.writes();
            report.acked_writes_lost += lost;
        }
        Ok(report)
    }
}

/// Waits until Redis answers at its address.
pub fn wait_for_redis(cluster: &Cluster, address: Ipv4Addr) -> Result<(), ScenarioError> {
    let (host, port) = (address.to_string(), REDIS_PORT.to_string());
    wait_for(&format!("redis at {host}:{port}"), || {
        let limit = Duration::from_secs(5);
        let ping = ["redis-cli", "-h", &host, "-p", &port, "ping"];
        match cluster.client().exec_within(limit, ping) {
            Ok(output) if output.stdout.starts_with(b"PONG") => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An `outlive` that keeps nothing in step: when the primary is gone, it starts a new Redis at the same address
    /// and claims that all is well.
    const LIAR: &str = r#"#!/bin/sh
state=$(dirname "$0")/state
me=$(hostname)
serve() {
    ip addr add "$1/24" dev br0 && echo 1 > /proc/sys/net/ipv4/conf/br0/arp_notify
    ip link set br0 down && ip link set br0 up # announces the address
    redis-server --save "" --appendonly no --bind 0.0.0.0 --protected-mode no > /dev/null 2>&1 &
}
case "$1" in
    cert | seed) ;;
    agent) echo ready; exec sleep 1000 ;;
    run)
        while [ "$1" != --ip ]; do shift; done
        serve "${2%/*}"
        echo "$me b 1 ${2%/*}" > "$state" ;;
    inspect)
        read -r primary backup generation ip < "$state"
        role=primary
        if [ "$primary" != "$me" ]; then
            role=backup
            if ! timeout 1 redis-cli -h "$ip" ping > /dev/null 2>&1; then
                role=primary backup=$primary primary=$me generation=$((generation + 1))
                serve "$ip"
                echo "$primary $backup $generation $ip" > "$state"
            fi
        fi
        cat << END
{"name":"redis","state":"protected","role":"$role","generation":$generation,"epoch":1,
 "primary_node":"$primary","backup_node":"$backup",
 "last_failover":{"detect_ms":1.0,"arbitrate_ms":2.0,"activate_ms":3.0}}
END
        ;;
    *) echo "unknown command $1" >&2; exit 2 ;;
esac
"#;

    #[test]
    fn a_product_that_only_claims_to_protect_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("outlive");
        fs::write(&program, LIAR).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let plan = Plan { program, kills: 1, clients: 4, resident: 1 << 20 };
        let outcome = run(&plan, &|line| println!("{line}")).unwrap();
        assert_eq!((outcome.kills, outcome.connections, outcome.connections_dropped), (1, 4, 4));
        // All of the fill, and what the clients wrote before.
        assert!(outcome.acked_writes_lost > 256, "{outcome:?}");
        assert!(outcome.stall_ms.max > 0 && outcome.failover_ms.arbitrate == 2.0);
        assert!(!outcome.is_good());
    }
}

//! Time, network and faults.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::time::Duration;

use outlive_cluster::{ClusterId, NodeName, Seeds, WorkloadName};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::checker::Checker;
use super::host::Host;
use super::supervisor::Context;
use super::{Broken, Climate, Config, MILLISECOND, Message, Report, SECOND, TICK, Time};

/// Faults happen until then.
const HEALED: Time = 3 * SECOND / 2;
/// By then, with all faults over, somebody must be running the workload.
const SETTLED: Time = 5 * SECOND / 2;
const END: Time = 3 * SECOND;

#[expect(clippy::large_enum_variant, reason = "most events are deliveries")]
enum Event {
    Deliver { from: usize, to: usize, message: Message },
    Tick { host: usize },
    Fault,
    Start { host: usize },
    Operator,
}

/// What kind of day it is.
struct Weather {
    lost_of_1000: u32,
    repeated_of_1000: u32,
    slow_of_1000: u32,
    between_faults: Time,
    outage: Range<Time>,
    wipes: u32,
    only_crashes: bool,
    slow_most: Time,
    /// How often the operator looks.
    between_operators: Time,
    restless: bool,
}

impl Weather {
    fn new(config: Config, rng: &mut SmallRng) -> Self {
        let mut weather = Self {
            lost_of_1000: [0, 10, 100][rng.random_range(0..3)],
            repeated_of_1000: [0, 50][rng.random_range(0..2)],
            slow_of_1000: [0, 20, 100][rng.random_range(0..3)],
            between_faults: [20, 60, 150][rng.random_range(0..3)] * MILLISECOND,
            outage: 10 * MILLISECOND..300 * MILLISECOND,
            wipes: rng.random_range(0..3),
            only_crashes: false,
            slow_most: 200 * MILLISECOND,
            between_operators: 60 * MILLISECOND,
            restless: false,
        };
        match config.climate {
            Climate::Mixed => {}
            Climate::Wiping => {
                weather.slow_of_1000 = 300;
                weather.slow_most = 40 * MILLISECOND;
                weather.between_faults = 15 * MILLISECOND;
                weather.outage = MILLISECOND..5 * MILLISECOND;
                weather.wipes = u32::MAX;
                weather.only_crashes = true;
                weather.between_operators = 5 * MILLISECOND;
                weather.restless = true;
            }
            Climate::Restless => {
                weather.slow_of_1000 = 100;
                weather.restless = true;
            }
        }
        if config.seed_nodes == 1 {
            // Only a hand could teach it.
            weather.wipes = 0;
        }
        weather
    }
}

/// What all hosts share.
struct Shared {
    rng: SmallRng,
    checker: Checker,
    seeds: Seeds,
    workload: WorkloadName,
    names: Vec<NodeName>,
    broken: Option<Broken>,
    whims: bool,
    restless: bool,
    trace: bool,
}

impl Shared {
    fn context(&mut self, now: Duration) -> Context<'_> {
        Context {
            now,
            rng: &mut self.rng,
            checker: &mut self.checker,
            seeds: &self.seeds,
            workload: &self.workload,
            hosts: &self.names,
            broken: self.broken,
            whims: self.whims,
            restless: self.restless,
            one_seed: None,
            out: Vec::new(),
            trace: self.trace,
        }
    }
}

struct Scheduled {
    at: Time,
    /// Of two events at one time, the earlier scheduled comes first.
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct World {
    now: Time,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    hosts: Vec<Host>,
    shared: Shared,
    weather: Weather,
    /// Until when nothing gets from the first host to the second.
    cut: Vec<Vec<Time>>,
}

impl World {
    pub fn new(config: Config) -> Self {
        let mut rng = SmallRng::seed_from_u64(config.seed);
        // A host that is no seed node, at least, so that a workload need not die with a vote.
        let count = config.seed_nodes + rng.random_range(if config.seed_nodes == 1 { 2..=3 } else { 1..=2 });
        let names: Vec<NodeName> = (0..count).map(|number| format!("h{number}").parse().unwrap()).collect();
        let seeds = Seeds::new(ClusterId(7), 1, names[..config.seed_nodes].to_vec()).unwrap();
        let weather = Weather::new(config, &mut rng);
        let hosts = names.iter().enumerate().map(|(number, name)| {
            // Far more than real clocks drift: a tenth.
            let clock = (Duration::from_secs(rng.random_range(0..100)), rng.random_range(-100_000..=100_000));
            Host::new(name.clone(), number < config.seed_nodes, clock)
        });
        let hosts: Vec<Host> = hosts.collect();
        let shared = Shared {
            checker: Checker::new(),
            seeds,
            workload: "web".parse().unwrap(),
            names,
            broken: config.broken,
            whims: true,
            restless: weather.restless,
            trace: config.trace,
            rng,
        };
        let cut = vec![vec![0; count]; count];
        let mut world = Self { now: 0, queue: BinaryHeap::new(), scheduled: 0, hosts, shared, weather, cut };
        for host in 0..count {
            let at = world.shared.rng.random_range(0..5 * MILLISECOND);
            world.schedule(at, Event::Tick { host });
            if world.hosts[host].is_seed {
                let now = world.hosts[host].clock(0);
                world.hosts[host].bootstrap(&mut world.shared.context(now));
            }
        }
        world.schedule(0, Event::Operator);
        world.schedule(world.weather.between_faults, Event::Fault);
        world
    }

    pub fn run(mut self) -> Report {
        let mut released_when_settled = None;
        while let Some(Reverse(next)) = self.queue.pop()
            && next.at < END
            && self.shared.checker.violation.is_none()
        {
            self.now = next.at;
            if self.shared.whims && self.now >= HEALED {
                self.heal();
            }
            if self.now >= SETTLED {
                released_when_settled.get_or_insert(self.shared.checker.counts.released);
            }
            self.happen(next.event);
        }
        let checker = &mut self.shared.checker;
        let voting = self.hosts.iter().filter(|host| host.votes()).count();
        let idle = released_when_settled.is_some_and(|before| before == checker.counts.released);
        // What was broken on purpose may stand still, too, but that is not what it is broken for.
        if idle && voting >= self.shared.seeds.majority() && self.shared.broken.is_none() {
            checker.violation.get_or_insert(format!("nobody speaks, though {voting} seed nodes vote"));
        }
        Report { violation: checker.violation.take(), counts: checker.counts }
    }

    fn schedule(&mut self, at: Time, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled { at, order: self.scheduled, event }));
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.shared.trace {
            eprintln!("{:>7} ms {}", self.now / MILLISECOND, what());
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, message } => self.deliver(from, to, message),
            Event::Tick { host } => {
                let stalled_until = self.hosts[host].stalled_until;
                if stalled_until > self.now {
                    return self.schedule(stalled_until, Event::Tick { host });
                }
                let tick = u64::try_from(TICK.as_micros()).expect("short");
                let jitter = self.shared.rng.random_range(0..tick / 4);
                self.schedule(self.now + tick + jitter, Event::Tick { host });
                if self.hosts[host].is_up {
                    self.on_host(host, |host, context| host.tick(context));
                }
            }
            Event::Fault if self.shared.whims => {
                self.fault();
                let pause = self.shared.rng.random_range(0..2 * self.weather.between_faults);
                self.schedule(self.now + pause, Event::Fault);
            }
            Event::Fault => {}
            Event::Start { host } => {
                if !self.hosts[host].is_up {
                    self.trace(|| format!("h{host} starts"));
                    self.on_host(host, Host::start);
                }
            }
            Event::Operator => {
                self.schedule(self.now + self.weather.between_operators, Event::Operator);
                let host = self.shared.rng.random_range(0..self.hosts.len());
                if self.hosts[host].is_up && self.hosts[host].stalled_until <= self.now {
                    self.on_host(host, Host::see_to_it);
                }
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        if self.hosts[to].stalled_until > self.now {
            let until = self.hosts[to].stalled_until;
            return self.schedule(until, Event::Deliver { from, to, message });
        }
        if self.hosts[to].is_up {
            let sender = self.hosts[from].name.clone();
            self.on_host(to, |host, context| host.on_message(&sender, message, context));
        }
    }

    fn on_host(&mut self, host: usize, act: impl FnOnce(&mut Host, &mut Context)) {
        let one_seed = if self.shared.broken == Some(Broken::SettlesByOneSeed) {
            let seed = self.shared.rng.random_range(0..self.shared.seeds.members().len());
            self.hosts[seed].last_vote()
        } else {
            None
        };
        let now = self.hosts[host].clock(self.now);
        let mut context = Context { one_seed, ..self.shared.context(now) };
        act(&mut self.hosts[host], &mut context);
        let out = context.out;
        for (to, message) in out {
            let to = self.shared.names.iter().position(|name| *name == to).expect("a host");
            self.send(host, to, message);
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if from == to {
            return self.schedule(self.now + 1, Event::Deliver { from, to, message });
        }
        if self.cut[from][to] > self.now || self.chance(self.weather.lost_of_1000) {
            return;
        }
        if self.chance(self.weather.repeated_of_1000) {
            let again = self.now + self.delay();
            self.schedule(again, Event::Deliver { from, to, message: message.clone() });
        }
        let at = self.now + self.delay();
        self.schedule(at, Event::Deliver { from, to, message });
    }

    fn chance(&mut self, of_1000: u32) -> bool {
        of_1000 > 0 && self.shared.rng.random_ratio(of_1000, 1000)
    }

    /// Different for every message, so that they overtake each other.
    fn delay(&mut self) -> Time {
        let most =
            if self.chance(self.weather.slow_of_1000) { self.weather.slow_most } else { 3 * MILLISECOND };
        self.shared.rng.random_range(100..most)
    }

    fn fault(&mut self) {
        let count = self.hosts.len();
        let host = self.shared.rng.random_range(0..count);
        let duration = self.shared.rng.random_range(self.weather.outage.clone());
        let until = self.now + duration;
        let kinds = if self.weather.only_crashes { 2 } else { 8 };
        match self.shared.rng.random_range(0..kinds) {
            0 | 1 => self.crash(host, until),
            2 => {
                self.trace(|| format!("h{host} stalls"));
                self.hosts[host].stalled_until = until;
            }
            3 => {
                self.trace(|| format!("h{host}'s disk fails"));
                let written = self.shared.rng.random();
                self.hosts[host].fail_next_write(written);
                // Somebody notices, and restarts it.
                self.schedule(until, Event::Start { host });
            }
            4 => {
                let other = self.shared.rng.random_range(0..count);
                self.trace(|| format!("from h{host} to h{other} is cut"));
                self.cut[host][other] = until;
            }
            5 => {
                self.trace(|| format!("h{host} hears nobody"));
                self.cut.iter_mut().for_each(|from| from[host] = until);
            }
            6 => {
                self.trace(|| format!("h{host} is heard by nobody"));
                self.cut[host].fill(until);
            }
            _ => {
                self.trace(|| format!("h{host} is cut off"));
                self.cut[host].fill(until);
                self.cut.iter_mut().for_each(|from| from[host] = until);
            }
        }
    }

    fn crash(&mut self, host: usize, until: Time) {
        if !self.hosts[host].is_up {
            return;
        }
        // Where little else happens, all standing still because two are wiped at once would show nothing.
        let others = self.hosts.iter().enumerate().filter(|(other, seed)| *other != host && seed.is_seed);
        let may_wipe = !self.weather.only_crashes || others.into_iter().all(|(_, seed)| seed.votes());
        let wipe = self.hosts[host].is_seed
            && self.weather.wipes > 0
            && may_wipe
            && self.shared.rng.random_ratio(1, 3);
        self.trace(|| format!("h{host} crashes{}", if wipe { " and loses its disk" } else { "" }));
        self.on_host(host, Host::crash);
        if wipe {
            self.weather.wipes -= 1;
            self.shared.checker.counts.wiped += 1;
            self.hosts[host].wipe();
        }
        self.schedule(until, Event::Start { host });
    }

    /// All faults are over.
    fn heal(&mut self) {
        self.trace(|| "all faults are over".to_owned());
        self.shared.whims = false;
        self.weather.lost_of_1000 = 0;
        self.weather.slow_of_1000 = 0;
        self.cut.iter_mut().for_each(|from| from.fill(0));
        for host in 0..self.hosts.len() {
            self.hosts[host].stalled_until = 0;
            if self.hosts[host].has_failed_disk() {
                self.on_host(host, Host::crash);
            }
            if !self.hosts[host].is_up {
                self.on_host(host, Host::start);
            }
        }
    }
}

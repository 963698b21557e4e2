//! What must hold, told apart from how it is brought about. Everything here is restated from the design; nothing is
//! asked of the code under test.

use std::collections::{BTreeMap, BTreeSet};

use outlive_cluster::{Holder, Incarnation, Register};

use super::State;

/// What happened in a run, to see that the runs are not idle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub failovers: u32,
    pub alone: u32,
    pub protections: u32,
    pub switchovers: u32,
    pub restarts: u32,
    pub stops: u32,
    pub unknown: u32,
    pub wiped: u32,
    pub taught: u32,
    pub released: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.failovers += other.failovers;
        self.alone += other.alone;
        self.protections += other.protections;
        self.switchovers += other.switchovers;
        self.restarts += other.restarts;
        self.stops += other.stops;
        self.unknown += other.unknown;
        self.wiped += other.wiped;
        self.taught += other.taught;
        self.released += other.released;
    }
}

/// A primary that began to speak from a state.
struct Activation {
    generation: u64,
    start: State,
}

pub struct Checker {
    /// Every epoch ever run, with the one it followed and its place: the history is a tree with 0 as its root.
    epochs: Vec<(State, u32)>,
    /// By version, what was seen to be agreed.
    agreed: BTreeMap<u64, Register>,
    /// By generation, who was granted it.
    granted: BTreeMap<u64, Incarnation>,
    activations: Vec<Activation>,
    /// By generation, the last state whose output left.
    released: BTreeMap<u64, State>,
    /// Which generations began from nothing, by order.
    fresh: BTreeSet<u64>,
    /// Who was ordered to restart the workload.
    orders: BTreeSet<Incarnation>,
    alive: BTreeSet<Incarnation>,
    pub violation: Option<String>,
    pub counts: Counts,
}

impl Checker {
    pub fn new() -> Self {
        Self {
            epochs: vec![(0, 0)],
            agreed: BTreeMap::new(),
            granted: BTreeMap::new(),
            activations: Vec::new(),
            released: BTreeMap::new(),
            fresh: BTreeSet::new(),
            orders: BTreeSet::new(),
            alive: BTreeSet::new(),
            violation: None,
            counts: Counts::default(),
        }
    }

    fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub fn born(&mut self, incarnation: Incarnation) {
        self.alive.insert(incarnation);
    }

    pub fn died(&mut self, incarnation: Incarnation) {
        self.alive.remove(&incarnation);
    }

    pub fn is_alive(&self, holder: &Holder) -> bool {
        self.alive.contains(&holder.incarnation)
    }

    /// A workload that begins from nothing: a state that includes no other.
    pub fn begin(&mut self) -> State {
        self.epochs.push((0, 1));
        self.epochs.len() - 1
    }

    /// The workload runs an epoch further.
    pub fn produce(&mut self, after: State) -> State {
        self.epochs.push((after, self.place(after) + 1));
        self.epochs.len() - 1
    }

    pub fn place(&self, state: State) -> u32 {
        self.epochs[state].1
    }

    fn includes(&self, mut later: State, earlier: State) -> bool {
        while self.place(later) > self.place(earlier) {
            later = self.epochs[later].0;
        }
        later == earlier
    }

    /// An operator tells `by` to restart the workload.
    pub fn order(&mut self, by: Incarnation) {
        self.orders.insert(by);
    }

    /// A proposer reports an agreed value.
    pub fn observe(&mut self, register: &Register) {
        let version = register.version;
        match self.agreed.get(&version) {
            Some(known) if known == register => return,
            Some(known) => {
                let what = format!("version {version} is both {known:?} and {register:?}");
                return self.violated(what);
            }
            None => {}
        }
        if let Some(primary) = register.primary() {
            let holder = *self.granted.entry(register.generation).or_insert(primary.incarnation);
            if holder != primary.incarnation {
                let generation = register.generation;
                self.violated(format!(
                    "generation {generation} went to {holder} and {}",
                    primary.incarnation
                ));
            }
        }
        self.agreed.insert(version, register.clone());
        for earlier in [version.wrapping_sub(1), version] {
            if let (Some(from), Some(to)) = (self.agreed.get(&earlier), self.agreed.get(&(earlier + 1)))
                && let Err(why) = self.check_row(from, to)
            {
                let what = format!("{why}: from {from:?} to {to:?}");
                self.violated(what);
            }
        }
        if version == 1 && (register.generation != 1 || register.synced_backup().is_some()) {
            self.violated(format!("the first value is {register:?}"));
        }
    }

    /// The table of the design, read from the outside.
    fn check_row(&self, from: &Register, to: &Register) -> Result<(), &'static str> {
        let incarnation = |holder: Option<&Holder>| holder.map(|holder| holder.incarnation);
        let (old, new) = (incarnation(from.primary()), incarnation(to.primary()));
        let (old_backup, new_backup) = (incarnation(from.synced_backup()), incarnation(to.synced_backup()));
        let same_generation = to.generation == from.generation;
        if !same_generation && to.generation != from.generation + 1 {
            return Err("the generation jumped");
        }
        match (old, new) {
            (_, None) if !same_generation => Err("a stop changed the generation"),
            (_, None) => Ok(()),
            (None, Some(_)) if same_generation => Err("a reused name did not get a new generation"),
            (None, Some(_)) => Ok(()),
            (Some(old), Some(new)) if old == new => match (same_generation, old_backup, new_backup) {
                (true, None, Some(_)) | (false, Some(_), None) => Ok(()),
                _ => Err("the primary's backup changed in no way it may"),
            },
            _ if same_generation => Err("the primary changed within a generation"),
            (old, Some(new)) if old_backup == Some(new) => {
                if new_backup.is_none() || new_backup == old {
                    Ok(())
                } else {
                    Err("a backup took over with a backup of its own choice")
                }
            }
            (_, Some(new)) if self.orders.contains(&new) && new_backup.is_none() => Ok(()),
            _ => {
                Err("one that was not the synced backup was granted a generation, and nobody had ordered it")
            }
        }
    }

    /// An incarnation begins to speak for a generation, from a state; `fresh` if from nothing.
    pub fn activate(&mut self, generation: u64, by: Incarnation, start: State, fresh: bool) {
        if self.granted.get(&generation) != Some(&by) {
            self.violated(format!("{by} speaks for generation {generation}, which it was not granted"));
        }
        if fresh {
            self.fresh.insert(generation);
        }
        let since = self.fresh.range(..=generation).next_back().copied().unwrap_or(0);
        for (&earlier, &state) in self.released.range(since..generation) {
            if !self.includes(start, state) {
                let what = format!(
                    "{by} takes over with generation {generation} from {start}, which lacks {state}, whose output \
                     generation {earlier} released"
                );
                self.violation.get_or_insert(what);
            }
        }
        self.activations.push(Activation { generation, start });
    }

    /// All output up to `state` leaves.
    pub fn release(&mut self, generation: u64, by: Incarnation, state: State) {
        if self.granted.get(&generation) != Some(&by) {
            self.violated(format!(
                "{by} releases output for generation {generation}, which it was not granted"
            ));
        }
        // A restart from nothing begins another history. Whoever spoke last in the one before was vouched to be dead
        // or silent. One that stalled still earlier may yet emit what its successor included, and nothing else.
        let history_ends = self.fresh.range(generation + 1..).next().copied();
        if history_ends == Some(generation + 1) {
            self.violated(format!(
                "{by} releases output for generation {generation}, which was said to be over"
            ));
        }
        let lacking = self.activations.iter().find(|later| {
            let succeeds =
                later.generation > generation && history_ends.is_none_or(|end| later.generation < end);
            succeeds && !self.includes(later.start, state)
        });
        if let Some(later) = lacking {
            let what = format!(
                "{by} releases the output of {state} for generation {generation}, which generation {} lacks",
                later.generation
            );
            self.violated(what);
        }
        let last = self.released.get(&generation).copied();
        if last.is_none_or(|last| self.place(last) < self.place(state)) {
            self.released.insert(generation, state);
            self.counts.released += 1;
        }
    }
}

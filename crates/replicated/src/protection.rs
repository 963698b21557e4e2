//! When a commit may be acknowledged: the rules of one primary, without any I/O.
//!
//! Exposed, a commit is acknowledged at once, or by policy not at all. While a backup is asked into the register nothing is, and from the grant
//! on only what the backup holds. When the backup is gone nothing is, until a majority of seed nodes has granted the
//! right to go on alone (R2): a backup that asks for its primary's place has stopped acknowledging before.

/// What is to be asked of the seed nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// That the backup that joined is the one that may take over.
    AddBackup,
    /// To go on without one.
    Alone,
}

/// How it stands with a primary's backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    Exposed,
    /// One is being sent everything; it does not count yet.
    Joining,
    /// It has been sent everything up to this commit, and nothing is acknowledged until it counts.
    Plugged(u64),
    /// It holds everything, and the seed nodes are asked.
    Asking,
    /// It counts.
    Protected,
    /// It is gone, and the seed nodes are asked.
    Losing,
    /// Another is the primary.
    Deposed,
}

/// The numbers of commits, and which of them may be acknowledged.
#[derive(Debug)]
pub struct Protection {
    phase: Phase,
    generation: u64,
    last: u64,
    held: u64,
    released: u64,
    /// Without a backup nothing is acknowledged.
    waits: bool,
}

impl Protection {
    /// A primary that speaks alone in `generation`, after `last` commits.
    pub fn new(generation: u64, last: u64) -> Self {
        Self { phase: Phase::Exposed, generation, last, held: 0, released: last, waits: false }
    }

    /// One that acknowledges nothing while it has no backup.
    pub fn waiting(generation: u64, last: u64) -> Self {
        Self { waits: true, ..Self::new(generation, last) }
    }

    /// How it stands with the backup.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// In which generation it speaks.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The number of the last commit.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Up to where commits may be acknowledged.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// A commit comes; its number.
    pub fn submit(&mut self) -> u64 {
        self.last += 1;
        self.release();
        self.last
    }

    /// A backup is sent everything; `false` if there is one already.
    pub fn join(&mut self) -> bool {
        let may = self.phase == Phase::Exposed;
        if may {
            (self.phase, self.held) = (Phase::Joining, 0);
        }
        may
    }

    /// Everything was sent to it.
    pub fn plug(&mut self) {
        if self.phase == Phase::Joining {
            self.phase = Phase::Plugged(self.last);
        }
    }

    /// The backup holds everything up to a commit. More than was sent to it cannot be.
    pub fn holds(&mut self, number: u64) -> Result<Option<Ask>, u64> {
        if number > self.last {
            return Err(number);
        }
        self.held = self.held.max(number);
        if let Phase::Plugged(plugged) = self.phase
            && self.held >= plugged
        {
            self.phase = Phase::Asking;
            return Ok(Some(Ask::AddBackup));
        }
        self.release();
        Ok(None)
    }

    /// The backup is gone, or no longer to be waited for.
    pub fn lose(&mut self) -> Option<Ask> {
        match self.phase {
            Phase::Joining | Phase::Plugged(_) => {
                // It never counted.
                self.phase = Phase::Exposed;
                self.release();
                None
            }
            // The question for it may have been granted: alone settles that as well.
            Phase::Asking | Phase::Protected => {
                self.phase = Phase::Losing;
                Some(Ask::Alone)
            }
            Phase::Exposed | Phase::Losing | Phase::Deposed => None,
        }
    }

    /// What was asked was granted, as `generation`.
    pub fn granted(&mut self, ask: Ask, generation: u64) {
        match (ask, self.phase) {
            (Ask::AddBackup, Phase::Asking) => self.phase = Phase::Protected,
            (Ask::Alone, Phase::Losing) => (self.phase, self.generation) = (Phase::Exposed, generation),
            _ => {}
        }
        self.release();
    }

    /// What was asked was refused for good: another is the primary.
    pub fn depose(&mut self) {
        self.phase = Phase::Deposed;
    }

    fn release(&mut self) {
        match self.phase {
            Phase::Exposed | Phase::Joining if !self.waits => self.released = self.last,
            Phase::Protected => self.released = self.released.max(self.held),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use outlive_cluster::{Holder, Incarnation, Register, Transition};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn nothing_is_acknowledged_while_a_backup_is_asked_in_or_lost() {
        let mut primary = Protection::new(1, 0);
        assert_eq!((primary.submit(), primary.released()), (1, 1));
        assert!(primary.join() && !primary.join());
        assert_eq!((primary.submit(), primary.released()), (2, 2));
        primary.plug();
        assert_eq!((primary.submit(), primary.released()), (3, 2));
        assert_eq!(primary.holds(1), Ok(None));
        assert_eq!(primary.holds(2), Ok(Some(Ask::AddBackup)));
        assert_eq!(primary.holds(3), Ok(None));
        assert_eq!(primary.released(), 2);
        primary.granted(Ask::AddBackup, 1);
        assert_eq!(primary.released(), 3);
        assert_eq!((primary.submit(), primary.released()), (4, 3));
        assert_eq!(primary.lose(), Some(Ask::Alone));
        assert_eq!((primary.submit(), primary.released()), (5, 3));
        primary.granted(Ask::Alone, 2);
        assert_eq!((primary.released(), primary.generation()), (5, 2));
        assert_eq!(primary.holds(9), Err(9));
    }

    #[test]
    fn who_waits_for_a_backup_acknowledges_nothing_without() {
        let mut primary = Protection::waiting(1, 0);
        assert_eq!((primary.submit(), primary.released()), (1, 0));
        assert!(primary.join());
        assert_eq!((primary.submit(), primary.released()), (2, 0));
        primary.plug();
        assert_eq!(primary.holds(2), Ok(Some(Ask::AddBackup)));
        primary.granted(Ask::AddBackup, 1);
        assert_eq!(primary.released(), 2);
        assert_eq!(primary.lose(), Some(Ask::Alone));
        primary.granted(Ask::Alone, 2);
        assert_eq!((primary.submit(), primary.released()), (3, 2));
    }

    /// One process of the simulation: a primary, or a backup of the other.
    enum Process {
        Primary {
            protection: Protection,
            log: Vec<u32>,
            asked: Option<Ask>,
        },
        /// `silent`: it has stopped acknowledging, and asks for the primary's place.
        Backup {
            log: Vec<u32>,
            silent: bool,
            synced: bool,
        },
        Down,
    }

    enum Message {
        Commit { number: u64, value: u32 },
        Synced { number: u64 },
        Holds { number: u64 },
    }

    struct World {
        rng: SmallRng,
        processes: [Process; 2],
        incarnations: [Incarnation; 2],
        /// Messages to each, of the present connection.
        to: [std::collections::VecDeque<Message>; 2],
        connected: bool,
        register: Register,
        acknowledged: Vec<u32>,
        next: u32,
        takeovers: u32,
    }

    fn holder(incarnation: Incarnation) -> Holder {
        Holder { incarnation, node: "n".parse().unwrap() }
    }

    impl World {
        fn new(seed: u64) -> Self {
            let a = Incarnation(1);
            let register = Register::apply(None, &Transition::Create { by: holder(a) }).unwrap();
            let protection = Protection::new(1, 0);
            Self {
                rng: SmallRng::seed_from_u64(seed),
                processes: [Process::Primary { protection, log: vec![], asked: None }, Process::Down],
                incarnations: [a, Incarnation(2)],
                to: Default::default(),
                connected: false,
                register,
                acknowledged: vec![],
                next: 0,
                takeovers: 0,
            }
        }

        fn incarnation(&mut self) -> Incarnation {
            Incarnation(self.rng.random())
        }

        fn cut(&mut self) {
            self.connected = false;
            self.to.iter_mut().for_each(std::collections::VecDeque::clear);
        }

        /// Who the register says speaks.
        fn speaker(&self) -> usize {
            let primary = self.register.primary().unwrap().incarnation;
            self.incarnations.iter().position(|own| *own == primary).unwrap()
        }

        /// Whatever is acknowledged must be in the log of whoever speaks, in its place.
        fn acknowledge(&mut self, who: usize, before: u64) {
            let Process::Primary { protection, log, .. } = &self.processes[who] else { return };
            for number in before..protection.released() {
                let value = log[number as usize];
                self.acknowledged.push(value);
            }
        }

        fn check(&self) {
            let log = match &self.processes[self.speaker()] {
                Process::Primary { log, .. } | Process::Backup { log, .. } => log,
                // Only copies died: nobody speaks, and nobody ever will.
                Process::Down => return,
            };
            for value in &self.acknowledged {
                assert!(log.contains(value), "acknowledged {value} is lost");
            }
        }

        fn ask(&mut self, who: usize) {
            let own = self.incarnations[who];
            let other = holder(self.incarnations[1 - who]);
            let (transition, ask) = match &self.processes[who] {
                Process::Primary { protection, asked: Some(ask), .. } => {
                    let generation = protection.generation();
                    let transition = match ask {
                        Ask::AddBackup => Transition::AddBackup { by: own, generation, backup: other },
                        Ask::Alone => Transition::PrimaryAlone { by: own, generation },
                    };
                    (transition, Some(*ask))
                }
                Process::Backup { silent: true, .. } => (Transition::BackupTakesOver { by: own }, None),
                _ => return,
            };
            let outcome = Register::apply(Some(&self.register), &transition);
            let lost_on_the_way = self.rng.random_bool(0.3);
            if let Ok(register) = &outcome {
                self.register = register.clone();
            }
            if lost_on_the_way {
                return; // It asks again.
            }
            match (&mut self.processes[who], outcome) {
                (Process::Primary { protection, asked, .. }, Ok(register)) => {
                    *asked = None;
                    let before = protection.released();
                    if let Some(ask) = ask {
                        protection.granted(ask, register.generation);
                    }
                    self.acknowledge(who, before);
                }
                (Process::Primary { protection, asked, .. }, Err(refused)) => {
                    // The link may have been lost since the question for the backup was asked.
                    if protection.phase() == Phase::Losing && ask == Some(Ask::AddBackup) {
                        *asked = Some(Ask::Alone);
                    } else {
                        assert!(matches!(refused.why, outlive_cluster::Why::NotPrimary(_)), "{refused}");
                        *asked = None;
                        protection.depose();
                    }
                }
                (Process::Backup { log, .. }, Ok(register)) => {
                    let protection = Protection::new(register.generation, log.len() as u64);
                    let log = std::mem::take(log);
                    self.takeovers += 1;
                    self.processes[who] = Process::Primary { protection, log, asked: None };
                }
                (process @ Process::Backup { .. }, Err(_)) => *process = Process::Down,
                (Process::Down, _) => {}
            }
        }

        fn step(&mut self) {
            let who = self.rng.random_range(0..2);
            match self.rng.random_range(0..12) {
                0..=2 => {
                    let value = self.next;
                    let connected = self.connected;
                    if let Process::Primary { protection, log, .. } = &mut self.processes[who]
                        && protection.phase() != Phase::Deposed
                    {
                        self.next += 1;
                        let before = protection.released();
                        let number = protection.submit();
                        log.push(value);
                        if connected && protection.phase() != Phase::Exposed {
                            self.to[1 - who].push_back(Message::Commit { number, value });
                        }
                        self.acknowledge(who, before);
                    }
                }
                3 | 4 => self.deliver(who),
                5 => self.ask(who),
                6 => {
                    // A backup joins, with the state as it is.
                    let Process::Primary { protection, log, .. } = &mut self.processes[who] else { return };
                    if !protection.join() {
                        return;
                    }
                    let log = log.clone();
                    self.cut();
                    self.connected = true;
                    self.incarnations[1 - who] = self.incarnation();
                    self.processes[1 - who] = Process::Backup { log, silent: false, synced: false };
                }
                7 => {
                    if let Process::Primary { protection, .. } = &mut self.processes[who]
                        && protection.phase() == Phase::Joining
                        && self.connected
                    {
                        protection.plug();
                        self.to[1 - who].push_back(Message::Synced { number: protection.last() });
                    }
                }
                8 if self.rng.random_bool(0.3) => self.cut(),
                9 => match &mut self.processes[who] {
                    // Each side notices by itself, if at all; a stalled one never does.
                    Process::Primary { protection, asked, .. } if !self.connected => {
                        let before = protection.released();
                        if let Some(ask) = protection.lose() {
                            *asked = Some(ask);
                        }
                        self.acknowledge(who, before);
                    }
                    Process::Backup { silent, synced, .. } if !self.connected => {
                        if *synced {
                            *silent = true;
                        } else {
                            self.processes[who] = Process::Down;
                        }
                    }
                    _ => {}
                },
                10 if self.rng.random_bool(0.1) => {
                    // The host dies, unless it is the only copy: then there is nothing to see.
                    let alone = self.register.synced_backup().is_none() && self.speaker() == who;
                    if !alone {
                        self.cut();
                        self.processes[who] = Process::Down;
                    }
                }
                _ => {}
            }
            self.check();
        }

        fn deliver(&mut self, who: usize) {
            if !self.connected {
                return;
            }
            let Some(message) = self.to[who].pop_front() else { return };
            match (&mut self.processes[who], message) {
                (Process::Backup { log, silent: false, .. }, Message::Commit { number, value }) => {
                    assert_eq!(log.len() as u64 + 1, number, "a commit out of order");
                    log.push(value);
                    self.to[1 - who].push_back(Message::Holds { number });
                }
                (Process::Backup { synced, silent: false, .. }, Message::Synced { number }) => {
                    *synced = true;
                    self.to[1 - who].push_back(Message::Holds { number });
                }
                (Process::Primary { protection, asked, .. }, Message::Holds { number }) => {
                    let before = protection.released();
                    if let Some(ask) = protection.holds(number).unwrap() {
                        *asked = Some(ask);
                    }
                    self.acknowledge(who, before);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn acknowledged_commits_survive_whatever_happens() {
        let seeds = match std::env::var("OUTLIVE_SEED") {
            Ok(seed) => seed.parse().unwrap()..=seed.parse().unwrap(),
            Err(_) => 0..=2_000,
        };
        let (mut takeovers, mut acknowledged) = (0, 0);
        for seed in seeds {
            let mut world = World::new(seed);
            let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..500 {
                    world.step();
                }
            }));
            assert!(run.is_ok(), "OUTLIVE_SEED={seed} repeats it");
            takeovers += world.takeovers;
            acknowledged += world.acknowledged.len();
        }
        eprintln!("{takeovers} takeovers, {acknowledged} commits acknowledged");
    }
}

//! The commit protocol, as one supervisor follows it: only as much of it as arbitration has to go together with.

use std::time::Duration;

use outlive_cluster::{
    Action, Attempt, Holder, Incarnation, NodeName, Outcome, Proposer, Register, Response, Seeds, Transition,
    WorkloadName,
};
use rand::Rng;
use rand::rngs::SmallRng;

use super::checker::Checker;
use super::{Broken, DETECTION, LIMITS, Message, Peer, State};

/// What a supervisor sees of the world.
pub struct Context<'a> {
    /// By this host's own clock.
    pub now: Duration,
    pub rng: &'a mut SmallRng,
    pub checker: &'a mut Checker,
    pub seeds: &'a Seeds,
    pub workload: &'a WorkloadName,
    pub hosts: &'a [NodeName],
    pub broken: Option<Broken>,
    /// While faults are on; after that, supervisors do nothing by whim.
    pub whims: bool,
    /// Whether switching over is a frequent whim.
    pub restless: bool,
    /// What one seed node holds, whether agreed or not: for [`Broken::SettlesByOneSeed`].
    pub one_seed: Option<Register>,
    pub out: Vec<(NodeName, Message)>,
    pub trace: bool,
}

impl Context<'_> {
    pub fn send(&mut self, to: &NodeName, peer: Peer) {
        self.out.push((to.clone(), Message::Peer(peer)));
    }

    pub fn attempt(&mut self) -> Attempt {
        if self.broken == Some(Broken::BallotsShared) { Attempt(1) } else { Attempt(self.rng.random()) }
    }

    fn breaks(&self, rule: Broken) -> bool {
        self.broken == Some(rule)
    }
}

/// The primary's stream to its backup.
struct Link {
    backup: Holder,
    acknowledged: State,
    heard: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Speaks without a backup.
    Exposed,
    /// Plugged, while a backup catches up to all that was released.
    Joining,
    /// Speaks what the backup acknowledged.
    Protected,
    /// Asks to speak without its backup.
    Leaving,
    /// Has stopped, to hand over.
    HandingOver,
    /// Has ended.
    Stopping,
    /// An outcome is unknown.
    Silent,
}

struct Primary {
    generation: u64,
    state: State,
    released: State,
    link: Option<Link>,
    mode: Mode,
}

struct Backup {
    primary: Holder,
    generation: u64,
    state: State,
    heard: Duration,
    /// For good: it has asked for the next generation.
    stopped: bool,
    /// It has handed over, and the new primary may not know yet.
    announce: Option<Register>,
}

enum Role {
    /// Told to start or restart the workload.
    Starting,
    Primary(Primary),
    Backup(Backup),
    Dead,
}

struct Asking {
    proposer: Proposer,
    /// None for a read.
    transition: Option<Transition>,
    /// An earlier outcome is unknown, so this one failing proves nothing.
    settling: bool,
    /// Only promises are asked for until then.
    held_until: Option<Duration>,
}

/// One incarnation.
pub struct Supervisor {
    me: Holder,
    role: Role,
    asking: Option<Asking>,
}

impl Supervisor {
    /// One that is told to see that the workload runs.
    pub fn start(me: Holder, context: &mut Context) -> Self {
        let mut supervisor = Self { me, role: Role::Starting, asking: None };
        supervisor.ask(None, false, context);
        supervisor
    }

    /// One that is invited to be a backup.
    pub fn join(me: Holder, primary: Holder, generation: u64, state: State, context: &mut Context) -> Self {
        let joined = Peer::Joined { to: primary.incarnation, backup: me.clone(), state };
        context.send(&primary.node, joined);
        let backup =
            Backup { primary, generation, state, heard: context.now, stopped: false, announce: None };
        Self { me, role: Role::Backup(backup), asking: None }
    }

    pub fn incarnation(&self) -> Incarnation {
        self.me.incarnation
    }

    pub fn is_dead(&self) -> bool {
        matches!(self.role, Role::Dead)
    }

    fn trace(&self, context: &Context, what: &str) {
        if context.trace {
            eprintln!("{:>9} {} {what}", format!("{:?}", context.now), self.me);
        }
    }

    fn ask(&mut self, transition: Option<Transition>, settling: bool, context: &mut Context) {
        self.trace(context, &format!("asks {transition:?}, settling: {settling}"));
        let (seeds, workload, attempt) = (context.seeds.clone(), context.workload.clone(), context.attempt());
        let proposer = match &transition {
            Some(transition) => {
                Proposer::new(seeds, workload, transition.clone(), attempt, context.now, LIMITS)
            }
            None => Proposer::read(seeds, workload, attempt, context.now, LIMITS),
        };
        // As a planned move does, so that what it changes can be changed by others between the two phases.
        let is_held = transition.is_some() && context.rng.random_bool(0.3);
        let held_until =
            is_held.then(|| context.now + Duration::from_millis(context.rng.random_range(0..100)));
        let proposer = if is_held { proposer.hold() } else { proposer };
        self.asking = Some(Asking { proposer, transition, settling, held_until });
        self.drive(context);
    }

    fn drive(&mut self, context: &mut Context) {
        let Some(asking) = &mut self.asking else { return };
        if asking.held_until.is_some_and(|until| context.now >= until) {
            asking.held_until = None;
            asking.proposer.release(context.now);
        }
        for Action::Send { to, request } in asking.proposer.poll(context.now) {
            context.out.push((to, Message::Request(request)));
        }
        if let Some(outcome) = asking.proposer.outcome().cloned()
            && let Some(asking) = self.asking.take()
        {
            self.on_outcome(asking, outcome, context);
        }
    }

    pub fn on_response(&mut self, from: &NodeName, response: &Response, context: &mut Context) {
        if let Some(asking) = &mut self.asking {
            asking.proposer.on_response(from, response, context.now);
        }
        self.drive(context);
    }

    fn on_outcome(&mut self, asking: Asking, outcome: Outcome, context: &mut Context) {
        self.trace(context, &format!("hears {outcome:?} to {:?}", asking.transition));
        match outcome {
            Outcome::Granted(register) => {
                self.count(&asking, context);
                context.checker.observe(&register);
                self.follow(Some(&register), context);
            }
            Outcome::Refused(refused) => {
                if let Some(register) = &refused.current {
                    context.checker.observe(register);
                }
                self.follow(refused.current.as_deref(), context);
            }
            Outcome::Read(register) => {
                if let Some(register) = &register {
                    context.checker.observe(register);
                }
                if let Role::Starting = self.role {
                    self.start_if_needed(register.as_ref(), context);
                } else {
                    self.follow(register.as_ref(), context);
                }
            }
            Outcome::NoMajority(_) if !asking.settling => self.on_failure(asking, context),
            Outcome::NoMajority(_) | Outcome::Unknown(_) => {
                context.checker.counts.unknown += 1;
                self.on_unknown(asking, context);
            }
        }
    }

    fn count(&self, asking: &Asking, context: &mut Context) {
        let counts = &mut context.checker.counts;
        match &asking.transition {
            Some(Transition::BackupTakesOver { .. }) => counts.failovers += 1,
            Some(Transition::PrimaryAlone { .. }) => counts.alone += 1,
            Some(Transition::AddBackup { .. }) => counts.protections += 1,
            Some(Transition::Switchover { .. }) => counts.switchovers += 1,
            Some(Transition::RestartLost { .. }) => counts.restarts += 1,
            Some(Transition::Stop { .. }) => counts.stops += 1,
            // The simulation is of the epoch engine, which has one backup.
            Some(
                Transition::Create { .. }
                | Transition::Backups { .. }
                | Transition::Forget { .. }
                | Transition::GoOn { .. },
            )
            | None => {}
        }
    }

    /// Nothing was proposed: all is as before.
    fn on_failure(&mut self, asking: Asking, context: &mut Context) {
        match (&mut self.role, asking.transition) {
            (Role::Primary(primary), Some(Transition::AddBackup { .. })) => {
                primary.mode = Mode::Exposed;
                primary.link = None;
            }
            (
                Role::Primary(primary),
                Some(Transition::PrimaryAlone { .. } | Transition::Switchover { .. }),
            ) => {
                primary.mode = Mode::Protected;
            }
            (Role::Starting, _) => self.role = Role::Dead,
            (_, transition) => self.ask(transition, false, context),
        }
    }

    fn on_unknown(&mut self, asking: Asking, context: &mut Context) {
        let Role::Primary(primary) = &mut self.role else {
            // Silent anyway: the same once more settles it.
            return self.ask(asking.transition, true, context);
        };
        if primary.mode == Mode::Stopping {
            return self.ask(asking.transition, true, context);
        }
        if context.breaks(Broken::UnknownIsFailure) {
            return self.on_failure(asking, context);
        }
        primary.mode = Mode::Silent;
        if context.breaks(Broken::SettlesByOneSeed)
            && let Some(register) = context.one_seed.clone()
        {
            return self.follow(Some(&register), context);
        }
        let alone = Transition::PrimaryAlone { by: self.me.incarnation, generation: primary.generation };
        let transition = if context.rng.random() { Some(alone) } else { None };
        self.ask(transition, true, context);
    }

    /// Told to see that the workload runs: starts what does not exist, restarts what is lost.
    fn start_if_needed(&mut self, register: Option<&Register>, context: &mut Context) {
        let by = self.me.clone();
        let primary = register.and_then(Register::primary);
        let transition = match (register, primary) {
            (Some(register), Some(primary)) => {
                let backup = register.synced_backup();
                // The operator goes and looks.
                let lives = context.checker.is_alive(primary)
                    || backup.is_some_and(|backup| context.checker.is_alive(backup));
                if !context.breaks(Broken::RestartsSilently) {
                    if lives {
                        self.role = Role::Dead;
                        return;
                    }
                    context.checker.order(by.incarnation);
                }
                let lost_backups = backup.map(|backup| backup.incarnation).into_iter().collect();
                let (generation, lost) = (register.generation, primary.incarnation);
                Transition::RestartLost { by, generation, lost, lost_backups }
            }
            _ => Transition::Create { by },
        };
        self.ask(Some(transition), false, context);
    }

    /// Becomes what an agreed register says this incarnation is.
    fn follow(&mut self, register: Option<&Register>, context: &mut Context) {
        let me = self.me.incarnation;
        let is_me = |holder: Option<&Holder>| holder.is_some_and(|holder| holder.incarnation == me);
        match register {
            Some(register) if is_me(register.primary()) => self.lead(register, context),
            Some(register) if is_me(register.synced_backup()) => self.stay_backup(register, context),
            _ => {
                if let (Role::Primary(_), Some(register)) = (&self.role, register) {
                    self.announce(register, context);
                }
                self.trace(context, "ends");
                self.role = Role::Dead;
            }
        }
    }

    fn lead(&mut self, register: &Register, context: &mut Context) {
        let me = self.me.incarnation;
        let generation = register.generation;
        let backup = register.synced_backup();
        if let Role::Starting | Role::Backup(_) = &self.role {
            let (state, fresh) = match &self.role {
                Role::Backup(backup) => (backup.state, false),
                _ => (context.checker.begin(), true),
            };
            self.trace(context, &format!("leads generation {generation} from {state}"));
            context.checker.activate(generation, me, state, fresh);
            // After a switchover the former primary is the backup, with this very state.
            let link =
                backup.map(|backup| Link { backup: backup.clone(), acknowledged: state, heard: context.now });
            let mode = if link.is_some() { Mode::Protected } else { Mode::Exposed };
            self.role = Role::Primary(Primary { generation, state, released: state, link, mode });
            return;
        }
        let Role::Primary(primary) = &mut self.role else { return };
        if primary.mode == Mode::Stopping {
            return self.ask(Some(Transition::Stop { generation }), false, context);
        }
        primary.generation = generation;
        match (backup, &mut primary.link) {
            (None, _) => {
                primary.mode = Mode::Exposed;
                primary.link = None;
            }
            (Some(backup), Some(link)) if link.backup == *backup => primary.mode = Mode::Protected,
            (Some(_), _) => {
                primary.mode = Mode::Leaving;
                self.ask(Some(Transition::PrimaryAlone { by: me, generation }), false, context);
            }
        }
    }

    fn stay_backup(&mut self, register: &Register, context: &mut Context) {
        let (Role::Primary(Primary { state, .. }), Some(new)) = (&self.role, register.primary()) else {
            return;
        };
        self.role = Role::Backup(Backup {
            primary: new.clone(),
            generation: register.generation,
            state: *state,
            heard: context.now,
            stopped: false,
            announce: Some(register.clone()),
        });
        self.announce(register, context);
    }

    fn announce(&self, register: &Register, context: &mut Context) {
        if let Some(primary) = register.primary() {
            let to = primary.incarnation;
            context.send(&primary.node, Peer::YouLead { to, register: register.clone() });
        }
    }

    pub fn tick(&mut self, context: &mut Context) {
        match &self.role {
            Role::Primary(_) => self.tick_primary(context),
            Role::Backup(_) => self.tick_backup(context),
            Role::Starting | Role::Dead => {}
        }
        self.drive(context);
    }

    fn tick_primary(&mut self, context: &mut Context) {
        let me = self.me.incarnation;
        let Role::Primary(primary) = &mut self.role else { return };
        if let Mode::Exposed | Mode::Joining | Mode::Protected | Mode::Leaving = primary.mode {
            primary.state = context.checker.produce(primary.state);
        }
        if primary.mode == Mode::Exposed {
            primary.released = primary.state;
            context.checker.release(primary.generation, me, primary.state);
        }
        let silent = matches!(primary.mode, Mode::Silent | Mode::Stopping);
        if let Some(link) = primary.link.as_ref().filter(|_| !silent) {
            let (from, to) = (me, link.backup.incarnation);
            context.send(&link.backup.node, Peer::Checkpoint { from, to, state: primary.state });
        }
        if self.asking.is_none() {
            self.decide(context);
        }
    }

    /// What a primary may begin, when it waits for no outcome.
    fn decide(&mut self, context: &mut Context) {
        let me = self.me.incarnation;
        let Role::Primary(primary) = &mut self.role else { return };
        let generation = primary.generation;
        let quiet = primary.link.as_ref().is_some_and(|link| context.now - link.heard > DETECTION);
        let acknowledged = primary.link.as_ref().map(|link| link.acknowledged);
        match primary.mode {
            Mode::Exposed if context.whims && context.rng.random_ratio(1, 400) => {
                primary.mode = Mode::Stopping;
                self.ask(Some(Transition::Stop { generation }), false, context);
            }
            Mode::Exposed if context.rng.random_ratio(1, 8) => {
                let invite = Peer::Invite { from: self.me.clone(), generation, state: primary.state };
                let to = context.rng.random_range(0..context.hosts.len());
                context.send(&context.hosts[to].clone(), invite);
            }
            Mode::Joining if quiet => {
                primary.mode = Mode::Exposed;
                primary.link = None;
            }
            Mode::Joining => {
                let caught_up = acknowledged.is_some_and(|acknowledged| {
                    context.checker.place(acknowledged) >= context.checker.place(primary.released)
                });
                if let Some(link) = primary.link.as_ref().filter(|_| caught_up) {
                    let backup = link.backup.clone();
                    self.ask(Some(Transition::AddBackup { by: me, generation, backup }), false, context);
                }
            }
            Mode::Protected | Mode::HandingOver if quiet => {
                if context.breaks(Broken::SpeaksWithoutGrant) {
                    primary.mode = Mode::Exposed;
                    primary.link = None;
                    return;
                }
                primary.mode = Mode::Leaving;
                self.ask(Some(Transition::PrimaryAlone { by: me, generation }), false, context);
            }
            Mode::Protected
                if context.whims && context.rng.random_ratio(1, if context.restless { 4 } else { 60 }) =>
            {
                primary.mode = Mode::HandingOver;
            }
            Mode::HandingOver if acknowledged == Some(primary.state) => {
                if let Some(link) = &primary.link {
                    let (to, stays) = (link.backup.incarnation, context.rng.random());
                    self.ask(Some(Transition::Switchover { by: me, generation, to, stays }), false, context);
                }
            }
            _ => {}
        }
    }

    fn tick_backup(&mut self, context: &mut Context) {
        let Role::Backup(backup) = &mut self.role else { return };
        if let Some(register) = backup.announce.clone() {
            self.announce(&register, context);
        }
        let Role::Backup(backup) = &mut self.role else { return };
        if self.asking.is_none() && context.now - backup.heard > DETECTION {
            backup.stopped = true;
            self.ask(Some(Transition::BackupTakesOver { by: self.me.incarnation, held: 0 }), false, context);
        }
    }

    pub fn on_peer(&mut self, peer: &Peer, context: &mut Context) {
        let me = self.me.incarnation;
        match (peer, &mut self.role) {
            (Peer::Joined { to, backup, state }, Role::Primary(primary))
                if *to == me && primary.mode == Mode::Exposed && self.asking.is_none() =>
            {
                primary.link =
                    Some(Link { backup: backup.clone(), acknowledged: *state, heard: context.now });
                if context.breaks(Broken::AddsBackupUnplugged) {
                    let (generation, backup) = (primary.generation, backup.clone());
                    self.ask(Some(Transition::AddBackup { by: me, generation, backup }), false, context);
                } else {
                    primary.mode = Mode::Joining;
                }
            }
            (Peer::Checkpoint { from, to, state }, Role::Backup(backup)) => {
                if *to != me || *from != backup.primary.incarnation {
                    return;
                }
                let acknowledged = if !backup.stopped {
                    backup.heard = context.now;
                    backup.announce = None;
                    if context.checker.place(*state) > context.checker.place(backup.state) {
                        backup.state = *state;
                    }
                    backup.state
                } else if context.breaks(Broken::BackupKeepsAcknowledging) {
                    *state
                } else {
                    return;
                };
                let acknowledged = Peer::Acknowledged { from: me, to: *from, state: acknowledged };
                context.send(&backup.primary.node.clone(), acknowledged);
            }
            (Peer::Acknowledged { from, to, state }, Role::Primary(primary)) if *to == me => {
                let Some(link) = primary.link.as_mut().filter(|link| link.backup.incarnation == *from) else {
                    return;
                };
                link.heard = context.now;
                if context.checker.place(*state) > context.checker.place(link.acknowledged) {
                    link.acknowledged = *state;
                }
                if let Mode::Protected | Mode::Leaving | Mode::HandingOver = primary.mode {
                    primary.released = link.acknowledged;
                    context.checker.release(primary.generation, me, link.acknowledged);
                }
            }
            // A notice of an earlier switchover may still be under way: this incarnation led then, not now.
            (Peer::YouLead { to, register }, Role::Backup(backup))
                if *to == me
                    && (register.generation > backup.generation
                        || context.breaks(Broken::OldNoticeTaken)) =>
            {
                self.asking = None;
                self.follow(Some(register), context);
            }
            _ => {}
        }
    }
}

//! A planned change of primary, the old one's side.
//!
//! ```text
//!            last checkpoint committed      granted {g+1, B, A}        B speaks {g+2, B, none}
//! Due ─▶ Stopped ──────────▶ Moving, asking ──────────▶ Moving, handed ──────────▶ end
//!   ▲                             │ nothing was proposed         │ B is gone: A asks, {g+2, A, none}
//!   └──────── goes on ◀───────────┴──────────────────────────────┘
//! ```
//!
//! From its last checkpoint on the workload stands still here, with all that it has, until another speaks: whatever
//! becomes of the new primary before that, this one can go on. The register names it the synced backup meanwhile, with the very
//! state that it handed over. Frames that still come here are copied to the new primary, as they are to any backup.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use outlive_cluster::{Incarnation, Outcome, Register, Transition};
use outlive_fault::{Point, point};
use outlive_net::InputClosed;
use tracing::{info, warn};

use super::{End, Phase, Primary};
use crate::control::State;
use crate::engine::Asked;
use crate::error::{Attempt, Result};
use crate::link::Link;
use crate::message::unpack_input;
use crate::protector::Candidate;

/// How long a new primary may take from the grant until it speaks. It takes milliseconds, and a second for each few thousand
/// connections; one that takes longer hangs, and clients have waited long enough.
const COMES_TO_LIFE: Duration = Duration::from_secs(10);

/// What an operator ordered.
pub(super) struct Order {
    pub(super) to: String,
    stage: Stage,
    begun: Instant,
}

enum Stage {
    /// Another node than the backup's is asked to hold it.
    Finding,
    /// That node waits until the former backup is out of the register. Which must not notice before, or it would ask for what
    /// it is there for.
    Found { candidate: Box<Candidate>, former: Box<Phase> },
    /// It is given everything.
    Copying,
    /// The next checkpoint is the last.
    Due,
    /// It is taken: everything stands still, no input arrives.
    Stopped(InputClosed),
}

/// What is known of a successor that has everything.
#[derive(Default)]
pub(super) struct Handover {
    /// The register that names it, and until when it has to speak.
    handed: Option<(Box<Register>, Option<Instant>)>,
    /// Why it cannot be reached any more.
    down: Option<String>,
    /// An outcome was unknown: that a later one failed proves nothing.
    unsure: bool,
}

impl Primary<'_> {
    /// Begins what an operator ordered, or says why not.
    pub(super) fn order_move(&mut self, to: Option<String>) -> Result<(), String> {
        if let Some(order) = &self.order {
            return Err(format!("it is being moved to {} already: wait for that", order.to));
        }
        let Phase::Protected { link } = &self.phase else {
            return Err(
                "only a protected workload can be moved: wait until it is, or see why not with `outlive inspect`".into(),
            );
        };
        let backup = link.backup.node.as_str();
        let to = to.unwrap_or_else(|| backup.to_owned());
        if to == self.engine.me.node.as_str() {
            return Err(format!("{to} is where it runs"));
        }
        let stage = if to == backup {
            Stage::Due
        } else {
            self.protector.find_on(&to)?;
            Stage::Finding
        };
        info!(to, "a move is ordered");
        if matches!(stage, Stage::Due) {
            self.prepare_to_hand_over(link.backup.incarnation);
        }
        self.engine.status.lock().move_failed = None;
        self.order = Some(Order { to, stage, begun: Instant::now() });
        self.publish();
        Ok(())
    }

    /// While the workload still runs: the promises that the change takes. Nothing has changed by them.
    fn prepare_to_hand_over(&self, to: Incarnation) {
        let transition = self.handover_to(to);
        let arbiter = Arc::clone(&self.engine.arbiter);
        let preparing = thread::Builder::new().name("arbitration".into());
        if let Err(error) = preparing.spawn(move || arbiter.prepare(transition)) {
            // It is asked for all the same, and takes one round more.
            warn!(%error, "the change is not prepared");
        }
    }

    fn handover_to(&self, to: Incarnation) -> Transition {
        let (by, generation) = (self.engine.me.incarnation, self.generation);
        Transition::Switchover { by, generation, to, stays: true }
    }

    /// Whether the next checkpoint is the last.
    pub(super) fn hands_over(&self) -> bool {
        self.order.as_ref().is_some_and(|order| matches!(order.stage, Stage::Due))
    }

    /// Whether the workload stands still to be handed over.
    pub(super) fn is_stopped(&self) -> bool {
        self.order.as_ref().is_some_and(|order| matches!(order.stage, Stage::Stopped(_)))
    }

    /// Whether the candidate that comes next is for a move.
    pub(super) fn seeks_another(&self) -> bool {
        self.order.as_ref().is_some_and(|order| matches!(order.stage, Stage::Finding))
    }

    /// The node that is to be moved to can hold the workload, or cannot. Until it is known to be ready, the backup that there
    /// is stays; while it is given everything, there is none.
    pub(super) fn other_backup(&mut self, found: Result<Box<Candidate>, String>) {
        match found {
            Ok(candidate) => {
                let former = Box::new(self.leave_backup("it is being moved to another node"));
                if let Some(order) = &mut self.order {
                    order.stage = Stage::Found { candidate, former };
                }
            }
            Err(reason) => self.give_up_move(&reason),
        }
        self.publish();
    }

    /// At the last checkpoint the input stays closed and everything stopped; otherwise the guard is given back.
    pub(super) fn stay_stopped(&mut self, closed: InputClosed) -> Option<InputClosed> {
        match &mut self.order {
            Some(Order { stage: stage @ Stage::Due, .. }) => {
                *stage = Stage::Stopped(closed);
                point(Point::MoveStopped);
                None
            }
            _ => Some(closed),
        }
    }

    /// What an order asks for now.
    pub(super) fn advance_move(&mut self) -> Result<()> {
        if let Some(closed) = self.resuming.take() {
            drop(closed);
            self.workload.thaw()?;
        }
        if let Some(order) = &mut self.order {
            match (&order.stage, &self.phase) {
                (Stage::Found { .. }, Phase::Exposed { .. }) => {
                    let found = std::mem::replace(&mut order.stage, Stage::Copying);
                    if let Stage::Found { candidate, former } = found {
                        drop(former);
                        self.begin_sync(*candidate)?;
                    }
                }
                (Stage::Copying, Phase::Protected { link }) => {
                    order.stage = Stage::Due;
                    let to = link.backup.incarnation;
                    self.prepare_to_hand_over(to);
                }
                _ => {}
            }
        }
        if let Phase::Moving { handover: Handover { handed: Some((_, limit)), .. }, .. } = &mut self.phase
            && limit.is_some_and(|limit| Instant::now() >= limit)
        {
            *limit = None;
            self.successor_lost(&format!("it did not come to life within {} s", COMES_TO_LIFE.as_secs()));
        }
        Ok(())
    }

    /// The backup has committed the last checkpoint, and all that was said until then has left. From here on nothing does.
    pub(super) fn ask_to_hand_over(&mut self) -> Result<()> {
        // Not even on the answer to a heartbeat (R2).
        self.pump.plug()?;
        point(Point::MoveCommitted);
        match std::mem::replace(&mut self.phase, Phase::Losing) {
            Phase::Protected { link } => {
                outlive_fault::protected(false);
                let to = link.backup.incarnation;
                self.phase = Phase::Moving { link, handover: Handover::default() };
                self.ask(Asked::Switchover, self.handover_to(to));
            }
            other => self.phase = other,
        }
        Ok(())
    }

    pub(super) fn handover_arbitrated(&mut self, asked: Asked, outcome: Outcome) -> Result<Option<End>> {
        let Phase::Moving { handover, .. } = &mut self.phase else { return Ok(None) };
        match (asked, outcome) {
            (Asked::Switchover, Outcome::Granted(register)) => self.handed_over(register),
            (Asked::Switchover, Outcome::NoMajority(why)) if !handover.unsure => self.stay(&why.to_string()),
            (Asked::Switchover, Outcome::Refused(refused)) => {
                return Ok(self.settled(refused.current.map(|register| *register)));
            }
            (Asked::Settle, Outcome::Read(register)) => return Ok(self.settled(register)),
            (Asked::Switchover | Asked::Settle, _) => {
                handover.unsure = true;
                warn!(
                    "whether the workload has moved is not known: it stands still until the seed nodes agree"
                );
                self.ask_what_is();
            }
            (Asked::Back, Outcome::Granted(register)) => self.come_back(&register)?,
            (Asked::Back, Outcome::Refused(refused)) => {
                return Ok(Some(self.end_of_move(refused.current.map(|register| *register))));
            }
            (Asked::Back, _) => self.ask_back(),
            _ => {}
        }
        self.publish();
        Ok(None)
    }

    fn handed_over(&mut self, register: Register) {
        let Phase::Moving { link, handover } = &mut self.phase else { return };
        info!(generation = register.generation, to = link.backup.node.as_str(), "handed over");
        point(Point::MoveGranted);
        self.generation = register.generation;
        match postcard::to_stdvec(&register) {
            Ok(bytes) => link.moved(bytes),
            // Then it learns it from the seed nodes.
            Err(error) => warn!(%error, "the new primary cannot be told"),
        }
        handover.handed = Some((Box::new(register), Some(Instant::now() + COMES_TO_LIFE)));
        if handover.down.is_some() {
            self.ask_back();
        }
    }

    /// The register is known, after it was not or was not as expected.
    fn settled(&mut self, register: Option<Register>) -> Option<End> {
        let me = self.engine.me.incarnation;
        let Phase::Moving { link, handover } = &self.phase else { return None };
        let Some(now) = register else { return Some(self.end_of_move(None)) };
        let leads = now.primary().is_some_and(|holder| holder.incarnation == me);
        let follows = now.synced_backup().is_some_and(|holder| holder.incarnation == me);
        if leads {
            let reason = handover.down.clone().unwrap_or_else(|| "the seed nodes did not grant it".into());
            let unchanged = now.synced_backup() == Some(&link.backup);
            self.generation = now.generation;
            if unchanged {
                self.stay(&reason);
            } else {
                self.leave_successor(&reason);
            }
            return None;
        }
        if follows {
            self.handed_over(now);
            return None;
        }
        Some(self.end_of_move(Some(now)))
    }

    /// Nothing has changed hands: it goes on as if nothing had happened, with the backup that it had if that lives.
    fn stay(&mut self, reason: &str) {
        match std::mem::replace(&mut self.phase, Phase::Losing) {
            Phase::Moving { link, handover: Handover { down: None, .. } } => {
                outlive_fault::protected(true);
                self.phase = Phase::Protected { link };
                self.give_up_move(reason);
            }
            Phase::Moving { link, handover: Handover { down: Some(down), .. } } => {
                self.phase = Phase::Moving { link, handover: Handover::default() };
                self.leave_successor(&down);
            }
            other => self.phase = other,
        }
    }

    /// The successor is gone and was granted nothing: as a backup that is lost.
    fn leave_successor(&mut self, reason: &str) {
        if let Phase::Moving { link, .. } = std::mem::replace(&mut self.phase, Phase::Losing) {
            // Not a move any more, so that it is lost as any other.
            self.phase = Phase::Protected { link };
            self.lose_backup(reason);
        }
    }

    /// The link to it is down, or it does not come to life.
    pub(super) fn successor_lost(&mut self, reason: &str) {
        let Phase::Moving { handover, .. } = &mut self.phase else { return };
        if handover.down.is_some() {
            return;
        }
        warn!(reason, "the new primary is lost");
        handover.down = Some(reason.to_owned());
        // Otherwise an answer of the seed nodes is on its way.
        if handover.handed.is_some() {
            self.ask_back();
        }
        self.publish();
    }

    fn ask_back(&self) {
        self.ask(Asked::Back, Transition::BackupTakesOver { by: self.engine.me.incarnation, held: 0 });
    }

    /// The new primary never spoke, and never will.
    fn come_back(&mut self, register: &Register) -> Result<()> {
        let Phase::Moving { handover, .. } = &mut self.phase else { return Ok(()) };
        let reason = handover.down.take().unwrap_or_default();
        info!(generation = register.generation, "going on here after all");
        point(Point::MoveBack);
        self.generation = register.generation;
        self.copies.set(None);
        self.workload.stop_capturing();
        // Its address may have been announced elsewhere.
        self.pump.expose(self.generation)?;
        self.pump.announce();
        let output = std::mem::take(&mut self.unwritten);
        self.log.append(&output).attempt(|| "write the workload's output".into())?;
        self.give_up_move(&reason);
        self.lost_reason = Some(reason);
        self.become_exposed();
        Ok(())
    }

    /// Somebody else has the register.
    fn end_of_move(&self, register: Option<Register>) -> End {
        let to = self.order.as_ref().map(|order| order.to.as_str());
        match register {
            Some(register) if register.primary().map(|holder| holder.node.as_str()) == to => {
                End::Moved(Box::new(register))
            }
            register => End::Deposed(register.map(Box::new)),
        }
    }

    /// The new primary speaks, and nothing here is needed any more.
    pub(super) fn successor_runs(&mut self, number: u64) -> Option<End> {
        let Phase::Moving { link: Link { number: expected, .. }, handover } = &mut self.phase else {
            return None;
        };
        if *expected != number {
            return None;
        }
        let (register, _) = handover.handed.take()?;
        point(Point::MoveEnding);
        let took = self.order.as_ref().map(|order| order.begun.elapsed());
        info!(?took, "moved");
        // Whoever asks from now on may have this node's place.
        self.engine.status.lock().state = State::Stopped;
        Some(End::Moved(register))
    }

    /// The workload ended although it stands still: somebody killed it. Who has everything goes on from before that.
    pub(super) fn ended_while_moving(&self, status: i32) -> End {
        warn!(status, "the workload was killed while it was handed over");
        End::Deposed(None)
    }

    /// The order is off. What stands still goes on with the next turn, if it is this node's to go on.
    pub(super) fn give_up_move(&mut self, reason: &str) {
        let Some(order) = self.order.take() else { return };
        warn!(to = order.to, reason, "the move is given up");
        self.engine.status.lock().move_failed = Some(reason.to_owned());
        if let Stage::Stopped(closed) = order.stage {
            self.resuming = Some(closed);
        }
    }

    fn ask_what_is(&self) {
        self.ask_for(Asked::Settle, |arbiter| arbiter.read());
    }

    pub(super) fn state_of_handover(&self) -> State {
        match &self.phase {
            Phase::Moving { handover: Handover { unsure: false, down: None, .. }, .. } => State::Protected,
            _ => State::Waiting,
        }
    }

    /// Clients' frames that reached the old primary, when this is the new one.
    pub(super) fn forwarded(&self, message: &[u8]) {
        for frame in unpack_input(message) {
            match frame {
                Ok((_, frame)) => self.pump.inject(frame),
                // Their senders repeat what was in the rest.
                Err(reason) => return warn!(reason, "a forwarded message ends early"),
            }
        }
    }
}

//! What is asked of the seed nodes, and what becomes of their answers.

use std::sync::Arc;
use std::thread;

use outlive_cluster::{Outcome, Transition};
use outlive_fault::{Point, point};
use outlive_net::Moment;
use tracing::{info, warn};

use super::{End, Phase, Primary, RETRY_ARBITRATION};
use crate::arbiter::Arbiter;
use crate::engine::{Asked, Event};
use crate::error::{Attempt, Result};

impl Primary<'_> {
    pub(super) fn ask_alone(&self) {
        let by = self.engine.me.incarnation;
        self.ask(Asked::Alone, Transition::PrimaryAlone { by, generation: self.generation });
    }

    pub(super) fn ask(&self, why: Asked, transition: Transition) {
        self.ask_for(why, move |arbiter| arbiter.ask(transition.clone()));
    }

    pub(super) fn ask_for(
        &self,
        why: Asked,
        question: impl Fn(&Arbiter) -> Outcome + Clone + Send + 'static,
    ) {
        let (arbiter, teller) = (Arc::clone(&self.engine.arbiter), self.engine.teller());
        let again = question.clone();
        let asking = thread::Builder::new().name("arbitration".into()).spawn(move || {
            let outcome = question(&arbiter);
            if matches!(outcome, Outcome::NoMajority(_) | Outcome::Unknown(_)) {
                thread::sleep(RETRY_ARBITRATION);
            }
            teller.tell(Event::Arbitrated(why, outcome));
        });
        if let Err(error) = asking {
            warn!(%error, "cannot start a thread to ask the seed nodes");
            // Then this one asks; the workload waits longer for its turn, and nothing may leave in any case.
            let outcome = again(&self.engine.arbiter);
            self.engine.teller().tell(Event::Arbitrated(why, outcome));
        }
    }

    pub(super) fn arbitrated(&mut self, asked: Asked, outcome: Outcome) -> Result<Option<End>> {
        match (asked, outcome) {
            (Asked::Switchover | Asked::Settle | Asked::Back, outcome) => {
                return self.handover_arbitrated(asked, outcome);
            }
            (Asked::Alone, Outcome::Granted(register)) => {
                info!(generation = register.generation, "speaking on without a backup");
                self.generation = register.generation;
                point(Point::PrimaryAloneGranted);
                self.leaving = None;
                self.pump.expose(self.generation)?;
                point(Point::PrimaryExposed);
                let output = std::mem::take(&mut self.unwritten);
                self.log.append(&output).attempt(|| "write the workload's output".into())?;
                self.become_exposed();
            }
            (Asked::AddBackup { link }, Outcome::Granted(_)) => {
                let joining = std::mem::replace(&mut self.phase, Phase::Losing);
                match joining {
                    Phase::Joining { link: joined, begun, .. } if joined.number == link => {
                        let took = begun.elapsed();
                        info!(backup = joined.backup.node.as_str(), ?took, "protected");
                        outlive_fault::protected(true);
                        point(Point::CopyGranted);
                        joined.protected();
                        self.refused.is_over();
                        self.phase = Phase::Protected { link: joined };
                        // Everything the backup has acknowledged is committed now.
                        let committed = self.epoch - u64::from(self.outstanding.is_some());
                        self.pump
                            .acknowledged(committed, self.committed_at.unwrap_or(Moment::from_nanos(0)))?;
                        point(Point::CopyJoined);
                        let output = std::mem::take(&mut self.unwritten);
                        self.log.append(&output).attempt(|| "write the workload's output".into())?;
                        let mut status = self.engine.status.lock();
                        status.reprotect_ms = Some(took.as_secs_f64() * 1000.0);
                        status.exposed_because = None;
                    }
                    other => self.phase = other,
                }
            }
            // Of a link that is over, and its successor may be protected by now.
            (Asked::AddBackup { link }, _) if !self.joins(link) => {}
            (_, Outcome::Refused(refused)) => {
                warn!(%refused, "the seed nodes refuse");
                let current = refused.current;
                let mine = current.as_ref().and_then(|register| register.primary().cloned());
                if mine.is_some_and(|holder| holder.incarnation == self.engine.me.incarnation) {
                    // Still ours, at another generation or with another backup: settle by being alone.
                    self.generation =
                        current.as_ref().map_or(self.generation, |register| register.generation);
                    self.ask_alone();
                    return Ok(None);
                }
                return Ok(Some(End::Deposed(current)));
            }
            // Not known: nothing leaves, and it is asked again.
            (Asked::Alone, _) if matches!(self.phase, Phase::Losing) => self.ask_alone(),
            (Asked::AddBackup { .. }, _) => {
                self.lose_backup("the seed nodes could not agree on it");
            }
            _ => {}
        }
        self.publish();
        Ok(None)
    }

    fn joins(&self, link: u64) -> bool {
        matches!(&self.phase, Phase::Joining { link: joining, .. } if joining.number == link)
    }
}

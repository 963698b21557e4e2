//! What one connection has written and may therefore read: keys of its own, values that carry a sequence number.
//! Without I/O: requests come out, replies go in, verdicts come back.

use std::collections::VecDeque;

use crate::client::redis::Load;
use crate::client::redis::resp::{self, Reply};
use crate::pattern::{self, Choices};

/// Small keys and counters of each connection.
const TEXTS: usize = 4;
const COUNTERS: usize = 2;

/// A key whose values are numbered in the order in which they were written, from 1 on; 0 is no value.
#[derive(Clone, Debug)]
struct Text {
    name: String,
    length: usize,
    /// The last one acknowledged, or since then read.
    known: u64,
    /// The last one sent: what lies between was not acknowledged and may be there or not.
    sent: u64,
    /// The last one sent has not been asked for since.
    unread: bool,
}

/// A key that is only incremented.
#[derive(Clone, Debug)]
struct Counter {
    name: String,
    known: u64,
    /// Increments whose connection was dropped before they were acknowledged.
    unsure: u64,
}

/// A reply that has been asked for.
#[derive(Clone, Copy, Debug)]
enum Awaited {
    Set {
        key: usize,
        number: u64,
    },
    /// `sent` as it was when this was asked.
    Get {
        key: usize,
        sent: u64,
    },
    Increment {
        counter: usize,
    },
    ReadCounter {
        counter: usize,
    },
}

/// What a reply says about the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it must be; with so many writes acknowledged by it.
    Right {
        acked: u64,
    },
    /// So many acknowledged writes are gone.
    Lost {
        writes: u64,
        finding: String,
    },
    Wrong {
        finding: String,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Session {
    id: usize,
    texts: Vec<Text>,
    counters: Vec<Counter>,
    awaited: VecDeque<Awaited>,
    choices: Choices,
    turns: u64,
    load: Load,
}

impl Session {
    pub(crate) fn new(id: usize, load: &Load) -> Session {
        let text = |key: usize| {
            // The last one is the large one.
            let length = if key == TEXTS { load.large_bytes } else { 24 + 16 * key };
            Text { name: format!("lab:{id}:text:{key}"), length, known: 0, sent: 0, unread: false }
        };
        let counter = |key| Counter { name: format!("lab:{id}:counter:{key}"), known: 0, unsure: 0 };
        Session {
            id,
            texts: (0..=TEXTS).map(text).collect(),
            counters: (0..COUNTERS).map(counter).collect(),
            awaited: VecDeque::new(),
            choices: Choices::new(id as u64),
            turns: id as u64,
            load: load.clone(),
        }
    }

    /// Whether replies are still to come.
    pub(crate) fn awaits(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Adds the next request, or batch of requests, to what is to be sent.
    pub(crate) fn ask(&mut self, out: &mut Vec<u8>) {
        self.turns += 1;
        let every = |turns: u64| turns != 0 && self.turns.is_multiple_of(turns);
        if every(self.load.large_every) {
            self.set(TEXTS, out);
            self.get(TEXTS, out);
        } else if every(self.load.batch_every) {
            for _ in 0..self.load.batch_length {
                self.ask_small(out);
            }
        } else {
            self.ask_small(out);
        }
    }

    fn ask_small(&mut self, out: &mut Vec<u8>) {
        let key = self.choices.below(TEXTS as u64) as usize;
        match self.choices.below(10) {
            // Never over one that was not read: a lost write would be lost from view as well.
            0..5 if !self.texts[key].unread => self.set(key, out),
            0..8 => self.get(key, out),
            _ => {
                let counter = key % COUNTERS;
                resp::command(out, &[b"INCR", self.counters[counter].name.as_bytes()]);
                self.awaited.push_back(Awaited::Increment { counter });
            }
        }
    }

    fn set(&mut self, key: usize, out: &mut Vec<u8>) {
        let text = &mut self.texts[key];
        text.sent += 1;
        text.unread = true;
        let number = text.sent;
        let value = value(self.id, key, number, text.length);
        resp::command(out, &[b"SET", text.name.as_bytes(), &value]);
        self.awaited.push_back(Awaited::Set { key, number });
    }

    fn get(&mut self, key: usize, out: &mut Vec<u8>) {
        let text = &mut self.texts[key];
        text.unread = false;
        resp::command(out, &[b"GET", text.name.as_bytes()]);
        self.awaited.push_back(Awaited::Get { key, sent: text.sent });
    }

    /// Asks for everything that was ever written.
    pub(crate) fn read_back(&mut self, out: &mut Vec<u8>) {
        for key in 0..self.texts.len() {
            self.get(key, out);
        }
        for counter in 0..self.counters.len() {
            resp::command(out, &[b"GET", self.counters[counter].name.as_bytes()]);
            self.awaited.push_back(Awaited::ReadCounter { counter });
        }
    }

    /// The connection is gone: what was asked and not answered may have happened or not.
    pub(crate) fn dropped(&mut self) {
        for awaited in self.awaited.drain(..) {
            match awaited {
                Awaited::Increment { counter } => self.counters[counter].unsure += 1,
                Awaited::Set { key, .. } | Awaited::Get { key, .. } => self.texts[key].unread = true,
                Awaited::ReadCounter { .. } => {}
            }
        }
    }

    /// All writes that were acknowledged, for when they cannot be read back.
    pub(crate) fn unverified(&self) -> u64 {
        let texts = self.texts.iter().map(|text| text.known);
        texts.chain(self.counters.iter().map(|counter| counter.known)).sum()
    }

    /// Judges the next reply.
    pub(crate) fn reply(&mut self, reply: Reply) -> Verdict {
        let wrong = |finding: String| Verdict::Wrong { finding };
        let Some(awaited) = self.awaited.pop_front() else {
            return wrong(format!("connection {}: {} came unasked", self.id, show(&reply)));
        };
        match (awaited, reply) {
            (Awaited::Set { key, number }, Reply::Status(ok)) if ok == "OK" => {
                self.texts[key].known = number;
                Verdict::Right { acked: 1 }
            }
            (Awaited::Get { key, sent }, Reply::Nil) => self.judge_text(key, 0, sent),
            (Awaited::Get { key, sent }, Reply::Bulk(bytes)) => {
                let text = &self.texts[key];
                match number_of(&bytes) {
                    Some(number) if bytes == value(self.id, key, number, text.length) => {
                        self.judge_text(key, number, sent)
                    }
                    _ => wrong(format!("{}: {} was never written", text.name, show(&Reply::Bulk(bytes)))),
                }
            }
            (Awaited::Increment { counter }, Reply::Integer(now)) => {
                self.judge_counter(counter, u64::try_from(now).unwrap_or(0), 1)
            }
            (Awaited::ReadCounter { counter }, Reply::Nil) => self.judge_counter(counter, 0, 0),
            (Awaited::ReadCounter { counter }, Reply::Bulk(bytes)) => {
                match String::from_utf8_lossy(&bytes).parse() {
                    Ok(now) => self.judge_counter(counter, now, 0),
                    Err(_) => wrong(format!("{}: not a number", self.counters[counter].name)),
                }
            }
            (awaited, reply) => {
                wrong(format!("connection {}: {} in answer to {awaited:?}", self.id, show(&reply)))
            }
        }
    }

    /// Value `number` was read; it must be the last acknowledged one, or a newer one sent before it was asked for.
    fn judge_text(&mut self, key: usize, number: u64, sent: u64) -> Verdict {
        let text = &mut self.texts[key];
        let known = std::mem::replace(&mut text.known, number);
        let name = &text.name;
        if number < known {
            let finding = format!("{name}: value {number}, but {known} had been acknowledged");
            Verdict::Lost { writes: known - number, finding }
        } else if number > sent {
            let finding = format!("{name}: value {number}, but only {sent} had been sent");
            Verdict::Wrong { finding }
        } else {
            Verdict::Right { acked: 0 }
        }
    }

    /// A counter stands at `now` after `step` increments beyond what was known and perhaps those unsure.
    fn judge_counter(&mut self, counter: usize, now: u64, step: u64) -> Verdict {
        let Counter { name, known, unsure } = &mut self.counters[counter];
        let least = *known + step;
        *known = now;
        if now < least {
            let finding = format!("{name}: at {now}, but at least {least} increments had been acknowledged");
            Verdict::Lost { writes: least - now, finding }
        } else if now > least + *unsure {
            let finding = format!("{name}: at {now}, but only {} increments had been sent", least + *unsure);
            Verdict::Wrong { finding }
        } else {
            *unsure -= now - least;
            Verdict::Right { acked: step }
        }
    }
}

/// The bytes of a value: its number, and a pattern that no other value has.
fn value(connection: usize, key: usize, number: u64, length: usize) -> Vec<u8> {
    let mut bytes = format!("{number}:").into_bytes();
    let head = bytes.len();
    bytes.resize(length.max(head + 8), 0);
    let seed = (connection as u64) << 40 ^ (key as u64) << 32 ^ number;
    pattern::fill(seed, 0, &mut bytes[head..]);
    bytes
}

fn number_of(bytes: &[u8]) -> Option<u64> {
    let head = bytes.iter().position(|byte| *byte == b':')?;
    std::str::from_utf8(&bytes[..head]).ok()?.parse().ok()
}

/// A reply in few words.
fn show(reply: &Reply) -> String {
    const SHOWN: usize = 24;
    match reply {
        Reply::Bulk(bytes) if bytes.len() > SHOWN => {
            format!("{} bytes beginning with \"{}\"", bytes.len(), bytes[..SHOWN].escape_ascii())
        }
        Reply::Bulk(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let nowhere = ([127, 0, 0, 1], 1).into();
        Session::new(3, &Load { large_bytes: 1000, ..Load::new(nowhere) })
    }

    fn bulk(number: u64, key: usize, session: &Session) -> Reply {
        Reply::Bulk(value(3, key, number, session.texts[key].length))
    }

    fn set(session: &mut Session, key: usize, acknowledged: bool) {
        session.set(key, &mut Vec::new());
        if acknowledged {
            assert_eq!(session.reply(Reply::Status("OK".into())), Verdict::Right { acked: 1 });
        }
    }

    fn get(session: &mut Session, key: usize, reply: Reply) -> Verdict {
        session.get(key, &mut Vec::new());
        session.reply(reply)
    }

    #[test]
    fn a_connection_that_was_never_dropped_reads_exactly_what_it_wrote() {
        let mut session = session();
        assert_eq!(get(&mut session, 0, Reply::Nil), Verdict::Right { acked: 0 });
        set(&mut session, 0, true);
        set(&mut session, 0, true);
        let current = bulk(2, 0, &session);
        assert_eq!(get(&mut session, 0, current), Verdict::Right { acked: 0 });
        let newer = bulk(3, 0, &session);
        assert!(matches!(get(&mut session, 0, newer), Verdict::Wrong { .. }));
    }

    #[test]
    fn an_older_value_or_none_is_a_lost_write() {
        let mut session = session();
        for _ in 0..3 {
            set(&mut session, 1, true);
        }
        let older = bulk(2, 1, &session);
        assert!(matches!(get(&mut session, 1, older), Verdict::Lost { writes: 1, .. }));
        assert!(matches!(get(&mut session, 1, Reply::Nil), Verdict::Lost { writes: 2, .. }));
    }

    #[test]
    fn after_a_drop_what_was_not_acknowledged_may_be_there_or_not() {
        for (found, right) in [(1, true), (2, true), (0, false), (3, false)] {
            let mut session = session();
            set(&mut session, 0, true);
            set(&mut session, 0, false);
            session.dropped();
            let reply = if found == 0 { Reply::Nil } else { bulk(found, 0, &session) };
            assert_eq!(matches!(get(&mut session, 0, reply), Verdict::Right { .. }), right, "found {found}");
        }
    }

    #[test]
    fn every_write_is_read_before_the_next_one_to_its_key() {
        let mut session = session();
        (0..2000).for_each(|_| session.ask(&mut Vec::new()));
        let mut unread = [false; TEXTS + 1];
        for awaited in &session.awaited {
            match *awaited {
                Awaited::Set { key, .. } => assert!(!std::mem::replace(&mut unread[key], true)),
                Awaited::Get { key, .. } => unread[key] = false,
                _ => {}
            }
        }
        assert!(session.texts.iter().all(|text| text.sent > 5) && session.awaited.len() > 2000);
    }

    #[test]
    fn a_counter_neither_loses_nor_repeats_an_increment() {
        let increment = |session: &mut Session, now: i64| {
            session.awaited.push_back(Awaited::Increment { counter: 0 });
            session.reply(Reply::Integer(now))
        };
        let mut session = session();
        assert_eq!(increment(&mut session, 1), Verdict::Right { acked: 1 });
        assert_eq!(increment(&mut session, 2), Verdict::Right { acked: 1 });
        assert!(matches!(increment(&mut session, 2), Verdict::Lost { writes: 1, .. }));
        assert!(matches!(increment(&mut session, 4), Verdict::Wrong { .. }));
        session.awaited.push_back(Awaited::Increment { counter: 0 });
        session.dropped();
        assert_eq!(increment(&mut session, 6), Verdict::Right { acked: 1 });
        assert!(matches!(increment(&mut session, 8), Verdict::Wrong { .. }), "it was used up");
    }

    #[test]
    fn foreign_errored_and_unasked_replies_are_wrong() {
        let mut session = session();
        set(&mut session, 0, true);
        let mut bytes = value(3, 0, 1, session.texts[0].length);
        *bytes.last_mut().unwrap() ^= 1;
        assert!(matches!(get(&mut session, 0, Reply::Bulk(bytes)), Verdict::Wrong { .. }));
        let other_key = bulk(1, 1, &session);
        assert!(matches!(get(&mut session, 0, other_key), Verdict::Wrong { .. }));
        session.set(0, &mut Vec::new());
        assert!(matches!(session.reply(Reply::Error("LOADING".into())), Verdict::Wrong { .. }));
        assert!(matches!(session.reply(Reply::Status("OK".into())), Verdict::Wrong { .. }));
    }
}

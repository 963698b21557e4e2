//! A process that is patched: finding out what is there, applying, reverting.
//!
//! The order of what is written decides what a patcher that is killed leaves behind. Code and notes first, in state
//! `prepared`; then the distances into the pads, which nobody reads yet; then `applying`, and one byte for each entry; then
//! `applied`. At every point each entry leads to the old function or to the new one, whole; the state says which entries may
//! be switched, and [`Patcher::settle`] switches them back. The parts of a patch (a program and its libraries) are one: all are
//! `applying` before an entry of any is switched, and none is `applied` before all entries of all are.

mod frame;
mod inject;
mod link;
mod memory;
mod modules;
mod moment;
mod region;
mod together;
mod unwind;

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use inject::{Call, Caller, Desk, Steps, first_failure};
use inject::{DESK_CODE, DESK_WORDS, Ptrace, desk_code};
#[cfg(test)]
pub(crate) use link::lay_out;
pub use memory::PAGE;
pub use moment::{Stacks, Whereabouts};
pub use region::{Notes, Region, State};
pub use together::{Avoided, Change, Store, Try};

use crate::error::{Error, Result};
use crate::patch::{Part, Patch, PieceKind, Signed, When, hex};
use crate::sys::ptrace::Tid;
use crate::unit::{PAD_LEN, PAD_OPEN, PAD_TAKEN};
use link::Plan;
use memory::Memory;
use modules::{Exports, Module, Scope};
use region::{Gates, HEAD, Off, Switched};
use together::{FLAG, GATE, above, avoided_by, gate_code, gate_places, lead_to_gates};

/// Room behind the notes of a region, for a patch that is applied again over others than before.
const NOTES_ROOM: u64 = 1024;
/// How often a place is looked for that the process does not take first.
const PLACES: usize = 8;
/// What a function returned that was seen to wait.
const WAITS: u64 = -(libc::EAGAIN as i64) as u64;
/// How often the unwinder is told of a patch's functions where it may be in use, and the rest between: whoever has its lock has it for
/// as long as it looks something up.
const UNWINDER_TRIES: u32 = 20;
const UNWINDER_REST: Duration = Duration::from_millis(5);
/// `struct object` of libgcc (unwind-dw2-fde.h): six words; doubled for what may be added.
const UNWIND_OBJECT: u64 = 96;

/// What `apply` and `revert` say they did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// Entries that were switched.
    pub functions: usize,
    /// Bytes that were mapped for it.
    pub bytes: u64,
    pub took_us: u64,
    /// The longest time that any thread was held; 0 if none was.
    pub longest_hold_us: u64,
    /// What an earlier patcher had left unfinished and was undone.
    pub settled: Vec<String>,
    pub warnings: Vec<String>,
}

/// One process, which nobody else patches meanwhile.
pub struct Patcher<'a> {
    memory: Memory,
    steps: Steps<'a>,
    /// Whether functions switch at one instant also where a patch does not ask for it.
    is_together: bool,
    /// Who has calls made, if the process has a tracer already.
    tracer: Option<Box<dyn Caller + 'a>>,
}

/// What was found in the process before anything was changed.
struct Found<'f> {
    regions: &'f [Region],
    scope: &'f Scope,
    modules: &'f [Module],
    is_together: bool,
}

/// What the parts of a patch have in common while they are put in place.
struct Common {
    /// The byte of all gates, once there is one.
    flag: Option<u64>,
    warnings: Vec<String>,
}

/// A part of a patch and what it meets in the process.
struct Meeting<'p> {
    part: &'p Part,
    module: Module,
    /// The region of the same patch, if it was applied and reverted before.
    before: Option<Region>,
}

impl<'a> Patcher<'a> {
    pub fn open(pid: Tid) -> Result<Self> {
        Self::open_with_steps(pid, &|_| {})
    }

    /// `steps` is called after every step, by its name.
    pub fn open_with_steps(pid: Tid, steps: Steps<'a>) -> Result<Self> {
        let memory = Memory::open(pid)?;
        Ok(Self { memory, steps, is_together: false, tracer: None })
    }

    /// A process whose tracer makes the calls.
    pub fn open_traced(pid: Tid, tracer: Box<dyn Caller + 'a>) -> Result<Self> {
        Ok(Self { tracer: Some(tracer), ..Self::open(pid)? })
    }

    /// From now on all functions of a patch that is applied switch at one instant.
    pub fn switch_together(&mut self) {
        self.is_together = true;
    }

    /// Whether a patch is about something that the process has mapped.
    pub fn has_module_of(&self, patch: &Patch) -> Result<bool> {
        let modules = modules::find(&self.memory, &self.memory.mappings()?);
        Ok(patch.parts.iter().any(|part| modules.iter().any(|module| module.build_id == *part.build_id)))
    }

    /// Does something with whoever has calls made.
    fn with_caller<T>(&mut self, work: impl FnOnce(&Self, &mut dyn Caller) -> Result<T>) -> Result<T> {
        match self.tracer.take() {
            Some(mut tracer) => {
                let outcome = work(self, tracer.as_mut());
                self.tracer = Some(tracer);
                outcome
            }
            None => work(self, &mut Ptrace::new(&self.memory, self.steps)),
        }
    }

    /// The patches in the process, the first applied first.
    pub fn list(&self) -> Result<Vec<Region>> {
        Ok(Region::find(&self.memory, &self.memory.mappings()?))
    }

    /// Everything that [`Self::apply`] would find wrong. Changes nothing.
    pub fn check(&self, signed: &Signed) -> Result<Vec<String>> {
        let regions = self.list()?;
        let mut notes = Vec::new();
        for region in
            regions.iter().filter(|r| matches!(r.state, State::Applying | State::Reverting | State::Prepared))
        {
            notes.push(format!("{} was {}: it will be undone first", region.notes.name, region.state.word()));
        }
        let mappings = self.memory.mappings()?;
        let modules = modules::find(&self.memory, &mappings);
        let scope = Scope::of(&self.memory, &modules, &signed.patch);
        for meeting in self.meet(&signed.patch, signed.id, &modules, &regions)? {
            let plan = Plan::new(meeting.part);
            plan.imports(&self.memory, &scope, &meeting.module)?;
            self.switches(&meeting, &plan, 0, 0, &regions)?;
            let length = HEAD + plan.code_length + plan.data_length + PAGE;
            link::place(&mappings, &meeting.module, meeting.part.is_fixed, length)?;
        }
        self.check_fit()?;
        notes.extend(signed.patch.warnings.iter().cloned());
        Ok(notes)
    }

    /// Whether the process as a whole can be patched.
    fn check_fit(&self) -> Result<()> {
        let pid = self.memory.pid;
        if self.tracer.is_some() {
            // It is traced, by who is asked, and stops for it all the time.
            return Ok(());
        }
        let tracer = self.memory.status(pid, "TracerPid").filter(|tracer| tracer != "0");
        if let Some(tracer) = tracer {
            return Err(Error::unfit(format!("process {pid} is traced by process {tracer} (a debugger?)")));
        }
        match self.memory.status(pid, "State").and_then(|state| state.chars().next()) {
            Some('T' | 't') => Err(Error::unfit(format!(
                "process {pid} is stopped (by job control or a debugger): let it go on first"
            ))),
            Some('Z' | 'X') | None => Err(Error::unfit(format!("process {pid} has ended"))),
            Some(_) => Ok(()),
        }
    }

    /// The parts that are about something the process has mapped.
    fn meet<'p>(
        &self,
        patch: &'p Patch,
        id: [u8; 32],
        modules: &[Module],
        regions: &[Region],
    ) -> Result<Vec<Meeting<'p>>> {
        let mut met = Vec::new();
        let mut active: Option<&Region> = None;
        for part in &patch.parts {
            for module in modules.iter().filter(|module| module.build_id == *part.build_id) {
                // One file may be mapped several times, or again at another place: by its entries a region says in which it is.
                let same = |region: &&Region| region.notes.patch == id && is_in(region, part, module);
                if let Some(region) = regions.iter().filter(|region| region.is_active()).find(same) {
                    active.get_or_insert(region);
                    continue;
                }
                let before = regions.iter().rfind(same).cloned();
                met.push(Meeting { part, module: module.clone(), before });
            }
        }
        if let Some(active) = active {
            let others = match met.first() {
                Some(other) => format!(", and has mapped {} since: revert it first", other.module.path),
                None => String::new(),
            };
            return Err(Error::unfit(format!(
                "process {} has the patch {} already ({}){others}",
                self.memory.pid,
                active.notes.name,
                active.state.word()
            )));
        }
        if met.is_empty() {
            let wanted: Vec<String> = patch
                .parts
                .iter()
                .map(|part| format!("{} ({})", part.program, part.build_id_text()))
                .collect();
            let there: Vec<String> = modules
                .iter()
                .filter(|module| !module.build_id.is_empty())
                .take(1)
                .map(|module| format!("{} ({})", module.path, hex(&module.build_id)))
                .collect();
            return Err(Error::unfit(format!(
                "the patch is for another build: it fits {}, and process {} runs {}",
                wanted.join(", "),
                self.memory.pid,
                there.join(", ")
            )));
        }
        Ok(met)
    }

    /// Which pads a part switches: the program's, or those of the patches that are over it already.
    fn switches(
        &self,
        meeting: &Meeting<'_>,
        plan: &Plan<'_>,
        code: u64,
        data: u64,
        regions: &[Region],
    ) -> Result<Vec<Switched>> {
        let mut over: BTreeMap<u64, &Switched> = BTreeMap::new();
        for region in regions.iter().filter(|region| region.state == State::Applied) {
            over.extend(region.notes.switched.iter().map(|switched| (switched.pad, switched)));
        }
        let mut found = Vec::new();
        for switch in &meeting.part.switches {
            let origin = meeting.module.bias.wrapping_add(switch.pad);
            if !(meeting.module.start..meeting.module.end).contains(&origin) {
                return Err(Error::unfit(format!(
                    "the entry of {} is not in {}",
                    switch.name, meeting.module.path
                )));
            }
            let mut pad = origin;
            // As long as patches lie over each other, each leads to the next; there are no more than regions.
            for _ in 0..=regions.len() {
                let Some(leads_to) = region::pad(&self.memory, pad)? else { break };
                let Some(switched) = over.get(&pad).filter(|switched| switched.target == leads_to) else {
                    return Err(Error::unfit(format!(
                        "the entry of {} leads to {leads_to:#x}, which is of no patch that is known",
                        switch.name
                    )));
                };
                pad = switched.next.ok_or_else(|| {
                    Error::unfit(format!(
                        "{} was patched by a function that cannot be patched again",
                        switch.name
                    ))
                })?;
            }
            let target = plan.address(switch.piece, code, data);
            found.push(Switched {
                name: switch.name.clone(),
                origin,
                pad,
                target,
                next: switch.next_pad.map(|offset| target + u64::from(offset)),
            });
        }
        Ok(found)
    }

    /// Applies a patch. On an error nothing is switched; only an error of the hook that runs after the switch leaves it in place.
    pub fn apply(&mut self, signed: &Signed) -> Result<Report> {
        self.check_fit()?;
        self.with_caller(|this, caller| this.apply_by(signed, caller))
    }

    fn apply_by(&self, signed: &Signed, caller: &mut dyn Caller) -> Result<Report> {
        let begun = Instant::now();
        self.memory.lock()?;
        let mappings = self.memory.mappings()?;
        let modules = modules::find(&self.memory, &mappings);
        let settled = self.settle(&modules)?;
        let regions = self.list()?;
        let scope = Scope::of(&self.memory, &modules, &signed.patch);
        let meetings = self.meet(&signed.patch, signed.id, &modules, &regions)?;
        let is_together = self.is_together || signed.patch.is_together;
        let steps = self.steps;
        let mut prepared = Vec::new();
        let mut bytes = 0;
        let mut common = Common { flag: None, warnings: signed.patch.warnings.clone() };
        let mut order = regions.iter().map(|region| region.order).max().unwrap_or(0);
        let found = Found { regions: &regions, scope: &scope, modules: &modules, is_together };
        for meeting in &meetings {
            order = order.checked_add(1).ok_or_else(|| {
                Error::unfit(format!(
                    "the patches in process {} have no order that makes sense",
                    self.memory.pid
                ))
            })?;
            let (region, mapped) = self.prepare(signed, meeting, &found, order, caller, &mut common)?;
            bytes += mapped;
            prepared.push(region);
        }
        let mut is_new = false;
        for switched in prepared.iter().flat_map(|region| &region.notes.switched) {
            is_new |= self.write_distance(switched.pad, switched.target)?;
        }
        steps("distances written");
        // A process that has asked for it once is also serialised whenever a thread of it comes to a processor.
        if is_new || is_together {
            synchronise(caller, &prepared)?;
            steps("processors synchronised");
        }
        for region in &prepared {
            call_hooks(caller, region, When::Before)?;
        }
        steps("hooks before");
        let avoided = if is_together { avoided_by(&meetings, &prepared, &regions) } else { Vec::new() };
        let held = self.switch_unit(&mut prepared, true, &avoided, caller)?;
        for region in &prepared {
            call_hooks(caller, region, When::After)?;
        }
        Ok(Report {
            functions: prepared.iter().map(|region| region.notes.switched.len()).sum(),
            bytes,
            took_us: micros(begun.elapsed()),
            longest_hold_us: micros(caller.longest_hold().max(held)),
            settled,
            warnings: common.warnings,
        })
    }

    /// Puts a part's code and notes in place, in state `prepared`. Returns how much was mapped for it.
    fn prepare(
        &self,
        signed: &Signed,
        meeting: &Meeting<'_>,
        &Found { regions, scope, modules, is_together }: &Found<'_>,
        order: u64,
        caller: &mut dyn Caller,
        Common { flag, warnings }: &mut Common,
    ) -> Result<(Region, u64)> {
        let mut plan = Plan::new(meeting.part);
        let imports = plan.imports(&self.memory, scope, &meeting.module)?;
        let mut notes = notes(signed, meeting);
        notes.switched = self.switches(meeting, &plan, 0, 0, regions)?;
        if signed.patch.is_cumulative {
            notes.off = offs(&notes, &meeting.module, regions);
            if is_together && !notes.off.is_empty() {
                return Err(Error::unfit(
                    "the patch replaces others, of which it switches off functions that it has none of: what switches together cannot do \
                     that; revert the others first",
                ));
            }
        }
        let draft = Region::header(0, 0, order, State::Prepared, &notes)?;
        // What its notes say is the process's own memory: without sense it is no place to use again.
        let before =
            meeting.before.as_ref().filter(|before| before.has_room_for(plan.code_length, plan.data_length));
        // Gates are other entries than functions, and one byte is for all of them.
        let before = before.filter(|before| match before.notes.gates {
            None => !is_together,
            Some(gates) => {
                let is_old = self.memory.array::<1>(gates.flag).is_ok_and(|byte| byte == [0]);
                is_together && is_old && flag.is_none_or(|flag| flag == gates.flag)
            }
        });
        if let Some(before) = before {
            // The code lies there as it did; threads may even be in it.
            let code = before.notes.code;
            let data = before.notes.data.0;
            notes.data = before.notes.data;
            notes.code = code;
            notes.is_unwindable = before.notes.is_unwindable;
            notes.desk = before.notes.desk;
            notes.hooks.clone_from(&before.notes.hooks);
            notes.switched = self.switches(meeting, &plan, code, data, regions)?;
            notes.gates = before.notes.gates;
            notes.shadows = before.notes.shadows;
            lead_to_gates(&mut notes);
            // A gate leads to the entry that it was made for.
            let is_as_before = notes.gates.is_none() || notes.switched == before.notes.switched;
            let header = Region::header(before.address, before.length, order, State::Prepared, &notes)?;
            if is_as_before && header.len() as u64 <= code - before.address {
                *flag = flag.or(notes.gates.map(|gates| gates.flag));
                Region::write_header(&self.memory, before.address, &header)?;
                (self.steps)("prepared again");
                let region = Region { order, state: State::Prepared, notes, ..before.clone() };
                return Ok((region, 0));
            }
        }
        // Whole pages, so that code is where it would be in a program.
        let room = (draft.len() as u64 + NOTES_ROOM).next_multiple_of(PAGE);
        // Behind the code: what a thread executes that is asked to synchronise.
        let code_end = plan.code_length.next_multiple_of(16);
        // And behind that the gates, one for each entry.
        let gates = if is_together { meeting.part.switches.len() as u64 } else { 0 };
        let code_length = (room + code_end + DESK_CODE + GATE * gates).next_multiple_of(PAGE);
        // Behind the data: what the unwinder writes to, what the thread says, and the byte of the gates.
        let data_end = plan.data_length.next_multiple_of(16);
        let data_length = (data_end + UNWIND_OBJECT + DESK_WORDS + FLAG).next_multiple_of(PAGE);
        let address = self.map(meeting, code_length, data_length, caller)?;
        let (code, data) = (address + room, address + code_length);
        let known = regions.iter().rev().filter(|region| is_of(region, &meeting.module));
        let known = known.filter_map(|region| region.notes.shadows).next();
        notes.shadows = plan.take_shadows(known, code, data);
        let (code_bytes, data_bytes) = plan.image(meeting.module.bias, code, data, &imports)?;
        notes.desk = Desk { code: code + code_end, words: data + data_end + UNWIND_OBJECT };
        self.memory.write(code, &code_bytes)?;
        self.memory.write(notes.desk.code, &desk_code())?;
        self.memory.write(data, &data_bytes)?;
        (self.steps)("code written");
        notes.data = (data, data_length);
        notes.code = code;
        if let Some(table) = plan.unwind_table(code, data) {
            let object = data + data_end;
            notes.is_unwindable = register_unwind(&self.memory, modules, caller, table, object)?;
            if !notes.is_unwindable {
                let warning = "the process's unwinder could not be told (libgcc_s is not loaded, or waited for a thread that stood): \
                               backtraces will end at patched functions";
                // Once, of however many parts.
                if !warnings.iter().any(|other| other == warning) {
                    warnings.push(warning.to_owned());
                }
            }
        }
        let hooks = meeting.part.hooks.iter();
        notes.hooks = hooks.map(|hook| (hook.when, plan.address(hook.piece, code, data))).collect();
        notes.switched = self.switches(meeting, &plan, code, data, regions)?;
        notes.gates = is_together.then(|| Gates {
            code: code + code_end + DESK_CODE,
            flag: *flag.get_or_insert(data + data_end + UNWIND_OBJECT + DESK_WORDS),
        });
        self.write_gates(&notes)?;
        lead_to_gates(&mut notes);
        let header = Region::header(address, code_length, order, State::Prepared, &notes)?;
        Region::write_header(&self.memory, address, &header)?;
        (self.steps)("prepared");
        Ok((
            Region { address, length: code_length, state: State::Prepared, order, notes },
            code_length + data_length,
        ))
    }

    /// Puts a gate in place for each entry, between the function that was there and the new one.
    fn write_gates(&self, notes: &Notes) -> Result<()> {
        let Some(gates) = notes.gates else { return Ok(()) };
        for (at, switched) in gate_places(gates).zip(&notes.switched) {
            let old = switched.pad.wrapping_add(PAD_LEN);
            let code = gate_code(at, gates.flag, old, switched.target).ok_or_else(|| {
                Error::unfit(format!("the old function of {} is out of reach of its gate", switched.name))
            })?;
            self.memory.write(at, &code)?;
        }
        (self.steps)("gates written");
        Ok(())
    }

    /// Maps room for code, and behind it for data, by a call of one of the process's threads.
    fn map(&self, meeting: &Meeting<'_>, code: u64, data: u64, caller: &mut dyn Caller) -> Result<u64> {
        let mut mappings = self.memory.mappings()?;
        for _ in 0..PLACES {
            let at = link::place(&mappings, &meeting.module, meeting.part.is_fixed, code + data)?;
            let calls = [
                Call::Map { at, length: code, rights: libc::PROT_READ | libc::PROT_EXEC },
                Call::Map { at: at + code, length: data, rights: libc::PROT_READ | libc::PROT_WRITE },
            ];
            let results = caller.call(&calls)?;
            (self.steps)("mapped");
            if results == [at, at + code] {
                return Ok(at);
            }
            // The process took the place meanwhile, or part of it; what was mapped of it stays, empty.
            let is_taken = |result: &u64| *result as i64 == -i64::from(libc::EEXIST);
            if !results.iter().any(is_taken) {
                let failed = results.iter().find(|result| (**result as i64) < 0).copied().unwrap_or_default();
                succeeded("mmap", failed)?;
                return Err(Error::unfit(format!(
                    "process {} was given memory at another place",
                    self.memory.pid
                )));
            }
            mappings = self.memory.mappings()?;
        }
        Err(Error::unfit(format!("process {} takes every place before it can be used", self.memory.pid)))
    }

    /// Writes the distance to a function into a pad that is open, where nobody reads it. Whether it was another.
    fn write_distance(&self, pad: u64, target: u64) -> Result<bool> {
        if let Some(leads_to) = region::pad(&self.memory, pad)? {
            return Err(Error::unfit(format!("the entry at {pad:#x} was led to {leads_to:#x} meanwhile")));
        }
        let distance = target.wrapping_sub(pad.wrapping_add(5)) as i64;
        let distance = i32::try_from(distance)
            .map_err(|_| Error::unfit(format!("the new function at {target:#x} is out of reach of the old")))?
            .to_le_bytes();
        let old: [u8; 4] = self.memory.array(pad.wrapping_add(1))?;
        if old == distance {
            return Ok(false);
        }
        self.memory.write(pad.wrapping_add(1), &distance)?;
        Ok(true)
    }

    /// Switches all parts of one patch, or all back. The states say what may be switched: all parts are being switched before an
    /// entry of any is, and until all entries of all are. What switches at one instant does so by the byte of its gates, in a moment
    /// in which no thread is in the functions: when all entries lead to gates, and as long as they do. Returns how long the threads
    /// were held for it.
    fn switch_unit(
        &self,
        unit: &mut [Region],
        on: bool,
        avoided: &[Avoided],
        caller: &mut dyn Caller,
    ) -> Result<Duration> {
        let (meanwhile, then) =
            if on { (State::Applying, State::Applied) } else { (State::Reverting, State::Reverted) };
        for region in unit.iter_mut() {
            region.set_state(&self.memory, meanwhile)?;
            (self.steps)(if on { "applying" } else { "reverting" });
        }
        let entries = || unit.iter().try_for_each(|region| self.switch(region, on));
        let gated = unit.iter().find_map(|region| Some((region, region.notes.gates?.flag)));
        let mut instant = || match gated {
            Some((region, at)) => {
                let change = Change { at, byte: u8::from(on), mark: region.mark(&self.memory)? };
                together::in_a_moment(&self.memory, caller, avoided, Some(&change))
            }
            None => Ok(Duration::ZERO),
        };
        let outcome = if on {
            entries().and_then(|()| instant())
        } else {
            instant().and_then(|held| entries().map(|()| held))
        };
        if let Err(error) = outcome {
            let modules = modules::find(&self.memory, &self.memory.mappings()?);
            return Err(match self.settle(&modules) {
                Ok(settled) => error.with(&settled.join("; ")),
                Err(further) => {
                    Error::unfit(format!("{error}; and what was begun could not be undone: {further}"))
                }
            });
        }
        for region in unit {
            region.set_state(&self.memory, then)?;
            (self.steps)(if on { "applied" } else { "reverted" });
        }
        outcome
    }

    /// Switches all entries of a part, or all back: one store of one byte for each. Back goes every entry that can, whatever
    /// another has become meanwhile.
    fn switch(&self, region: &Region, on: bool) -> Result<()> {
        let (here, off) = if on { (PAD_TAKEN, PAD_OPEN) } else { (PAD_OPEN, PAD_TAKEN) };
        let own = region.notes.switched.iter().map(|switched| (switched.pad, switched.target, here));
        let others = region.notes.off.iter().map(|other| (other.pad, other.target, off));
        let mut outcome = Ok(());
        for (pad, target, first) in own.chain(others) {
            let stored = self.store(pad, target, first);
            if on {
                stored?;
            } else {
                outcome = outcome.and(stored);
            }
        }
        outcome
    }

    fn store(&self, pad: u64, target: u64, first: u8) -> Result<()> {
        let bytes: [u8; 5] = self.memory.array(pad)?;
        let distance = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        let leads_to = pad.wrapping_add(5).wrapping_add_signed(i64::from(distance));
        if ![PAD_OPEN, PAD_TAKEN].contains(&bytes[0]) || leads_to != target {
            // Undoing a patch that was never switched on, over which another was.
            if first == PAD_OPEN && bytes[0] != PAD_TAKEN {
                return Ok(());
            }
            return Err(Error::unfit(format!("the entry at {pad:#x} was changed by something else")));
        }
        if bytes[0] != first {
            self.memory.write(pad, &[first])?;
            (self.steps)("switched");
        }
        Ok(())
    }

    /// Undoes what a patcher that was killed had begun, and says what. The parts of a patch are one: if one of them was being
    /// switched, all go back.
    fn settle(&self, modules: &[Module]) -> Result<Vec<String>> {
        let mut settled = Vec::new();
        let mut units: Vec<Vec<Region>> = Vec::new();
        // The last first: they lie over the others.
        for mut region in self.list()?.into_iter().rev() {
            if region.state != State::Reverted && !has_module(&region, modules) {
                // A library that was closed has taken its entries along: there is nothing to switch.
                settled.push(format!(
                    "{} was {} in {}, which the process has closed",
                    region.notes.name,
                    region.state.word(),
                    region.notes.program
                ));
                region.set_state(&self.memory, State::Reverted)?;
                continue;
            }
            match units.iter_mut().find(|unit| unit[0].notes.patch == region.notes.patch) {
                Some(unit) => unit.push(region),
                None => units.push(vec![region]),
            }
        }
        for mut unit in units {
            let interrupted = unit.iter().map(|region| region.state).find(|state| state.is_underway());
            let is_undone = |region: &Region| match region.state {
                State::Reverted => true,
                State::Applied => interrupted.is_none(),
                State::Prepared | State::Applying | State::Reverting => false,
            };
            unit.retain(|region| !is_undone(region));
            let Some(name) = unit.first().map(|region| region.notes.name.clone()) else { continue };
            // Entries that lead to gates: one byte says whether the functions had switched.
            let gates = unit.iter().find_map(|region| region.notes.gates);
            if gates.is_some() && interrupted.is_some() {
                // Both states mean the same while the byte decides. Who was asked to store it and has not yet finds another, and does not.
                for region in unit.iter_mut().filter(|region| region.state.is_underway()) {
                    region.set_state(&self.memory, region.state.other_way())?;
                    (self.steps)("settling");
                }
            }
            let has_switched = match gates {
                Some(gates) => self.memory.array::<1>(gates.flag)? != [0],
                None => false,
            };
            if let (true, Some(state)) = (has_switched, interrupted) {
                for region in unit.iter_mut().filter(|region| region.state.is_underway()) {
                    region.set_state(&self.memory, State::Applied)?;
                    (self.steps)("settled");
                }
                settled.push(format!("{name} was {}, and is applied", state.word()));
                continue;
            }
            // The states first, so that this may be interrupted as well.
            for region in unit.iter_mut().filter(|region| region.state == State::Applied) {
                region.set_state(&self.memory, State::Reverting)?;
                (self.steps)("settling");
            }
            unit.iter()
                .filter(|region| region.state.is_underway())
                .try_for_each(|region| self.switch(region, false))?;
            for region in &mut unit {
                region.set_state(&self.memory, State::Reverted)?;
                (self.steps)("settled");
            }
            settled.push(match interrupted {
                Some(state) => format!("{name} was {}, and is reverted", state.word()),
                None => format!("{name} was prepared and not applied"),
            });
        }
        Ok(settled)
    }

    /// Reverts the patch that was applied last, or all.
    pub fn revert(&mut self, all: bool) -> Result<Report> {
        self.with_caller(|this, caller| this.revert_by(all, caller))
    }

    fn revert_by(&self, all: bool, caller: &mut dyn Caller) -> Result<Report> {
        let begun = Instant::now();
        self.memory.lock()?;
        let modules = modules::find(&self.memory, &self.memory.mappings()?);
        let settled = self.settle(&modules)?;
        let regions: Vec<Region> =
            self.list()?.into_iter().filter(|region| region.state == State::Applied).collect();
        let Some(last) = regions.last() else {
            if settled.is_empty() {
                return Err(Error::unfit(format!("process {} has no patch", self.memory.pid)));
            }
            return Ok(Report {
                functions: 0,
                bytes: 0,
                took_us: micros(begun.elapsed()),
                longest_hold_us: 0,
                settled,
                warnings: Vec::new(),
            });
        };
        let id = last.notes.patch;
        let mut functions = 0;
        let mut regions: Vec<Region> =
            regions.into_iter().rev().take_while(|region| all || region.notes.patch == id).collect();
        let mut is_new = false;
        // What a cumulative patch switched off is switched on again; another patch may have used the pad since.
        for off in regions.iter().flat_map(|region| &region.notes.off) {
            if region::pad(&self.memory, off.pad)?.is_none() {
                is_new |= self.write_distance(off.pad, off.target)?;
            }
        }
        if is_new {
            synchronise(caller, &regions)?;
        }
        let everything = self.list()?;
        let mut held = Duration::ZERO;
        // What there is no moment for is refused before a hook undoes what the functions rely on.
        if regions.iter().any(|region| region.notes.hooks.iter().any(|(at, _)| *at == When::Revert)) {
            for unit in regions.chunk_by(|one, other| one.notes.patch == other.notes.patch) {
                if unit.iter().any(|region| region.notes.gates.is_some()) {
                    let avoided = above(unit, &everything);
                    held = held.max(together::in_a_moment(&self.memory, caller, &avoided, None)?);
                }
            }
        }
        // The parts of one patch are reverted together; of several the last first.
        for region in &regions {
            call_hooks(caller, region, When::Revert)?;
        }
        for unit in regions.chunk_by_mut(|one, other| one.notes.patch == other.notes.patch) {
            let is_together = unit.iter().any(|region| region.notes.gates.is_some());
            let avoided = if is_together { above(unit, &everything) } else { Vec::new() };
            held = held.max(self.switch_unit(unit, false, &avoided, caller)?);
            functions += unit.iter().map(|region| region.notes.switched.len()).sum::<usize>();
        }
        Ok(Report {
            functions,
            bytes: 0,
            took_us: micros(begun.elapsed()),
            longest_hold_us: micros(caller.longest_hold().max(held)),
            settled,
            warnings: Vec::new(),
        })
    }
}

/// Whether a region of a part's patch is in this module: its entries are at the module's.
fn is_in(region: &Region, part: &Part, module: &Module) -> bool {
    let entries = part.switches.iter().map(|switch| module.bias.wrapping_add(switch.pad));
    region.notes.build_id == *part.build_id
        && entries.eq(region.notes.switched.iter().map(|switched| switched.origin))
}

/// Whether a region's entries are in this module.
fn is_of(region: &Region, module: &Module) -> bool {
    module.build_id == region.notes.build_id
        && region.notes.switched.iter().all(|switched| module.holds(switched.origin))
}

/// Whether the program or library that a region is in is mapped, at the place where it was.
fn has_module(region: &Region, modules: &[Module]) -> bool {
    modules.iter().any(|module| is_of(region, module))
}

/// Has every processor that runs the process forget what it has fetched.
fn synchronise(caller: &mut dyn Caller, regions: &[Region]) -> Result<()> {
    if let Some(region) = regions.last() {
        caller.use_desk(region.notes.desk);
    }
    caller.call(&[Call::Synchronise])?.into_iter().try_for_each(|result| succeeded("membarrier", result))
}

/// Has a thread call the hooks of a patch for this moment.
fn call_hooks(caller: &mut dyn Caller, region: &Region, when: When) -> Result<()> {
    for (_, address) in region.notes.hooks.iter().filter(|(at, _)| *at == when) {
        let returned = caller.call(&[Call::Function(*address, [0; 3])])?;
        if returned.first().is_some_and(|result| *result == WAITS) {
            return Err(Error::unfit(
                "a hook of the patch did not return (it waits for something, or takes too long), and was left there: hooks must not wait",
            ));
        }
    }
    Ok(())
}

fn notes(signed: &Signed, meeting: &Meeting<'_>) -> Notes {
    let code = meeting.part.pieces.iter().filter(|piece| piece.kind == PieceKind::Code);
    Notes {
        patch: signed.id,
        name: signed.patch.name.clone(),
        program: meeting.part.program.clone(),
        build_id: meeting.part.build_id.to_vec(),
        built: signed.patch.built,
        applied: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
        is_cumulative: signed.patch.is_cumulative,
        switched: Vec::new(),
        off: Vec::new(),
        reasons: code.map(|piece| (piece.name.clone(), piece.reason.clone())).collect(),
        is_unwindable: false,
        data: (0, 0),
        code: 0,
        hooks: Vec::new(),
        desk: Desk { code: 0, words: 0 },
        shadows: None,
        gates: None,
    }
}

/// What a cumulative patch switches off: entries of older patches for functions that it leaves as the program had them.
fn offs(notes: &Notes, module: &Module, regions: &[Region]) -> Vec<Off> {
    let own: BTreeSet<u64> = notes.switched.iter().map(|switched| switched.origin).collect();
    let older = regions
        .iter()
        .filter(|region| region.state == State::Applied && region.notes.build_id == notes.build_id);
    let gone: BTreeSet<u64> = regions
        .iter()
        .filter(|region| region.state == State::Applied)
        .flat_map(|region| &region.notes.off)
        .map(|off| off.pad)
        .collect();
    older
        .flat_map(|region| &region.notes.switched)
        .filter(|switched| module.holds(switched.origin))
        .filter(|switched| !own.contains(&switched.origin) && !gone.contains(&switched.pad))
        .map(|switched| Off { pad: switched.pad, target: switched.target })
        .collect()
}

/// Tells the process's unwinder of a table, if it has one that can be told: `__register_frame_info` of libgcc.
fn register_unwind(
    memory: &Memory,
    modules: &[Module],
    caller: &mut dyn Caller,
    table: u64,
    object: u64,
) -> Result<bool> {
    let unwinder = modules.iter().find_map(|module| {
        let exports = module.exports(memory)?;
        Some((exports.get("__register_frame_info")?.address, may_be_told_again(&exports)))
    });
    let Some((unwinder, may_be_told_again)) = unwinder else { return Ok(false) };
    // Where all other threads stand meanwhile, one of them may stand in the unwinder, with its lock.
    for _ in 0..UNWINDER_TRIES {
        let returned = caller.call(&[Call::Function(unwinder, [table, object, 0])])?;
        if returned.first().is_none_or(|result| *result != WAITS) {
            return Ok(true);
        }
        if !may_be_told_again {
            return Ok(false);
        }
        thread::sleep(UNWINDER_REST);
    }
    Err(Error::unfit(format!(
        "process {} was in its unwinder (of libgcc) each time that it was to be told of the patch's functions: try again",
        memory.pid
    )))
}

/// Whether an unwinder that was left while it waited to be told of a table is as it was before. That of gcc 12 and older waits for its
/// lock only, before it does anything. Since gcc 13 it allocates with the lock of its tree held (`btree_insert`,
/// libgcc/unwind-dw2-btree.h): left there, it waits for itself the next time.
///
/// The versions of libgcc's interface are symbols of it, where GNU ld has linked it; an unwinder without them may be any.
fn may_be_told_again(unwinder: &Exports) -> bool {
    unwinder.get("GCC_3.0").is_some() && unwinder.get("GCC_13.0.0").is_none()
}

fn succeeded(what: &str, result: u64) -> Result<()> {
    match result as i64 {
        code @ -4095..=-1 => Err(Error::Target {
            attempted: format!("have the process call {what}"),
            source: std::io::Error::from_raw_os_error(-code as i32),
        }),
        _ => Ok(()),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

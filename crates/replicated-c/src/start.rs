//! Taking part.

use std::ffi::{c_char, c_int};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use outlive_replicated::protection::Phase;
use outlive_replicated::{
    Config, Identity, Node, Premature, Role, StartError, Started, WaitFor, WhenExposed, output_guard,
};

use crate::code::{Code, Failure, all_words, code, optional_text, outlive_code, text};
use crate::describe::{failed_declaration, incompatible};

/// Another process, or a seed node.
#[repr(C)]
pub struct outlive_node {
    /// Its name, which its certificate must prove.
    pub name: *const c_char,
    /// Where it listens: "10.0.0.1:7500".
    pub address: *const c_char,
}

/// How this process takes part: the same program, cluster and seed nodes on every node. Begin with `{0}`: what is 0 or NULL
/// is as if it was not said.
#[repr(C)]
pub struct outlive_config {
    /// The program, as the seed nodes know it.
    pub name: *const c_char,
    /// Where its backups find this process when it is the primary.
    pub listen: *const c_char,
    /// The cluster: 32 hexadecimal digits, the same everywhere.
    pub cluster: *const c_char,
    /// The path of the certificate of the cluster's authority.
    pub ca: *const c_char,
    /// The path of this process's certificate.
    pub certificate: *const c_char,
    /// The path of its key.
    pub key: *const c_char,
    /// The other processes that run this program; this one may be among them.
    pub peers: *const outlive_node,
    /// How many there are.
    pub peer_count: usize,
    /// Who has a vote.
    pub seeds: *const outlive_node,
    /// How many there are.
    pub seed_count: usize,
    /// For how long nothing is heard of a process that is dead: milliseconds, 10 to 60,000; 0 for 500.
    pub detection_ms: u32,
    /// Whether commits wait while there is no backup; else they go on, once the seed nodes have granted that.
    pub wait_when_exposed: u32,
    /// How many backups hold a commit before it is acknowledged: one of `outlive_wait_for`.
    pub wait_for: u32,
    /// How many bytes may be on their way to each backup; 0 for 64 MiB. Beyond that commits wait for a backup that is waited
    /// for, and one that is not is let go of.
    pub unacknowledged: usize,
    /// A backup that lives and is slower than this is let go of: milliseconds; 0 for never.
    pub patience_ms: u32,
    /// Says in the log which transactions stay open for longer than this: milliseconds; 0 for never.
    pub doctor_ms: u32,
    /// Starts anew, from nothing, a program that is lost: the operator's word that whoever held it in this generation is
    /// dead for good, and its backups as well; 0 for no such word.
    pub lost_generation: u64,
}

/// How many of the backups hold a commit before it is acknowledged.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum outlive_wait_for {
    /// Every one. Any that lives takes over.
    OUTLIVE_ALL = 0,
    /// As many as make, with the primary, more than half of all.
    OUTLIVE_MAJORITY = 1,
    /// One. The primary may die, and no backup with it: all of them must be heard before one takes over.
    OUTLIVE_ONE = 2,
}

/// How this process came to be the primary.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum outlive_how {
    /// It is the first: the state is as the program makes it now.
    OUTLIVE_FRESH = 0,
    /// It took over, and the state is what was committed.
    OUTLIVE_TAKEN_OVER = 1,
}

/// What is known of how this process became the primary.
#[repr(C)]
pub struct outlive_started {
    /// How it came to be the primary.
    pub how: outlive_how,
    /// The last commit that is part of the state, the generation in which this process speaks.
    pub commit: u64,
    /// See `commit`.
    pub generation: u64,
    /// From noticing that the primary was gone until the seed nodes had granted its place: microseconds.
    pub granted_us: u64,
    /// From then until this process could go on: microseconds.
    pub ready_us: u64,
    /// How many commits may have been acknowledged and are lost, where it went on without the dead by an operator's word (`outlive
    /// replicated forget`); 0 if none, UINT64_MAX if nobody knows.
    pub lost_at_most: u64,
    /// From which node it took over, as far as it fits.
    pub from: [c_char; 64],
    /// What was noticed of the primary, as far as it fits.
    pub why: [c_char; 256],
}

/// What this process is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum outlive_role {
    /// It was not started.
    OUTLIVE_ALONE = 0,
    /// It follows a primary.
    OUTLIVE_BACKUP = 1,
    /// Its commits count.
    OUTLIVE_PRIMARY = 2,
    /// Another took its place.
    OUTLIVE_LOST_PLACE = 3,
}

/// How it stands with this process.
#[repr(C)]
pub struct outlive_state {
    /// What it is.
    pub role: outlive_role,
    /// Whether it is the primary, has backups that may take over, and none of them is gone. Also 0 while one of several is
    /// gone and the seed nodes do not know yet, though the others may hold all that is acknowledged.
    pub is_protected: c_int,
    /// In which generation it speaks; 0 before.
    pub generation: u64,
    /// The last commit.
    pub last: u64,
    /// The last commit that may be acknowledged.
    pub acknowledged: u64,
    /// How many replicated functions fail on a backup and are tried again there.
    pub failing: u64,
}

/// Fills an array of characters, which ends with a zero, with what of a text fits.
fn fill(to: &mut [c_char], text: &str) {
    let mut end = text.len().min(to.len() - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    to.fill(0);
    for (to, byte) in to.iter_mut().zip(&text.as_bytes()[..end]) {
        *to = byte.cast_signed() as c_char;
    }
}

fn bad(error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::OUTLIVE_BAD_CONFIG, all_words(error))
}

/// # Safety
/// `count` nodes can be read at `nodes`, with the texts that they lead to.
unsafe fn nodes(nodes: *const outlive_node, count: usize, what: &str) -> Result<Vec<Node>, Failure> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if nodes.is_null() {
        return Err(Failure::misuse(format!("{count} {what} at NULL")));
    }
    // SAFETY: not NULL, and as the caller promises.
    let nodes = unsafe { std::slice::from_raw_parts(nodes, count) };
    let node = |node: &outlive_node| {
        // SAFETY: as the caller promises.
        let (name, address) =
            unsafe { (text(node.name, "a node's name")?, text(node.address, "an address")?) };
        let words = format!("{address:?}, the address of {name}, is no IP address with a port");
        let address = address.parse().map_err(|_| Failure::new(Code::OUTLIVE_BAD_CONFIG, words))?;
        Ok(Node { name: name.to_owned(), address })
    };
    nodes.iter().map(node).collect()
}

/// # Safety
/// All that it leads to can be read.
unsafe fn config(from: &outlive_config) -> Result<Config, Failure> {
    // SAFETY: as the caller promises.
    let (name, listen, cluster) = unsafe {
        (text(from.name, "`name`")?, text(from.listen, "`listen`")?, text(from.cluster, "`cluster`")?)
    };
    // SAFETY: as the caller promises.
    let (ca, certificate, key) = unsafe {
        (text(from.ca, "`ca`")?, text(from.certificate, "`certificate`")?, text(from.key, "`key`")?)
    };
    // SAFETY: as the caller promises.
    let (peers, seeds) = unsafe {
        (nodes(from.peers, from.peer_count, "peers")?, nodes(from.seeds, from.seed_count, "seed nodes")?)
    };
    let wrong = |words: String| Failure::new(Code::OUTLIVE_BAD_CONFIG, words);
    let listen =
        listen.parse().map_err(|_| wrong(format!("`listen` {listen:?} is no IP address with a port")))?;
    let cluster =
        cluster.parse().map_err(|_| wrong(format!("`cluster` {cluster:?} is not 32 hexadecimal digits")))?;
    let identity =
        Identity::load(Path::new(ca), Path::new(certificate), Path::new(key)).map_err(|error| bad(&error))?;
    let mut config =
        Config::new(name, listen, identity, cluster, seeds, peers).map_err(|error| bad(&error))?;
    let milliseconds = |number: u32| Duration::from_millis(u64::from(number));
    match from.detection_ms {
        0 => {}
        number @ 10..=60_000 => config.detection = milliseconds(number),
        number => return Err(wrong(format!("`detection_ms` must be 10 to 60,000: {number} is not"))),
    }
    if from.wait_when_exposed != 0 {
        config.when_exposed = WhenExposed::Wait;
    }
    config.wait_for = match from.wait_for {
        number if number == outlive_wait_for::OUTLIVE_ALL as u32 => WaitFor::All,
        number if number == outlive_wait_for::OUTLIVE_MAJORITY as u32 => WaitFor::Majority,
        number if number == outlive_wait_for::OUTLIVE_ONE as u32 => WaitFor::One,
        number => {
            return Err(wrong(format!("`wait_for` must be one of `outlive_wait_for`: {number} is not")));
        }
    };
    if from.unacknowledged != 0 {
        config.unacknowledged = from.unacknowledged;
    }
    config.patience = (from.patience_ms != 0).then(|| milliseconds(from.patience_ms));
    config.doctor = (from.doctor_ms != 0).then(|| milliseconds(from.doctor_ms));
    config.lost_generation = (from.lost_generation != 0).then_some(from.lost_generation);
    Ok(config)
}

/// # Safety
/// `to` is NULL or can be written.
unsafe fn start(config: Config, to: *mut outlive_started) -> Result<Code, Failure> {
    if let Some(failure) = failed_declaration() {
        return Err(failure);
    }
    let started = outlive_replicated::start(config).map_err(|error| match &error {
        StartError::Incompatible(why) => Failure::new(Code::OUTLIVE_INCOMPATIBLE, incompatible(why)),
        other => Failure::new(Code::OUTLIVE_NOT_STARTED, all_words(other)),
    })?;
    // SAFETY: as the caller promises.
    let Some(to) = (unsafe { to.as_mut() }) else { return Ok(Code::OUTLIVE_OK) };
    *to = outlive_started {
        how: outlive_how::OUTLIVE_FRESH,
        commit: 0,
        generation: 0,
        granted_us: 0,
        ready_us: 0,
        lost_at_most: 0,
        from: [0; 64],
        why: [0; 256],
    };
    to.generation = outlive_replicated::status().map_or(0, |status| status.generation);
    if let Started::TakenOver { commit, how } = started {
        (to.how, to.commit, to.generation) = (outlive_how::OUTLIVE_TAKEN_OVER, commit, how.generation);
        to.granted_us = u64::try_from(how.granted_in.as_micros()).unwrap_or(u64::MAX);
        to.ready_us = u64::try_from(how.ready_in.as_micros()).unwrap_or(u64::MAX);
        to.lost_at_most = how.forgotten.map_or(0, |forgotten| forgotten.lost_at_most.unwrap_or(u64::MAX));
        fill(&mut to.from, &how.from);
        fill(&mut to.why, &how.why);
    }
    Ok(Code::OUTLIVE_OK)
}

/// Takes part, with a configuration of fields. On the primary it returns at once; on a backup when this process has taken
/// over, and until then whatever changes replicated state waits. How it came about is written to `to`, unless that is NULL.
///
/// # Safety
/// `from` and all that it leads to can be read, `to` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_start(
    from: *const outlive_config,
    to: *mut outlive_started,
) -> outlive_code {
    code(|| {
        // SAFETY: as the caller promises.
        let from = unsafe { from.as_ref() }.ok_or_else(|| Failure::misuse("no configuration is given"))?;
        // SAFETY: as the caller promises.
        unsafe { start(config(from)?, to) }
    })
}

/// The same with the configuration in a file, as the guide shows it.
///
/// # Safety
/// `path` can be read, `to` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_start_file(path: *const c_char, to: *mut outlive_started) -> outlive_code {
    code(|| {
        // SAFETY: as the caller promises.
        let path = unsafe { text(path, "the path") }?;
        let config = Config::load(Path::new(path)).map_err(|error| bad(&error))?;
        // SAFETY: as the caller promises.
        unsafe { start(config, to) }
    })
}

/// The same with the text of such a file.
///
/// # Safety
/// `configuration` can be read, `to` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_start_text(
    configuration: *const c_char,
    to: *mut outlive_started,
) -> outlive_code {
    code(|| {
        // SAFETY: as the caller promises.
        let configuration = unsafe { text(configuration, "the configuration") }?;
        let config =
            Config::parse(configuration, Path::new("the configuration")).map_err(|error| bad(&error))?;
        // SAFETY: as the caller promises.
        unsafe { start(config, to) }
    })
}

/// How it stands with this process.
///
/// # Safety
/// `to` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_status(to: *mut outlive_state) -> outlive_code {
    code(|| {
        // SAFETY: as the caller promises.
        let to = unsafe { to.as_mut() }.ok_or_else(|| Failure::misuse("there is no place for the status"))?;
        let mut state = outlive_state {
            role: outlive_role::OUTLIVE_ALONE,
            is_protected: 0,
            generation: 0,
            last: 0,
            acknowledged: 0,
            failing: 0,
        };
        if let Some(status) = outlive_replicated::status() {
            state.role = match status.role {
                Role::Alone => outlive_role::OUTLIVE_ALONE,
                Role::Backup => outlive_role::OUTLIVE_BACKUP,
                Role::Primary => outlive_role::OUTLIVE_PRIMARY,
                Role::Deposed => outlive_role::OUTLIVE_LOST_PLACE,
            };
            state.is_protected = c_int::from(status.phase == Some(Phase::Protected));
            (state.generation, state.last) = (status.generation, status.last);
            (state.acknowledged, state.failing) = (status.acknowledged, status.failing.len() as u64);
        }
        *to = state;
        Ok(Code::OUTLIVE_OK)
    })
}

/// Ends the program as a whole: nothing is acknowledged any more, and no backup takes over.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_stop() -> outlive_code {
    code(|| {
        outlive_replicated::stop()?;
        Ok(Code::OUTLIVE_OK)
    })
}

/// Hands this primary's place over to a backup, for maintenance or for a newer version of the program; this process is to
/// end then.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_hand_over() -> outlive_code {
    code(|| match outlive_replicated::hand_over() {
        Ok(()) => Ok(Code::OUTLIVE_OK),
        Err(error) => Err(Failure::new(Code::OUTLIVE_NOT_STARTED, error.to_string())),
    })
}

/// Whether this thread may tell anybody anything: `OUTLIVE_UNCOMMITTED` or `OUTLIVE_UNACKNOWLEDGED` if what it changed is not
/// safe yet. `outlive_write` and `outlive_send` ask this before they write.
#[unsafe(no_mangle)]
pub extern "C" fn outlive_output_check() -> outlive_code {
    code(|| match output_guard(std::io::sink()).write(&[]) {
        Ok(_) => Ok(Code::OUTLIVE_OK),
        Err(error) => {
            let words = error.to_string();
            let premature = error.into_inner().and_then(|inner| inner.downcast::<Premature>().ok());
            let code = match premature.as_deref() {
                Some(Premature::Uncommitted) => Code::OUTLIVE_UNCOMMITTED,
                Some(Premature::Unacknowledged(_)) => Code::OUTLIVE_UNACKNOWLEDGED,
                None => Code::OUTLIVE_PANICKED,
            };
            Err(Failure::new(code, words))
        }
    })
}

/// Has the library's log written to standard error, by a filter like "info" or "outlive_replicated=debug"; NULL for the
/// environment's `RUST_LOG`, or warnings.
///
/// # Safety
/// `filter` is NULL or a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn outlive_log(filter: *const c_char) -> outlive_code {
    code(|| {
        use tracing_subscriber::EnvFilter;
        // SAFETY: as the caller promises.
        let filter = match unsafe { optional_text(filter, "the filter") }? {
            Some(filter) => EnvFilter::try_new(filter)
                .map_err(|error| Failure::misuse(format!("{filter:?} is no filter: {error}")))?,
            None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")),
        };
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        subscriber
            .try_init()
            .map_err(|error| Failure::misuse(format!("the log is written already: {error}")))?;
        Ok(Code::OUTLIVE_OK)
    })
}

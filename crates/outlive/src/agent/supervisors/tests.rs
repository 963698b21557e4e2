use std::os::unix::net::UnixListener;

use outlive_cluster::{ClusterId, Seeds};
use outlive_epoch::control::Spread;
use outlive_epoch::setup::{Node, Tuning, WhenExposed, Workload};
use outlive_net::NetworkConfig;
use outlive_process::launch::Program;
use tempfile::TempDir;

use super::*;

/// Holds the lock as a supervisor does, and then does as it is told.
fn supervisors(then: &str) -> (TempDir, Arc<Supervisors>) {
    let directory = tempfile::tempdir().unwrap();
    let lock = format!("STATE={}; exec 9>$STATE/workloads/$1/lock; flock -x 9;", directory.path().display());
    let command = ["/bin/sh", "-c", &format!("{lock} {then}"), "fake"].map(OsString::from).to_vec();
    let supervisors = Arc::new(Supervisors::new(directory.path(), command));
    supervisors.find().unwrap();
    (directory, supervisors)
}

fn setup(state: &Path, role: Role) -> Setup {
    let program = Program { name: "db".to_owned(), ..Program::default() };
    let network = NetworkConfig::new("db", vec!["192.0.2.1/24".parse().unwrap()]);
    let workload =
        Workload { name: "db".to_owned(), program, network, when_exposed: WhenExposed::Run, backup: None };
    let node = Node {
        name: "a".to_owned(),
        listen: "127.0.0.1:1".parse().unwrap(),
        uplink: outlive_net::Uplink::bridge("br0"),
        state: state.to_owned(),
        authority: PathBuf::new(),
        certificate: PathBuf::new(),
        key: PathBuf::new(),
        peers: Vec::new(),
        seeds: Seeds::new(ClusterId(1), 1, vec!["a".parse().unwrap()]).unwrap(),
        tuning: Tuning::default(),
    };
    Setup { workload, node, role, launcher: Vec::new() }
}

fn status(role: Side, state: State, epoch: u64) -> Status {
    Status {
        name: "db".to_owned(),
        state,
        role,
        generation: 1,
        epoch,
        primary_node: Some("b".to_owned()),
        backup_node: Some("a".to_owned()),
        incarnation: String::new(),
        addresses: Vec::new(),
        lag_epochs: 0,
        pause_us: Spread::default(),
        dirty_pages: Spread::default(),
        commit_us: Spread::default(),
        held_frames: 0,
        held_bytes: 0,
        exposed_because: None,
        moving: None,
        move_failed: None,
        last_failover: None,
        reprotect_ms: None,
        supervisor_pid: 0,
        init_pid: 0,
    }
}

fn db() -> WorkloadName {
    "db".parse().unwrap()
}

fn start(directory: &TempDir, supervisors: &Arc<Supervisors>, role: Role) -> Result<Option<SocketAddr>> {
    supervisors.start(&supervisors.reserve(&db())?, &setup(directory.path(), role))
}

/// Up until the test says so, by a file that appears (or is gone with all others).
const READY: &str = r#"echo '{"ready":{"listen":"192.0.2.7:99"}}';
    while test -e "$STATE" && ! test -e "$STATE/end"; do sleep 0.02; done"#;

#[test]
fn one_that_is_up_is_found_and_not_started_twice() {
    let (directory, supervisors) = supervisors(READY);
    let listen = start(&directory, &supervisors, Role::Backup { primary: "b".to_owned() }).unwrap();
    assert_eq!(listen, Some("192.0.2.7:99".parse().unwrap()));
    assert!(supervisors.is_alive(&db()).unwrap());
    let again = start(&directory, &supervisors, Role::Primary).unwrap_err();
    assert_eq!(again.kind, crate::error::Kind::Refused);
    assert!(supervisors.directory(&db()).exists(), "a refused start removed what another one uses");

    // An agent that was restarted finds it by its directory.
    let restarted = Arc::new(Supervisors::new(directory.path(), Vec::new()));
    restarted.find().unwrap();
    assert_eq!(restarted.names().unwrap(), [db()]);
    assert!(restarted.is_alive(&db()).unwrap());

    fs::write(directory.path().join("end"), "").unwrap();
    assert!(supervisors.wait_for_end(&db(), Duration::from_secs(60)).unwrap());
    assert_eq!(supervisors.status("db").unwrap(), None);
}

#[test]
fn the_reason_why_one_cannot_be_up_is_told_and_nothing_stays() {
    let (directory, supervisors) = supervisors(r#"echo '{"failed":{"reason":"no bridge"}}'"#);
    let failure = start(&directory, &supervisors, Role::Primary).unwrap_err();
    assert!(
        failure.message.starts_with("no bridge;") && failure.message.contains("outlive check"),
        "{failure}"
    );
    assert!(!supervisors.directory(&db()).exists());
    // The name was given back.
    drop(supervisors.reserve(&db()).unwrap());
}

#[test]
fn one_that_dies_without_a_word_is_told_with_the_end_of_its_log() {
    let (directory, supervisors) =
        supervisors("cat >/dev/null; echo first >&2; echo out of luck >&2; exit 7");
    let failure = start(&directory, &supervisors, Role::Primary).unwrap_err();
    assert!(failure.message.contains("out of luck") && !failure.message.contains("first"), "{failure}");
    assert!(!supervisors.directory(&db()).exists());
}

#[test]
fn one_that_says_something_else_is_not_taken_for_being_up() {
    let (directory, supervisors) = supervisors("echo hello; sleep 1000");
    let failure = start(&directory, &supervisors, Role::Primary).unwrap_err();
    assert!(failure.message.contains("something else"), "{failure}");
    assert!(!supervisors.is_alive(&db()).unwrap(), "it was not ended");
}

#[test]
fn one_that_never_says_that_it_is_up_is_ended() {
    let (directory, supervisors) = supervisors("exec sleep 1000");
    let command = supervisors.command.clone();
    let impatient =
        Supervisors { patience: Duration::from_millis(100), ..Supervisors::new(directory.path(), command) };
    let failure = start(&directory, &Arc::new(impatient), Role::Primary).unwrap_err();
    assert!(failure.message.contains("not up within"), "{failure}");
    assert!(!supervisors.directory(&db()).exists());
}

#[test]
fn an_earlier_runs_output_is_kept_for_a_backup_and_not_for_a_new_workload() {
    let (directory, supervisors) = supervisors(r#"echo '{"failed":{"reason":"x"}}'"#);
    let output = supervisors.directory(&db()).join("output.log");
    fs::create_dir_all(output.parent().unwrap()).unwrap();
    fs::write(&output, "earlier").unwrap();
    start(&directory, &supervisors, Role::Backup { primary: "b".to_owned() }).unwrap_err();
    assert!(output.exists());
    start(&directory, &supervisors, Role::Primary).unwrap_err();
    assert!(!output.exists());
}

#[test]
fn sockets_of_the_dead_are_removed_and_only_so_many_directories_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let supervisors = Supervisors::new(directory.path(), Vec::new());
    for number in 0..ENDED_KEPT + 5 {
        let name: WorkloadName = format!("w{number}").parse().unwrap();
        let of_one = supervisors.directory(&name);
        fs::create_dir_all(&of_one).unwrap();
        drop(UnixListener::bind(of_one.join(SOCKET)).unwrap());
        let log = File::create(of_one.join(LOG)).unwrap();
        log.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64)).unwrap();
    }
    supervisors.find().unwrap();
    let names: Vec<String> = supervisors.names().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names.len(), ENDED_KEPT);
    assert!(!names.contains(&"w4".to_owned()) && names.contains(&"w5".to_owned()), "{names:?}");
    for name in supervisors.names().unwrap() {
        assert!(!supervisors.directory(&name).join(SOCKET).exists());
    }
}

#[test]
fn a_long_log_is_begun_anew_under_its_writer() {
    let directory = tempfile::tempdir().unwrap();
    let supervisors = Supervisors::new(directory.path(), Vec::new());
    let of_one = supervisors.directory(&db());
    fs::create_dir_all(&of_one).unwrap();
    let mut writer = File::options().create(true).append(true).open(of_one.join(LOG)).unwrap();
    writer.write_all(b"short").unwrap();
    supervisors.trim_logs();
    assert!(!of_one.join(OLDER_LOG).exists());
    writer.write_all(&vec![b'x'; LOG_MAX as usize]).unwrap();
    supervisors.trim_logs();
    writer.write_all(b"new").unwrap();
    assert_eq!(fs::read(of_one.join(LOG)).unwrap(), b"new");
    assert_eq!(fs::metadata(of_one.join(OLDER_LOG)).unwrap().len(), LOG_MAX + 5);
}

#[test]
fn one_that_does_not_read_its_orders_does_not_hold_the_agent_up() {
    let (directory, supervisors) = supervisors("exec sleep 1000");
    let command = supervisors.command.clone();
    let impatient =
        Supervisors { patience: Duration::from_millis(100), ..Supervisors::new(directory.path(), command) };
    let mut long = setup(directory.path(), Role::Primary);
    // More than a pipe holds.
    long.workload.program.arguments = vec!["x".repeat(1 << 20)];
    let impatient = Arc::new(impatient);
    let failure = impatient.start(&impatient.reserve(&db()).unwrap(), &long).unwrap_err();
    assert!(failure.message.contains("not up within"), "{failure}");
}

/// The lock and the socket of a supervisor, held and answered by this process: its process id is this one's, so
/// whatever may be ended must not come to that here.
fn with_supervisor(status: Status, test: impl FnOnce(&Supervisors)) {
    let directory = tempfile::tempdir().unwrap();
    let supervisors = Supervisors::new(directory.path(), Vec::new());
    let of_one = supervisors.directory(&db());
    fs::create_dir_all(&of_one).unwrap();
    let lock = File::create(of_one.join(crate::supervise::LOCK)).unwrap();
    let _lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let listener = UnixListener::bind(of_one.join(SOCKET)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            if let Ok(Some(Request::Status)) = read_line::<Request>(&mut stream) {
                write_line(stream.get_mut(), &Response::Status(Box::new(status.clone()))).unwrap();
            }
        }
    });
    test(&supervisors);
}

#[test]
fn the_status_is_asked_over_the_socket() {
    with_supervisor(status(Side::Backup, State::Protected, 9), |supervisors| {
        assert_eq!(supervisors.status("db").unwrap().unwrap().epoch, 9);
        assert_eq!(supervisors.status("other").unwrap(), None);
        assert_eq!(supervisors.status("../workloads/db").unwrap(), None);
    });
}

#[test]
fn one_that_may_hold_state_is_never_ended() {
    let holders = [
        (Side::Primary, State::Protected, 9),
        (Side::Primary, State::Exposed, 0),
        (Side::Primary, State::Syncing, 0),
        (Side::Backup, State::Protected, 9),
        (Side::Backup, State::Waiting, 9),
        (Side::Backup, State::Syncing, 1),
    ];
    for (side, state, epoch) in holders {
        with_supervisor(status(side, state, epoch), |supervisors| {
            let refused = supervisors.make_room(&db(), "b", |_| Ok(false)).unwrap_err();
            assert_eq!(refused.kind, crate::error::Kind::Refused, "{side:?} {state:?}");
            assert!(refused.message.contains("db"), "{refused}");
        });
    }
}

/// Between the grant of the seed nodes and its being told of it, a backup does not know that it counts.
#[test]
fn one_that_the_seed_nodes_know_is_never_ended() {
    with_supervisor(status(Side::Backup, State::Syncing, 0), |supervisors| {
        assert!(supervisors.make_room(&db(), "b", |_| Ok(true)).is_err());
        let unreachable = || Failure::unreachable("no majority");
        assert_eq!(supervisors.make_room(&db(), "b", |_| Err(unreachable())).unwrap_err(), unreachable());
    });
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("x".repeat(100));
    let supervisors = Arc::new(Supervisors::new(&deep, Vec::new()));
    let reserved = supervisors.reserve(&db()).unwrap();
    let refused = supervisors.start(&reserved, &setup(&deep, Role::Primary)).unwrap_err();
    assert!(refused.message.contains("state_dir"), "{refused}");
    assert!(!deep.exists());
}

#[test]
fn a_name_is_started_once_at_a_time() {
    let supervisors = Supervisors::new(Path::new("/nonexistent"), Vec::new());
    let reserved = supervisors.reserve(&db()).unwrap();
    assert!(supervisors.reserve(&db()).is_err());
    drop(reserved);
    assert!(supervisors.reserve(&db()).is_ok());
}

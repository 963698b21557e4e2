//! Checkpoints that nobody's capture made: they come off a wire.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use outlive_process::checkpoint::{Object, ObjectId};
use outlive_process::error::Error;
use outlive_process::object::descriptor::{Capturer, StatusFlags, Surroundings};
use outlive_process::object::file::FileHashes;
use outlive_process::object::file::{OpenFile, prepare};
use outlive_process::object::pipe::PipeEnd;
use outlive_process::object::unix::{Name, Role};
use outlive_process::object::unix_actor::Credentials;

use crate::support::{Workload, alone, build, surroundings};

fn file(path: &str, flags: i32) -> Object {
    let (identity, deleted) = (None, None);
    let (flags, locks) = (StatusFlags(flags), Vec::new());
    Object::File(Box::new(OpenFile { path: path.to_owned(), flags, offset: 0, identity, deleted, locks }))
}

fn try_build(object: Object, root: &Path) -> Error {
    let surroundings = Surroundings { scratch: vec!["/scratch".to_owned()], ..Surroundings::default() };
    build(&BTreeMap::from([(ObjectId(0), object)]), root, &surroundings).unwrap_err()
}

#[test]
fn files_outside_are_not_opened() {
    let _alone = alone();
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "untouched").unwrap();
    fs::create_dir_all(root.path().join("scratch")).unwrap();
    fs::create_dir_all(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/passwd"), "root").unwrap();
    symlink(outside.path(), root.path().join("scratch/link")).unwrap();
    symlink(&secret, root.path().join("scratch/secret")).unwrap();
    let up = "/..".repeat(20);
    for path in [
        "/scratch/link/secret".to_owned(),
        "/scratch/secret".to_owned(),
        format!("/scratch{up}{}", secret.display()),
    ] {
        for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_TRUNC | libc::O_CREAT] {
            let error = try_build(file(&path, flags), root.path());
            assert!(matches!(error, Error::System { .. } | Error::Mismatch(_)), "{path}: {error}");
        }
    }
    for path in ["/etc/passwd", "/scratchy", "scratch/x"] {
        let error = try_build(file(path, libc::O_WRONLY), root.path());
        assert!(matches!(error, Error::Mismatch(_)), "{path}: {error}");
    }
    assert_eq!(fs::read(&secret).unwrap(), b"untouched");
    // Above the root there is only the root.
    let inside = file("/../etc/passwd", libc::O_RDONLY);
    build(&BTreeMap::from([(ObjectId(0), inside)]), root.path(), &surroundings()).unwrap();
}

#[test]
fn a_named_pipe_in_place_of_a_file_does_not_make_anybody_wait() {
    let _alone = alone();
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("scratch")).unwrap();
    nix::unistd::mkfifo(&root.path().join("scratch/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = try_build(file("/scratch/pipe", libc::O_RDONLY), root.path());
    assert!(matches!(error, Error::Mismatch(_)), "{error}");
    let object = file("/scratch/pipe", libc::O_RDONLY);
    let Object::File(object) = object else { unreachable!() };
    assert!(prepare(&object, root.path(), &mut FileHashes::new()).is_ok(), "nothing to compare");
}

#[test]
fn references_that_lead_nowhere_or_in_a_circle_are_refused() {
    let _alone = alone();
    let root = Path::new("/");
    let end = |pipe| Object::PipeEnd(PipeEnd { pipe: ObjectId(pipe), flags: StatusFlags(0), path: None });
    assert!(matches!(try_build(end(5), root), Error::Mismatch(_)));
    assert!(matches!(try_build(end(0), root), Error::Mismatch(_)));
    let (a, b) = outlive_process::sys::descriptor::unix_pair(libc::SOCK_DGRAM).unwrap();
    let captured = Workload::hold(vec![a, b]).capture(&mut Capturer::new(surroundings())).unwrap();
    let Object::Unix(socket) = &captured[&ObjectId(0)] else { panic!("{captured:?}") };
    let with = |role: Role, name: Option<&str>| {
        let mut socket = socket.clone();
        socket.role = role;
        socket.name = name.map(|name| Name::Path(name.to_owned()));
        Object::Unix(socket)
    };
    assert!(matches!(try_build(with(Role::Connected { peer: ObjectId(0) }, None), root), Error::Mismatch(_)));
    assert!(matches!(try_build(with(Role::Sending { peer: ObjectId(0) }, None), root), Error::Mismatch(_)));
    let caller = Credentials { pid: 1, uid: 0, gid: 0, groups: Vec::new() };
    let waiting = Role::Waiting { listener: ObjectId(0), caller, said: Vec::new() };
    assert!(matches!(try_build(with(waiting, None), root), Error::Mismatch(_)));
    let listening = |id| Role::Listening { backlog: 1, waiting: vec![ObjectId(id)] };
    assert!(matches!(try_build(with(listening(0), None), root), Error::Mismatch(_)));
    assert!(matches!(try_build(with(listening(7), None), root), Error::Mismatch(_)));
    assert!(matches!(try_build(with(Role::Unconnected, Some("/etc/socket")), root), Error::Mismatch(_)));
    assert!(matches!(
        try_build(with(Role::Unconnected, Some("/scratch/../etc/socket")), root),
        Error::Mismatch(_)
    ));
}

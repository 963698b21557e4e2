//! sqlite3

use std::process::{Command, Stdio};

use anyhow::Result;

use super::{Package, Place};
use crate::hotpatch::load::Kind;
use crate::hotpatch::probe::{Answer, Port, Probe, Step, Without};

pub const PACKAGE: Package = Package {
    name: "sqlite3",
    needs: &["tcl", "zlib1g-dev"],
    // As debian/rules has it, as far as fixes are of these parts.
    configure: "CFLAGS='-g -O2 -DSQLITE_ENABLE_SESSION -DSQLITE_ENABLE_PREUPDATE_HOOK -DSQLITE_ENABLE_FTS3 -DSQLITE_ENABLE_RTREE \
                -DSQLITE_SECURE_DELETE -DSQLITE_ENABLE_COLUMN_METADATA' ./configure --disable-shared --disable-readline --enable-fts5",
    build: "make -j2 sqlite3",
    links: &["sqlite3", ".libs/sqlite3"],
    load: Kind::Sql,
    start,
    variants: &[],
    probes: PROBES,
    unseen: UNSEEN,
};

fn start(place: &Place) -> Result<Command> {
    let mut command = Command::new(place.linked("sqlite3"));
    command.args(["-batch", ":memory:"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Ok(command)
}

const PROBES: &[Probe] = &[
    // A text that is on pages of its own, looked at for a condition of its table when its row is written again.
    Probe {
        patch: "41-fix_a_bug_in_the_NOT_NULL-IS_NULL_optimization.patch",
        without: Without::Differs,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(
                b"create temp table p(a, b, check(b is not null or a > 0));\n\
                  insert into p values(1, printf('%.9000c', 'x')); update p set a = 2;\n\
                  select b = printf('%.9000c', 'x') from p; drop table p;\n",
            ),
            Step::Differs { without: Answer::Begins(b"0\n"), with: Answer::Begins(b"1\n") },
        ],
    },
    // The test of the fix, with an aggregate of the shell that is no window function.
    Probe {
        patch: "0002-Avoid-a-stack-overflow-that-could-be-caused-by-a-rec.patch",
        without: Without::Dies,
        steps: &[
            Step::Connect(Port::Own),
            Step::Send(
                b"create temp table if not exists p(x);\n\
                  select min(x) over w1 from p window w1 as (partition by zipfile(x, x) over w1);\nselect 'on';\n",
            ),
            Step::Answer(Answer::Begins(b"on\n")),
        ],
    },
];

const UNSEEN: &[(&str, &str)] = &[
    ("20-hurd-locking-style.patch", "for another system"),
    ("31-increase_SQLITE_MAX_DEFAULT_PAGE_SIZE_to_32k.patch", "needs a disk of large sectors"),
    (
        "0001-Fix-a-buffer-overread-in-the-sessions-extension-that.patch",
        "only in programs that read change sets: the shell does not",
    ),
];

//! The header in both languages: what compiles and works, and what does not compile.

mod common;

use std::process::Command;

use common::{compile, compiled, home};

#[test]
fn all_of_it_works_in_c11_and_in_cpp17() {
    let folder = tempfile::tempdir().unwrap();
    for compiler in ["gcc", "g++"] {
        let program = folder.path().join(compiler);
        compiled(compiler, &home().join("tests/programs/everything.c"), &program, &[]);
        let output = Command::new(&program).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{compiler}: {words}");
        assert_eq!(output.stdout, b"all of it\n", "{compiler}");
    }
}

/// With memory checked: what the program frees and the library keeps are two things.
#[test]
fn all_of_it_works_with_addresses_and_undefined_behaviour_checked() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("checked");
    let checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    compiled("gcc", &home().join("tests/programs/everything.c"), &program, &checks);
    // Statics of the library live as long as the process, and are no leaks.
    let output = Command::new(&program).env("ASAN_OPTIONS", "detect_leaks=0").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The headers of a program are included by more than one of its sources, and by one twice.
#[test]
fn what_a_header_declares_is_one_thing_in_all_sources() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(
        path("account.h"),
        "#include \"outlive_replicated.h\"\n#include \"outlive_replicated.h\"\n\
         #define ACCOUNT(X) X(FIELD, int, balance)\nOUTLIVE_STRUCT(account, ACCOUNT)\n\
         OUTLIVE_DECLARE_REPLICATED(account, treasury)\nOUTLIVE_DECLARE_MAP(account, accounts)\nvoid deposit(int);\n",
    )
    .unwrap();
    std::fs::write(
        path("account.c"),
        "#include \"account.h\"\nOUTLIVE_DEFINE_REPLICATED(account, treasury)\nOUTLIVE_DEFINE_MAP(account, accounts)\n\
         void deposit(int amount) { OUTLIVE_WRITE(treasury, it) it->balance += amount; }\n",
    )
    .unwrap();
    std::fs::write(
        path("main.c"),
        "#include \"account.h\"\nint main(void) { deposit(3); deposit(4);\n\
         OUTLIVE_READ(treasury, it) return it->balance == 7 && outlive_commit() == OUTLIVE_OK ? 0 : 1;\nreturn 2; }\n",
    )
    .unwrap();
    let other = path("account.c");
    compiled("gcc", &path("main.c"), &path("program"), &[other.to_str().unwrap()]);
    assert!(Command::new(path("program")).status().unwrap().success());
}

#[test]
fn what_cannot_be_replicated_does_not_compile() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("wrong.c");
    let wrong = |fields: &str, more: &str, says: &str| {
        let text = format!(
            "#include <time.h>\n#include <pthread.h>\n#include \"outlive_replicated.h\"\n#define FIELDS(X) {fields}\n\
             OUTLIVE_STRUCT(thing, FIELDS)\nOUTLIVE_REPLICATED(thing, one)\nOUTLIVE_LIST(thing, many)\n\
             int main(void) {{ {more} return 0; }}\n"
        );
        std::fs::write(&source, text).unwrap();
        for compiler in ["gcc", "g++"] {
            let output = compile(compiler, &source, &folder.path().join("wrong"), &[]);
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.success(), says.is_empty(), "{compiler}: {fields} {more}: {words}");
            assert!(words.contains(says), "{compiler}: {fields} {more}: {words}");
        }
    };
    let fine = "X(FIELD, int, a)";
    wrong(fine, "OUTLIVE_WRITE(one, it) it->a = 1;", "");
    wrong("X(FIELD, char *, a)", "", "error");
    wrong("X(FIELD, time_t, a)", "", "OUTLIVE_CAN_REPLICATE_time_t");
    wrong("X(FIELD, pthread_mutex_t, a)", "", "OUTLIVE_CAN_REPLICATE_pthread_mutex_t");
    wrong("X(ARRAY, FILE, a, 3)", "", "OUTLIVE_CAN_REPLICATE_FILE");
    wrong(fine, "OUTLIVE_READ(one, it) it->a = 1;", "read-only");
    wrong(fine, "OUTLIVE_READ_AT(many, 0, it) it->a = 1;", "read-only");
    wrong(fine, "struct thing *it = one_read(); (void)it;", "const");
    wrong(fine, "one.a = 1;", "one");
    wrong(fine, "struct outlive_bytes other = {0, 0}; many_push(&other);", "outlive_bytes");
}

#[test]
fn the_program_in_the_guide_compiles() {
    let guide = std::fs::read_to_string(home().join("../../docs/replicated-c.md")).unwrap();
    let program = guide.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("first.c");
    std::fs::write(&source, program).unwrap();
    compiled("gcc", &source, &folder.path().join("first"), &["-Wno-unused-parameter"]);
}

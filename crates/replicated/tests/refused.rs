//! What must not be replicated does not compile, and the compiler says what to use instead.

#[test]
fn refused() {
    trybuild::TestCases::new().compile_fail("tests/refused/*.rs");
}

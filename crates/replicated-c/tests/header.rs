//! The header that is checked in is what the sources say.

use std::path::Path;

/// `OUTLIVE_BLESS=1` writes it anew.
#[test]
fn the_header_is_current() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(home.join("cbindgen.toml")).unwrap();
    config.trailer = Some(format!(
        "#ifndef OUTLIVE_REPLICATED_MACROS_H\n#define OUTLIVE_REPLICATED_MACROS_H\n\n{}\n#endif  /* OUTLIVE_REPLICATED_MACROS_H */",
        include_str!("../src/macros.h")
    ));
    let mut builder = cbindgen::Builder::new().with_config(config);
    // In the order in which they are read.
    for module in ["code", "describe", "state", "guard", "transaction", "function", "start"] {
        builder = builder.with_src(home.join(format!("src/{module}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = home.join("include/outlive_replicated.h");
    if std::env::var_os("OUTLIVE_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == made,
        "include/outlive_replicated.h is not what the sources say: run this with OUTLIVE_BLESS=1"
    );
}

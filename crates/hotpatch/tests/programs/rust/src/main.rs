//! For each line: how long the table is, its last name, and what came of a call that may panic.

use std::io::{BufRead, Write};

use kept::{Shape, Table};

#[inline(never)]
fn risky(number: usize) -> usize {
    if kept::FIXED {
        assert!(number % 2 == 0, "{number} is odd");
        number * 10
    } else {
        assert!(number < 1000, "{number} is too much");
        number
    }
}

/// Not in `main`, which is entered once: its compiler may know what `risky` returns.
#[inline(never)]
fn guarded(number: usize) -> String {
    match std::panic::catch_unwind(|| risky(number)) {
        Ok(value) => value.to_string(),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    }
}

fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut table = Table::new();
    for line in std::io::stdin().lock().lines() {
        let length = table.add(&line.unwrap());
        println!("{length} {} {} {}", table.last(), Shape::of(length).size(), guarded(length));
        std::io::stdout().flush().unwrap();
    }
}

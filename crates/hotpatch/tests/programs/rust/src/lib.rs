//! What is patched in a library of the program.

mod version;
pub use version::FIXED;

/// A table that lives as long as the program.
pub struct Table {
    names: Vec<String>,
}

impl Table {
    pub fn new() -> Self {
        Self { names: Vec::new() }
    }

    #[inline(never)]
    pub fn add(&mut self, name: &str) -> usize {
        if version::FIXED {
            self.names.push(format!("<{name}>"));
        } else {
            self.names.push(name.to_owned());
        }
        self.names.len()
    }

    #[inline(never)]
    pub fn last(&self) -> &str {
        self.names.last().map_or("", String::as_str)
    }
}

/// What has variants with fields of their own.
pub enum Shape {
    Round(u32),
    // A variant more comes here.
    Square { side: u32, is_filled: bool },
}

impl Shape {
    #[inline(never)]
    pub fn of(number: usize) -> Self {
        let side = number as u32;
        if number % 2 == 0 { Self::Round(side) } else { Self::Square { side, is_filled: FIXED } }
    }

    #[inline(never)]
    pub fn size(&self) -> u32 {
        match self {
            Self::Square { side, is_filled: true } => side * side,
            Self::Square { side, .. } => *side,
            Self::Round(size) => *size,
            #[allow(unreachable_patterns, reason = "a variant more may have come")]
            _ => 0,
        }
    }
}

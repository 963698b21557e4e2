//! Which version it is: written anew before each build.

pub const FIXED: bool = false;

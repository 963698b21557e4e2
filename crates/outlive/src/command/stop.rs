//! `outlive stop` and `outlive kill`.

use nix::sys::signal::Signal;

use super::{print, progress};
use crate::cli::{Kill, Stop};
use crate::control::{Reply, Request, unexpected};
use crate::error::{Failure, Result};

/// `_NSIG`, asm/signal.h: the last real-time signal.
const LAST_SIGNAL: i32 = 64;

pub fn stop(args: &Stop) -> Result<()> {
    let request = Request::Stop { name: args.name.clone(), dead: args.dead.clone() };
    match args.reach.connect()?.call(&request, &mut progress)? {
        Reply::Done => {
            print(&format!("{} is stopped", args.name));
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

pub fn kill(args: &Kill) -> Result<()> {
    let signal = parse_signal(&args.signal)?;
    match args.reach.connect()?.call(&Request::Kill { name: args.name.clone(), signal }, &mut progress)? {
        Reply::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

fn parse_signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return match number {
            1..=LAST_SIGNAL => Ok(number),
            _ => Err(Failure::usage(format!("{number} is no signal: they go from 1 to {LAST_SIGNAL}"))),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let signal: Signal =
        name.parse().map_err(|_| Failure::usage(format!("{text} is no signal: see `kill -l`")))?;
    Ok(signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for text in ["HUP", "SIGHUP", "hup", "1"] {
            assert_eq!(parse_signal(text).unwrap(), 1, "{text}");
        }
        for text in ["", "0", "65", "-1", "SIGNAL", "NOPE"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}

//! The threads of a client, one for each of its connections, with the statistics that they share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::stats::{Report, Stats};

/// A running client. Dropped without [`Workers::finish`], it ends by itself.
#[derive(Debug)]
pub struct Workers {
    stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// `begin` is called for each connection in turn and gives what its thread does until it is told to stop.
    pub fn start<W>(
        name: &str,
        connections: usize,
        mut begin: impl FnMut(usize) -> io::Result<W>,
    ) -> io::Result<Workers>
    where
        W: FnOnce(&Stats, &AtomicBool) + Send + 'static,
    {
        let mut workers =
            Workers { stats: Arc::new(Stats::new(connections)), stop: Arc::default(), threads: Vec::new() };
        for id in 0..connections {
            let work = begin(id)?;
            let (stats, stop) = (Arc::clone(&workers.stats), Arc::clone(&workers.stop));
            let thread =
                thread::Builder::new().name(format!("{name}-{id}")).spawn(move || work(&stats, &stop))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Lets what is under way come to its end, and sums up.
    pub fn finish(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        self.stats.report()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

//! Making a server hold so much memory, of values that are checked again at the end.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use super::Reader;
use super::resp::{self, Reply};
use crate::netns::NetNs;
use crate::pattern;

const VALUE: usize = 4096;
/// Requests in flight: few enough for the replies to fit in socket buffers while the requests are written.
const BATCH: u64 = 64;
const LIMIT: Duration = Duration::from_secs(60);

/// Values that fill a server's memory and are never written again.
#[derive(Clone, Debug)]
pub struct Fill {
    target: SocketAddr,
    keys: u64,
}

impl Fill {
    /// Writes at least so many bytes of values, all acknowledged.
    pub fn write(from: Option<&NetNs>, target: SocketAddr, bytes: u64) -> io::Result<Fill> {
        let fill = Fill { target, keys: bytes.div_ceil(VALUE as u64) };
        let mut value = vec![0; VALUE];
        fill.in_batches(
            from,
            |key, output| {
                pattern::fill(key, 0, &mut value);
                resp::command(output, &[b"SET", name(key).as_bytes(), &value]);
            },
            |key, reply| match reply {
                Reply::Status(ok) if ok == "OK" => Ok(()),
                other => Err(io::Error::other(format!("{other:?} in answer to writing {}", name(key)))),
            },
        )?;
        Ok(fill)
    }

    /// The number of writes that it took.
    pub fn writes(&self) -> u64 {
        self.keys
    }

    /// Reads all values again; the number of those that are gone or not what was written.
    pub fn count_lost(&self, from: Option<&NetNs>) -> io::Result<u64> {
        let mut lost = 0;
        let mut value = vec![0; VALUE];
        self.in_batches(
            from,
            |key, output| {
                resp::command(output, &[b"GET", name(key).as_bytes()]);
            },
            |key, reply| {
                pattern::fill(key, 0, &mut value);
                lost += u64::from(!matches!(reply, Reply::Bulk(found) if found == value));
                Ok(())
            },
        )?;
        Ok(lost)
    }

    fn in_batches(
        &self,
        from: Option<&NetNs>,
        mut ask: impl FnMut(u64, &mut Vec<u8>),
        mut judge: impl FnMut(u64, Reply) -> io::Result<()>,
    ) -> io::Result<()> {
        let connect = || Reader::connect(self.target, LIMIT);
        let mut reader = match from {
            Some(namespace) => namespace.run(connect)?,
            None => connect()?,
        };
        let mut output = Vec::new();
        for first in (0..self.keys).step_by(BATCH as usize) {
            let batch = first..(first + BATCH).min(self.keys);
            output.clear();
            batch.clone().for_each(|key| ask(key, &mut output));
            reader.stream.write_all(&output)?;
            for key in batch {
                judge(key, reader.reply()?)?;
            }
        }
        Ok(())
    }
}

fn name(key: u64) -> String {
    format!("lab:fill:{key}")
}

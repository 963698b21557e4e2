//! The part of Redis' protocol that the client speaks (RESP2).

use std::io::Write as _;

/// A bulk string longer than this is not one that the client stored.
const BULK_LIMIT: usize = 64 << 20;
/// A status or error line longer than this is not Redis'.
const LINE_LIMIT: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Status(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a reply that begins with byte {0:#04x}")]
    Kind(u8),
    #[error("a number that is none: `{0}`")]
    Number(String),
    #[error("a line or value of more than {0} bytes")]
    TooLong(usize),
    #[error("a value without its end")]
    Unterminated,
}

/// Adds a command to what is to be sent.
pub(crate) fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    // Writing to a Vec does not fail.
    let _ = write!(out, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(out, "${}\r\n", word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// The first reply in `input` and its length, or `None` if it is not whole yet.
pub(crate) fn parse(input: &[u8]) -> Result<Option<(Reply, usize)>, Malformed> {
    let Some((&kind, rest)) = input.split_first() else { return Ok(None) };
    if !b"+-:$".contains(&kind) {
        return Err(Malformed::Kind(kind));
    }
    let searched = &rest[..rest.len().min(LINE_LIMIT)];
    let Some(end) = searched.windows(2).position(|two| two == b"\r\n") else {
        return if searched.len() == LINE_LIMIT { Err(Malformed::TooLong(LINE_LIMIT)) } else { Ok(None) };
    };
    let line = String::from_utf8_lossy(&rest[..end]).into_owned();
    let used = 1 + end + 2;
    let number = |line: &str| line.parse::<i64>().map_err(|_| Malformed::Number(line.to_owned()));
    let reply = match kind {
        b'+' => Reply::Status(line),
        b'-' => Reply::Error(line),
        b':' => Reply::Integer(number(&line)?),
        _ if line == "-1" => Reply::Nil,
        _ => {
            let length = usize::try_from(number(&line)?).map_err(|_| Malformed::Number(line))?;
            if length > BULK_LIMIT {
                return Err(Malformed::TooLong(BULK_LIMIT));
            }
            let body = &input[used..];
            if body.len() < length + 2 {
                return Ok(None);
            }
            if &body[length..length + 2] != b"\r\n" {
                return Err(Malformed::Unterminated);
            }
            return Ok(Some((Reply::Bulk(body[..length].to_vec()), used + length + 2)));
        }
    };
    Ok(Some((reply, used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_whole_or_not_at_all() {
        let wire = b"+OK\r\n-ERR no\r\n:42\r\n$5\r\nab\r\nc\r\n$-1\r\n$0\r\n\r\n";
        let expected = [
            Reply::Status("OK".into()),
            Reply::Error("ERR no".into()),
            Reply::Integer(42),
            Reply::Bulk(b"ab\r\nc".into()),
            Reply::Nil,
            Reply::Bulk(Vec::new()),
        ];
        let mut at = 0;
        for reply in expected {
            let (_, used) = parse(&wire[at..]).unwrap().unwrap();
            for cut in 0..used {
                assert_eq!(parse(&wire[at..at + cut]), Ok(None));
            }
            assert_eq!(parse(&wire[at..]), Ok(Some((reply, used))));
            at += used;
        }
        assert_eq!(at, wire.len());
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(parse(b"HTTP/1.1"), Err(Malformed::Kind(b'H')));
        assert_eq!(parse(b":4x\r\n"), Err(Malformed::Number("4x".into())));
        assert_eq!(parse(b"$-2\r\n"), Err(Malformed::Number("-2".into())));
        assert_eq!(parse(b"$99999999999\r\n"), Err(Malformed::TooLong(BULK_LIMIT)));
        assert_eq!(parse(b"$1\r\nabc"), Err(Malformed::Unterminated));
        assert_eq!(parse(&[b'+'; LINE_LIMIT + 2]), Err(Malformed::TooLong(LINE_LIMIT)));
    }
}

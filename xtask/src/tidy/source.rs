//! A Rust source with everything blanked that a rule about code must not see: comments, strings, tests.
//! Lines and columns stay where they were.

/// The code alone: comments and the insides of strings and characters are spaces.
pub fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !follows_word(bytes, at) || prefixed(bytes, at) => match raw_string_end(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            b'\'' => match character_end(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            _ => {
                at += 1;
                continue;
            }
        };
        blank(&mut out, at, end);
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// As [`code`], without the items that only tests have: those after `#[cfg(test)]` and `#[test]`.
pub fn code_outside_tests(text: &str) -> String {
    let code = code(text);
    let mut out = code.clone().into_bytes();
    for mark in ["#[cfg(test)]", "#[test]", "#[cfg(all(test"] {
        let mut from = 0;
        while let Some(found) = code[from..].find(mark) {
            let begin = from + found;
            let end = item_end(code.as_bytes(), begin + mark.len());
            blank(&mut out, begin, end);
            from = end;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The names of modules that only tests have and that are files of their own: `#[cfg(test)] mod name;`.
pub fn test_modules(text: &str) -> Vec<String> {
    let code = code(text);
    code.split("#[cfg(test)]")
        .skip(1)
        .filter_map(|item| item.split_once(';'))
        .filter_map(|(item, _)| {
            Some(item.trim_start().trim_start_matches("pub(crate) ").strip_prefix("mod ")?.trim())
        })
        .filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        .map(str::to_owned)
        .collect()
}

/// The end of the item that begins here: its closing brace, or the semicolon before any brace.
fn item_end(code: &[u8], begin: usize) -> usize {
    let mut depth = 0_usize;
    let mut brackets = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(begin) {
        match byte {
            b'[' | b'(' => brackets += 1,
            b']' | b')' => brackets = brackets.saturating_sub(1),
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 && brackets == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

fn blank(out: &mut [u8], from: usize, to: usize) {
    for byte in &mut out[from..to] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

fn comment_end(bytes: &[u8], begin: usize) -> usize {
    let (mut at, mut depth) = (begin, 0_usize);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn string_end(bytes: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `r"..."`, `r#"..."#` and so on; none if this `r` begins something else.
fn raw_string_end(bytes: &[u8], begin: usize) -> Option<usize> {
    let hashes = bytes[begin + 1..].iter().take_while(|byte| **byte == b'#').count();
    let open = begin + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let length = bytes[open + 1..].windows(close.len()).position(|window| window == close);
    Some(length.map_or(bytes.len(), |length| open + 1 + length + close.len()))
}

/// `'x'`, `'\n'`, `'é'`; none for a lifetime.
fn character_end(bytes: &[u8], begin: usize) -> Option<usize> {
    let rest = bytes.get(begin + 1..)?;
    if rest.first() == Some(&b'\\') {
        let length = rest.iter().skip(2).position(|byte| *byte == b'\'')?;
        return Some(begin + 1 + 2 + length + 1);
    }
    // One character of one to four bytes, then the quote.
    let text = std::str::from_utf8(&rest[..rest.len().min(8)])
        .or_else(|error| std::str::from_utf8(&rest[..error.valid_up_to()]));
    let first = text.ok()?.chars().next()?;
    let after = begin + 1 + first.len_utf8();
    (bytes.get(after) == Some(&b'\'')).then_some(after + 1)
}

fn follows_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

/// The `r` of `br"..."` or `cr"..."`.
fn prefixed(bytes: &[u8], at: usize) -> bool {
    at > 0 && matches!(bytes[at - 1], b'b' | b'c') && !follows_word(bytes, at - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_no_code() {
        let text = r####"let a = "x.unwrap()"; // y.unwrap()
/* z /* nested */ .unwrap() */ let b = r#"w".unwrap()"#; let c = '"'; d.unwrap(); fn f<'a>(x: &'a str) { '\'' }"####;
        let code = code(text);
        assert_eq!(code.matches(".unwrap()").count(), 1);
        assert!(code.contains("d.unwrap();") && code.contains("fn f<'a>(x: &'a str) {"));
        assert_eq!(code.len(), text.len());
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn files_that_only_tests_have_are_named() {
        let text = "mod a;\n#[cfg(test)]\nmod b;\n#[cfg(test)]\npub(crate) mod c;\n\
                    #[cfg(test)]\nuse d;\n#[cfg(test)]\nmod tests { fn e() {} }\nmod f;\n";
        assert_eq!(test_modules(text), ["b", "c"]);
    }

    #[test]
    fn tests_are_left_out_and_what_follows_them_is_not() {
        let text = "fn a() { one() }\n#[cfg(test)]\nmod tests { fn t() { two() } }\nfn b() { three() }\n\
                    #[cfg(test)]\nuse four;\n#[test]\nfn five() { { } six() }\nfn c() { seven() }\n";
        let code = code_outside_tests(text);
        for kept in ["one", "three", "seven"] {
            assert!(code.contains(kept), "{kept}");
        }
        for left_out in ["two", "four", "five", "six"] {
            assert!(!code.contains(left_out), "{left_out}");
        }
    }
}

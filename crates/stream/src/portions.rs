//! Walking over many slices as if they were one.

/// Hands out slices in portions of bounded size, without copying.
pub(crate) struct Portions<'a> {
    parts: &'a [&'a [u8]],
    /// How much of `parts[0]` has been handed out.
    offset: usize,
}

impl<'a> Portions<'a> {
    pub fn new(parts: &'a [&'a [u8]]) -> Self {
        Self { parts, offset: 0 }
    }

    /// The next slices, of together at most `limit` bytes; `None` at the end. Empty slices are left out.
    pub fn next(&mut self, limit: usize) -> Option<Vec<&'a [u8]>> {
        let mut portion = Vec::new();
        let mut room = limit;
        while let Some((first, rest)) = self.parts.split_first() {
            let part = &first[self.offset..];
            let taken = part.len().min(room);
            if taken > 0 {
                portion.push(&part[..taken]);
                room -= taken;
            }
            if taken < part.len() {
                self.offset += taken;
                break;
            }
            (self.parts, self.offset) = (rest, 0);
        }
        (!portion.is_empty()).then_some(portion)
    }
}

/// How many bytes the slices have together.
pub(crate) fn total(parts: &[&[u8]]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_cover_everything_once() {
        let bytes: Vec<u8> = (0..=255).chain(0..=18).collect();
        let lengths = [0, 1, 7, 0, 64, 3, 200, 0];
        let mut rest = &bytes[..];
        let parts = lengths.map(|length| rest.split_off(..length).unwrap());
        assert_eq!(total(&parts), bytes.len());
        for limit in 1..300 {
            let mut portions = Portions::new(&parts);
            let mut joined = Vec::new();
            while let Some(portion) = portions.next(limit) {
                assert!((1..=limit).contains(&total(&portion)));
                joined.extend(portion.concat());
            }
            assert_eq!(joined, bytes);
        }
    }

    #[test]
    fn nothing_has_no_portions() {
        assert_eq!(Portions::new(&[]).next(1), None);
        assert_eq!(Portions::new(&[b"", b""]).next(1), None);
    }
}

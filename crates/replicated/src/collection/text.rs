//! Long texts and byte strings, of which parts are replaced.

use std::ops::Range;

use super::{Content, Owned};
use crate::object::Body;
use crate::schema::Shape;
use crate::wire::{Reader, WireError, Writer};

/// A long text: ships what is put in, not the whole.
///
/// ```
/// use outlive_replicated::{commit, replicated, Text};
///
/// #[replicated]
/// static NOTE: Text = Text::new();
///
/// NOTE.write().push_str("hello world");
/// assert!(NOTE.write().replace(0..5, "good bye"));
/// commit()?;
/// assert_eq!(&*NOTE.read().read(), "good bye world");
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub type Text = Owned<TextBody>;

/// Long bytes: ships what is put in, not the whole.
///
/// ```
/// use outlive_replicated::{commit, replicated, Bytes};
///
/// #[replicated]
/// static LOG: Bytes = Bytes::new();
///
/// LOG.write().push(b"abc");
/// assert!(LOG.write().replace(1..2, b"--"));
/// commit()?;
/// assert_eq!(&*LOG.read().read(), b"a--c");
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub type Bytes = Owned<BytesBody>;

/// What a [`Text`] holds.
#[derive(Default)]
pub struct TextBody(String);

/// What [`Bytes`] hold.
#[derive(Default)]
pub struct BytesBody(Vec<u8>);

/// Where, how much goes, what comes.
fn read_splice<'a>(from: &mut Reader<'a>) -> Result<(Range<usize>, &'a [u8]), WireError> {
    let start = usize::try_from(from.number()?).map_err(|_| WireError::Impossible("a text"))?;
    let length = usize::try_from(from.number()?).map_err(|_| WireError::Impossible("a text"))?;
    let end = start.checked_add(length).ok_or(WireError::Impossible("a text"))?;
    Ok((start..end, from.sized()?))
}

fn write_splice(to: &mut Writer, start: usize, gone: usize, comes: &[u8]) {
    to.number(start as u64);
    to.number(gone as u64);
    to.sized(comes);
}

impl Body for TextBody {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        let (range, comes) = read_splice(from)?;
        let comes = std::str::from_utf8(comes).map_err(|_| WireError::NotA("UTF-8 text"))?;
        if self.0.get(range.clone()).is_none() {
            return Err(WireError::Impossible("a text"));
        }
        self.0.replace_range(range, comes);
        Ok(())
    }

    fn encode_content(&self, to: &mut Writer) {
        to.sized(self.0.as_bytes());
    }

    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        let text = std::str::from_utf8(from.sized()?).map_err(|_| WireError::NotA("UTF-8 text"))?;
        text.clone_into(&mut self.0);
        Ok(())
    }

    fn trace(&self, _visit: &mut dyn FnMut(u64)) {}
}

impl Content for TextBody {
    type Plain = str;

    fn plain(&self) -> &str {
        &self.0
    }

    fn shape() -> Shape {
        Shape::Sized
    }

    fn name() -> String {
        "Text".to_owned()
    }
}

impl Text {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// Adds at the end.
    pub fn push_str(&mut self, text: &str) {
        let end = self.len();
        self.replace(end..end, text);
    }

    /// Puts `text` in place of a range of bytes; `false`, and nothing happens, if it does not lie within the text and
    /// between characters.
    pub fn replace(&mut self, range: Range<usize>, text: &str) -> bool {
        self.change(|body, diff| {
            let Some(gone) = body.0.get(range.clone()) else { return false };
            if let Some(diff) = diff
                && !(gone.is_empty() && text.is_empty())
            {
                write_splice(diff.redo, range.start, gone.len(), text.as_bytes());
                write_splice(diff.undo, range.start, text.len(), gone.as_bytes());
            }
            body.0.replace_range(range, text);
            true
        })
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::of(TextBody(text.to_owned()))
    }
}

impl Body for BytesBody {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        let (range, comes) = read_splice(from)?;
        if self.0.get(range.clone()).is_none() {
            return Err(WireError::Impossible("bytes"));
        }
        self.0.splice(range, comes.iter().copied());
        Ok(())
    }

    fn encode_content(&self, to: &mut Writer) {
        to.sized(&self.0);
    }

    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.0 = from.sized()?.to_vec();
        Ok(())
    }

    fn trace(&self, _visit: &mut dyn FnMut(u64)) {}
}

impl Content for BytesBody {
    type Plain = [u8];

    fn plain(&self) -> &[u8] {
        &self.0
    }

    fn shape() -> Shape {
        Shape::Sized
    }

    fn name() -> String {
        "Bytes".to_owned()
    }
}

impl Bytes {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// Adds at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        let end = self.len();
        self.replace(end..end, bytes);
    }

    /// Puts `bytes` in place of a range; `false`, and nothing happens, if there is no such range.
    pub fn replace(&mut self, range: Range<usize>, bytes: &[u8]) -> bool {
        self.change(|body, diff| {
            let Some(gone) = body.0.get(range.clone()) else { return false };
            if let Some(diff) = diff
                && !(gone.is_empty() && bytes.is_empty())
            {
                write_splice(diff.redo, range.start, gone.len(), bytes);
                write_splice(diff.undo, range.start, bytes.len(), gone);
            }
            body.0.splice(range, bytes.iter().copied());
            true
        })
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self::of(BytesBody(bytes.to_vec()))
    }
}

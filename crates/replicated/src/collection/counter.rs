//! A number that is added to.

use super::{Content, Owned};
use crate::object::Body;
use crate::schema::Shape;
use crate::wire::{Reader, WireError, Writer, unzigzag, zigzag};

/// A number that is added to: ships the difference, one byte for a small one, however large the number is. Wraps
/// around at the ends of `i64`.
///
/// ```
/// use outlive_replicated::{commit, replicated, Counter};
///
/// #[replicated]
/// static HITS: Counter = Counter::new();
///
/// HITS.write().add(3);
/// HITS.write().add(-1);
/// commit()?;
/// assert_eq!(HITS.read().get(), 2);
/// # Ok::<(), outlive_replicated::CommitError>(())
/// ```
pub type Counter = Owned<CounterBody>;

/// What a [`Counter`] holds.
#[derive(Default)]
pub struct CounterBody(i64);

fn number(from: &mut Reader<'_>) -> Result<i64, WireError> {
    i64::try_from(unzigzag(from.wide()?)).map_err(|_| WireError::NotA("i64"))
}

impl Body for CounterBody {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.0 = self.0.wrapping_add(number(from)?);
        Ok(())
    }

    fn encode_content(&self, to: &mut Writer) {
        to.wide(zigzag(i128::from(self.0)));
    }

    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.0 = number(from)?;
        Ok(())
    }

    fn trace(&self, _visit: &mut dyn FnMut(u64)) {}
}

impl Content for CounterBody {
    type Plain = i64;

    fn plain(&self) -> &i64 {
        &self.0
    }

    fn shape() -> Shape {
        Shape::Number
    }

    fn name() -> String {
        "Counter".to_owned()
    }
}

impl Counter {
    /// The number.
    pub fn get(&self) -> i64 {
        *self.read()
    }

    /// Adds to it.
    pub fn add(&mut self, difference: i64) {
        self.change(|body, diff| {
            if difference == 0 {
                return;
            }
            if let Some(diff) = diff {
                diff.redo.wide(zigzag(i128::from(difference)));
                diff.undo.wide(zigzag(i128::from(difference.wrapping_neg())));
            }
            body.0 = body.0.wrapping_add(difference);
        });
    }
}

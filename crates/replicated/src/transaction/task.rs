//! Transactions of asynchronous tasks, of which a thread runs many.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{KEPT, Tx, put_current, take_current, take_kept};
use crate::object::AnyObject;

/// Gives a task a transaction of its own, whichever thread runs it: wrap every task that changes replicated state.
/// Two tasks that share a thread would share its transaction otherwise. Works with any executor.
///
/// ```
/// use outlive_replicated::{commit_async, replicated, task};
///
/// #[replicated]
/// static COUNT: u64 = 0;
///
/// let work = task(async {
///     *COUNT.write() += 1;
///     commit_async()?.await
/// });
/// // With tokio: `tokio::spawn(work)`.
/// # let _ = work;
/// ```
pub fn task<F: Future>(future: F) -> Task<F> {
    Task { tx: None, kept: Vec::new(), future: Some(Box::pin(future)) }
}

/// See [`task`].
pub struct Task<F> {
    tx: Option<Box<Tx>>,
    kept: Vec<Arc<dyn AnyObject>>,
    /// None once it is dropped.
    future: Option<Pin<Box<F>>>,
}

/// Runs `then` with a task's transaction as the thread's; it is the task's again also when `then` panics.
fn inside<R>(tx: &mut Option<Box<Tx>>, kept: &mut Vec<Arc<dyn AnyObject>>, then: impl FnOnce() -> R) -> R {
    struct Outer<'a> {
        tx: Option<Box<Tx>>,
        kept: Vec<Arc<dyn AnyObject>>,
        inner: (&'a mut Option<Box<Tx>>, &'a mut Vec<Arc<dyn AnyObject>>),
    }
    impl Drop for Outer<'_> {
        fn drop(&mut self) {
            *self.inner.0 = take_current();
            *self.inner.1 = take_kept();
            put_current(self.tx.take());
            let _ = KEPT.try_with(|kept| *kept.borrow_mut() = std::mem::take(&mut self.kept));
        }
    }
    let ours = (tx.take(), std::mem::take(kept));
    let _outer = Outer { tx: take_current(), kept: take_kept(), inner: (tx, kept) };
    put_current(ours.0);
    let _ = KEPT.try_with(|kept| *kept.borrow_mut() = ours.1);
    then()
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { tx, kept, future } = &mut *self;
        match future {
            Some(future) => inside(tx, kept, || future.as_mut().poll(context)),
            // Only while it is being dropped.
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Task<F> {
    fn drop(&mut self) {
        // Its guards end before its transaction does, and are part of it.
        let Self { tx, kept, future } = self;
        inside(tx, kept, || *future = None);
        // Before the transaction, which may need them to be undone.
        if let Some(tx) = &mut self.tx {
            tx.kept.append(&mut self.kept);
        }
        self.tx = None;
    }
}

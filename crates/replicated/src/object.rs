//! Objects: what has an id, an owner and operations of its own. Statics, what a `Ref` leads to, and collections.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use crate::lock::Owner;
use crate::store::Store;
use crate::value::Value;
use crate::wire::{Reader, WireError, Writer};
use crate::write::Hold;

/// What an object holds.
pub trait Body: Send + Sync + 'static {
    /// Carries out a change that came from the primary, or takes one back.
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError>;
    /// Writes all of it.
    fn encode_content(&self, to: &mut Writer);
    /// Replaces all of it.
    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError>;
    /// Shows the ids of all objects that a `Ref` in it leads to.
    fn trace(&self, visit: &mut dyn FnMut(u64));
}

/// A value with an id: a static's, or what a `Ref` leads to.
impl<T: Value> Body for T {
    fn apply(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.patch(from)
    }

    fn encode_content(&self, to: &mut Writer) {
        self.encode(to);
    }

    fn decode_content(&mut self, from: &mut Reader<'_>) -> Result<(), WireError> {
        *self = T::decode(from)?;
        Ok(())
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        Value::trace(self, visit);
    }
}

/// An object.
pub struct Shared<B> {
    /// 0: not in any store yet, and nothing that happens to it is logged.
    id: AtomicU64,
    pub(crate) owner: Owner,
    /// How its owner has its lock.
    pub(crate) hold: Hold,
    /// Its owner has remembered what it was.
    pub(crate) remembered: AtomicBool,
    store: OnceLock<Arc<Store>>,
    pub(crate) body: Arc<RwLock<B>>,
}

impl<B: Body> Shared<B> {
    pub(crate) fn new(body: B) -> Arc<Self> {
        Arc::new(Self {
            id: AtomicU64::new(0),
            owner: Owner::default(),
            hold: Hold::default(),
            remembered: AtomicBool::new(false),
            store: OnceLock::new(),
            body: Arc::new(RwLock::new(body)),
        })
    }

    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    /// Where it is, for as long as a guard of it lives.
    #[inline]
    pub(crate) fn place(&self) -> usize {
        Arc::as_ptr(&self.body).addr()
    }

    /// Whether its owner, who asks, has remembered what it was.
    #[inline]
    pub(crate) fn is_remembered(&self) -> bool {
        self.remembered.load(Ordering::Relaxed)
    }

    /// The store it is in, once it has an id.
    #[inline]
    pub(crate) fn store(&self) -> Option<&Arc<Store>> {
        if self.id() == 0 { None } else { self.store.get() }
    }

    /// Gives it an id in a store. What is in another store already stays there.
    pub(crate) fn attach(self: &Arc<Self>, store: &Arc<Store>, id: u64) {
        if Arc::ptr_eq(self.store.get_or_init(|| Arc::clone(store)), store) {
            self.id.store(id, Ordering::Relaxed);
            let object: Arc<dyn AnyObject> = Arc::clone(self) as _;
            store.register(id, &object);
        }
    }
}

impl<B> Drop for Shared<B> {
    fn drop(&mut self) {
        let id = *self.id.get_mut();
        if let Some(store) = self.store.get().filter(|_| id != 0) {
            store.forget(id);
        }
    }
}

/// What is done with an object while nobody changes it: it is given what writes the object's content.
pub type AtRest<'a> = dyn FnMut(&dyn Fn(&mut Writer)) + 'a;

/// An object of any type.
pub trait AnyObject: Send + Sync {
    /// Its id, 0 if it has none.
    fn id(&self) -> u64;
    /// Another id: the primary's.
    fn set_id(&self, id: u64);
    /// See [`Body::apply`].
    fn apply(&self, from: &mut Reader<'_>) -> Result<(), WireError>;
    /// See [`Body::encode_content`].
    fn encode(&self, to: &mut Writer);
    /// See [`Body::decode_content`].
    fn decode(&self, from: &mut Reader<'_>) -> Result<(), WireError>;
    /// See [`Body::trace`].
    fn trace(&self, visit: &mut dyn FnMut(u64));
    /// Whether a guard lives through which its owner changes it. For the owner.
    fn is_written(&self) -> bool;
    /// Where it is, for as long as a guard of it lives.
    fn place(&self) -> usize;
    /// Ends a transaction's ownership.
    ///
    /// # Safety
    /// For the transaction that owns it alone, on the thread that the transaction is with.
    unsafe fn release(&self);
    /// Runs `then` while nobody changes it, or is about to commit a change of it.
    fn at_rest(&self, then: &mut AtRest<'_>);
    /// For going back to its type.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<B: Body> AnyObject for Shared<B> {
    fn id(&self) -> u64 {
        Self::id(self)
    }

    fn set_id(&self, id: u64) {
        self.id.store(id, Ordering::Relaxed);
    }

    fn apply(&self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.body.write().apply(from)
    }

    fn encode(&self, to: &mut Writer) {
        self.body.read().encode_content(to);
    }

    fn decode(&self, from: &mut Reader<'_>) -> Result<(), WireError> {
        self.body.write().decode_content(from)
    }

    fn trace(&self, visit: &mut dyn FnMut(u64)) {
        self.body.read().trace(visit);
    }

    fn is_written(&self) -> bool {
        self.hold.is_written()
    }

    fn place(&self) -> usize {
        Self::place(self)
    }

    // SAFETY: as the trait says: only the transaction that owns it calls this.
    unsafe fn release(&self) {
        // SAFETY: as for this.
        unsafe { self.let_go() };
        self.owner.release();
    }

    fn at_rest(&self, then: &mut AtRest<'_>) {
        let body = crate::transaction::read_at_rest(self, |patience| self.body.try_read_for(patience));
        then(&|to| body.encode_content(to));
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

//! Who is shown every frame that passes, on its way in and on its way out.

/// Sees what the workload is told and what it says, whole frames with their virtio header.
///
/// Called with the input or the output locked, so that the order is the workload's; it must not call the pump.
pub trait Observer: Send + Sync {
    /// A frame that the workload is about to be given. A frame that waits for the input to open is shown when its
    /// turn comes, so that between [`crate::Pump::close_input`] and the cut what has been shown is what has been given.
    fn incoming(&self, _frame: &[u8], _aside: &mut Aside) -> Admission {
        Admission::Pass
    }

    /// A frame that was just read from the workload, before it is held or leaves.
    fn outgoing(&self, _frame: &[u8]) {}
}

/// For a workload that nobody watches.
impl Observer for () {}

/// What becomes of an incoming frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// The workload gets it.
    Pass,
    /// It is lost, as on a network: its sender repeats what matters.
    Drop,
}

/// Frames that an observer adds to one that comes in, with virtio headers.
#[derive(Debug, Default)]
pub struct Aside {
    /// The workload gets them before that frame. They are not shown to the observer.
    pub inward: Vec<Vec<u8>>,
    /// Said for the workload, as by [`crate::Pump::send_outer`].
    pub outward: Vec<Vec<u8>>,
}

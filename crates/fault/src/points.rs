//! The list of all steps.

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A step of the protocol. The part before the dot says whose: `primary` and `link` (its stream to the backup), `plug`,
        /// `backup`, `takeover`, `copy` (a first copy, the primary's side), `hosting` (the backup's side of it), `move` (a planned change), `arbiter`
        /// (whoever asks the seed nodes), `seed`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Point] = &[$(Point::$point,)*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)*
                }
            }
        }
    };
}

points! {
    // The way of an epoch, on the primary.
    /// A live round has been copied, and everything runs on.
    PrimaryLiveRound = "primary.live-round",
    /// Input is closed, the workload still runs.
    PrimaryInputClosed = "primary.input-closed",
    /// Every thread is stopped.
    PrimaryFrozen = "primary.frozen",
    /// The checkpoint is taken, its output is not cut off yet.
    PrimaryCaptured = "primary.captured",
    /// The epoch's output is cut off.
    PrimaryCut = "primary.cut",
    /// Input flows again, the workload is still stopped.
    PrimaryInputOpen = "primary.input-open",
    /// The workload runs again, nothing is sent yet.
    PrimaryThawed = "primary.thawed",
    /// The epoch is with the link's sender.
    PrimaryQueued = "primary.queued",
    /// The beginning of an epoch is written to the stream.
    LinkBegun = "link.begun",
    /// Its content is, its pages are not.
    LinkHalfSent = "link.half-sent",
    /// All of it is, and the primary does not know so yet.
    LinkSealed = "link.sealed",
    /// An acknowledgement is read, and the primary does not know so yet.
    LinkAcknowledged = "link.acknowledged",
    /// Copies of incoming frames are written to the stream.
    LinkInputCopied = "link.input-copied",
    /// A heartbeat is written to the stream.
    LinkBeaten = "link.beaten",
    /// The acknowledgement is the right one, nothing is let go yet.
    PrimaryAcknowledged = "primary.acknowledged",
    /// A batch was found free to leave, no frame of it has left.
    PlugFresh = "plug.fresh",
    /// The first frame of a batch has left, and there are more.
    PlugFirstFrame = "plug.first-frame",
    /// All frames of the epoch have left, its standard output is not written.
    PrimaryReleased = "primary.released",
    /// That is written as well.
    PrimaryLogged = "primary.logged",

    // An epoch on the backup.
    /// Some of an epoch has arrived.
    BackupHalfReceived = "backup.half-received",
    /// All of it has, and is verified.
    BackupReceived = "backup.received",
    /// It is kept for the tracer, not acknowledged yet.
    BackupHeld = "backup.held",
    /// It is acknowledged.
    BackupAcknowledged = "backup.acknowledged",
    /// Copies of incoming frames are kept.
    BackupInputKept = "backup.input-kept",
    /// A heartbeat has come and is not answered yet.
    BackupBeaten = "backup.beaten",
    /// An epoch is about to be applied.
    BackupApplying = "backup.applying",
    /// Its memory is applied, its objects are not.
    BackupHalfApplied = "backup.half-applied",
    /// It is applied.
    BackupApplied = "backup.applied",

    // A primary without its backup.
    /// The backup is given up, the seed nodes are not asked yet.
    PrimaryBackupLost = "primary.backup-lost",
    /// It may speak alone, and does not yet.
    PrimaryAloneGranted = "primary.alone-granted",
    /// It speaks alone: what was held has left.
    PrimaryExposed = "primary.exposed",

    // A failover.
    /// The primary is given up; nothing is acknowledged any more.
    TakeoverSilence = "takeover.silence",
    /// A question is on its way to the seed nodes, the answers are not here.
    ArbiterAsked = "arbiter.asked",
    /// The next generation is granted.
    TakeoverGranted = "takeover.granted",
    /// The port is on the network.
    TakeoverAttached = "takeover.attached",
    /// The address is announced.
    TakeoverAnnounced = "takeover.announced",
    /// Peers were asked what they have received.
    TakeoverProbed = "takeover.probed",
    /// Some sockets are built.
    TakeoverHalfBuilt = "takeover.half-built",
    /// All objects are built.
    TakeoverBuilt = "takeover.built",
    /// Descriptors, timers and threads are there; registers are not set.
    TakeoverHalfActivated = "takeover.half-activated",
    /// The workload is whole and stopped.
    TakeoverActivated = "takeover.activated",
    /// Its sockets are out of repair.
    TakeoverLive = "takeover.live",
    /// The pump carries output, input is closed.
    TakeoverPumping = "takeover.pumping",
    /// Connections that were not accepted yet are rebuilt.
    TakeoverRebuilt = "takeover.rebuilt",
    /// Some retained frames are injected.
    TakeoverHalfInjected = "takeover.half-injected",
    /// All are.
    TakeoverInjected = "takeover.injected",
    /// The workload runs, input is closed.
    TakeoverThawed = "takeover.thawed",
    /// Input is open.
    TakeoverDone = "takeover.done",

    // A first copy, on the primary.
    /// A peer is about to be asked to host a backup.
    CopyAsking = "copy.asking",
    /// It hosts one.
    CopyHosted = "copy.hosted",
    /// The two know each other.
    CopyPaired = "copy.paired",
    /// The whole is captured and not sent yet.
    CopyCaptured = "copy.captured",
    /// A piece of memory is with the link's sender.
    CopyPiece = "copy.piece",
    /// All memory is copied: output is held from here on.
    CopyPlugged = "copy.plugged",
    /// The first checkpoint is committed, the seed nodes are not asked yet.
    CopyCommitted = "copy.committed",
    /// The register names the backup, which does not know so yet.
    CopyGranted = "copy.granted",
    /// What was held has left.
    CopyJoined = "copy.joined",

    // A first copy, on the backup.
    /// The agent is asked to host a backup.
    HostingAsked = "hosting.asked",
    /// The supervisor is up, the asking node does not know yet.
    HostingStarted = "hosting.started",
    /// The primary has connected and is not known yet.
    HostingAccepted = "hosting.accepted",
    /// The two know each other.
    HostingPaired = "hosting.paired",
    /// A piece of memory is written.
    HostingPiece = "hosting.piece",
    /// It is said to be in the register.
    HostingProtected = "hosting.protected",

    // A planned change of primary. What the new one does is a takeover in between.
    /// The last checkpoint is with the link's sender, everything stays stopped.
    MoveStopped = "move.stopped",
    /// The backup has it, the seed nodes are not asked yet.
    MoveCommitted = "move.committed",
    /// The register names the backup the primary, which does not know so yet.
    MoveGranted = "move.granted",
    /// It is told.
    MoveSaid = "move.said",
    /// It knows.
    MoveHeard = "move.heard",
    /// It is whole, and has not asked to speak alone.
    MoveReady = "move.ready",
    /// It may speak alone, and does not yet: the only one that has the workload.
    MoveAlone = "move.alone",
    /// It speaks; the old primary does not know so yet.
    MoveRunning = "move.running",
    /// The old primary knows, and is about to end.
    MoveEnding = "move.ending",
    /// It may go on after all, the new one being gone, and does not yet.
    MoveBack = "move.back",

    // Seed nodes.
    /// A message of arbitration has come.
    SeedAsked = "seed.asked",
    /// What it does to this node's vote is on disk, the answer has not left.
    SeedPersisted = "seed.persisted",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Point;

    #[test]
    fn names_differ() {
        let names: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}

//! What a round of retention did.

/// Bodies that went, and room that was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub bodies_deleted: u64,
    pub partitions_dropped: u64,
    pub partitions_made: u64,
    /// There is more to do at once.
    pub more: bool,
}

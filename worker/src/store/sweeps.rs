//! Reading the PSPs' lists: who reads a page, and how far an account's list is read.

use paybell_shared::clock::Timestamp;
use uuid::Uuid;

use crate::manners::Ended;
use crate::order::AccountKey;
use crate::sweep::course::Course;

/// What asking for a page of an account's list got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeasedPage {
    Page(DuePage),
    /// None is due before then, or may be asked for.
    NotBefore(Timestamp),
}

/// The next page of an account's list, under a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuePage {
    pub account: AccountKey,
    pub lease_token: Uuid,
    pub course: Course,
}

/// What became of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPage {
    pub at: Timestamp,
    /// As it stands behind the page.
    pub course: Course,
    pub due_at: Timestamp,
    pub ended: Ended,
}

//! The one narrow trait of a repository: objects by their ids, and a transaction over them.
//!
//! [`crate::Repository`] implements it on files. A client of a Borg server can implement it as well: each method is
//! one call of its protocol, or a hint that lets it send calls ahead of their answers.

use crate::Id;

/// What a repository says about itself once it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The repository's id.
    pub id: Id,
    /// True if nothing may ever be freed.
    pub append_only: bool,
    /// How many bytes may be stored, if that is limited.
    pub storage_quota: Option<u64>,
}

/// A repository of objects.
///
/// All methods can be called by several threads at once. What is put belongs to a transaction that begins by itself
/// and counts once it is committed; without that, nothing of it is ever seen by others.
pub trait Store: Send + Sync {
    /// Why something failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What the repository says about itself.
    fn info(&self) -> Info;

    /// How many objects there are.
    fn count(&self) -> Result<u64, Self::Error>;

    /// True if there is such an object.
    fn contains(&self, id: &Id) -> Result<bool, Self::Error>;

    /// At most `limit` ids, those behind `after` in an order that stays as long as nothing is changed.
    fn list(&self, after: Option<&Id>, limit: usize) -> Result<Vec<Id>, Self::Error>;

    /// These objects will be asked for, in this order. Where there is a distance to a server, it can begin.
    fn expect(&self, _ids: &[Id]) {}

    /// Reads an object into a buffer, whose former content is lost. What is being put may not be readable before that
    /// call has returned.
    fn get(&self, id: &Id, object: &mut Vec<u8>) -> Result<(), Self::Error>;

    /// Stores an object, whether or not there is one of this id. It may not be certain before [`Self::settle`].
    fn put(&self, id: &Id, object: &[u8]) -> Result<(), Self::Error>;

    /// Removes an object.
    fn delete(&self, id: &Id) -> Result<(), Self::Error>;

    /// Returns once all that was put is known to be accepted.
    fn settle(&self) -> Result<(), Self::Error>;

    /// Makes all changes of the transaction durable, or none. Without a change there is nothing to do.
    fn commit(&self) -> Result<(), Self::Error>;

    /// Forgets all changes of the transaction.
    fn rollback(&self) -> Result<(), Self::Error>;

    /// The first counter that is not reserved; `None` if none was ever reserved.
    fn free_nonce(&self) -> Result<Option<u64>, Self::Error>;

    /// Reserves all counters below `next`, if `start` is what [`Self::free_nonce`] would return.
    fn reserve_nonce(&self, start: Option<u64>, next: u64) -> Result<(), Self::Error>;

    /// The key blob that is kept in the repository; empty if there is none.
    fn load_key(&self) -> Result<Vec<u8>, Self::Error>;
}

//! The one place where children are made and ended.
//!
//! A child gets an environment made for it ([`command`]): the program's own one holds the repository's passphrase, and what
//! else a service or a shell has put there. No wait for a child is without an end ([`end`], [`run`]): one that not even
//! KILL ends, as it hangs in the system, is left to a thread that waits for it alone, and named in the end ([`take_left`]).

mod end;
mod environment;
mod run;

pub use end::{Left, end, kill, take_left, terminate, wait};
pub use environment::{Needs, command};
pub use run::{Failure, Limits, Output, Why, run};

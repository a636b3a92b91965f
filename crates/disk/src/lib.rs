//! Words for what is on a disk, and nothing that touches one.
//!
//! * [`Extent`] and [`RangeSet`] name byte ranges, the latter as a set ("what changed").
//! * [`Cover`] says something about every byte of a disk: an [`ExtentMap`] tells data from zeroes,
//!   a [`ChangeMap`] tells what a backup has to do with each part.
//! * [`BlockSource`] is the one way in which bytes are read, whatever serves them.
//! * [`SwapLayout`] holds what is needed to make a swap disk again without keeping its content,
//!   with [`gpt`] and [`swap`] as the formats underneath.
//!
//! * [`Survey`] is a disk as it looks without a key: [`partitions`], [`luks`] headers, samples and their [`entropy`].
//!
//! Every length in here may come from a hostile image or server: arithmetic is checked, and nothing panics on
//! what was read.

pub mod change;
pub mod cover;
pub mod entropy;
pub mod extent;
pub mod gpt;
pub mod layout;
pub mod luks;
pub mod mbr;
pub mod partitions;
pub mod ranges;
pub mod source;
pub mod survey;
pub mod swap;

pub use change::{Change, ChangeMap, MapParseError};
pub use cover::{Cover, ExtentMap, Kind};
pub use extent::{Extent, RangeError};
pub use layout::{DiskWrite, LayoutError, SwapLayout, SwapPartition};
pub use luks::{HeaderArea, Luks, NoArea};
pub use ranges::RangeSet;
pub use source::{BlockSource, ReadError};
pub use survey::Survey;
pub use swap::SwapArea;

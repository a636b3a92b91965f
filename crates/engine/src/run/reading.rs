//! How disks are read where no guest is in the way.

use strongroom_base::cancel::Cancel;
use strongroom_nbd::ReadOptions;

/// Size and number of requests where no guest is in the way. Larger ones cost QEMU more, as it takes fresh memory for each.
const REQUEST: u64 = 256 << 10;
const DEPTH: usize = 64;

/// How to read a disk that no guest uses.
pub fn unhindered(cancel: &Cancel) -> ReadOptions<'_> {
    ReadOptions {
        depth: DEPTH,
        request_size: REQUEST,
        cancel: Some(cancel.flag()),
        ..ReadOptions::default()
    }
}

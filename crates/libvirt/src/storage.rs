//! Small files on another machine: as volumes of a storage pool that holds their directory.
//!
//! libvirt gives files away only as volumes. The directory with the UEFI variables is in no pool unless somebody makes
//! one; the error says how.

use std::path::Path;

use virt::connect::Connect;
use virt::error::ErrorNumber;
use virt::stream::Stream;

use crate::connection::words;
use crate::hypervisor::is;

/// How much is asked for at once, in bytes.
const PIECE: usize = 64 << 10;

/// Reads a file. It is an error if it has more than `limit` bytes.
pub fn fetch(connection: &Connect, path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let name = path.to_str().ok_or("the path is not in UTF-8")?;
    let volume = match connection.lookup_storage_vol_by_path(name) {
        Err(error) if is(&error, ErrorNumber::NoStorageVolume) => {
            refresh(connection, path);
            connection.lookup_storage_vol_by_path(name)
        }
        found => found,
    };
    let volume = volume.map_err(|error| {
        let directory = path.parent().unwrap_or(path).display();
        format!(
            "{}; it can be fetched once its directory is a storage pool there: `virsh pool-create-as strongroom-files dir \
             --target {directory}`",
            words(&error)
        )
    })?;
    let failed = |error| words(&error);
    let stream = Stream::new(connection, 0).map_err(failed)?;
    volume.download(&stream, 0, 0, 0).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut piece = vec![0; PIECE];
    loop {
        let count = match stream.recv(&mut piece) {
            Ok(count) => usize::try_from(count).map_err(|_| "the stream would block".to_owned())?,
            Err(error) => return Err(words(&error)),
        };
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(piece.get(..count).unwrap_or_default());
        if bytes.len() as u64 > limit {
            // Dropping a stream that is not at its end ends it.
            let _ = stream.abort();
            return Err(format!("it is larger than such a file can be ({limit} bytes)"));
        }
    }
    stream.finish().map_err(failed)?;
    Ok(bytes)
}

/// A pool knows the files that were there when it was last looked through. Best effort: it may not be ours to ask for.
fn refresh(connection: &Connect, path: &Path) {
    let Some(directory) = path.parent().and_then(Path::to_str) else {
        return;
    };
    if let Ok(pool) = connection.lookup_storage_pool_by_target_path(directory) {
        let _ = pool.refresh(0);
    }
}

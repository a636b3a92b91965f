//! The room that a restored disk needs.

use std::collections::HashMap;

use strongroom_points::restore_point::RestorePoint;
use strongroom_points::store::Opener;

use super::header::Found;
use super::{DiskContent, DiskTarget};
use crate::files::room::with_tables;

/// What a disk takes at most: all its chunks but those that hold nothing but zeroes, and its headers.
pub fn of_disk(point: &RestorePoint, disk: &DiskTarget, headers: &[Found], opener: &Opener) -> u64 {
    let mut zeroes = HashMap::new();
    let chunks = match disk.content {
        DiskContent::Archived => point.chunks(&disk.target).unwrap_or_default(),
        DiskContent::Swap(_) => &[],
    };
    let data = chunks.iter().filter(|chunk| {
        let zero = zeroes
            .entry(chunk.size)
            .or_insert_with(|| opener.zero_id(chunk.size as usize));
        chunk.id != *zero
    });
    let data: u64 = data.map(|chunk| u64::from(chunk.size)).sum();
    let headers: u64 = headers
        .iter()
        .flat_map(Found::placed)
        .map(|(_, chunk)| u64::from(chunk.size))
        .sum();
    with_tables(data.saturating_add(headers).min(disk.size.max(data)), disk.size)
}

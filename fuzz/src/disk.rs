//! What a guest writes to its disks.

use sha2::{Digest as _, Sha256};
use strongroom_disk::gpt::{Gpt, GptReadError, MAX_PARTITIONS, NAME_UNITS, SECTOR};
use strongroom_disk::swap::{LABEL_BYTES, PAGE};
use strongroom_disk::{
    BlockSource, Change, ChangeMap, DiskWrite, ExtentMap, Kind, LayoutError, Luks, RangeSet, Survey,
    SwapArea, SwapLayout, luks,
};

use super::sparse::Sparse;

/// A partition table, as it stands and with its checksums made right.
pub fn gpt(data: &[u8]) {
    let Some(mut disk) = Sparse::parse(data) else {
        return;
    };
    check_gpt(&mut disk);
    repair(&mut disk);
    check_gpt(&mut disk);
}

fn check_gpt(disk: &mut Sparse) {
    let size = disk.size();
    let table = match Gpt::read(disk) {
        Ok(Some(table)) => table,
        Ok(None) | Err(GptReadError::Gpt(_)) => return,
        Err(GptReadError::Read(error)) => panic!("{error}"),
    };
    let mut end_of_last = 0;
    let mut by_place = table.partitions.clone();
    by_place.sort_by_key(|partition| partition.first_lba);
    for partition in &by_place {
        let (offset, length) = partition.bytes().expect("a partition has a place");
        assert!(offset >= end_of_last && length > 0);
        end_of_last = offset + length;
        assert!((1..=MAX_PARTITIONS).contains(&partition.number));
        assert!(partition.name.encode_utf16().count() <= NAME_UNITS);
    }
    assert!(end_of_last <= size);
    assert!(table.partitions.is_sorted_by(|a, b| a.number < b.number));
    // A table may use sectors that the one we write leaves free; else it comes back as it was.
    if let Ok(sectors) = table.to_sectors(size) {
        let mut copy = Sparse::empty(size);
        for (offset, bytes) in sectors {
            assert!(offset + bytes.len() as u64 <= size);
            copy.write(offset, &bytes);
        }
        assert_eq!(Gpt::read(&mut copy).ok().flatten(), Some(table));
    }
}

/// The first page of a swap area: the start of the page, with its last ten bytes at the end of `data`.
pub fn swap_header(data: &[u8]) {
    let (start, magic) = data.split_at(data.len().saturating_sub(10));
    let mut page = [0; PAGE];
    page.iter_mut().zip(start).for_each(|(to, from)| *to = *from);
    page.iter_mut()
        .rev()
        .zip(magic.iter().rev())
        .for_each(|(to, from)| *to = *from);
    let Some(area) = SwapArea::parse(&page) else {
        return;
    };
    assert!(area.label.len() <= LABEL_BYTES && !area.label.contains('\0'));
    for size in [0, 10 * PAGE as u64, 1 << 40, u64::MAX] {
        match area.to_page(size) {
            Ok(page) => assert_eq!(SwapArea::parse(&page).as_ref(), Some(&area)),
            Err(_) => assert_eq!(size, 0),
        }
    }
}

/// The layout of a swap disk.
pub fn swap_layout(data: &[u8]) {
    let Some(mut disk) = Sparse::parse(data) else {
        return;
    };
    check_layout(&mut disk);
    repair(&mut disk);
    check_layout(&mut disk);
}

fn check_layout(disk: &mut Sparse) {
    let size = disk.size();
    let layout = match SwapLayout::read(disk) {
        Ok(layout) => layout,
        Err(LayoutError::Read(error)) => panic!("{error}"),
        Err(_) => return,
    };
    // It is kept as JSON, in a manifest.
    let json = serde_json::to_string(&layout).expect("a layout can be kept");
    assert_eq!(
        serde_json::from_str::<SwapLayout>(&json).ok().as_ref(),
        Some(&layout)
    );
    if let Ok(writes) = layout.write(size) {
        assert_eq!(SwapLayout::read(&mut written(&writes, size)).ok(), Some(layout));
    }
}

/// A blank disk with these writes, which have to be on it.
pub fn written(writes: &[DiskWrite], size: u64) -> Sparse {
    let mut disk = Sparse::empty(size);
    for write in writes {
        let end = write.offset.checked_add(write.bytes.len() as u64);
        assert!(
            end.is_some_and(|end| end <= size),
            "write at {} of {size}",
            write.offset
        );
        disk.write(write.offset, &write.bytes);
    }
    disk
}

/// The headers of LUKS volumes on a disk and in its partitions.
pub fn luks(data: &[u8]) {
    let Some(mut disk) = Sparse::parse(data) else {
        return;
    };
    check_luks(&mut disk);
    repair(&mut disk);
    repair_luks(&mut disk);
    check_luks(&mut disk);
}

fn check_luks(disk: &mut Sparse) {
    let size = disk.size();
    let mut taken = RangeSet::new();
    for volume in Luks::find(disk).expect("a disk that can be read gives facts or none") {
        assert!(volume.offset < size);
        assert!(matches!(volume.version, 1 | 2));
        assert!(volume.uuid.len() <= 40);
        if let Ok(area) = &volume.area {
            assert_eq!(area.extent.offset(), volume.offset);
            assert!(area.extent.end() <= size && area.extent.length() <= luks::LARGEST_AREA);
            assert!(!taken.overlaps(area.extent));
            taken.insert(area.extent);
            assert_eq!(area.binding.len(), 64);
        }
        assert!(volume.digests.len() <= 32 && volume.tokens.len() <= 32);
        // These are shown to a person.
        let pins = volume.tokens.iter().filter_map(|token| token.pin.as_ref());
        assert!(
            pins.map(ToString::to_string)
                .all(|pin| pin.len() < 1 << 20 && pin.is_ascii())
        );
        assert!(volume.slots.len() <= 32 && volume.segments.len() <= 32 && volume.flags.len() <= 32);
        assert!(
            volume
                .data(size)
                .iter()
                .all(|(offset, length)| offset + length <= size)
        );
        let kinds = volume.tokens.iter().map(|token| &token.kind);
        for text in volume
            .digests
            .iter()
            .chain(kinds)
            .chain(&volume.flags)
            .chain([&volume.uuid])
        {
            assert!(
                text.len() <= 512 && text.bytes().all(|byte| byte.is_ascii_graphic()),
                "{text:?}"
            );
        }
    }
}

/// A disk without a key: its parts, their headers, samples.
pub fn survey(data: &[u8]) {
    let Some(mut disk) = Sparse::parse(data) else {
        return;
    };
    let size = disk.size();
    // As long as this, a map of allocated blocks is what an image gives.
    let allocated = ExtentMap::uniform(size.min(64 << 20), Kind::Data);
    let survey = Survey::take(&mut disk, &allocated).expect("a disk that can be read is surveyed");
    for part in &survey.parts {
        assert!(
            part.region
                .offset
                .checked_add(part.region.length)
                .is_some_and(|end| end <= size)
        );
        assert!(part.samples.clear <= part.samples.written && part.samples.written <= 1024);
    }
}

/// The text of a change map.
pub fn change_map(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(map) = text.parse::<ChangeMap>() else {
        return;
    };
    assert_eq!(map.to_string().parse().as_ref(), Ok(&map));
    let total: u64 = [Change::Data, Change::Zero, Change::Same]
        .map(|change| map.total_of(change))
        .iter()
        .sum();
    assert_eq!(total, map.size());
    assert!(
        map.iter()
            .zip(map.iter().skip(1))
            .all(|((a, x), (b, y))| a.end() == b.offset() && x != y)
    );
}

/// Makes the checksums of both copies of a partition table right, so that more than their mismatch is tested.
fn repair(disk: &mut Sparse) {
    let last = (disk.size() / SECTOR).saturating_sub(1);
    for at in [SECTOR, last.saturating_mul(SECTOR)] {
        let mut header: [u8; SECTOR as usize] = disk.bytes(at);
        let number = |offset| u32::from_le_bytes(disk.bytes(at + offset));
        let entries_lba = u64::from_le_bytes(disk.bytes(at + 72));
        let (length, count, each) = (number(12) as usize, number(80), number(84));
        let (Some(entries_at), Some(entries_len)) = (
            entries_lba.checked_mul(SECTOR),
            count.checked_mul(each).filter(|len| *len <= 128 << 10),
        ) else {
            continue;
        };
        let entries: [u8; 128 << 10] = disk.bytes(entries_at);
        let entries_crc = crc32fast::hash(entries.get(..entries_len as usize).unwrap_or_default());
        put(&mut header, 88, entries_crc);
        put(&mut header, 16, 0);
        let header_crc = crc32fast::hash(header.get(..length).unwrap_or_default());
        put(&mut header, 16, header_crc);
        disk.write(at, &header);
    }
}

fn put(header: &mut [u8], at: usize, number: u32) {
    let target = header.get_mut(at..).unwrap_or_default();
    target
        .iter_mut()
        .zip(number.to_le_bytes())
        .for_each(|(to, from)| *to = from);
}

/// Makes the checksum of a LUKS2 header at the disk's start right, if it is of an ordinary size.
fn repair_luks(disk: &mut Sparse) {
    let mut header: [u8; 4096] = disk.bytes(0);
    let size = u64::from_be_bytes(disk.bytes(8));
    if !(4097..=1 << 16).contains(&size) || disk.size() < size {
        return;
    }
    let area: [u8; 1 << 16] = disk.bytes(4096);
    header[72..104].fill(0);
    header[72..78].copy_from_slice(b"sha256");
    header[448..512].fill(0);
    let area = area.get(..size as usize - 4096).unwrap_or_default();
    let digest = Sha256::new().chain_update(header).chain_update(area).finalize();
    header[448..480].copy_from_slice(&digest);
    disk.write(0, &header);
}

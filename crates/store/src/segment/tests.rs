//! Entries as they are written and read, and what is none.

use std::io::IoSlice;

use super::*;
use crate::files::{Create, Directory as _, Disk, write_all_at};

const NAME: &str = "1";

/// A segment with that content.
fn segment(content: &[u8]) -> (tempfile::TempDir, Arc<dyn File>) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    let file = disk.create(NAME, Create::New).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(content)], 0).unwrap();
    (dir, file)
}

fn entry(tag: Tag, id: Id, object: &[u8]) -> Vec<u8> {
    let (head, len) = head(tag, &id, object);
    [&head[..len], object].concat()
}

fn all(file: &Arc<dyn File>) -> Result<Vec<Entry>> {
    let mut entries = Entries::of(Arc::clone(file), NAME.to_owned())?;
    let mut all = Vec::new();
    while let Some(entry) = entries.next()? {
        all.push(entry);
    }
    Ok(all)
}

fn sample() -> Vec<u8> {
    let mut content = MAGIC.to_vec();
    content.extend(entry(Tag::Put, Id([1; 32]), &vec![5; 600_000]));
    content.extend(entry(Tag::Delete, Id([2; 32]), &[]));
    content.extend(entry(Tag::Put, Id([3; 32]), b""));
    content.extend(entry(Tag::Commit, Id::MANIFEST, &[]));
    content
}

#[test]
fn a_commit_is_always_the_same_nine_bytes() {
    let (head, len) = head(Tag::Commit, &Id::MANIFEST, &[]);
    assert_eq!(head[..len], [0x40, 0xf4, 0x3c, 0x25, 9, 0, 0, 0, 2]);
}

#[test]
fn entries_are_read_in_order_and_objects_by_their_place() {
    let (_dir, file) = segment(&sample());
    let entries = all(&file).unwrap();
    let tags: Vec<Tag> = entries.iter().map(|entry| entry.tag).collect();
    assert_eq!(tags, [Tag::Put, Tag::Delete, Tag::Put, Tag::Commit]);
    assert_eq!(entries[1].offset, 8 + 41 + 600_000);
    let mut object = vec![9; 10];
    get(&*file, NAME, 8, &Id([1; 32]), &mut object).unwrap();
    assert_eq!(object, vec![5; 600_000]);
    assert_eq!(
        put_len(&*file, NAME, entries[2].offset, &Id([3; 32])).unwrap(),
        41
    );
}

#[test]
fn a_place_that_holds_something_else_gives_no_object() {
    let (_dir, file) = segment(&sample());
    let mut object = Vec::new();
    for (offset, id) in [
        (8, 2),
        (9, 1),
        (0, 1),
        (8 + 41 + 600_000, 2),
        (700_000, 1),
        (u32::MAX, 1),
    ] {
        let read = get(&*file, NAME, offset, &Id([id; 32]), &mut object);
        assert!(matches!(read, Err(Error::Damaged { .. })), "{offset}: {read:?}");
    }
}

#[test]
fn a_bit_flipped_anywhere_in_a_segment_is_found() {
    let mut content = MAGIC.to_vec();
    content.extend(entry(Tag::Put, Id([1; 32]), b"an object"));
    content.extend(entry(Tag::Delete, Id([2; 32]), &[]));
    content.extend(entry(Tag::Commit, Id::MANIFEST, &[]));
    for bit in 0..content.len() * 8 {
        let mut flipped = content.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (_dir, file) = segment(&flipped);
        assert!(all(&file).is_err(), "bit {bit}");
        assert!(!ends_with_commit(file, NAME.to_owned()).unwrap(), "bit {bit}");
    }
}

#[test]
fn a_segment_cut_short_is_found_and_is_not_committed() {
    let content = sample();
    for cut in 1..60 {
        let (_dir, file) = segment(&content[..content.len() - cut]);
        let whole_entries = [9, 50].contains(&cut);
        assert_eq!(all(&file).is_ok(), whole_entries, "{cut}");
        assert!(!ends_with_commit(file, NAME.to_owned()).unwrap());
    }
    let (_dir, file) = segment(&content);
    assert!(ends_with_commit(file, NAME.to_owned()).unwrap());
}

#[test]
fn a_commit_within_an_object_or_before_an_entry_is_none() {
    let commit = entry(Tag::Commit, Id::MANIFEST, &[]);
    let mut content = MAGIC.to_vec();
    content.extend(entry(Tag::Put, Id([1; 32]), &commit));
    let (_dir, file) = segment(&content);
    assert!(!ends_with_commit(file, NAME.to_owned()).unwrap());
    let mut content = MAGIC.to_vec();
    content.extend(&commit);
    content.extend(entry(Tag::Put, Id([1; 32]), b""));
    content.extend(&commit);
    let (_dir, file) = segment(&content);
    assert!(!ends_with_commit(file, NAME.to_owned()).unwrap());
}

#[test]
fn an_entry_longer_than_borg_allows_is_refused() {
    let mut content = MAGIC.to_vec();
    content.extend(entry(Tag::Put, Id([1; 32]), &vec![0; MAX_OBJECT + 1]));
    let (_dir, file) = segment(&content);
    assert!(all(&file).is_err());
}

//! Where the files of a repository are: `data/D/N` for segment N, D being N divided by `segments_per_dir`;
//! `index.T`, `hints.T` and `integrity.T` as of transaction T. Borg ignores all other names.

use crate::error::Doing as _;
use crate::files::Directory;
use crate::segment::ends_with_commit;
use crate::{Result, index};

/// The directory of all segments.
pub(crate) const DATA: &str = "data";

/// The directory of a segment.
pub(crate) fn segment_dir(segment: u32, per_dir: u32) -> String {
    format!("{DATA}/{}", segment / per_dir)
}

/// The file of a segment.
pub(crate) fn segment(segment: u32, per_dir: u32) -> String {
    format!("{}/{segment}", segment_dir(segment, per_dir))
}

/// Numbers as Borg writes them, in no order; what is none is not ours.
fn numbers(directory: &dyn Directory, path: &str, prefix: &str) -> Result<Vec<u32>> {
    let number = |name: &String| {
        let digits = name.strip_prefix(prefix)?;
        let number: u32 = digits.parse().ok()?;
        (number <= index::MAX_SEGMENT && number.to_string() == digits).then_some(number)
    };
    match directory.names(path) {
        Ok(names) => Ok(names.iter().filter_map(number).collect()),
        // A file among the directories is none of Borg's.
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Ok(Vec::new()),
        Err(error) => Err(error).doing("list", path),
    }
}

/// All segments, the latest first, read one directory after the other as they are asked for.
pub(crate) fn latest_segments(
    directory: &dyn Directory,
    per_dir: u32,
) -> Result<impl Iterator<Item = Result<u32>> + '_> {
    let mut dirs = numbers(directory, DATA, "")?;
    dirs.sort_unstable_by(|a, b| b.cmp(a));
    Ok(dirs.into_iter().flat_map(move |dir| {
        let found = numbers(directory, &format!("{DATA}/{dir}"), "").map(|mut segments| {
            // A segment in another's directory would not be found again by its number.
            segments.retain(|segment| segment / per_dir == dir);
            segments.sort_unstable_by(|a, b| b.cmp(a));
            segments
        });
        match found {
            Ok(segments) => segments.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        }
    }))
}

/// All segments, in the order of the log.
pub(crate) fn segments(directory: &dyn Directory, per_dir: u32) -> Result<Vec<u32>> {
    let mut segments = latest_segments(directory, per_dir)?.collect::<Result<Vec<_>>>()?;
    segments.reverse();
    Ok(segments)
}

/// The latest transaction that the log holds.
pub(crate) fn committed(directory: &dyn Directory, per_dir: u32) -> Result<Option<u32>> {
    for number in latest_segments(directory, per_dir)? {
        let number = number?;
        let name = segment(number, per_dir);
        let file = directory.open(&name).doing("open", &name)?;
        if ends_with_commit(file, name)? {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// The transactions of which there is an index, the latest first.
pub(crate) fn indexed(directory: &dyn Directory) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for transaction in numbers(directory, "", "index.")? {
        let name = format!("index.{transaction}");
        let file = directory.open(&name).doing("open", &name)?;
        // An empty one is what a full disk left behind; Borg does not count it, either.
        if file.len().doing("examine", &name)? > 0 {
            found.push(transaction);
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Create, Disk};

    #[test]
    fn segments_are_found_by_number_and_other_names_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        for name in ["data", "data/0", "data/1", "data/10", "data/x"] {
            disk.make_dir(name).unwrap();
        }
        disk.create("data/7", Create::New).unwrap();
        for name in [
            "0/9", "0/2", "1/10", "1/9", "10/100", "1/11.tmp", "x/3", "0/03", "10/-1",
        ] {
            disk.create(&format!("data/{name}"), Create::New).unwrap();
        }
        assert_eq!(segments(&disk, 10).unwrap(), [2, 9, 10, 100]);
        assert_eq!(segment(100, 10), "data/10/100");
        let latest: Vec<u32> = latest_segments(&disk, 10).unwrap().map(Result::unwrap).collect();
        assert_eq!(latest, [100, 10, 9, 2]);
    }

    #[test]
    fn an_empty_index_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("index.5", "x"),
            ("index.7", ""),
            ("index.12", "x"),
            ("index.9.tmp", "x"),
        ] {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let disk = Disk::open(dir.path()).unwrap();
        assert_eq!(indexed(&disk).unwrap(), [12, 5]);
    }
}

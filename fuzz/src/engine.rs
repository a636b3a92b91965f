//! What an archive says of itself, and what a person types.
use super::disk::written;
use jiff::Timestamp;
use strongroom_disk::luks::LARGEST_AREA;
use strongroom_engine::inspect::image_seal::Seal;
use strongroom_engine::provision::create::tang;
use strongroom_guest::protocol::{Listener, MAX_CIPHERTEXT, MAX_TEXT, Message};
use strongroom_points::headers::{self, Statement};
use strongroom_points::manifest::{self, Manifest};
use strongroom_points::selector::{PointName, Selector};
use strongroom_points::store::{ArchiveInfo, ChunkId};
use strongroom_points::trust::chain::{Head, Link, Records, walk};
use strongroom_points::trust::witness;

/// A manifest: it is written as it was read, what it names cannot leave its directory, and the swap disks in it can be
/// made or are refused.
pub fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data) else {
        return;
    };
    let bytes = manifest.to_bytes().expect("what was read can be written");
    assert_eq!(Manifest::parse(&bytes).ok().as_ref(), Some(&manifest));
    for target in manifest.disks.iter().map(|disk| &disk.target) {
        let path = manifest::disk_path(target);
        let name = path.strip_prefix("disks/").expect("disks have a directory");
        assert!(!name.contains(['/', '\0']) && !name.starts_with('.'));
        assert!(manifest.disk(target).is_some());
    }
    for disk in &manifest.disks {
        let mut end = 0;
        let mut areas: Vec<_> = disk.areas().collect();
        areas.sort_by_key(|area| area.offset());
        for area in areas {
            assert!(area.offset() >= end && area.end() <= disk.size);
            end = area.end();
        }
    }
    for disk in &manifest.excluded {
        let size = disk.size.unwrap_or(1 << 30);
        if let Some(Ok(writes)) = disk.layout.as_ref().map(|layout| layout.write(size)) {
            written(&writes, size);
        }
    }
}

/// The statement about header areas: it is written as it was read, and what it names cannot leave its directory.
pub fn headers(data: &[u8]) {
    let Ok(statement) = Statement::parse(data) else {
        return;
    };
    let bytes = statement.to_bytes().expect("what was read can be written");
    assert_eq!(Statement::parse(&bytes).as_ref(), Ok(&statement));
    for area in &statement.areas {
        assert!(area.length <= LARGEST_AREA && area.offset.checked_add(area.length).is_some());
        let path = area.path();
        let name = path.strip_prefix("headers/").expect("areas have a directory");
        assert!(!name.contains(['/', '\0']) && !name.starts_with('.'));
        assert_eq!(path, headers::area_path(&area.disk, area.offset));
    }
}

/// The seal on images: it is written as it was read, and each file is in it once.
pub fn image_seal(data: &[u8]) {
    let Ok(seal) = Seal::parse(data) else {
        return;
    };
    let bytes = seal.to_bytes().expect("what was read can be written");
    assert_eq!(Seal::parse(&bytes).ok().as_ref(), Some(&seal));
    assert!(seal.files.is_sorted_by(|a, b| a.name < b.name));
    // These are shown to a person.
    assert!(
        seal.files
            .iter()
            .all(|file| file.name.bytes().all(|byte| byte.is_ascii_graphic()))
    );
}

/// What a witness tells: records are written as they were read, and no chain of them makes the walk stumble.
pub fn witness(data: &[u8]) {
    let Ok(heads) = witness::parse(data) else {
        return;
    };
    let text: String = heads.iter().map(Head::line).collect();
    assert_eq!(witness::parse(text.as_bytes()).ok().as_ref(), Some(&heads));
    let links: Vec<Link> = heads
        .iter()
        .map(|head| Link {
            archive: head.archive.clone(),
            sequence: head.sequence,
            hash: head.hash.clone(),
            previous: (head.sequence > 1).then(|| head.repository.clone()),
            trusted: true,
        })
        .collect();
    let Some(last) = heads.iter().max_by_key(|head| (head.committed, head.sequence)) else {
        return;
    };
    let known = Records {
        heads: heads.clone(),
        ..Records::default()
    };
    // Nothing there at all is never fine once something is on record.
    assert!(
        !walk(&[], &known, &last.repository, last.committed)
            .problems
            .is_empty()
    );
    let found = walk(&links, &known, &last.repository, last.committed);
    for (first, last) in found.removed {
        assert!(first <= last && links.iter().all(|link| !(first..=last).contains(&link.sequence)));
    }
}

/// A restore point's name, on the first line, chosen among archives with the names of the other lines.
pub fn point_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines();
    let Ok(point) = lines.next().unwrap_or_default().parse::<PointName>() else {
        return;
    };
    assert_eq!(point.to_string().parse().as_ref(), Ok(&point));
    let archives: Vec<ArchiveInfo> = (0..)
        .zip(lines)
        .map(|(hour, name)| ArchiveInfo {
            name: name.into(),
            id: ChunkId([0; 32]),
            time: Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(3600 * hour),
        })
        .collect();
    let fitting = archives.iter().filter(|info| point.fits(info));
    let chosen = fitting.max_by_key(|info| (point.names(info), info.time)).cloned();
    match &point.when {
        Selector::Latest => assert_eq!(chosen.as_ref(), archives.last()),
        Selector::Text(text) => {
            let named = archives.iter().rfind(|info| info.name == text.as_str());
            assert!(
                named.is_none() || chosen.as_ref() == named,
                "a whole name goes first"
            );
            assert!(chosen.is_none_or(|chosen| archives.contains(&chosen)));
        }
    }
}

/// What a throwaway VM says: words in their order or an error, however the bytes are cut; a report that passes has nothing
/// in it that could not be shown or stored.
pub fn provision_words(data: &[u8]) {
    let hear = |size: usize| {
        let mut listener = Listener::default();
        let mut words = Vec::new();
        for piece in data.chunks(size) {
            match listener.hear(piece) {
                Ok(more) => words.extend(more),
                Err(_) => break,
            }
        }
        words
    };
    let words = hear(7);
    assert!(hear(1) == words, "words depend on how they are cut");
    for word in words {
        match word {
            Message::Failed { message, .. } => {
                assert!(message.len() <= MAX_TEXT && !message.contains(char::is_control));
            }
            Message::Done(report) if report.check(true, report.backups.is_some()).is_ok() => {
                let secret = report.recovery.unwrap_or_default();
                assert!(secret.len() <= MAX_CIPHERTEXT && secret.starts_with("-----BEGIN AGE"));
                assert!(!report.ssh_host_key.contains(char::is_control));
                assert_eq!(report.luks_uuid.len(), 36);
            }
            _ => {}
        }
    }
}

/// What a Tang server advertises.
pub fn tang_advertisement(data: &[u8]) {
    if let Ok(known) = tang::understand(data) {
        assert!(!known.thumbprints.is_empty());
        assert!(known.thumbprints.iter().all(|text| tang::is_thumbprint(text)));
    }
}

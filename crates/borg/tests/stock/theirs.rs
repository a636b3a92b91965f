//! Archives that stock Borg writes, read by us.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::common::{BLOCK, World, disk, noise, options, read, write};
use strongroom_borg::{Access, ChunkerParams, Compression, Encryption, Item};

#[test]
fn every_compressor_and_chunker() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    let mut content = disk();
    content.extend(noise(3, 3_000_000));
    content.extend((0..2_000_000u32).flat_map(|n| (n / 7).to_le_bytes()));
    std::fs::write(world.path("disk"), &content).unwrap();
    let compressors = [
        "none",
        "lz4",
        "zstd,3",
        "zlib,6",
        "lzma,0",
        "auto,zstd,5",
        "obfuscate,3,zlib,1",
    ];
    for (n, compression) in compressors.iter().enumerate() {
        // Another chunk size for each, so that each compressor gets to store its own chunks.
        let chunker = format!("fixed,{}", 100_000 + n * 4096);
        let name = format!("::{}", compression.replace(',', "-"));
        world.stock(&[
            "create",
            "-C",
            compression,
            "--chunker-params",
            &chunker,
            &name,
            "disk",
        ]);
    }
    world.stock(&["create", "::default", "disk"]);
    let mut repository = world.open(Access::Read);
    let names: Vec<_> = repository.archives().map(|info| info.name.clone()).collect();
    assert_eq!(names.len(), compressors.len() + 1);
    for name in names {
        assert!(
            read(&mut repository, name.as_str().unwrap(), "disk") == content,
            "{name}"
        );
    }
    let archive = repository.archive(&"lz4".into()).unwrap();
    assert_eq!(
        archive.chunker_params,
        Some(ChunkerParams::Fixed {
            block_size: 104_096,
            header_size: 0
        })
    );
    assert_eq!(archive.stats.unwrap().files, 1);
    assert!(archive.command_line.iter().any(|arg| *arg == "create"));
    let default = repository.archive(&"default".into()).unwrap();
    assert!(matches!(default.chunker_params, Some(ChunkerParams::Other(_))));
}

#[test]
fn sparse_archives_with_unaligned_chunks_carry_an_increment() {
    let world = World::with_repository(Encryption::Repokey);
    let path = world.path("disk");
    let file = std::fs::File::create(&path).unwrap();
    let len = (BLOCK * 20 + 4096) as u64;
    file.set_len(len).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(1, 4096 * 3), 4096 * 5).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise(2, BLOCK * 2), (BLOCK * 9 + 8192) as u64).unwrap();
    drop(file);
    let params = format!("--chunker-params=fixed,{BLOCK}");
    world.stock(&["create", "--sparse", &params, "::sparse", "disk"]);
    let content = std::fs::read(&path).unwrap();

    let mut repository = world.open(Access::Write);
    assert!(read(&mut repository, "sparse", "disk") == content);
    let archive = repository.archive(&"sparse".into()).unwrap();
    let item = repository.items(&archive).next().unwrap().unwrap();
    let mut chunks = item.chunks.clone().unwrap();
    assert_eq!(chunks.iter().map(|chunk| u64::from(chunk.size)).sum::<u64>(), len);
    let unaligned = chunks.iter().scan(0, |at, chunk| {
        *at += chunk.size as usize;
        Some(*at)
    });
    assert!(unaligned.filter(|at| at % BLOCK != 0).count() > 2);

    let mut writer = repository.begin(options("ours", Compression::None)).unwrap();
    writer.adopt(chunks.iter().copied());
    let at: usize = chunks[..3].iter().map(|chunk| chunk.size as usize).sum();
    let new = noise(6, chunks[3].size as usize);
    chunks[3] = writer.put_data(&new).unwrap();
    let ours = Item {
        chunks: Some(chunks),
        ..item
    };
    writer.add_item(&ours).unwrap();
    writer.commit().unwrap().0.close().unwrap();
    let mut expected = content;
    expected[at..at + new.len()].copy_from_slice(&new);
    world.stock_accepts("ours", &expected);
}

#[test]
fn links_attributes_and_odd_names() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::with_repository(Encryption::None);
    let tree = world.path("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), noise(1, 5000)).unwrap();
    std::fs::hard_link(tree.join("file"), tree.join("hard")).unwrap();
    std::os::unix::fs::symlink("file", tree.join("soft")).unwrap();
    std::fs::write(tree.join("empty"), b"").unwrap();
    std::fs::write(tree.join(std::ffi::OsStr::from_bytes(b"odd\xff\x1bname")), b"odd").unwrap();
    let attribute = Command::new("setfattr")
        .args(["-n", "user.test", "-v", "value"])
        .arg(tree.join("file"))
        .status();
    world.stock(&["create", "::tree", "tree"]);

    let mut repository = world.open(Access::Read);
    let archive = repository.archive(&"tree".into()).unwrap();
    let items: Vec<Item> = repository.items(&archive).map(Result::unwrap).collect();
    assert_eq!(items.len(), 6);
    let find = |path: &[u8]| items.iter().find(|item| item.path.as_bytes() == path).unwrap();
    let meta = std::fs::metadata(tree.join("file")).unwrap();
    let (file, hard) = (find(b"tree/file"), find(b"tree/hard"));
    for item in [file, hard] {
        assert_eq!((item.mode, item.uid), (meta.mode(), Some(i64::from(meta.uid()))));
        assert_eq!(item.mtime, meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
    }
    let (master, link) = if file.source.is_none() {
        (file, hard)
    } else {
        (hard, file)
    };
    assert!(master.is_intact() && master.hardlink_master == Some(true));
    assert!(!link.is_intact() && link.source.as_ref() == Some(&master.path));
    assert!(
        find(b"tree/soft")
            .source
            .as_ref()
            .is_some_and(|target| *target == "file")
    );
    assert!(find(b"tree/empty").chunks.as_ref().is_some_and(Vec::is_empty));
    assert_eq!(
        find(b"tree/odd\xff\x1bname").path.to_string(),
        "tree/odd\\xff\\u{1b}name"
    );
    if attribute.is_ok_and(|status| status.success()) {
        assert!(master.extra.iter().any(|(key, _)| *key == "xattrs"));
    }
    drop(repository);

    // What was read can be written again, whatever it is.
    let mut repository = world.open(Access::Write);
    let archive = repository.archive(&"tree".into()).unwrap();
    let mut like_theirs = options("copy", Compression::None);
    like_theirs.chunker_params = archive.chunker_params.clone().unwrap();
    let mut writer = repository.begin(like_theirs).unwrap();
    writer.adopt_metadata(&archive);
    for item in &items {
        writer.adopt(item.chunks.iter().flatten().copied());
        writer.add_item(item).unwrap();
    }
    writer.commit().unwrap().0.close().unwrap();
    world.stock(&["check", "--verify-data"]);
    assert_eq!(world.stock(&["diff", "::tree", "copy"]), "");
}

#[test]
fn stock_goes_on_with_its_cache_after_ours() {
    let world = World::with_repository(Encryption::RepokeyBlake2);
    let content = disk();
    std::fs::write(world.path("disk"), &content).unwrap();
    let params = format!("--chunker-params=fixed,{BLOCK}");
    world.stock(&["create", &params, "::s1", "disk"]);
    write(
        world.open(Access::Write),
        "o1",
        &content,
        Some(("s1", &content)),
        Compression::None,
    )
    .0
    .close()
    .unwrap();
    // Neither a question nor a warning, with the cache made before.
    for name in ["::s2", "::s3"] {
        let output = world
            .command(&["create", &params, name, "disk"])
            .output()
            .unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    write(
        world.open(Access::Write),
        "o2",
        &content,
        Some(("s3", &content)),
        Compression::None,
    )
    .0
    .close()
    .unwrap();
    world.stock_accepts("o2", &content);
}

#[test]
fn parts_of_interrupted_runs_are_marked() {
    let world = World::with_repository(Encryption::None);
    let content = noise(8, BLOCK * 30);
    let mut writer = world
        .open(Access::Write)
        .begin(options("a", Compression::None))
        .unwrap();
    let chunks: Vec<_> = content
        .chunks(BLOCK)
        .map(|block| writer.put_data(block).unwrap())
        .collect();
    let part = Item {
        part: Some(1),
        ..Item::regular("disk.borg_part_1", chunks[..10].to_vec())
    };
    writer.add_item(&part).unwrap();
    writer.add_item(&Item::regular("disk", chunks)).unwrap();
    writer.commit().unwrap().0.close().unwrap();
    world.stock_accepts("a", &content);
    let mut repository = world.open(Access::Read);
    let archive = repository.archive(&"a".into()).unwrap();
    let intact: Vec<_> = repository
        .items(&archive)
        .map(|item| item.unwrap().is_intact())
        .collect();
    assert_eq!(intact, [false, true]);
}

//! What the tests share: a world of its own for Borg, and stock Borg as the judge.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use strongroom_borg::{
    Access, ArchiveOptions, Canceller, ChunkRef, Compression, Encryption, Item, Location, Passphrase,
    PassphraseSource, Repository, Settings, Summary,
};

pub const PASSPHRASE: &str = "a test's passphrase ü";
pub const BLOCK: usize = 64 * 1024;

/// The stock Borg under test.
pub fn borg() -> PathBuf {
    std::env::var_os("STRONGROOM_TEST_BORG").map_or_else(|| PathBuf::from("borg"), PathBuf::from)
}

/// A temporary directory with Borg's local files, a repository and scratch space.
pub struct World {
    dir: PathBuf,
    /// Removes the directory in the end; `None` if another world does.
    _owner: Option<tempfile::TempDir>,
    pub settings: Settings,
    pub location: Location,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self::at(dir.path().to_owned());
        Self {
            _owner: Some(dir),
            ..world
        }
    }

    /// A world in a directory of another user's.
    pub fn at(dir: PathBuf) -> Self {
        let mut settings = Settings::from_env().with_base_dir(&dir.join("base"));
        settings.local_borg = borg();
        settings.remote_borg = which(&borg()).display().to_string();
        settings
            .child_env
            .push(("BORG_SELFTEST".into(), "disabled".into()));
        let location = dir.join("repo").display().to_string().parse().unwrap();
        Self {
            dir,
            _owner: None,
            settings,
            location,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn with_repository(encryption: Encryption) -> Self {
        let world = Self::new();
        world.create(encryption);
        world
    }

    pub fn create(&self, encryption: Encryption) {
        Repository::create(&self.location, encryption, &self.settings, &passphrase()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn repo_path(&self) -> PathBuf {
        self.path("repo")
    }

    pub fn open(&self, access: Access) -> Repository {
        self.try_open(access).unwrap()
    }

    pub fn try_open(&self, access: Access) -> strongroom_borg::Result<Repository> {
        Repository::open(&self.location, access, &self.settings, &passphrase())
    }

    /// A stock Borg command in this world.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(borg());
        command
            .args(args)
            .current_dir(&self.dir)
            .env("BORG_BASE_DIR", self.path("base"))
            .env("BORG_PASSPHRASE", PASSPHRASE)
            .env("BORG_REPO", self.location.to_string())
            .env("BORG_RSH", &self.settings.rsh)
            .env("BORG_REMOTE_PATH", &self.settings.remote_borg)
            .env("BORG_SELFTEST", "disabled")
            .env_remove("BORG_PASSCOMMAND")
            .stdin(Stdio::null());
        command
    }

    /// Runs stock Borg, which must succeed without any warning, and returns what it printed.
    pub fn stock(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert_ok(&output, args);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A script that stands in for Borg: `before`, then the real one.
    pub fn wrapped_borg(&self, name: &str, before: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(name);
        let script = format!("#!/bin/sh\n{before} '{}' \"$@\"\n", which(&borg()).display());
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Stock Borg's opinion of the repository, and of the content of an archive's `disk`.
    pub fn stock_accepts(&self, archive: &str, content: &[u8]) {
        self.stock(&["check", "--verify-data"]);
        assert!(
            self.stock(&["list", "--short"])
                .lines()
                .any(|line| line == archive)
        );
        assert!(self.stock(&["list", &format!("::{archive}")]).contains("disk"));
        assert!(self.stock(&["info", &format!("::{archive}")]).contains(archive));
        self.stock_extracts(archive, content);
    }

    pub fn stock_extracts(&self, archive: &str, content: &[u8]) {
        let out = self.path("out");
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir(&out).unwrap();
        let args = ["extract", "--sparse", &format!("::{archive}")];
        let output = self.command(&args).current_dir(&out).output().unwrap();
        assert_ok(&output, &args);
        assert!(
            std::fs::read(out.join("disk")).unwrap() == content,
            "extracted content differs"
        );
    }
}

pub fn assert_ok(output: &Output, args: &[&str]) {
    assert!(
        output.status.success(),
        "borg {args:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub fn passphrase() -> PassphraseSource {
    PassphraseSource::fixed(Passphrase::new(PASSPHRASE.to_owned()))
}

pub fn which(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| path.exists())
        .expect("borg is installed")
}

/// Bytes that do not compress, the same for each seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}

/// A disk of noise, a hole, text and a short last block.
pub fn disk() -> Vec<u8> {
    let mut disk = noise(1, BLOCK * 8);
    disk.extend(std::iter::repeat_n(0, BLOCK * 6));
    disk.extend(b"text that compresses well ".iter().cycle().take(BLOCK * 4));
    disk.extend(noise(2, 5000));
    disk
}

pub fn options(name: &str, compression: Compression) -> ArchiveOptions {
    let mut options = ArchiveOptions::new(name);
    options.compression = compression;
    options.chunker_params = strongroom_borg::ChunkerParams::Fixed {
        block_size: BLOCK as u64,
        header_size: 0,
    };
    options
}

/// Writes `content` as item `disk` of a new archive; with a previous archive, only the blocks that changed.
pub fn write(
    mut repository: Repository,
    name: &str,
    content: &[u8],
    previous: Option<(&str, &[u8])>,
    compression: Compression,
) -> (Repository, Summary) {
    let old = previous.map(|(name, old)| {
        let archive = repository.archive(&name.into()).unwrap();
        let item = repository
            .items(&archive)
            .map(Result::unwrap)
            .find(|item| item.path == "disk")
            .unwrap();
        assert!(item.is_intact());
        (archive, item.chunks.unwrap(), old)
    });
    let mut writer = repository.begin(options(name, compression)).unwrap();
    if let Some((archive, chunks, _)) = &old {
        writer.adopt(chunks.iter().copied());
        writer.adopt_metadata(archive);
    }
    let mut chunks: Vec<ChunkRef> = Vec::new();
    for (index, block) in content.chunks(BLOCK).enumerate() {
        let same = old.as_ref().and_then(|(_, chunks, old)| {
            (old.chunks(BLOCK).nth(index) == Some(block)).then(|| chunks[index])
        });
        chunks.push(match same {
            Some(chunk) => chunk,
            None if block.iter().all(|byte| *byte == 0) => writer.zero_chunk(block.len() as u32).unwrap(),
            None => writer.put_data(block).unwrap(),
        });
    }
    writer.add_item(&Item::regular("disk", chunks)).unwrap();
    writer.commit().unwrap()
}

/// Reads the content of an item, in worker fashion.
pub fn read(repository: &mut Repository, archive: &str, path: &str) -> Vec<u8> {
    let archive = repository.archive(&archive.into()).unwrap();
    let item = repository
        .items(&archive)
        .map(Result::unwrap)
        .find(|item| item.path == path)
        .unwrap();
    let mut content = Vec::new();
    repository
        .read_chunks(item.chunks.unwrap_or_default(), |_, data| {
            content.write_all(data).unwrap();
            Ok(())
        })
        .unwrap();
    content
}

/// Waits until a connection is over: a thread that was waiting for the server may hold it a moment longer.
pub fn wait_for_end(canceller: &Canceller) {
    let begin = Instant::now();
    while !canceller.is_over() {
        assert!(
            begin.elapsed() < Duration::from_secs(40),
            "the connection is still open"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

//! A template for the tests that make machines: built once for all of them, and kept in the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use strongroom_testkit::run;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Where it is, and who has signed it.
pub struct Templates {
    directory: PathBuf,
    program: String,
}

impl Templates {
    /// Builds it if it is not there: minutes.
    pub fn get() -> Self {
        let program = run(&mut Command::new(format!("{ROOT}/scripts/guest-program")));
        let sources = "cat crates/engine/src/provision/template/build.* $(find crates/guest/src -type f | sort) | sha256sum | cut -c 1-16";
        let key = run(Command::new("sh").args(["-c", sources]).current_dir(ROOT));
        let cache = std::env::var_os("STRONGROOM_CACHE").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/strongroom"),
            PathBuf::from,
        );
        fs::create_dir_all(&cache).unwrap();
        let lock = File::create(cache.join("test-template.lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let directory = cache.join(format!("test-template-{key}"));
        if !directory.is_dir() {
            let draft = cache.join(format!("test-template-{key}.{}", std::process::id()));
            fs::create_dir(&draft).unwrap();
            build(&draft, &program);
            fs::rename(&draft, &directory).unwrap();
        }
        Self { directory, program }
    }

    /// Lines for a configuration that uses it.
    pub fn config(&self) -> String {
        format!(
            "templates = '{0}/templates'\n\n[signing]\nkey = '{0}/key'\nallowed_signers = '{0}/allowed_signers'\n",
            self.directory.display()
        )
    }

    /// The template `base`.
    pub fn base(&self) -> PathBuf {
        self.directory.join("templates/base")
    }

    /// The program of the throwaway VM.
    pub fn program(&self) -> &str {
        &self.program
    }
}

fn build(place: &Path, program: &str) {
    let config = place.join("strongroom.toml");
    let text = format!("repository = '{0}/{{vm}}'\nstate = '{0}'\n", place.display());
    fs::write(&config, text).unwrap();
    let strongroom = |arguments: &[&str]| {
        run(Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(arguments)
            .env("STRONGROOM_CONFIG", &config)
            .env("STRONGROOM_GUEST", program));
    };
    let key = place.join("key").display().to_string();
    strongroom(&["init", "--signing-key", &key, "--unprotected-signing-key"]);
    strongroom(&["template", "build", "debian-12", "--name", "base"]);
}

//! Stock Borg: its command line, and its own repository class driven call by call.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use serde_json::{Value, json};
use strongroom_store::Id;
use tempfile::TempDir;

/// A stock `borg` with configuration, keys and caches of its own.
pub struct Stock {
    program: PathBuf,
    base: TempDir,
}

impl Stock {
    /// The one that the tests are run against: `STRONGROOM_TEST_BORG`, or the packaged one.
    pub fn new() -> Self {
        let named = std::env::var_os("STRONGROOM_TEST_BORG").map_or_else(|| "borg".into(), PathBuf::from);
        Self::at(&named)
    }

    /// The packaged one.
    pub fn packaged() -> Self {
        Self::at(Path::new("borg"))
    }

    fn at(program: &Path) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path)
            .map(|dir| dir.join(program))
            .find(|candidate| candidate.is_file())
            .expect("find borg in PATH");
        Self {
            program,
            base: tempfile::tempdir().unwrap(),
        }
    }

    fn environment(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env("BORG_BASE_DIR", self.base.path())
            .env("BORG_PASSPHRASE", "correct horse battery staple")
            .env("BORG_SELFTEST", "disabled")
            .env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes")
            .env("BORG_CHECK_I_KNOW_WHAT_I_AM_DOING", "YES");
    }

    /// Runs a command and returns how it ended.
    pub fn output(&self, args: &[&str], cwd: &Path) -> Output {
        let mut command = Command::new(&self.program);
        self.environment(&mut command);
        command.args(args).current_dir(cwd).output().unwrap()
    }

    /// Runs a command, which has to succeed without a word of warning. Returns what it printed.
    #[track_caller]
    pub fn run(&self, args: &[&str], cwd: &Path) -> String {
        let output = self.output(args, cwd);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && errors.is_empty(),
            "{args:?}: {}\n{errors}",
            output.status
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a driver of its repository class.
    pub fn driver(&self) -> Driver {
        let script = std::fs::read_to_string(&self.program).unwrap();
        let python = script.lines().next().unwrap().trim_start_matches("#!").to_owned();
        let mut command = Command::new(python.split(' ').next().unwrap());
        self.environment(&mut command);
        let mut child = command
            .args(["-c", include_str!("driver.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Driver {
            requests: child.stdin.take(),
            replies: BufReader::new(child.stdout.take().unwrap()),
            child,
            warnings: Vec::new(),
        }
    }

    /// A driver that has a repository open for writing.
    pub fn writer(&self, repository: &Path) -> Driver {
        let mut driver = self.driver();
        driver.open(repository, true).unwrap();
        driver
    }
}

/// Stock Borg's repository class in a process of its own.
pub struct Driver {
    child: Child,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    /// What it warned of, unless that was taken.
    pub warnings: Vec<String>,
}

impl Driver {
    /// Calls a method; an error is the name of its class.
    pub fn call(&mut self, method: &str, args: impl Into<Value>) -> Result<Value, String> {
        let request = json!({"method": method, "args": args.into()});
        writeln!(self.requests.as_ref().unwrap(), "{request}").unwrap();
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        let mut reply: Value = serde_json::from_str(&line).expect("an answer of the driver");
        for warning in reply["warnings"].as_array().unwrap() {
            self.warnings.push(warning.as_str().unwrap().to_owned());
        }
        match reply["error"].as_str() {
            Some(class) => Err(class.to_owned()),
            None => Ok(reply["ok"].take()),
        }
    }

    pub fn open(&mut self, repository: &Path, exclusive: bool) -> Result<Value, String> {
        let args = json!({"path": repository, "exclusive": exclusive, "lock_wait": 0.5});
        self.call("open", args)
    }

    pub fn create(&mut self, repository: &Path) {
        self.call(
            "open",
            json!({"path": repository, "create": true, "exclusive": true}),
        )
        .unwrap();
    }

    pub fn close(&mut self) {
        self.call("close", json!({})).unwrap();
    }

    pub fn put(&mut self, id: &Id, data: &[u8]) -> Result<(), String> {
        self.call("put", json!({"id": id.to_string(), "data": hex(data)}))
            .map(drop)
    }

    pub fn delete(&mut self, id: &Id) -> Result<(), String> {
        self.call("delete", json!({"id": id.to_string()})).map(drop)
    }

    pub fn get(&mut self, id: &Id) -> Result<Vec<u8>, String> {
        self.call("get", json!({"id": id.to_string()}))
            .map(|data| unhex(data.as_str().unwrap()))
    }

    pub fn commit(&mut self, compact: bool) -> Result<(), String> {
        self.call("commit", json!({"compact": compact, "threshold": 0.0}))
            .map(drop)
    }

    pub fn list(&mut self) -> Vec<Id> {
        let ids = self.call("list", json!({})).unwrap();
        ids.as_array()
            .unwrap()
            .iter()
            .map(|id| id_of(id.as_str().unwrap()))
            .collect()
    }

    /// Stock Borg's check of all segments and of the index; true if all is well.
    pub fn check(&mut self) -> bool {
        self.call("check", json!({})).unwrap().as_bool().unwrap()
    }

    /// Ends the process at once, as a kill would.
    pub fn die(mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.requests.take());
        let _ = self.child.wait();
        if !std::thread::panicking() {
            assert!(self.warnings.is_empty(), "stock Borg warns: {:?}", self.warnings);
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn id_of(text: &str) -> Id {
    Id(unhex(text).try_into().unwrap())
}

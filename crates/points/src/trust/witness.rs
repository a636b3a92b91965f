//! The witness: a list of [`Head`]s that the repository's host cannot reach, one line of JSON for each restore point.
//!
//! A file (on another machine's share, in a git repository), or any command that takes a line on standard input; another
//! one gives the lines back. Lines are only ever added.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_base::bounded;
use strongroom_base::cancel::Cancel;
use strongroom_base::exec::{self, Call, ExecError, Needs, Output};

use super::chain::Head;
use super::settings::Witness;

/// The longest list that is read, in bytes: some 200,000 restore points.
const MAX_BYTES: u64 = 64 << 20;
/// How long a command may take.
const TIME: Duration = Duration::from_mins(2);

/// Why the witness was not told, or did not tell.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The file.
    #[error("use the witness {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A command did not run.
    #[error("use the witness: {0}")]
    Exec(#[from] ExecError),
    /// A command failed.
    #[error("use the witness: {program} failed: {words}")]
    Failed {
        /// The command.
        program: String,
        /// Its words.
        words: String,
    },
    /// What it says is not what it was told.
    #[error("use the witness: line {line} is invalid: {reason}")]
    Line {
        /// Number of the line, from 1 on.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Too much.
    #[error("use the witness: it has more than {MAX_BYTES} bytes")]
    TooLarge,
}

/// Whether the witness can be told of a restore point, as far as that is known before there is one. No line is
/// written.
pub fn check(witness: &Witness, cancel: &Cancel) -> Result<(), WitnessError> {
    if let Some(path) = &witness.file {
        at(path, cancel, |path| open(path).map(drop))?;
    }
    for command in [&witness.command, &witness.read_command].into_iter().flatten() {
        let program = command.first().map(OsStr::new).unwrap_or_default();
        exec::find(program).map_err(|source| ExecError::Spawn {
            program: program.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

/// Tells the witness of a new restore point.
pub fn report(witness: &Witness, head: &Head, cancel: &Cancel) -> Result<(), WitnessError> {
    let line = head.line();
    if let Some(path) = &witness.file {
        let line = line.clone();
        at(path, cancel, move |path| append(path, line.as_bytes()))?;
    }
    if let Some(command) = &witness.command {
        call(command, line.as_bytes(), cancel)?;
    }
    Ok(())
}

/// All that the witness knows; nothing if it cannot be asked, because only writing to it is configured.
pub fn ask(witness: &Witness, cancel: &Cancel) -> Result<Vec<Head>, WitnessError> {
    let mut heads = Vec::new();
    if let Some(path) = &witness.file {
        match at(path, cancel, read) {
            Ok(Some(bytes)) => heads.extend(parse(&bytes)?),
            Ok(None) => return Err(WitnessError::TooLarge),
            // Nothing was ever told.
            Err(WitnessError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(command) = &witness.read_command {
        heads.extend(parse(&call(command, b"", cancel)?.out)?);
    }
    Ok(heads)
}

/// Reads the lines. One that is not understood is an error: a list that was tampered with, or cut short, proves nothing.
pub fn parse(bytes: &[u8]) -> Result<Vec<Head>, WitnessError> {
    bytes
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(number, line)| {
            Head::parse(line).map_err(|reason| WitnessError::Line {
                line: number + 1,
                reason,
            })
        })
        .collect()
}

/// Does something with the file, which may be on another machine's storage, or locked by a run that hangs.
fn at<T: Send + 'static>(
    path: &Path,
    cancel: &Cancel,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, WitnessError> {
    let own = path.to_owned();
    let done = bounded::within(TIME, cancel, move || work(&own));
    done.and_then(|done| done).map_err(|source| WitnessError::File {
        path: path.to_owned(),
        source,
    })
}

/// Opens the file to add to it, and makes it if it is not there.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn append(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = open(path)?;
    // Other VMs' runs write here too.
    file.lock()?;
    let mut bytes = Vec::new();
    if ends_in_a_line(&mut file)? {
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(line);
    file.write_all(&bytes)?;
    file.sync_all()
}

/// Whether a write was cut short here.
fn ends_in_a_line(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_BYTES).then_some(bytes))
}

fn call(command: &[String], input: &[u8], cancel: &Cancel) -> Result<Output, WitnessError> {
    let mut words = command.iter().map(OsStr::new);
    let program = words.next().unwrap_or_default();
    let call = Call {
        program,
        needs: Needs::Keys,
        arguments: words.collect(),
        input,
        time: TIME,
        limit: MAX_BYTES,
    };
    let output = exec::run(&call, cancel)?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(WitnessError::Failed {
            program: program.display().to_string(),
            words: exec::words(&output),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn head(sequence: u64) -> Head {
        Head {
            format: 1,
            vm: "web".into(),
            repository: "00".into(),
            archive: "a".into(),
            sequence,
            hash: "h".into(),
            committed: Timestamp::UNIX_EPOCH,
            counter: None,
        }
    }

    #[test]
    fn what_a_file_is_told_it_tells() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("witness.jsonl");
        let witness = Witness {
            file: Some(path.clone()),
            ..Witness::default()
        };
        let cancel = Cancel::new();
        assert!(ask(&witness, &cancel).unwrap().is_empty());
        for number in 1..=3 {
            report(&witness, &head(number), &cancel).unwrap();
        }
        assert_eq!(ask(&witness, &cancel).unwrap(), [head(1), head(2), head(3)]);
        // A line that was cut short does not spoil the next one, and is not passed over.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 9]).unwrap();
        report(&witness, &head(4), &cancel).unwrap();
        assert!(matches!(
            ask(&witness, &cancel),
            Err(WitnessError::Line { line: 3, .. })
        ));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(parse(text.lines().last().unwrap().as_bytes()).unwrap(), [head(4)]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let asked = |path: PathBuf| {
            let file = Some(path);
            let witness = Witness {
                file,
                ..Witness::default()
            };
            ask(&witness, &Cancel::new())
        };
        let no = asked(directory.path().to_owned());
        assert!(matches!(no, Err(WitnessError::File { .. })), "{no:?}");
        let path = directory.path().join("endless");
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        let no = asked(path);
        assert!(matches!(no, Err(WitnessError::TooLarge)), "{no:?}");
    }

    /// K7.
    #[test]
    fn what_could_not_be_told_is_known_before() {
        let directory = tempfile::tempdir().unwrap();
        let says = |witness: &Witness| check(witness, &Cancel::new());
        let file = |path: PathBuf| Witness {
            file: Some(path),
            ..Witness::default()
        };
        let path = directory.path().join("witness.jsonl");
        for _ in 0..2 {
            says(&file(path.clone())).unwrap();
        }
        assert!(ask(&file(path.clone()), &Cancel::new()).unwrap().is_empty());
        for bad in [
            path.join("below"),
            directory.path().join("no/such"),
            directory.path().to_owned(),
        ] {
            assert!(matches!(says(&file(bad)), Err(WitnessError::File { .. })));
        }
        let command = |name: &str| Witness {
            command: Some(vec![name.to_owned(), "argument".to_owned()]),
            ..Witness::default()
        };
        says(&command("sh")).unwrap();
        let error = says(&command("no-such-program")).unwrap_err().to_string();
        assert!(error.contains("start no-such-program"), "{error}");
    }

    /// R10: the lock is held by a process that hangs.
    #[test]
    fn a_file_that_hangs_ends_with_the_work() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("witness.jsonl");
        let held = File::create(&path).unwrap();
        held.lock().unwrap();
        let witness = Witness {
            file: Some(path),
            ..Witness::default()
        };
        let cancel = Cancel::new();
        let part = cancel.within(Some(Duration::from_millis(300)));
        let error = report(&witness, &head(1), &part.cancel).unwrap_err().to_string();
        assert!(error.contains("the time limit"), "{error}");
    }

    /// With the configuration that `docs/guide/verify.md` shows.
    #[test]
    fn a_git_repository_elsewhere_remembers_what_was_pushed() {
        let page = include_str!("../../../../docs/guide/verify.md");
        let (_, rest) = page.split_once("```toml\n[witness]   # in git\n").unwrap();
        let (table, _) = rest.split_once("```").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        let git = |arguments: &[&str]| {
            let made = std::process::Command::new("git")
                .args(arguments)
                .status()
                .unwrap();
            assert!(made.success(), "{arguments:?}");
        };
        git(&["init", "-q", "--bare", &at("origin")]);
        git(&[
            "-C",
            &at("origin"),
            "config",
            "receive.denyNonFastForwards",
            "true",
        ]);
        let clone = |name: &str| -> Witness {
            git(&["clone", "-q", &at("origin"), &at(name)]);
            git(&["-C", &at(name), "config", "user.name", "lab"]);
            git(&["-C", &at(name), "config", "user.email", "lab@test"]);
            toml::from_str(&table.replace("/srv/witness", &at(name))).unwrap()
        };
        let cancel = Cancel::new();
        let here = clone("here");
        for number in 1..=2 {
            report(&here, &head(number), &cancel).unwrap();
        }
        // Another machine, with nothing but a clone; it hears of what is told later as well.
        let elsewhere = clone("elsewhere");
        assert_eq!(ask(&elsewhere, &cancel).unwrap(), [head(1), head(2)]);
        report(&here, &head(3), &cancel).unwrap();
        assert_eq!(ask(&elsewhere, &cancel).unwrap(), [head(1), head(2), head(3)]);
        // Out of reach, it is told of and not passed over.
        std::fs::rename(at("origin"), at("away")).unwrap();
        report(&here, &head(4), &cancel).unwrap_err();
        ask(&elsewhere, &cancel).unwrap_err();
        // What could not be pushed goes with the next one.
        std::fs::rename(at("away"), at("origin")).unwrap();
        report(&here, &head(5), &cancel).unwrap();
        let told = ask(&elsewhere, &cancel).unwrap();
        assert_eq!(told, [1, 2, 3, 4, 5].map(head));
    }

    #[test]
    fn any_command_will_do() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lines").display().to_string();
        let words = |script: String| Some(["sh", "-c", &script].map(str::to_owned).to_vec());
        let witness = Witness {
            command: words(format!("cat >> {file}")),
            read_command: words(format!("cat {file}")),
            ..Witness::default()
        };
        let cancel = Cancel::new();
        report(&witness, &head(1), &cancel).unwrap();
        report(&witness, &head(2), &cancel).unwrap();
        assert_eq!(ask(&witness, &cancel).unwrap(), [head(1), head(2)]);
        let broken = Witness {
            command: words("echo no space >&2; exit 1".into()),
            ..Witness::default()
        };
        let error = report(&broken, &head(3), &cancel).unwrap_err().to_string();
        assert!(error.contains("no space"), "{error}");
    }
}

//! Puts right what a restore left that died.
//!
//! | the restore died … | what happens here |
//! |---|---|
//! | while it wrote | its temporary files go |
//! | while files took their places | they go, what was there before is there again |
//! | when all had taken their places | they stay, the domain is defined, what was there before goes |
//!
//! What to do about a file is decided from the journal and from which file has which name now ([`back`], [`forward`]). A file
//! that a domain uses by now, or that is none of the restore's, is left alone and named.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use strongroom_base::record::RecordError;
use strongroom_hypervisor::HypervisorError;

use super::Inventory;
use super::directory::{Directory, Identity};
use super::journal::{Destination, Entry, Phase, STAGE_PREFIX, abandoned, close};
use super::staged::names_beside;
use crate::run::context::Context;
use crate::run::state::StateError;

/// Why it stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum RestoreLeft {
    /// Our records.
    #[error(transparent)]
    State(#[from] StateError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// It takes a person to say how to go on. The journal stays.
    #[error("put right what an interrupted restore of {vm} left: {}; its journal is {}", .what.join("; "), .journal.display())]
    Unclear {
        /// The VM.
        vm: String,
        /// What is the matter with which file.
        what: Vec<String>,
        /// The journal.
        journal: std::path::PathBuf,
    },
}

/// Which files have the names of one place now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Now {
    destination: Option<Identity>,
    temporary: Option<Identity>,
    aside: Option<Identity>,
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// The temporary name goes.
    DropTemporary,
    /// The name of what was there before goes.
    DropAside,
    /// The place becomes free.
    Free,
    /// What has the temporary name takes the place.
    FromTemporary,
    /// What stands aside takes the place.
    FromAside,
}

/// How a file that has, or has not, taken its place gives it back. Nothing if that cannot be told.
fn back(file: &Destination, now: Now) -> Option<Vec<Act>> {
    let Some(before) = file.before else {
        return Some(
            match (now.destination == file.new && file.new.is_some(), now.temporary) {
                (true, None) => vec![Act::Free],
                (true, Some(_)) => vec![Act::Free, Act::DropTemporary],
                (false, Some(_)) => vec![Act::DropTemporary],
                (false, None) => Vec::new(),
            },
        );
    };
    let (old, new) = (Some(before), file.new);
    let acts = match (now.destination, now.temporary, now.aside) {
        (destination, temporary, aside) if destination == old => {
            let mut acts = Vec::new();
            acts.extend(temporary.map(|_| Act::DropTemporary));
            acts.extend(aside.filter(|_| aside == old).map(|_| Act::DropAside));
            acts
        }
        (destination, temporary, _) if destination == new && temporary == old => vec![Act::FromTemporary],
        (destination, _, aside) if destination == new && aside == old => vec![Act::FromAside],
        (None, temporary, aside) if aside == old => {
            let mut acts = vec![Act::FromAside];
            acts.extend(temporary.map(|_| Act::DropTemporary));
            acts
        }
        _ => return None,
    };
    Some(acts)
}

/// How a file that has taken its place stays there. Nothing if it is not there.
fn forward(file: &Destination, now: Now) -> Option<Vec<Act>> {
    if file.new.is_none() {
        // It was given up, and the others restored without it.
        return Some(now.temporary.map(|_| Act::DropTemporary).into_iter().collect());
    }
    if now.destination != file.new {
        return None;
    }
    let mut acts = Vec::new();
    if now.temporary.is_some() && (now.temporary == file.before || now.temporary == file.new) {
        acts.push(Act::DropTemporary);
    }
    if now.aside.is_some() && now.aside == file.before {
        acts.push(Act::DropAside);
    }
    Some(acts)
}

/// One file of a journal, with the names beside it.
struct At<'a> {
    file: &'a Destination,
    directory: Directory,
    name: OsString,
    temporary: OsString,
    aside: OsString,
}

impl<'a> At<'a> {
    /// Nothing if the directory is not there: then nothing is.
    fn of(file: &'a Destination, token: &str) -> io::Result<Option<Self>> {
        let directory = match Directory::open(file.path.parent().unwrap_or(Path::new("/"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let name = file.path.file_name().unwrap_or_default().to_owned();
        let (temporary, aside) = names_beside(&name, token);
        Ok(Some(Self {
            file,
            directory,
            name,
            temporary,
            aside,
        }))
    }

    fn now(&self) -> io::Result<Now> {
        Ok(Now {
            destination: self.directory.find(&self.name)?,
            temporary: self.directory.find(&self.temporary)?,
            aside: self.directory.find(&self.aside)?,
        })
    }

    fn act(&self, act: Act) -> io::Result<()> {
        let directory = &self.directory;
        match act {
            Act::DropTemporary => directory.remove(&self.temporary),
            Act::DropAside => directory.remove(&self.aside),
            Act::Free => directory.remove(&self.name),
            Act::FromTemporary => directory.put_back(&self.name, &self.temporary),
            Act::FromAside if directory.find(&self.name)?.is_none() => {
                directory.take(&self.aside, &self.name)
            }
            Act::FromAside => directory.put_back(&self.name, &self.aside),
        }?;
        directory.sync()
    }
}

/// Puts right what interrupted restores of this VM left, or those of all. Returns the VMs, and what was found of each.
pub fn recover(
    context: &Context<'_>,
    vm: Option<&str>,
    dry_run: bool,
) -> Result<Vec<(String, String)>, RestoreLeft> {
    let mut found = Vec::new();
    for (path, entry, lock) in abandoned(context.state)? {
        let uuid = entry.uuid.map(|uuid| uuid.to_string());
        if vm.is_some_and(|vm| vm != entry.vm && Some(vm) != uuid.as_deref()) {
            continue;
        }
        let what = match entry.phase {
            Phase::Writing => "what it had written goes",
            Phase::Taking => "what was there before is there again",
            Phase::Taken => "what it has restored stays",
        };
        found.push((
            entry.vm.clone(),
            format!(
                "the restore that began at {} was interrupted: {what}",
                entry.started.strftime("%Y-%m-%d %H:%M:%S UTC")
            ),
        ));
        if dry_run {
            continue;
        }
        put_right(context, &path, &entry)?;
        close(&path, &lock).map_err(|source| StateError::from(RecordError::Io { path, source }))?;
    }
    Ok(found)
}

/// Finds, and puts right, what versions without a journal have left beside images: `.strongroom-NAME.PID.new` and `.old`.
pub fn unjournalled(images: &Path, dry_run: bool) -> io::Result<Vec<(String, String)>> {
    let directory = match Directory::open(images) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut found = Vec::new();
    for file in std::fs::read_dir(images)? {
        let beside = file?.file_name();
        let Some((name, kind)) = beside.to_str().and_then(left_by_the_dead) else {
            continue;
        };
        let (free, shown) = (
            directory.find(name.as_ref()).is_ok_and(|found| found.is_none()),
            images.join(&beside),
        );
        let shown = shown.display();
        let what = match (kind, free) {
            ("new", _) => format!("{shown} is of a restore that died: it goes"),
            (_, true) => format!("{shown} was {name} before a restore that died: it is that again"),
            (_, false) => format!("{shown} was {name} before a restore that died: remove it, or put it back"),
        };
        found.push((name.to_owned(), what));
        match (kind, free) {
            _ if dry_run => {}
            ("new", _) => directory.remove(&beside)?,
            (_, true) => directory.take(&beside, name.as_ref())?,
            (_, false) => {}
        }
    }
    Ok(found)
}

/// The file's name and `new` or `old`, if the process that left it is not there any more.
fn left_by_the_dead(beside: &str) -> Option<(&str, &str)> {
    let (rest, kind) = beside.strip_prefix(".strongroom-")?.rsplit_once('.')?;
    let (name, process) = rest.rsplit_once('.')?;
    let process: u32 = process.parse().ok()?;
    let dead = !Path::new("/proc").join(process.to_string()).exists();
    (dead && ["new", "old"].contains(&kind)).then_some((name, kind))
}

fn put_right(context: &Context<'_>, journal: &Path, entry: &Entry) -> Result<(), RestoreLeft> {
    let unclear = |what: Vec<String>| RestoreLeft::Unclear {
        vm: entry.vm.clone(),
        what,
        journal: journal.to_owned(),
    };
    let decide = if entry.phase == Phase::Taken {
        forward
    } else {
        back
    };
    let (mut todo, mut odd) = (Vec::new(), Vec::new());
    for file in &entry.files {
        let shown = file.path.display();
        match At::of(file, &entry.token).and_then(|at| at.map(|at| at.now().map(|now| (at, now))).transpose())
        {
            Err(error) => odd.push(format!("{shown}: {error}")),
            Ok(None) if entry.phase == Phase::Taken => odd.push(format!("{shown}: its directory is gone")),
            Ok(None) => {}
            Ok(Some((at, now))) => match decide(file, now) {
                Some(acts) => todo.push((at, acts)),
                None => odd.push(format!(
                    "{shown}: it is neither the restored file nor what was there before"
                )),
            },
        }
    }
    if !odd.is_empty() {
        return Err(unclear(odd));
    }
    if entry.phase == Phase::Taken {
        define(context, entry)?;
    } else if context.hypervisor.is_local() {
        let changes = |acts: &[Act]| {
            acts.iter()
                .any(|act| !matches!(act, Act::DropTemporary | Act::DropAside))
        };
        let inventory = Inventory::take(context.hypervisor)?;
        for (at, _) in todo.iter().filter(|(_, acts)| changes(acts)) {
            if let Some(why) = in_the_way(&inventory, &at.file.path, at.file.before.is_none()) {
                return Err(unclear(vec![format!("{}: {why}", at.file.path.display())]));
            }
        }
    }
    for (at, acts) in &todo {
        for act in acts {
            let path = at.file.path.display();
            at.act(*act)
                .map_err(|error| unclear(vec![format!("{path}: {error}")]))?;
            context.state.step();
        }
        for directory in at.file.made.iter().filter(|_| entry.phase != Phase::Taken) {
            let _ = std::fs::remove_dir(directory);
        }
    }
    if let Some(stage) = entry.stage.as_deref().filter(|stage| is_stage(stage)) {
        let _ = std::fs::remove_dir_all(stage);
    }
    Ok(())
}

/// A directory with the name that a restore gives it, and ours.
fn is_stage(stage: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let named = stage
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(STAGE_PREFIX));
    let ours = stage
        .symlink_metadata()
        .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw());
    named && ours
}

/// Defines the domain, if that has not been done.
fn define(context: &Context<'_>, entry: &Entry) -> Result<(), RestoreLeft> {
    let Some(definition) = &entry.definition else {
        return Ok(());
    };
    match context.hypervisor.define(definition, entry.overwrite) {
        Ok(_) => Ok(()),
        Err(HypervisorError::Exists(..)) if is_defined(context, entry)? => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the domain of that name has the restored files.
fn is_defined(context: &Context<'_>, entry: &Entry) -> Result<bool, RestoreLeft> {
    let inventory = Inventory::take(context.hypervisor)?;
    for file in &entry.files {
        if let Some(held) = inventory.users_of(&file.path).next() {
            return Ok(held.domain == entry.vm);
        }
    }
    Ok(false)
}

/// Which domain keeps a file from being put back. A file that was not there before is of no domain but the restored one; one
/// that was may be that of a domain which is off.
fn in_the_way(inventory: &Inventory, path: &Path, is_new: bool) -> Option<String> {
    if let Some(held) = inventory.users_of(path).find(|held| held.now || is_new) {
        return Some(format!("domain {:?} has it", held.domain));
    }
    let unread = inventory.unread().first()?;
    Some(format!(
        "whether domain {:?} has it cannot be determined ({}); wait until that VM answers again, or end it with `virsh destroy`",
        unread.domain, unread.reason
    ))
}

#[cfg(test)]
mod tests {
    use strongroom_hypervisor::{Role, Store, Use, User};

    use super::*;

    fn file(inode: u64) -> Identity {
        Identity { device: 1, inode }
    }

    fn now(destination: Option<Identity>, temporary: Option<Identity>, aside: Option<Identity>) -> Now {
        Now {
            destination,
            temporary,
            aside,
        }
    }

    /// Row "death between rename and link": what version 0.1.0 left is found as well.
    #[test]
    fn what_has_no_journal_is_known_by_its_name() {
        let images = tempfile::tempdir().unwrap();
        let own = std::process::id();
        let put = |name: &str| std::fs::write(images.path().join(name), name).unwrap();
        let living = format!(".strongroom-c.qcow2.{own}.new");
        for name in [
            ".strongroom-a.qcow2.4194305.new",
            ".strongroom-a.qcow2.4194305.old",
            ".strongroom-b.qcow2.4194305.old",
            "b.qcow2",
            ".strongroom-a.qcow2.r0123.new",
            &living,
        ] {
            put(name);
        }
        assert_eq!(unjournalled(images.path(), true).unwrap().len(), 3);
        assert_eq!(unjournalled(images.path(), false).unwrap().len(), 3);
        let exists = |name: &str| images.path().join(name).exists();
        assert!(exists("a.qcow2") && exists(&living) && exists(".strongroom-a.qcow2.r0123.new"));
        assert!(!exists(".strongroom-a.qcow2.4194305.new") && !exists(".strongroom-a.qcow2.4194305.old"));
        let left = unjournalled(images.path(), false).unwrap();
        assert!(left.len() == 1 && left[0].1.contains("put it back"), "{left:?}");
        assert_eq!(unjournalled(Path::new("/no/such"), false).unwrap(), []);
    }

    #[test]
    fn what_is_known_goes_back_or_forward_and_nothing_else() {
        let [old, new, other] = [1, 2, 3].map(|number| Some(file(number)));
        let replaced = Destination {
            path: "/images/vda.qcow2".into(),
            made: Vec::new(),
            new,
            before: old,
        };
        let back_of = |now| back(&replaced, now);
        assert_eq!(back_of(now(old, new, None)), Some(vec![Act::DropTemporary]));
        assert_eq!(back_of(now(new, old, None)), Some(vec![Act::FromTemporary]));
        assert_eq!(back_of(now(new, None, old)), Some(vec![Act::FromAside]));
        assert_eq!(
            back_of(now(None, new, old)),
            Some(vec![Act::FromAside, Act::DropTemporary])
        );
        assert_eq!(
            back_of(now(old, new, old)),
            Some(vec![Act::DropTemporary, Act::DropAside])
        );
        assert_eq!(back_of(now(other, old, None)), None);
        assert_eq!(back_of(now(None, None, None)), None);
        assert_eq!(
            forward(&replaced, now(new, old, None)),
            Some(vec![Act::DropTemporary])
        );
        assert_eq!(
            forward(&replaced, now(new, None, old)),
            Some(vec![Act::DropAside])
        );
        assert_eq!(forward(&replaced, now(new, other, other)), Some(Vec::new()));
        assert_eq!(forward(&replaced, now(other, old, None)), None);

        let made = Destination {
            before: None,
            ..replaced
        };
        assert_eq!(back(&made, now(new, None, None)), Some(vec![Act::Free]));
        assert_eq!(back(&made, now(other, new, None)), Some(vec![Act::DropTemporary]));
        assert_eq!(back(&made, now(None, None, None)), Some(Vec::new()));
        // Died while it was written: what has the place is none of ours.
        let writing = Destination { new: None, ..made };
        assert_eq!(
            back(&writing, now(None, new, None)),
            Some(vec![Act::DropTemporary])
        );
        assert_eq!(back(&writing, now(other, None, None)), Some(Vec::new()));
        assert_eq!(forward(&writing, now(other, None, None)), Some(Vec::new()));
    }

    /// A domain that hangs may have any file that is there.
    #[test]
    fn nothing_is_put_back_that_a_domain_may_have() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, "x").unwrap();
        let user = |now: bool, unread: Option<&str>| User {
            name: "web".into(),
            uuid: uuid::Uuid::nil(),
            active: now,
            uses: vec![Use {
                store: Store::Path(path.clone()),
                role: Role::Disk("vda".into()),
                format: Some("raw".into()),
                writable: true,
                shareable: false,
                now,
            }],
            unread: unread.map(str::to_owned),
        };
        let of = |users: &[User], is_new: bool| in_the_way(&Inventory::of(users, true), &path, is_new);
        assert_eq!(of(&[], true), None);
        assert_eq!(of(&[user(false, None)], false), None);
        for (users, is_new) in [([user(true, None)], false), ([user(false, None)], true)] {
            assert!(of(&users, is_new).unwrap().contains("\"web\" has it"));
        }
        let dead = User {
            uses: Vec::new(),
            ..user(true, Some("cannot acquire state change lock"))
        };
        for is_new in [true, false] {
            let why = of(std::slice::from_ref(&dead), is_new).unwrap();
            assert!(
                why.contains("cannot be determined") && why.contains("virsh destroy"),
                "{why}"
            );
        }
    }
}

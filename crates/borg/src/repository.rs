//! An open repository.

pub mod fetch;
pub mod writer;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use self::fetch::{Fetch, Ids, Items};
use crate::archive::{Archive, ArchiveInfo};
use crate::crypto::{Encryption, Keys, NONCE_OFFSET, parse_blob};
use crate::manifest::Manifest;
use crate::msgpack::Value;
use crate::nonce::Reserver;
use crate::opener::Opener;
use crate::passphrase::MAX_ATTEMPTS;
use crate::rpc::{Rpc, Transport};
use crate::security::{Replayed, SecurityDir};
use crate::settings::EventCallback;
use crate::{
    ArchiveOptions, ArchiveWriter, Canceller, ChunkId, ChunkRef, Error, Location, Name, PassphraseRequest,
    PassphraseSource, RepositoryId, Result, Settings, Spare, keyfile,
};

/// What a repository is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading under a shared lock: others may read too.
    Read,
    /// Reading without a lock, for storage that cannot be written to. A write meanwhile makes reads fail.
    ReadWithoutLock,
    /// Writing under an exclusive lock.
    Write,
}

/// A connection to a repository whose keys are unlocked and whose manifest is verified.
///
/// Dropping it closes the connection and waits for the server process to end.
pub struct Repository {
    pub(crate) rpc: Rpc,
    pub(crate) keys: Arc<Keys>,
    pub(crate) manifest: Manifest,
    pub(crate) security: SecurityDir,
    pub(crate) reserver: Reserver,
    pub(crate) events: Option<EventCallback>,
    replayed: Option<Replayed>,
    access: Access,
    id: RepositoryId,
    location: Location,
}

impl Repository {
    /// Creates a repository by calling the stock `borg init`.
    pub fn create(
        location: &Location,
        encryption: Encryption,
        settings: &Settings,
        passphrase: &PassphraseSource,
    ) -> Result<()> {
        crate::init::create(location, encryption, settings, passphrase)
    }

    /// Opens a repository: starts the server, takes the lock, unlocks the key, verifies the manifest, and makes sure
    /// that it is the repository known from before, in no older state (see [`Settings::accept_replay`]).
    pub fn open(
        location: &Location,
        access: Access,
        settings: &Settings,
        passphrase: &PassphraseSource,
    ) -> Result<Self> {
        let transport = Transport::spawn(location, settings)?;
        Self::open_over(transport, location, access, settings, passphrase)
    }

    /// As [`Repository::open`], over a connection made by the caller.
    pub fn open_over(
        transport: Transport,
        location: &Location,
        access: Access,
        settings: &Settings,
        passphrase: &PassphraseSource,
    ) -> Result<Self> {
        let mut rpc = Rpc::new(transport, location.to_string(), settings.events.clone())?;
        negotiate(&mut rpc)?;
        let id = open_repository(&mut rpc, location, access, settings)?;
        let security = SecurityDir::new(settings, id, location);

        let object = rpc.get(&ChunkId::MANIFEST).map_err(|error| match error {
            Error::ObjectNotFound(_) => Error::NoManifest,
            other => other,
        })?;
        let type_byte = object.first().copied().unwrap_or(0xff);
        let encryption = Encryption::from_type_byte(type_byte)
            .ok_or_else(|| Error::Unsupported(format!("a key of unknown type {type_byte:#04x}")))?;
        let Unlocked {
            keys,
            secret,
            passphrase_taken,
        } = unlock(
            &mut rpc, encryption, id, &security, location, settings, passphrase,
        )?;
        let data = keys.open(&ChunkId::MANIFEST, &object, 0)?;
        let tam_required = keys.tam_required().unwrap_or_else(|| security.tam_required());
        let manifest = Manifest::parse(&keys, &data, tam_required)?;
        manifest.check_features(if access == Access::Write {
            &["read", "write"]
        } else {
            &["read"]
        })?;
        let replayed = security.check(encryption, secret, manifest.timestamp())?;
        if let Some(Replayed { found, expected }) = replayed.clone()
            && (access == Access::Write || !settings.accept_replay)
        {
            return Err(Error::Replay { found, expected });
        }
        if passphrase_taken {
            security.set_took_secret()?;
        }
        if encryption != Encryption::None && replayed.is_none() {
            security.set_tam_required(manifest.tam_required())?;
        }

        let after_manifest = if encryption.is_encrypted() {
            nonce_after(&object)
        } else {
            0
        };
        let reserver = Reserver::new(security.clone(), after_manifest);
        Ok(Self {
            rpc,
            keys: Arc::new(keys),
            manifest,
            security,
            reserver,
            events: settings.events.clone(),
            replayed,
            access,
            id,
            location: location.clone(),
        })
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// The time of its manifest: later than that of any manifest before. One that makes no sense counts as very old.
    pub fn timestamp(&self) -> jiff::Timestamp {
        crate::time::parse(self.manifest.timestamp()).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    /// The time of the newest manifest that was seen, if that is newer than this one: an old copy was put back. Only with
    /// [`Settings::accept_replay`].
    pub fn replayed(&self) -> Option<&str> {
        self.replayed.as_ref().map(|replayed| replayed.expected.as_str())
    }

    /// Remembers that the present state is the newest one after all: it was meant to be put back.
    pub fn accept_state(&mut self) -> Result<()> {
        self.security
            .save(self.keys.encryption(), self.manifest.timestamp())?;
        self.replayed = None;
        Ok(())
    }

    /// The first encryption counter that is certainly not used, once some were reserved in this session.
    pub fn free_counter(&self) -> Option<u64> {
        Some(self.reserver.ledger().end()).filter(|end| *end > 0)
    }

    /// Encryption counters below this are used, whatever the repository and its server say.
    pub fn start_above(&self, counter: u64) {
        self.reserver.ledger().start_above(counter);
    }

    /// How many objects there are, those of metadata included. Whatever is removed changes it.
    pub fn object_count(&mut self) -> Result<u64> {
        let count = self.rpc.call("__len__", &[])?;
        count
            .as_u64()
            .ok_or_else(|| Error::Protocol("a count that is no number".to_owned()))
    }

    /// Which of these objects the repository does not have, by its index: one pass over the list of all.
    pub fn lacking(&mut self, mut wanted: HashSet<ChunkId>) -> Result<HashSet<ChunkId>> {
        for id in self.list_ids() {
            wanted.remove(&id?);
            if wanted.is_empty() {
                break;
            }
        }
        Ok(wanted)
    }

    /// How its content is protected.
    pub fn encryption(&self) -> Encryption {
        self.keys.encryption()
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What it is open for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Its archives in the order of time, checkpoints of interrupted stock runs included.
    pub fn archives(&self) -> impl ExactSizeIterator<Item = &ArchiveInfo> + DoubleEndedIterator {
        self.manifest.archives().iter()
    }

    /// Reads an archive's object and verifies it.
    pub fn archive(&mut self, name: &Name) -> Result<Archive> {
        let info = self
            .manifest
            .archives()
            .iter()
            .find(|info| info.name == *name)
            .cloned();
        self.archive_by_info(&info.ok_or_else(|| Error::ArchiveNotFound(name.clone()))?)
    }

    /// Reads the object of a listed archive and verifies it.
    pub fn archive_by_info(&mut self, info: &ArchiveInfo) -> Result<Archive> {
        let object = self.rpc.get(&info.id)?;
        let data = self.keys.open(&info.id, &object, 0)?;
        Archive::parse(&self.keys, info, &data)
    }

    /// The items of an archive, read as the iterator goes on.
    pub fn items(&mut self, archive: &Archive) -> Items<'_> {
        Items::new(self, archive.item_ids.clone())
    }

    /// Reads objects in the given order, requesting some ahead. See [`Fetch`].
    pub fn fetch<I: IntoIterator<Item = ChunkRef>>(&mut self, chunks: I) -> Fetch<'_, I::IntoIter> {
        Fetch::new(&mut self.rpc, chunks.into_iter())
    }

    /// Verifies and decrypts fetched objects, in any thread.
    pub fn opener(&self) -> Opener {
        Opener::new(Arc::clone(&self.keys))
    }

    /// Requests sent to the server so far.
    pub fn requests(&self) -> u64 {
        self.rpc.requests()
    }

    /// Takes back the memory of objects that are done with: the next ones come in it.
    pub fn spare(&self) -> Spare {
        self.rpc.spare()
    }

    /// Reads, verifies and decrypts chunks one after the other.
    pub fn read_chunks(
        &mut self,
        chunks: impl IntoIterator<Item = ChunkRef>,
        mut consume: impl FnMut(&ChunkRef, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let opener = self.opener();
        for (chunk, object) in self.fetch(chunks) {
            consume(&chunk, &opener.open(&chunk, object?)?)?;
        }
        Ok(())
    }

    /// The ids of all objects, those of metadata included.
    pub fn list_ids(&mut self) -> Ids<'_> {
        Ids::new(&mut self.rpc)
    }

    /// Begins a new archive. The repository has to be open for writing.
    pub fn begin(self, options: ArchiveOptions) -> Result<ArchiveWriter> {
        ArchiveWriter::new(self, options)
    }

    /// Whether the server keeps what its clients delete or overwrite (`borg serve --append-only`, or `append_only` in the
    /// repository's own configuration). The repository has to be open for writing; nothing in it is changed.
    ///
    /// Deleting itself is accepted either way, so the server is asked for a repair, which it refuses in that mode. It is
    /// asked in the middle of a transaction, in which a server without that mode refuses as well, for another reason. The
    /// transaction is never committed.
    pub fn probe_append_only(mut self) -> Result<bool> {
        if self.access != Access::Write {
            return Err(Error::NotWritable);
        }
        let mut id = [0; 32];
        getrandom::fill(&mut id).map_err(|error| Error::Setting {
            name: "random numbers",
            reason: error.to_string(),
        })?;
        self.rpc
            .send_put(&ChunkId(id), b"strongroom asks whether this can be undone")?;
        self.rpc.receive()?;
        let arguments = [("repair", true.into()), ("save_space", false.into())];
        match self.rpc.call("check", &arguments) {
            Err(Error::Remote { class, message, .. }) if class == "ValueError" => {
                Ok(message.contains("append-only"))
            }
            Err(Error::Remote { class, .. }) if class == "AssertionError" => Ok(false),
            Err(error) => Err(error),
            Ok(_) => Ok(false),
        }
    }

    /// A handle that ends the connection from any thread.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(self.rpc.process())
    }

    /// Closes the connection and waits for the server process; its failure is an error.
    pub fn close(mut self) -> Result<()> {
        match self.rpc.close() {
            Some(status) if !status.success() => Err(Error::ServerGone {
                doing: "closing the repository".to_owned(),
                status: Some(status),
                message: String::new(),
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.id)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

/// The version we announce: the server only records it.
const CLIENT_VERSION: [i64; 4] = [1, 4, 0, -1];

fn negotiate(rpc: &mut Rpc) -> Result<()> {
    let version = Value::Array(CLIENT_VERSION.map(Value::from).to_vec());
    let reply = rpc.call(
        "negotiate",
        &[("client_data", Value::map([("client_version", version)]))],
    )?;
    match reply.get("server_version").and_then(Value::as_array) {
        Some([major, minor, ..]) if major.as_u64() == Some(1) && minor.as_u64() >= Some(1) => Ok(()),
        _ => Err(Error::Unsupported(
            "a server other than Borg 1.1 to 1.4".to_owned(),
        )),
    }
}

fn open_repository(
    rpc: &mut Rpc,
    location: &Location,
    access: Access,
    settings: &Settings,
) -> Result<RepositoryId> {
    let path = location.served_path();
    let id = rpc.call(
        "open",
        &[
            ("path", path.as_str().into()),
            ("create", false.into()),
            ("lock_wait", settings.lock_wait.as_secs().into()),
            ("lock", (access != Access::ReadWithoutLock).into()),
            ("exclusive", (access == Access::Write).into()),
            ("append_only", false.into()),
            ("make_parent_dirs", false.into()),
        ],
    )?;
    let id = id.as_raw().and_then(|id| id.try_into().ok()).map(RepositoryId);
    id.ok_or_else(|| Error::Protocol("a repository id that is not of 32 bytes".to_owned()))
}

/// The keys of a repository.
struct Unlocked {
    keys: Keys,
    /// It takes a secret to have them.
    secret: bool,
    /// That secret is a passphrase, around a key that the server keeps.
    passphrase_taken: bool,
}

/// Unlocks the keys. One that the server offers without a passphrase, where there was one with a passphrase before, is the
/// server's own.
fn unlock(
    rpc: &mut Rpc,
    encryption: Encryption,
    id: RepositoryId,
    security: &SecurityDir,
    location: &Location,
    settings: &Settings,
    source: &PassphraseSource,
) -> Result<Unlocked> {
    if encryption == Encryption::None {
        return Ok(Unlocked {
            keys: Keys::plaintext(),
            secret: false,
            passphrase_taken: false,
        });
    }
    let (text, place) = if encryption.has_key_file() {
        let (text, path) = keyfile::find(settings, id)?;
        (text, path.display().to_string())
    } else {
        let blob = rpc.call("load_key", &[])?;
        (blob.as_raw().unwrap_or_default().to_vec(), location.to_string())
    };
    let unusable = |reason: &str| Error::Key {
        place: place.clone(),
        reason: reason.to_owned(),
    };
    if text.is_empty() {
        return Err(unusable("there is none"));
    }
    let blob = parse_blob(&text).map_err(unusable)?;
    let unlock = |passphrase: &crate::Passphrase| {
        let Some(keys) = blob.unlock(encryption, passphrase).map_err(unusable)? else {
            return Ok(None);
        };
        let passphrase_taken = !encryption.has_key_file() && !passphrase.as_bytes().is_empty();
        if !encryption.has_key_file() && !passphrase_taken && security.took_secret() {
            return Err(Error::SecretGone);
        }
        Ok(Some(Unlocked {
            keys,
            secret: encryption.is_encrypted() && (encryption.has_key_file() || passphrase_taken),
            passphrase_taken,
        }))
    };
    if let Some(passphrase) = source.given()? {
        return unlock(&passphrase)?.ok_or(Error::WrongPassphrase);
    }
    if let Some(keys) = unlock(&crate::Passphrase::new(String::new()))? {
        return Ok(keys);
    }
    for attempt in 1..=MAX_ATTEMPTS {
        let request = PassphraseRequest {
            key: place.clone(),
            attempt,
            new: false,
        };
        let Some(passphrase) = source.ask(&request) else {
            return Err(if attempt == 1 {
                Error::NoPassphrase
            } else {
                Error::WrongPassphrase
            });
        };
        if let Some(keys) = unlock(&passphrase)? {
            source.keep(passphrase);
            return Ok(keys);
        }
    }
    Err(Error::WrongPassphrase)
}

/// An upper bound of the counters that the manifest object uses.
fn nonce_after(object: &[u8]) -> u64 {
    let nonce = object
        .get(NONCE_OFFSET..)
        .and_then(|rest| rest.first_chunk::<8>())
        .copied()
        .map_or(0, u64::from_be_bytes);
    nonce.saturating_add((object.len() as u64).div_ceil(16))
}

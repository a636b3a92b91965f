//! `lock.roster`: `{"shared": [[HOST, PID, THREAD]], "exclusive": […]}`. It is changed only by the holder of
//! `lock.exclusive`, and removed when it is empty. One that cannot be read counts as empty, as it does for Borg.

use std::io::IoSlice;

use serde_json::{Value, json};

use super::holder::Holder;
use crate::Result;
use crate::error::Doing as _;
use crate::files::{Create, Directory, read_all, write_all_at};

const FILE: &str = "lock.roster";
const MAX_LEN: u64 = 1 << 20;

/// Who reads and who writes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Roster {
    pub(super) shared: Vec<Holder>,
    pub(super) exclusive: Vec<Holder>,
}

impl Roster {
    pub(super) fn load(directory: &dyn Directory) -> Result<Self> {
        match read_all(directory, FILE, MAX_LEN).doing("read", FILE) {
            Ok(bytes) => Ok(Self::parse(&bytes).unwrap_or_default()),
            Err(error) if error.is_absent() => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(bytes).ok()?;
        let list = |key: &str| match &json[key] {
            Value::Null => Some(Vec::new()),
            Value::Array(list) => list.iter().map(holder).collect(),
            _ => None,
        };
        Some(Self {
            shared: list("shared")?,
            exclusive: list("exclusive")?,
        })
    }

    pub(super) fn save(&self, directory: &dyn Directory) -> Result<()> {
        if self == &Self::default() {
            return match directory.unlink(FILE).doing("remove", FILE) {
                Err(error) if !error.is_absent() => Err(error),
                _ => Ok(()),
            };
        }
        let list = |holders: &[Holder]| -> Vec<Value> {
            holders
                .iter()
                .map(|holder| json!([holder.host, holder.pid, holder.thread]))
                .collect()
        };
        let text = json!({"shared": list(&self.shared), "exclusive": list(&self.exclusive)}).to_string();
        directory
            .create(FILE, Create::Replace)
            .and_then(|file| write_all_at(&*file, &mut [IoSlice::new(text.as_bytes())], 0))
            .doing("write", FILE)
    }
}

fn holder(value: &Value) -> Option<Holder> {
    match value.as_array()?.as_slice() {
        [host, pid, thread] => Some(Holder {
            host: host.as_str()?.to_owned(),
            pid: pid.as_i64()?,
            thread: thread.as_i64()?,
        }),
        _ => None,
    }
}

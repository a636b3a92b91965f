//! QEMU's own monitor (QMP), spoken through libvirt: what QEMU really does with the disks of a running domain.
//!
//! libvirt notes in the domain's log that this was used (`custom-monitor`). Apart from the repair in
//! `chains::behind`, it is only asked, never told.

pub mod nodes;

use serde_json::{Value, json};
use virt::domain::Domain;
use virt::error::Error;

/// Longest answer that is looked at, in bytes.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub enum MonitorError {
    /// libvirt did not pass it on.
    Libvirt(Error),
    /// QEMU refused, or its answer cannot be understood.
    Qemu(String),
}

impl From<String> for MonitorError {
    fn from(message: String) -> Self {
        Self::Qemu(message)
    }
}

/// The monitor of a running domain.
#[derive(Debug, Clone, Copy)]
pub struct Monitor<'a>(pub &'a Domain);

impl Monitor<'_> {
    /// The guest's drives that have a medium.
    pub fn drives(self) -> Result<Vec<nodes::Drive>, MonitorError> {
        Ok(nodes::drives(&self.ask("query-block", &json!({}))?)?)
    }

    /// All block nodes that have a name.
    pub fn nodes(self) -> Result<Vec<nodes::Node>, MonitorError> {
        Ok(nodes::nodes(
            &self.ask("query-named-block-nodes", &json!({"flat": true}))?,
        )?)
    }

    /// All jobs that QEMU has not forgotten.
    pub fn jobs(self) -> Result<Vec<nodes::Job>, MonitorError> {
        Ok(nodes::jobs(&self.ask("query-jobs", &json!({}))?)?)
    }

    /// Sends one command; returns what it returns.
    pub fn ask(self, command: &str, arguments: &Value) -> Result<Value, MonitorError> {
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        let answer = self
            .0
            .qemu_monitor_command(&request, 0)
            .map_err(MonitorError::Libvirt)?;
        answered(command, &answer).map_err(MonitorError::Qemu)
    }
}

/// Reads an answer: what was returned, or QEMU's own words for why nothing was.
pub fn answered(command: &str, answer: &str) -> Result<Value, String> {
    if answer.len() > MAX_BYTES {
        return Err(format!(
            "QEMU's answer to {command} has {} bytes, more than {MAX_BYTES}",
            answer.len()
        ));
    }
    let mut answer: Value = serde_json::from_str(answer)
        .map_err(|error| format!("QEMU's answer to {command} cannot be read: {error}"))?;
    if let Some(error) = answer.get("error") {
        let words = error
            .get("desc")
            .and_then(Value::as_str)
            .unwrap_or("no reason given");
        return Err(format!("{command}: {}", words.replace(char::is_control, " ")));
    }
    match answer.get_mut("return") {
        Some(returned) => Ok(returned.take()),
        None => Err(format!(
            "QEMU's answer to {command} holds neither a result nor an error"
        )),
    }
}

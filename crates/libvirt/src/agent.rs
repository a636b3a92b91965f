//! The guest agent, by its own protocol over libvirt (`virDomainQemuAgentCommand`).
//!
//! Every request carries its time limit, so that nothing about the domain is changed for libvirt's other users
//! (`virDomainAgentSetResponseTimeout` would be for all of them). libvirt synchronises with the agent before a request
//! if the one before it was not answered, and that takes up to five seconds more; and it holds a request back for up to
//! half a minute while another one is under way.
//!
//! What comes back is the guest's word: bounded, parsed as exactly what was asked for, never printed as it is.
//! Source of the messages: QEMU's guest agent protocol reference (`qga/qapi-schema.json`).

use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use strongroom_hypervisor::{Agent, FreezeStatus, GuestExit, HypervisorError};
use uuid::Uuid;
use virt::error::{Error, ErrorNumber};

use crate::connection::{Libvirt, words};
use crate::hypervisor::is;
use crate::xml::{child, children, parse};

/// The name of the agent's channel.
const CHANNEL: &str = "org.qemu.guest_agent.0";
/// Longest reply that is looked at, in bytes; libvirt itself stops at 10 MiB.
const MAX_REPLY: usize = 12 << 20;
/// Longest of the agent's own words in an error, in characters.
const MAX_WORDS: usize = 300;
/// What is kept of a command's output, in bytes: its end.
const MAX_OUTPUT: usize = 16 << 10;
/// How long the agent may take to start a command, or to say whether it has ended.
const BRIEF: Duration = Duration::from_secs(5);
/// Between two looks at a command that runs: at first, and later.
const POLL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

impl Agent for Libvirt {
    fn agent_connected(&self, domain: Uuid) -> Result<bool, HypervisorError> {
        let what = || format!("look for the guest agent of domain {domain}");
        let xml = self.handle(domain)?.xml_desc(0);
        let xml = xml.map_err(|error| self.failed(what(), &error))?;
        is_connected(&xml).map_err(|message| HypervisorError::Failed {
            what: what(),
            message,
        })
    }

    fn agent_ping(&self, domain: Uuid, at_most: Duration) -> Result<(), HypervisorError> {
        let request = json!({ "execute": "guest-ping" });
        let Nothing {} = self.ask(domain, "ping the guest agent", &request, at_most)?;
        Ok(())
    }

    fn freeze(&self, domain: Uuid, at_most: Duration) -> Result<u32, HypervisorError> {
        let request = json!({ "execute": "guest-fsfreeze-freeze" });
        self.ask(domain, "freeze the file systems", &request, at_most)
    }

    fn thaw(&self, domain: Uuid, at_most: Duration) -> Result<u32, HypervisorError> {
        let request = json!({ "execute": "guest-fsfreeze-thaw" });
        self.ask(domain, "thaw the file systems", &request, at_most)
    }

    fn freeze_status(&self, domain: Uuid, at_most: Duration) -> Result<FreezeStatus, HypervisorError> {
        let request = json!({ "execute": "guest-fsfreeze-status" });
        let status = self.ask(domain, "ask whether file systems are frozen", &request, at_most)?;
        Ok(match status {
            Status::Thawed => FreezeStatus::Thawed,
            Status::Frozen => FreezeStatus::Frozen,
        })
    }

    fn run_in_guest(
        &self,
        domain: Uuid,
        command: &str,
        at_most: Duration,
    ) -> Result<GuestExit, HypervisorError> {
        let what = "run a command in the guest";
        let deadline = Instant::now() + at_most;
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", command], "capture-output": true });
        let request = json!({ "execute": "guest-exec", "arguments": arguments });
        let Started { pid } = self.ask(domain, what, &request, BRIEF.min(at_most))?;
        let request = json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
        let mut pause = POLL.0;
        loop {
            let ended: Ended = self.ask(domain, what, &request, BRIEF)?;
            if ended.exited {
                return exit(&ended).map_err(|message| HypervisorError::Failed {
                    what: format!("{what} of domain {domain}"),
                    message,
                });
            }
            if Instant::now() >= deadline {
                return Err(HypervisorError::Failed {
                    what: format!("{what} of domain {domain}"),
                    message: format!("it still runs after {} seconds", at_most.as_secs()),
                });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(POLL.1);
        }
    }
}

impl Libvirt {
    /// Sends one request and reads its answer.
    fn ask<T: DeserializeOwned>(
        &self,
        domain: Uuid,
        what: &str,
        request: &serde_json::Value,
        at_most: Duration,
    ) -> Result<T, HypervisorError> {
        let what = || format!("{what} of domain {domain}");
        let reply = self
            .handle(domain)?
            .qemu_agent_command(&request.to_string(), seconds(at_most), 0)
            .map_err(|error| self.agent_failed(what(), &error))?;
        answer(&reply).map_err(|message| HypervisorError::Failed {
            what: what(),
            message,
        })
    }

    fn agent_failed(&self, what: String, error: &Error) -> HypervisorError {
        if is(error, ErrorNumber::AgentCommandFailed) {
            let message = shortened(&words(error));
            return HypervisorError::Refused { what, message };
        }
        match self.failed(what, error) {
            HypervisorError::Failed { what, message } => HypervisorError::Failed {
                what,
                message: shortened(&message),
            },
            other => other,
        }
    }
}

/// `guest-ping` returns an empty object.
#[derive(Deserialize)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Thawed,
    Frozen,
}

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Ended {
    exited: bool,
    #[serde(rename = "exitcode")]
    exit_code: Option<i32>,
    out_data: Option<String>,
    err_data: Option<String>,
}

/// The value that a reply returns.
fn answer<T: DeserializeOwned>(reply: &str) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Reply<T> {
        #[serde(rename = "return")]
        value: T,
    }
    if reply.len() > MAX_REPLY {
        return Err(format!("the guest agent's answer has {} bytes", reply.len()));
    }
    let Reply { value } = serde_json::from_str(reply)
        .map_err(|error| format!("the guest agent's answer is not understood: {error}"))?;
    Ok(value)
}

/// How a command ended, by what the agent says of it.
fn exit(ended: &Ended) -> Result<GuestExit, String> {
    let mut bytes = Vec::new();
    for data in [&ended.out_data, &ended.err_data].into_iter().flatten() {
        let part = STANDARD
            .decode(data)
            .map_err(|error| format!("the guest agent's answer is not understood: {error}"))?;
        bytes.extend_from_slice(&part[part.len().saturating_sub(MAX_OUTPUT)..]);
    }
    Ok(GuestExit {
        status: ended.exit_code,
        output: String::from_utf8_lossy(&bytes).into_owned(),
    })
}

/// Whether the guest has opened its end of the agent's channel, by the live definition.
fn is_connected(xml: &str) -> Result<bool, String> {
    let document = parse(xml, "domain")?;
    let channels =
        children(document.root_element(), "devices").flat_map(|devices| children(devices, "channel"));
    Ok(channels
        .filter_map(|channel| child(channel, "target"))
        .any(|target| {
            target.attribute("name") == Some(CHANNEL) && target.attribute("state") == Some("connected")
        }))
}

/// Whole seconds, as libvirt counts; at least one, since zero would mean not to wait at all.
fn seconds(at_most: Duration) -> i32 {
    let rounded_up = at_most.as_millis().div_ceil(1000).max(1);
    i32::try_from(rounded_up).unwrap_or(i32::MAX)
}

fn shortened(message: &str) -> String {
    message.chars().take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_what_was_asked_is_one() {
        assert!(answer::<Nothing>(r#"{"return":{}}"#).is_ok());
        assert_eq!(answer::<u32>(r#"{"return":3}"#), Ok(3));
        for hostile in [
            "",
            "{}",
            "3",
            r#"{"return":-1}"#,
            r#"{"return":4294967296}"#,
            r#"{"return":"3"}"#,
            r#"{"return":null}"#,
            r#"{"return":3}{"return":4}"#,
            r#"{"error":{"class":"GenericError"}}"#,
            "\0",
        ] {
            assert!(answer::<u32>(hostile).is_err(), "{hostile}");
        }
        assert!(answer::<Status>(r#"{"return":"melting"}"#).is_err());
        let deep = "[".repeat(100_000);
        assert!(answer::<Nothing>(&format!(r#"{{"return":{deep}"#)).is_err());
        let long = format!(r#"{{"return":"{}"}}"#, "x".repeat(MAX_REPLY));
        assert!(answer::<String>(&long).unwrap_err().contains("bytes"));
    }

    #[test]
    fn the_end_of_a_commands_output_is_kept() {
        let ended = |json: &str| answer::<Ended>(&format!(r#"{{"return":{json}}}"#)).unwrap();
        let both =
            ended(r#"{"exited":true,"exitcode":3,"out-data":"b3V0Cg==","err-data":"ZXJyCg==","more":1}"#);
        let both = exit(&both).unwrap();
        assert_eq!((both.status, both.output.as_str()), (Some(3), "out\nerr\n"));
        let signal = exit(&ended(r#"{"exited":true,"signal":9}"#)).unwrap();
        assert_eq!((signal.status, signal.output.as_str()), (None, ""));
        let mut much = vec![b'a'; 1 << 20];
        much.push(b'z');
        let much = ended(&format!(
            r#"{{"exited":true,"out-data":"{}"}}"#,
            STANDARD.encode(much)
        ));
        let much = exit(&much).unwrap().output;
        assert_eq!((much.len(), much.ends_with('z')), (MAX_OUTPUT, true));
        assert!(exit(&ended(r#"{"exited":true,"out-data":"!"}"#)).is_err());
    }

    #[test]
    fn an_agent_is_connected_if_its_own_channel_is() {
        let domain = |name: &str, state: &str| {
            format!(
                "<domain><devices><channel type='unix'><target type='virtio' name='{name}' state='{state}'/></channel>\
                 </devices></domain>"
            )
        };
        assert_eq!(is_connected(&domain(CHANNEL, "connected")), Ok(true));
        assert_eq!(is_connected(&domain(CHANNEL, "disconnected")), Ok(false));
        assert_eq!(is_connected(&domain("org.other", "connected")), Ok(false));
        assert_eq!(is_connected("<domain/>"), Ok(false));
        assert!(is_connected("<network/>").is_err());
    }

    #[test]
    fn a_time_limit_is_whole_seconds_and_never_none() {
        let of = |millis| seconds(Duration::from_millis(millis));
        assert_eq!([of(0), of(1), of(1000), of(1001)], [1, 1, 1, 2]);
        assert_eq!(seconds(Duration::MAX), i32::MAX);
    }
}

//! The guest agent: it does as it is told, where the guest has one.

use std::time::Duration;

use strongroom_hypervisor::{Agent, FreezeStatus, GuestExit, HypervisorError};
use uuid::Uuid;

use crate::world::{Live, World};
use crate::{SimHost, Told};

impl Agent for SimHost {
    fn agent_connected(&self, domain: Uuid) -> Told<bool> {
        self.ask("agent_connected", |world| {
            let machine = world.machine(domain)?;
            Ok(machine.agent && machine.live.is_some())
        })
    }

    fn agent_ping(&self, domain: Uuid, _: Duration) -> Told<()> {
        self.ask("agent_ping", |world| {
            let mut world = world.clone();
            guest(&mut world, domain, "ping").map(drop)
        })
    }

    fn freeze(&self, domain: Uuid, _: Duration) -> Told<u32> {
        self.act("freeze", |world| {
            let live = guest(world, domain, "freeze")?;
            Ok(u32::from(!std::mem::replace(&mut live.frozen, true)))
        })
    }

    fn thaw(&self, domain: Uuid, _: Duration) -> Told<u32> {
        self.act("thaw", |world| {
            let live = guest(world, domain, "thaw")?;
            Ok(u32::from(std::mem::take(&mut live.frozen)))
        })
    }

    fn freeze_status(&self, domain: Uuid, _: Duration) -> Told<FreezeStatus> {
        self.ask("freeze_status", |world| {
            let mut world = world.clone();
            let live = guest(&mut world, domain, "ask for the freeze status")?;
            Ok(if live.frozen {
                FreezeStatus::Frozen
            } else {
                FreezeStatus::Thawed
            })
        })
    }

    fn run_in_guest(&self, domain: Uuid, _: &str, _: Duration) -> Told<GuestExit> {
        self.act("run_in_guest", |world| {
            guest(world, domain, "run a command").map(drop)
        })?;
        Ok(GuestExit {
            status: Some(0),
            output: String::new(),
        })
    }
}

/// The process of a domain whose guest has an agent.
fn guest<'a>(world: &'a mut World, domain: Uuid, what: &str) -> Told<&'a mut Live> {
    let has_agent = world.machine(domain)?.agent;
    let live = world.live(domain, what)?;
    if has_agent {
        return Ok(live);
    }
    Err(HypervisorError::Failed {
        what: what.into(),
        message: "the guest has no agent".into(),
    })
}

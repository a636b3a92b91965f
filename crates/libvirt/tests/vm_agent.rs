//! The guest agent port against a real agent: alive, hung, frozen, absent.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::time::{Duration, Instant};

use strongroom_hypervisor::{Agent as _, FreezeStatus, Hypervisor as _, HypervisorError};
use strongroom_libvirt::Libvirt;
use strongroom_testkit::{Lab, TestGuest};
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(20);

struct Scene {
    libvirt: Libvirt,
    guest: TestGuest,
    uuid: Uuid,
}

impl Scene {
    fn new(guest: TestGuest) -> Self {
        let libvirt = Libvirt::connect("qemu:///system").unwrap();
        let uuid = guest.uuid().parse().unwrap();
        Self { libvirt, guest, uuid }
    }

    /// The agent comes up a little later than the probe.
    fn await_agent(&self) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.libvirt.agent_ping(self.uuid, SOON).is_err() {
            assert!(Instant::now() < deadline, "no agent");
        }
    }

    #[track_caller]
    fn sh(&self, command: &str) -> (Option<i32>, String) {
        let exit = self.libvirt.run_in_guest(self.uuid, command, LONG).unwrap();
        (exit.status, exit.output)
    }

    #[track_caller]
    fn status(&self) -> FreezeStatus {
        self.libvirt.freeze_status(self.uuid, LONG).unwrap()
    }
}

#[test]
fn an_agent_freezes_thaws_runs_commands_and_may_hang() {
    let lab = Lab::new();
    let scene = Scene::new(lab.guest().boot());
    scene.await_agent();
    assert!(scene.libvirt.agent_connected(scene.uuid).unwrap());
    frozen_and_thawed(&scene);
    commands(&scene);
    hung(&scene);
    off(&scene);
}

fn frozen_and_thawed(scene: &Scene) {
    let (libvirt, uuid) = (&scene.libvirt, scene.uuid);
    assert_eq!(scene.status(), FreezeStatus::Thawed);
    assert_eq!(
        libvirt.thaw(uuid, LONG).unwrap(),
        0,
        "nothing to thaw is no error"
    );
    assert_eq!(libvirt.freeze(uuid, LONG).unwrap(), 1, "the one on vda");
    assert_eq!(scene.status(), FreezeStatus::Frozen);
    // A frozen agent answers that it will not; that is no silence.
    for refused in [
        libvirt.freeze(uuid, LONG).unwrap_err(),
        libvirt.run_in_guest(uuid, "true", LONG).unwrap_err(),
    ] {
        assert!(
            matches!(&refused, HypervisorError::Refused { message, .. } if message.contains("frozen")),
            "{refused:?}"
        );
    }
    assert_eq!(libvirt.thaw(uuid, LONG).unwrap(), 1);
    assert_eq!(libvirt.thaw(uuid, LONG).unwrap(), 0);
    assert_eq!(scene.status(), FreezeStatus::Thawed);
}

fn commands(scene: &Scene) {
    assert_eq!(
        scene.sh("echo \"out $((6 * 7))\"; echo err >&2; exit 3"),
        (Some(3), "out 42\nerr\n".into())
    );
    assert_eq!(scene.sh("kill -9 $$").0, None, "a signal is no exit status");
    let (status, output) = scene.sh("dd if=/dev/zero bs=1000000 count=1 2>/dev/null; echo the end");
    assert_eq!(status, Some(0));
    assert!(output.len() < 20_000 && output.ends_with("the end\n"));
    let clock = Instant::now();
    let error = scene
        .libvirt
        .run_in_guest(scene.uuid, "sleep 60", SOON)
        .unwrap_err();
    assert!(
        error.to_string().contains("still runs after 2 seconds"),
        "{error}"
    );
    assert!(clock.elapsed() < LONG);
}

/// A hung agent costs a bounded time; what was asked of it is done when it wakes up, in its order.
fn hung(scene: &Scene) {
    let (libvirt, uuid) = (&scene.libvirt, scene.uuid);
    scene.guest.sh("kill -STOP $(pidof qemu-ga)");
    let clock = Instant::now();
    // Asked in mid-conversation, the request goes into the channel at once.
    let error = libvirt.freeze(uuid, SOON).unwrap_err();
    assert!(matches!(error, HypervisorError::Failed { .. }), "{error:?}");
    assert!(libvirt.agent_ping(uuid, SOON).is_err());
    assert!(clock.elapsed() < LONG, "{:?}", clock.elapsed());
    assert!(
        libvirt.agent_connected(uuid).unwrap(),
        "which is why it is asked for a sign of life"
    );
    scene.guest.sh("kill -CONT $(pidof qemu-ga)");
    scene.await_agent();
    assert_eq!(scene.status(), FreezeStatus::Frozen, "the freeze had only waited");
    assert_eq!(libvirt.thaw(uuid, LONG).unwrap(), 1);
}

fn off(scene: &Scene) {
    scene.guest.destroy();
    assert!(!scene.libvirt.agent_connected(scene.uuid).unwrap());
    let error = scene.libvirt.agent_ping(scene.uuid, SOON).unwrap_err();
    assert!(matches!(error, HypervisorError::Failed { .. }), "{error:?}");
    assert!(
        !scene
            .libvirt
            .domain(scene.guest.name())
            .unwrap()
            .state
            .is_active()
    );
}

#[test]
fn a_guest_without_an_agent_says_so_at_once() {
    let lab = Lab::new();
    let scene = Scene::new(lab.guest().without_agent().boot());
    assert!(!scene.libvirt.agent_connected(scene.uuid).unwrap());
    let clock = Instant::now();
    for error in [
        scene.libvirt.agent_ping(scene.uuid, LONG).unwrap_err(),
        scene.libvirt.freeze(scene.uuid, LONG).unwrap_err(),
        scene.libvirt.thaw(scene.uuid, LONG).unwrap_err(),
    ] {
        assert!(matches!(error, HypervisorError::Failed { .. }), "{error:?}");
    }
    assert!(clock.elapsed() < SOON);
}

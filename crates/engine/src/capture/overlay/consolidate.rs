//! The loop that consolidates overlays, which brings disks home: look, do one thing, look again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use strongroom_hypervisor::{Chain, HypervisorError, Overlay};
use uuid::Uuid;

use super::{Content, Facts, Job, Step, Top, Views, Why, files, next};
use crate::run::context::Context;
use crate::run::event::Code;
use crate::run::state::{Run, StateError, VmState};

/// How long a hypervisor that does not answer is asked again, and how long one and the same step is tried again.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long the views have to stay the same before they count as final.
const SETTLED: Duration = Duration::from_secs(5);
/// The longest wait for an event before the views are read again.
const LOOK: Duration = Duration::from_secs(2);
/// Before something that has not worked is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Between two reports that a commit goes on.
const REPORT: Duration = Duration::from_secs(30);

/// What came of a consolidation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Consolidation {
    /// All disks are on their own images.
    Consolidated {
        /// Whether any overlay was there.
        acted: bool,
    },
    /// These disks are not, and why; a sentence each, that says what to do.
    Stuck(Vec<String>),
}

/// Brings all disks home that the journal has overlays for, and takes them out of the journal. It is not to be
/// cancelled: the guest needs it. Whatever reads the bases has to be closed before.
pub fn consolidate(
    context: &Context<'_>,
    domain: Uuid,
    state: &mut VmState,
) -> Result<Consolidation, ConsolidateError> {
    let mut disks: HashMap<String, Disk> = HashMap::new();
    let mut acted = false;
    loop {
        let Some(run) = state.records().run.clone() else {
            return Ok(Consolidation::Consolidated { acted });
        };
        if run.overlays.is_empty() {
            if run.running && acted {
                context.resume_stopped(domain);
            }
            return Ok(Consolidation::Consolidated { acted });
        }
        let seen = context.hypervisor.events(domain);
        let (chains, guest) = look(context, domain)?;
        let mut stuck = Vec::new();
        let mut progress = false;
        for entry in &run.overlays {
            let disk = disks.entry(entry.target.clone()).or_default();
            let views = guest.views(&chains, entry);
            let step = disk.decide(context, entry, views);
            match step {
                Step::Home => {
                    state.amend(|run| run.overlays.retain(|other| other.target != entry.target))?;
                    progress = true;
                }
                Step::Stay(why) => stuck.push(explain(why, &run_name(state), entry, disk.facts.as_ref())),
                Step::Wait => disk.report_wait(context, entry),
                step => match disk.may_try(step) {
                    Err(failure) => stuck.push(format!(
                        "disk {}: failed to {step}: {failure}; run `strongroom recover` when that is cured",
                        entry.target
                    )),
                    Ok(again) => {
                        acted = true;
                        disk.carry_out(context, domain, entry, step, state)?;
                        progress |= !again;
                    }
                },
            }
        }
        let open = state.records().run.as_ref().map_or(0, |run| run.overlays.len());
        if open > 0 && stuck.len() == open {
            return Ok(Consolidation::Stuck(stuck));
        }
        if !progress {
            context.hypervisor.await_event(
                domain,
                seen,
                if disks.values().any(Disk::retries) {
                    RETRY
                } else {
                    LOOK
                },
            );
        }
    }
}

/// Says what [`consolidate`] would begin with, disk by disk. Changes nothing.
pub fn outlook(context: &Context<'_>, domain: Uuid, run: &Run) -> Result<Vec<String>, HypervisorError> {
    if run.overlays.is_empty() {
        return Ok(Vec::new());
    }
    let (chains, guest) = look(context, domain)?;
    let say = |entry: &Overlay| {
        let step = Disk::default().decide(context, entry, guest.views(&chains, entry));
        format!("disk {}: {step} ({})", entry.target, entry.overlay.display())
    };
    Ok(run.overlays.iter().map(say).collect())
}

/// Why the way home cannot be gone at all.
#[derive(Debug, thiserror::Error)]
pub enum ConsolidateError {
    /// The views cannot be read.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The journal cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
}

fn run_name(state: &VmState) -> String {
    state.records().vm.clone()
}

/// Where the guest runs, if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GuestState {
    Here,
    Off,
    Away,
}

impl GuestState {
    fn views(self, chains: &[Chain], entry: &Overlay) -> Views {
        Views {
            away: self == Self::Away,
            ..Views::of(chains, entry, self == Self::Here)
        }
    }
}

/// Reads the views. A hypervisor that does not answer is asked again for a while: libvirtd may be restarting.
fn look(context: &Context<'_>, domain: Uuid) -> Result<(Vec<Chain>, GuestState), HypervisorError> {
    let patience = Instant::now() + PATIENCE;
    loop {
        let views = context.hypervisor.chains(domain).and_then(|chains| {
            let domain = context.hypervisor.domain(&domain.to_string())?;
            let guest = match domain.state {
                state if state.is_active() => GuestState::Here,
                _ if domain.away => GuestState::Away,
                _ => GuestState::Off,
            };
            Ok((chains, guest))
        });
        match views {
            // The VM went off, or came up, between the two questions.
            Ok((chains, guest))
                if (guest == GuestState::Here) != chains.iter().any(|chain| !chain.live.is_empty()) =>
            {
                if Instant::now() > patience {
                    return Ok((chains, guest));
                }
            }
            Err(_) if Instant::now() < patience => {}
            views => return views,
        }
        std::thread::sleep(RETRY);
    }
}

/// The disks of a run for which libvirt shows a block job that has ended, with the guest on its base: what
/// [`Repair::repair_status`](strongroom_hypervisor::Repair::repair_status) is for. It takes some seconds to be sure.
pub fn wedged(context: &Context<'_>, domain: Uuid, run: &Run) -> Result<Vec<Overlay>, HypervisorError> {
    let mut disks: HashMap<String, Disk> = HashMap::new();
    let begin = Instant::now();
    loop {
        let (chains, guest) = look(context, domain)?;
        let is_wedged = |entry: &&Overlay| {
            let disk = disks.entry(entry.target.clone()).or_default();
            let step = disk.decide(context, entry, guest.views(&chains, entry));
            step == Step::Stay(Why::Wedged)
        };
        let found: Vec<Overlay> = run.overlays.iter().filter(is_wedged).cloned().collect();
        if begin.elapsed() > SETTLED + LOOK {
            return Ok(found);
        }
        std::thread::sleep(RETRY);
    }
}

/// What is remembered of one disk between two looks.
#[derive(Default)]
struct Disk {
    views: Option<(Views, Instant)>,
    facts: Option<Facts>,
    same: Option<bool>,
    step: Option<(Step, Instant)>,
    failure: Option<String>,
    reported: Option<Instant>,
}

impl Disk {
    fn decide(&mut self, context: &Context<'_>, entry: &Overlay, views: Views) -> Step {
        let since = match self.views {
            Some((before, since)) if before == views => since,
            _ => Instant::now(),
        };
        self.views = Some((views, since));
        if views.active {
            self.same = None;
        }
        let idle =
            !views.active || (views.qemu == Top::Base && views.live == Top::Base && views.job == Job::None);
        let mut facts = if !context.hypervisor.is_local() {
            Facts::unknown("it lies on another machine")
        } else if idle {
            Facts::of(entry)
        } else {
            Facts::unknown("it is in use")
        };
        facts.same = self.same;
        let step = next(views, entry.pivoting, &facts, since.elapsed() >= SETTLED);
        self.facts = Some(facts);
        step
    }

    /// Whether a step may be tried (again); returns whether it has been tried before without any effect.
    fn may_try(&mut self, step: Step) -> Result<bool, String> {
        match self.step {
            Some((before, since)) if before == step => {
                if since.elapsed() < PATIENCE {
                    return Ok(true);
                }
                let silent = || "it was done several times, and nothing came of it".to_owned();
                Err(self.failure.clone().unwrap_or_else(silent))
            }
            _ => {
                self.step = Some((step, Instant::now()));
                self.failure = None;
                Ok(false)
            }
        }
    }

    fn retries(&self) -> bool {
        self.failure.is_some()
    }

    fn report_wait(&mut self, context: &Context<'_>, entry: &Overlay) {
        self.step = None;
        self.failure = None;
        let now = Instant::now();
        if self.reported.is_none_or(|before| now > before + REPORT) {
            self.reported = Some(now);
            context.note(format!(
                "disk {}: its overlay is being merged into {}",
                entry.target,
                entry.base.display()
            ));
        }
    }

    /// Does one thing. A failure is only told: the next look shows what has come of it.
    fn carry_out(
        &mut self,
        context: &Context<'_>,
        domain: Uuid,
        entry: &Overlay,
        step: Step,
        state: &mut VmState,
    ) -> Result<(), StateError> {
        let hypervisor = context.hypervisor;
        if step.is_delicate() {
            // The VM may have been started and stopped since the look, which the wait for another disk made long ago.
            match look(context, domain) {
                Ok((chains, guest)) if self.decide(context, entry, guest.views(&chains, entry)) == step => {}
                _ => return Ok(()),
            }
        }
        let Overlay {
            target,
            base,
            format,
            overlay,
            ..
        } = entry;
        let asked = |result: Result<(), HypervisorError>| result.map_err(|error| error.to_string());
        let result = match step {
            Step::NextStartOnOverlay => {
                asked(hypervisor.set_inactive_image(domain, target, overlay, "qcow2"))
            }
            Step::NextStartOnBase => asked(hypervisor.set_inactive_image(domain, target, base, format)),
            Step::StartCommit => asked(hypervisor.start_commit(domain, target, overlay, base, 0)),
            Step::Pivot => asked(hypervisor.pivot(domain, target)),
            Step::CommitBehindLibvirt => {
                asked(hypervisor.commit_behind_libvirt(domain, target, overlay, base))
            }
            Step::Note(pivoting) => {
                state.amend(|run| {
                    for entry in run.overlays.iter_mut().filter(|entry| entry.target == *target) {
                        entry.pivoting = pivoting;
                    }
                })?;
                Ok(())
            }
            Step::CommitOffline => {
                self.same = None;
                files::commit(entry)
            }
            Step::Compare => files::same(entry).map(|same| self.same = Some(same)),
            Step::Remove => files::remove(entry),
            Step::Wait | Step::Home | Step::Stay(_) => Ok(()),
        };
        match result {
            Ok(()) => {
                self.failure = None;
                match step {
                    Step::Note(_) | Step::Compare => {}
                    Step::NextStartOnOverlay => context.warn(Code::NextStartCorrected, format!(
                        "disk {target}: the definition named {} for the next start, which would have lost what the guest has \
                         written since; it names {} now, until that is merged",
                        base.display(),
                        overlay.display()
                    )),
                    _ => context.note(format!("disk {target}: done: {step} ({})", overlay.display())),
                }
            }
            Err(failure) => {
                if self.failure.as_ref() != Some(&failure) {
                    context.note(format!(
                        "disk {target}: failed to {step}: {failure}; looking again"
                    ));
                }
                self.failure = Some(failure);
            }
        }
        Ok(())
    }
}

/// Says what is the matter with a disk, and what to do.
pub fn explain(why: Why, vm: &str, entry: &Overlay, facts: Option<&Facts>) -> String {
    let (base, overlay) = (entry.base.display(), entry.overlay.display());
    let (format, target) = (&entry.format, &entry.target);
    let text = match why {
        Why::Wedged => format!(
            "libvirt was killed while it ended a block job and shows it still. The guest runs unharmed on its own image \
             {base}, and so will its next start. libvirt refuses snapshots and block jobs of this disk until the VM has \
             been shut off and started again; then run `strongroom recover {vm}`. Without that: `strongroom recover \
             --repair-libvirt-status {vm}` stops libvirtd, corrects its record of the VM, and starts it again"
        ),
        Why::Lost => format!(
            "libvirt shows a block job that QEMU does not have. The guest runs unharmed on {overlay}. Shut the VM off and \
             run `strongroom recover {vm}`, which merges the overlay"
        ),
        Why::Diverged => format!(
            "the VM was started from {base} while {overlay} held newer data, so that there are two versions of the \
             disk. Both are kept. The guest runs on the first. When the second is not needed, remove or rename \
             the file {overlay}; to go back to it: shut the VM off, `cp` {base} away, `qemu-img commit -f qcow2 {overlay}`. \
             Then run `strongroom recover {vm}`"
        ),
        Why::Ambiguous => format!(
            "the VM went off while the guest was being switched from {overlay} to {base}, they differ, and which was \
             written last cannot be determined. Both are kept. Copy both, then decide: to keep the base alone: `virsh edit {vm}`, make \
             {base} (format {format}) the disk's source, and rename the overlay; to merge the overlay: \
             `qemu-img commit -f qcow2 {overlay}`. Then run `strongroom recover {vm}`"
        ),
        Why::Away => format!(
            "the VM was migrated to another host while its guest wrote to {overlay}, and runs there. Nothing was touched. \
             On that host merge it: `virsh blockcommit {vm} {target} --active --pivot`; or migrate the VM back and run \
             `strongroom recover {vm}`. {overlay} is not to be removed before"
        ),
        Why::Foreign => format!(
            "something that is not strongroom's is in its chain of images, or at work on it. Nothing was touched; \
             {overlay} stays. End that (`virsh blockjob`, `virsh domblklist`, `virsh dumpxml`), then run \
             `strongroom recover {vm}`"
        ),
        Why::Missing => format!(
            "the definition names {overlay}, which is gone; what the guest wrote into it is lost. `virsh edit {vm}`: \
             make {base} (format {format}) the disk's source to start from what it was before"
        ),
        Why::Unreadable => {
            let reason = match facts.map(|facts| &facts.overlay) {
                Some(Content::Unknown(reason)) => reason.clone(),
                _ => "unknown".into(),
            };
            format!(
                "what is in {overlay} cannot be determined: {reason}. It stays. If the VM is shut off, start it, and run \
                 `strongroom recover {vm}` (on the machine that has the images)"
            )
        }
        Why::Unclear => format!(
            "QEMU and libvirt contradict each other about the images {base} and {overlay}. Nothing more was touched; run \
             `strongroom recover {vm}` again, and compare `virsh dumpxml {vm}` with \
             `virsh qemu-monitor-command {vm} --pretty '{{\"execute\":\"query-block\"}}'`"
        ),
    };
    format!("disk {}: {text}", entry.target)
}

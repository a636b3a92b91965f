//! Overlays of external snapshots, and the way home from them.
//!
//! For a backup by snapshot a disk's image, the *base*, gets an *overlay* on top that takes the guest's writes. While
//! it is there the base stands still and is read; then the overlay is merged into the base (a block commit), the guest
//! is switched back to the base (pivot), and the overlay's file is removed. Home means: QEMU, the live definition and
//! the inactive definition name the base, and the file is gone.
//!
//! Any call on the way may do its work and report an error, do it in part, or be forgotten by a libvirtd that was
//! killed inside it. So no outcome of a call is believed. One pure function, [`next`], looks at the three views, the
//! journal's entry and the files, and names the one thing to do now; [`consolidate`] does it and looks again. The same
//! loop ends a good run, undoes a failed one and tidies up after a death: there is no second way home.
//!
//! What it goes by:
//!
//! * While QEMU runs, the image that QEMU writes to is where the guest's newest data is. The next start must find it:
//!   if the live definition names the overlay and the inactive one the base, the next start would go back in time.
//!   Such a mismatch is put right before anything else.
//! * The commit writes into the base. So whatever reads the base is closed before the loop is entered.
//! * Right before the pivot the journal notes `pivoting`. An overlay with data is removed only with that note, because
//!   without it nothing of ours can have emptied it into the base. Seen on its overlay without a job again, the disk has
//!   not been switched, and the note is taken back: an old note must not excuse a later removal.
//! * libvirt writes the base into the inactive definition only after the pivot. An inactive definition that names the
//!   base of a disk with that note is proof enough. (The one fault that defeats it is threefold: our death inside the
//!   pivot call, another program's define of an old definition, and the VM's power cut, all before the next look.)
//! * Of a VM that is off, the image written last has the last word. An overlay that is committed offline is emptied by
//!   it, so that the same step can be done again after a death. Doing it twice changes nothing.
//! * An overlay that differs from its base and whose turn is over without our doing is never removed, and never
//!   merged: the VM was started from the base meanwhile, and only a person can decide which of the two is wanted.
//! * What is not ours (another image on top, another kind of job) is not touched.

mod consolidate;
mod files;
#[cfg(test)]
mod model;

use std::fmt;
use std::path::Path;

use strongroom_hypervisor::{BlockJobState, Chain, Overlay};

pub use self::consolidate::{ConsolidateError, Consolidation, consolidate, explain, outlook, wedged};
pub use self::files::SUFFIX;

/// Which image is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Top {
    /// No image at all: the VM is off, or has no such disk.
    Nothing,
    /// The image that the guest has to come back to.
    Base,
    /// Our overlay on top of it.
    Overlay,
    /// Something else.
    Other,
}

/// A block job, as the live definition shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Job {
    /// None.
    None,
    /// A commit of our overlay into its base.
    Ours(BlockJobState),
    /// Something else.
    Other,
}

/// What is said of one disk, in terms of its base and its overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct Views {
    /// Whether there is a QEMU.
    pub active: bool,
    /// Whether there is one on another host.
    pub away: bool,
    /// The image that QEMU writes to.
    pub qemu: Top,
    /// The image that the live definition names.
    pub live: Top,
    /// The image that the next start will use.
    pub inactive: Top,
    /// The block job of the live definition.
    pub job: Job,
    /// Whether QEMU has a block job on the disk.
    pub job_in_qemu: bool,
    /// Whether any chain of the VM's disks has the overlay somewhere in it.
    pub mentioned: bool,
}

/// What is in the overlay's file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Content {
    /// There is no such file.
    Absent,
    /// Nothing was written into it, or all of it has been merged.
    Empty,
    /// Data.
    Data,
    /// It cannot be told, and why. Also while a QEMU has it open.
    Unknown(String),
}

/// What the files say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Facts {
    /// What is in the overlay.
    pub overlay: Content,
    /// Whether the base was written to after the overlay was.
    pub base_is_newer: bool,
    /// Whether the disk reads the same from the base alone; `None` before it has been compared.
    pub same: Option<bool>,
}

/// The one thing to do now. Each of them can be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Make the inactive definition name the overlay.
    NextStartOnOverlay,
    /// Make the inactive definition name the base.
    NextStartOnBase,
    /// Start to merge the overlay into the base.
    StartCommit,
    /// A job goes on.
    Wait,
    /// Set, or take back, the journal's note that the guest may have been switched to the base.
    Note(bool),
    /// Switch the guest to the base.
    Pivot,
    /// Merge and switch by QEMU's own monitor: libvirt does not know of the overlay.
    CommitBehindLibvirt,
    /// Merge an overlay that no QEMU uses, and leave it empty.
    CommitOffline,
    /// Find out whether base and overlay differ.
    Compare,
    /// Remove the overlay's file: nothing needs it any more.
    Remove,
    /// Nothing: the disk is home.
    Home,
    /// Nothing more can be done without a person.
    Stay(Why),
}

/// Why a disk is not brought home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// libvirt has lost track of a block job; the guest is on its base.
    Wedged,
    /// libvirt has lost track of a block job; the guest is on the overlay.
    Lost,
    /// The guest was started from the base while the overlay held newer data.
    Diverged,
    /// The VM is off, and which of the two images has the last word cannot be told.
    Ambiguous,
    /// The VM was migrated to another host, which has its disks open.
    Away,
    /// Something that is not ours is on top, below, or at work.
    Foreign,
    /// The definition names the overlay, which is gone.
    Missing,
    /// What is in the overlay cannot be told.
    Unreadable,
    /// The views contradict each other, and go on doing so.
    Unclear,
}

impl Views {
    /// Puts what is said about all disks into terms of one journal entry.
    pub fn of(chains: &[Chain], entry: &Overlay, active: bool) -> Self {
        let top = |chain: &[std::path::PathBuf]| match chain.first() {
            None => Top::Nothing,
            Some(image) if *image == entry.base => Top::Base,
            // An overlay on something else than the base is nothing that we made.
            Some(image) if *image == entry.overlay => match chain.get(1) {
                Some(below) if *below != entry.base => Top::Other,
                _ => Top::Overlay,
            },
            Some(_) => Top::Other,
        };
        let has = |chain: &[std::path::PathBuf]| chain.contains(&entry.overlay);
        let mentioned = chains
            .iter()
            .any(|chain| has(&chain.qemu) || has(&chain.live) || has(&chain.inactive));
        let none = Self {
            active,
            away: false,
            qemu: Top::Nothing,
            live: Top::Nothing,
            inactive: Top::Nothing,
            job: Job::None,
            job_in_qemu: false,
            mentioned,
        };
        let Some(chain) = chains.iter().find(|chain| chain.target == entry.target) else {
            return none;
        };
        let to_base = |to: Option<&Path>| to.is_none_or(|to| to == entry.base);
        Self {
            qemu: top(&chain.qemu),
            live: top(&chain.live),
            inactive: top(&chain.inactive),
            job: match &chain.job {
                None => Job::None,
                Some(job) if job.kind == "active-commit" && to_base(job.to.as_deref()) => {
                    Job::Ours(job.state)
                }
                Some(_) => Job::Other,
            },
            job_in_qemu: chain.job_in_qemu,
            ..none
        }
    }
}

/// Names the one thing to do now. `settled` says that the views have been the same for a while, so that nothing is
/// about to change them.
pub fn next(views: Views, pivoting: bool, facts: &Facts, settled: bool) -> Step {
    if views.away {
        // Whatever the definition here says: that host's QEMU writes to the overlay.
        return Step::Stay(Why::Away);
    }
    if views.job == Job::Other {
        return Step::Stay(Why::Foreign);
    }
    if views.active {
        running(views, pivoting, facts, settled)
    } else {
        off(views, pivoting, facts)
    }
}

fn running(views: Views, pivoting: bool, facts: &Facts, settled: bool) -> Step {
    use Top::{Base, Overlay};
    // What a call that is still at work may change by itself is waited for.
    let unless_settled = |why| if settled { Step::Stay(why) } else { Step::Wait };
    // Whatever else there is to do: the next start has to find what the guest writes now.
    match (views.qemu, views.inactive) {
        (Overlay, Base) => return Step::NextStartOnOverlay,
        (Base, Overlay) => return Step::NextStartOnBase,
        _ => {}
    }
    match (views.qemu, views.live, views.job) {
        (Base, Base, Job::None) => after(views, pivoting, facts),
        // The job's last act, or what is left of it when libvirtd was killed meanwhile.
        (Base, Overlay, _) if !views.job_in_qemu => unless_settled(Why::Wedged),
        // What was noted for a pivot that did not happen would excuse the loss of what is written from now on.
        (Overlay, Overlay, Job::None) if pivoting => Step::Note(false),
        (Overlay, Overlay, Job::None) => Step::StartCommit,
        (Overlay, Overlay, Job::Ours(_)) if !views.job_in_qemu => unless_settled(Why::Lost),
        (Overlay, Overlay, Job::Ours(BlockJobState::Ready)) => to_pivot(pivoting),
        // A libvirtd that was killed right before it asked QEMU asks again only if it is told to.
        (Overlay, Overlay, Job::Ours(BlockJobState::Pivoting)) if settled => to_pivot(pivoting),
        (Overlay, Overlay, Job::Ours(_)) => Step::Wait,
        // libvirtd was killed inside the snapshot and knows nothing of it.
        (Overlay, Base, Job::None) if pivoting => Step::CommitBehindLibvirt,
        (Overlay, Base, Job::None) => Step::Note(true),
        (Top::Other, ..) | (_, Top::Other, _) => Step::Stay(Why::Foreign),
        _ => unless_settled(Why::Unclear),
    }
}

fn to_pivot(pivoting: bool) -> Step {
    if pivoting { Step::Pivot } else { Step::Note(true) }
}

/// The guest runs on its base, and libvirt agrees.
fn after(views: Views, pivoting: bool, facts: &Facts) -> Step {
    match &facts.overlay {
        Content::Absent => Step::Home,
        _ if views.mentioned => Step::Stay(Why::Foreign),
        Content::Empty => Step::Remove,
        Content::Data if pivoting => Step::Remove,
        Content::Data => Step::Stay(Why::Diverged),
        Content::Unknown(_) => Step::Stay(Why::Unreadable),
    }
}

fn off(views: Views, pivoting: bool, facts: &Facts) -> Step {
    let newer = facts.base_is_newer;
    match (views.inactive, &facts.overlay) {
        (Top::Overlay, Content::Absent) if pivoting => Step::NextStartOnBase,
        (Top::Overlay, Content::Absent) => Step::Stay(Why::Missing),
        (Top::Overlay, Content::Empty) => Step::NextStartOnBase,
        (Top::Overlay, Content::Data) if !pivoting => Step::CommitOffline,
        // Whether the guest was switched is not known. If the two do not differ it does not matter; if the overlay was
        // written last, the base has got nothing since, and a merge is right either way.
        (Top::Overlay, Content::Data) => match facts.same {
            None => Step::Compare,
            Some(true) => Step::NextStartOnBase,
            Some(false) if newer => Step::Stay(Why::Ambiguous),
            Some(false) => Step::CommitOffline,
        },
        (Top::Overlay | Top::Base, Content::Unknown(_)) => Step::Stay(Why::Unreadable),
        (_, Content::Absent) => Step::Home,
        // The inactive definition does not name it at the top, but something does somewhere.
        _ if views.mentioned => Step::Stay(Why::Foreign),
        (_, Content::Empty) => Step::Remove,
        (Top::Base, Content::Data) if newer && pivoting => Step::Remove,
        (Top::Base, Content::Data) if !newer && !pivoting => Step::NextStartOnOverlay,
        (Top::Base, Content::Data) => match facts.same {
            None => Step::Compare,
            Some(true) => Step::Remove,
            Some(false) if newer => Step::Stay(Why::Diverged),
            // While it is merged, only both together are the disk.
            Some(false) => Step::NextStartOnOverlay,
        },
        (Top::Other | Top::Nothing, _) => Step::Stay(Why::Foreign),
    }
}

impl Step {
    /// Whether it does harm at another moment: the VM may have been started or stopped since the look. The look is
    /// repeated right before it.
    pub fn is_delicate(self) -> bool {
        matches!(
            self,
            Self::NextStartOnOverlay
                | Self::NextStartOnBase
                | Self::Note(_)
                | Self::CommitOffline
                | Self::Remove
        )
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NextStartOnOverlay => "make the next start use the overlay",
            Self::NextStartOnBase => "make the next start use the image itself",
            Self::StartCommit => "merge the overlay into the image",
            Self::Wait => "wait for the block job",
            Self::Note(true) => "note that the guest is about to be switched back",
            Self::Note(false) => "note that the guest has not been switched back",
            Self::Pivot => "switch the guest back to the image",
            Self::CommitBehindLibvirt => "merge the overlay, which libvirt does not know of, into the image",
            Self::CommitOffline => "merge the overlay into the image of the shut-off VM",
            Self::Compare => "compare the overlay with the image",
            Self::Remove => "remove the overlay",
            Self::Home => "nothing: the disk is on its image",
            Self::Stay(_) => "nothing: it needs a person",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strongroom_hypervisor::BlockJob;

    fn entry() -> Overlay {
        Overlay {
            target: "vda".into(),
            base: "/images/vda".into(),
            format: "raw".into(),
            overlay: "/images/strongroom-1-vda.overlay".into(),
            pivoting: false,
        }
    }

    fn chain(target: &str, images: &[&str]) -> Chain {
        let images: Vec<std::path::PathBuf> = images.iter().map(Into::into).collect();
        Chain {
            target: target.into(),
            qemu: images.clone(),
            live: images.clone(),
            inactive: images,
            job: None,
            job_in_qemu: false,
        }
    }

    #[test]
    fn chains_are_seen_in_terms_of_the_journal() {
        let entry = entry();
        let (base, overlay) = ("/images/vda", "/images/strongroom-1-vda.overlay");
        let of = |chains: &[Chain]| Views::of(chains, &entry, true);
        assert_eq!(of(&[chain("vda", &[base])]).qemu, Top::Base);
        assert_eq!(of(&[chain("vda", &[overlay, base])]).live, Top::Overlay);
        // libvirt leaves out what it can read from the image.
        assert_eq!(of(&[chain("vda", &[overlay])]).inactive, Top::Overlay);
        assert_eq!(of(&[chain("vda", &[overlay, "/images/other"])]).qemu, Top::Other);
        assert_eq!(of(&[chain("vda", &["/images/theirs"])]).qemu, Top::Other);
        // Each view by itself can name it.
        for part in 0..3 {
            let mut one = chain("vda", &[base]);
            let views = [&mut one.qemu, &mut one.live, &mut one.inactive];
            views.into_iter().nth(part).unwrap().push(overlay.into());
            assert!(of(&[one]).mentioned, "{part}");
        }
        assert!(!of(&[chain("vda", &[base])]).mentioned);
        let foreign = of(&[chain("vda", &["/images/theirs", overlay, base])]);
        assert_eq!((foreign.qemu, foreign.mentioned), (Top::Other, true));
        assert_eq!(
            next(foreign, false, &Facts::unknown(""), true),
            Step::Stay(Why::Foreign)
        );
        // Another disk that uses it keeps it from being removed.
        let used = of(&[chain("vda", &[base]), chain("vdb", &[overlay])]);
        let facts = Facts {
            overlay: Content::Empty,
            base_is_newer: true,
            same: None,
        };
        assert_eq!(next(used, true, &facts, true), Step::Stay(Why::Foreign));
        assert_eq!(of(&[]).inactive, Top::Nothing);
    }

    #[test]
    fn a_job_of_somebody_else_is_left_alone() {
        let mut copied = chain("vda", &["/images/strongroom-1-vda.overlay", "/images/vda"]);
        let job = |kind: &str, to: &str| BlockJob {
            kind: kind.into(),
            to: Some(to.into()),
            state: BlockJobState::Ready,
        };
        copied.job_in_qemu = true;
        for (job, ours) in [
            (job("active-commit", "/images/vda"), true),
            (job("active-commit", "/images/below"), false),
            (job("copy", "/images/vda"), false),
        ] {
            copied.job = Some(job);
            let step = next(
                Views::of(std::slice::from_ref(&copied), &entry(), true),
                true,
                &Facts::unknown("in use"),
                false,
            );
            assert_eq!(
                step,
                if ours {
                    Step::Pivot
                } else {
                    Step::Stay(Why::Foreign)
                }
            );
        }
    }

    /// The guest writes to the overlay: what each state of the job asks for, once nothing is about to change.
    #[test]
    fn a_running_guest_comes_home_by_one_step_at_a_time() {
        use BlockJobState::{Copying, Pivoting, Ready};
        let views = |live, job, job_in_qemu| Views {
            active: true,
            away: false,
            qemu: Top::Overlay,
            live,
            inactive: Top::Overlay,
            job,
            job_in_qemu,
            mentioned: true,
        };
        let facts = Facts::unknown("in use");
        let (over, base) = (Top::Overlay, Top::Base);
        for (live, job, in_qemu, pivoting, settled, step) in [
            (over, Job::None, false, true, true, Step::Note(false)),
            (over, Job::None, false, false, true, Step::StartCommit),
            (over, Job::Ours(Copying), false, true, true, Step::Stay(Why::Lost)),
            (over, Job::Ours(Copying), false, true, false, Step::Wait),
            (over, Job::Ours(Copying), true, true, true, Step::Wait),
            (over, Job::Ours(Ready), false, true, false, Step::Wait),
            (over, Job::Ours(Ready), true, true, false, Step::Pivot),
            (over, Job::Ours(Ready), true, false, false, Step::Note(true)),
            (over, Job::Ours(Pivoting), true, true, true, Step::Pivot),
            (over, Job::Ours(Pivoting), true, true, false, Step::Wait),
            (base, Job::None, false, true, true, Step::CommitBehindLibvirt),
            (base, Job::None, false, false, true, Step::Note(true)),
            (base, Job::Ours(Ready), true, true, true, Step::Stay(Why::Unclear)),
            (base, Job::Ours(Ready), true, true, false, Step::Wait),
            (Top::Other, Job::None, false, true, true, Step::Stay(Why::Foreign)),
        ] {
            let views = views(live, job, in_qemu);
            assert_eq!(
                next(views, pivoting, &facts, settled),
                step,
                "{views:?} {pivoting} {settled}"
            );
        }
        // Switched already, and only libvirt still names the overlay.
        let switched = |job_in_qemu| Views {
            qemu: base,
            inactive: base,
            ..views(over, Job::Ours(Pivoting), job_in_qemu)
        };
        for (in_qemu, settled, step) in [
            (false, true, Step::Stay(Why::Wedged)),
            (false, false, Step::Wait),
            (true, true, Step::Stay(Why::Unclear)),
        ] {
            assert_eq!(
                next(switched(in_qemu), true, &facts, settled),
                step,
                "{in_qemu} {settled}"
            );
        }
    }

    /// The VM is off: what the files say decides, and what cannot be told is left to you.
    #[test]
    fn a_vm_that_is_off_keeps_what_was_written_last() {
        let views = |inactive| Views {
            active: false,
            away: false,
            qemu: Top::Nothing,
            live: Top::Nothing,
            inactive,
            job: Job::None,
            job_in_qemu: false,
            mentioned: inactive == Top::Overlay,
        };
        let (over, base) = (Top::Overlay, Top::Base);
        let (absent, empty, data) = (Content::Absent, Content::Empty, Content::Data);
        for (inactive, overlay, newer, same, pivoting, step) in [
            (over, &absent, true, None, true, Step::NextStartOnBase),
            (over, &absent, true, None, false, Step::Stay(Why::Missing)),
            (over, &empty, false, None, false, Step::NextStartOnBase),
            (over, &data, true, None, false, Step::CommitOffline),
            (over, &data, true, None, true, Step::Compare),
            (over, &data, true, Some(true), true, Step::NextStartOnBase),
            (over, &data, true, Some(false), true, Step::Stay(Why::Ambiguous)),
            (over, &data, false, Some(false), true, Step::CommitOffline),
            (base, &absent, false, None, true, Step::Home),
            (base, &empty, false, None, false, Step::Remove),
            (base, &data, true, None, true, Step::Remove),
            (base, &data, false, None, false, Step::NextStartOnOverlay),
            (base, &data, true, None, false, Step::Compare),
            (base, &data, false, None, true, Step::Compare),
            (base, &data, true, Some(true), false, Step::Remove),
            (base, &data, true, Some(false), false, Step::Stay(Why::Diverged)),
            (base, &data, false, Some(false), true, Step::NextStartOnOverlay),
            (Top::Other, &data, false, None, true, Step::Stay(Why::Foreign)),
        ] {
            let facts = Facts {
                overlay: overlay.clone(),
                base_is_newer: newer,
                same,
            };
            let found = next(views(inactive), pivoting, &facts, true);
            assert_eq!(found, step, "{inactive:?} {facts:?} {pivoting}");
        }
        for inactive in [over, base] {
            let found = next(views(inactive), true, &Facts::unknown("in use"), true);
            assert_eq!(found, Step::Stay(Why::Unreadable));
        }
        // Another disk names it, or another host's QEMU has it.
        let used = Views {
            mentioned: true,
            ..views(base)
        };
        let facts = Facts {
            overlay: Content::Empty,
            base_is_newer: true,
            same: None,
        };
        assert_eq!(next(used, true, &facts, true), Step::Stay(Why::Foreign));
        let away = Views { away: true, ..used };
        assert_eq!(next(away, true, &facts, true), Step::Stay(Why::Away));
    }

    #[test]
    fn what_does_harm_at_another_moment_is_looked_at_again() {
        for step in [
            Step::NextStartOnOverlay,
            Step::NextStartOnBase,
            Step::Note(true),
            Step::CommitOffline,
            Step::Remove,
        ] {
            assert!(step.is_delicate(), "{step}");
        }
        for step in [
            Step::StartCommit,
            Step::Wait,
            Step::Pivot,
            Step::Compare,
            Step::Home,
        ] {
            assert!(!step.is_delicate(), "{step}");
        }
    }
}

//! The way home, explored exhaustively: all interleavings of what we do, what a call may do and say, what libvirtd forgets
//! when it is killed inside a call, the guest's writes, power cuts and starts, deaths of our process, and another program's
//! define of an old definition, up to a number of faults a history.
//!
//! What decides is [`next`], the code that decides in a real run, over the journal's note; the hypervisor and the files
//! are a model. The guest's data is a counter: each write is one higher than the one before, and an image is worth
//! the number of the last write that it has.
//!
//! One threefold fault is left out, because nothing on record can tell it: an old definition is defined after a pivot
//! was noted, and the VM is stopped or started before that is put right.

#![allow(clippy::struct_excessive_bools)] // The flags of a state of the model are independent of each other.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{catch_unwind, resume_unwind};

use strongroom_hypervisor::BlockJobState::{self, Copying, Pivoting, Ready};

use super::{Content, Facts, Job, Step, Top, Views, Why, next};

/// Faults a history: deaths of ours, calls that say the wrong thing, kills of libvirtd, old definitions.
const FAULTS: u8 = 6;
/// Writes of the guest a history.
const WRITES: u8 = 7;
/// Fewer states than this would mean that the model has lost its teeth.
const FLOOR: usize = 100_000;
/// More steps than any way home needs.
const PATIENCE: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Us {
    /// Not there.
    Dead,
    /// The journal has the entry; the snapshot is about to be taken.
    Snapshot,
    /// About to look.
    Look,
    /// Have looked, and are about to do this.
    Do(Step),
    /// Have found that it takes a person.
    Stuck(Why),
    /// The journal's entry is closed.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Turns {
    None,
    Looked,
    Acted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    us: Us,
    on: bool,
    /// The tops of QEMU's and of libvirt's chains.
    qemu: Top,
    live: Top,
    inactive: Top,
    /// The job as libvirt shows it, and whether QEMU has one (and it is ready).
    mirror: Option<BlockJobState>,
    job: Option<bool>,
    /// The last write of the guest, and what the images are worth. An overlay worth nothing is empty.
    newest: u8,
    base: u8,
    overlay: Option<u8>,
    base_is_newer: bool,
    /// The journal's note.
    pivoting: bool,
    same: Option<bool>,
    /// The guest was started from an image without its newest data, before it could be prevented: there are two
    /// versions of the disk now.
    split: bool,
    /// The guest was started from the base while the overlay held data, newer or not.
    restarted: bool,
    /// Our turns since the last fault that made definitions wrong: whether we have looked, and then done something.
    turns: Turns,
    /// An old definition was defined after the pivot had been noted.
    armed: bool,
    faults: u8,
}

const START: World = World {
    us: Us::Snapshot,
    on: true,
    qemu: Top::Base,
    live: Top::Base,
    inactive: Top::Base,
    mirror: None,
    job: None,
    newest: 1,
    base: 1,
    overlay: None,
    base_is_newer: true,
    pivoting: false,
    same: None,
    split: false,
    restarted: false,
    turns: Turns::Acted,
    armed: false,
    faults: FAULTS,
};

impl World {
    fn views(&self) -> Views {
        Views {
            away: false,
            active: self.on,
            qemu: self.qemu,
            live: self.live,
            inactive: self.inactive,
            job: self.mirror.map_or(Job::None, Job::Ours),
            job_in_qemu: self.job.is_some(),
            mentioned: [self.qemu, self.live, self.inactive].contains(&Top::Overlay),
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            overlay: match self.overlay {
                None => Content::Absent,
                Some(0) => Content::Empty,
                Some(_) => Content::Data,
            },
            base_is_newer: self.base_is_newer,
            same: if self.on { None } else { self.same },
        }
    }

    fn decide(&self, settled: bool) -> Step {
        next(self.views(), self.pivoting, &self.facts(), settled)
    }

    /// What is read through an image.
    fn worth(&self, top: Top) -> u8 {
        match (top, self.overlay) {
            (Top::Overlay, Some(overlay)) if overlay > 0 => overlay,
            _ => self.base,
        }
    }

    /// Whether the next start would not find the guest's newest data.
    fn goes_back(&self) -> bool {
        self.worth(self.inactive) != self.newest
    }

    fn fault(mut self) -> Option<Self> {
        self.faults = self.faults.checked_sub(1)?;
        Some(self)
    }

    /// Everything that can happen next.
    fn successors(&self) -> Vec<Self> {
        let mut all = Vec::new();
        self.ours(&mut all);
        self.calls_that_fail(&mut all);
        self.guests(&mut all);
        self.power(&mut all);
        // Death, and the next run.
        match self.us {
            Us::Dead | Us::Stuck(_) => all.push(Self {
                us: Us::Look,
                ..*self
            }),
            Us::Done => {}
            _ => all.extend(
                Self {
                    us: Us::Dead,
                    ..*self
                }
                .fault(),
            ),
        }
        // Another program defines an old definition.
        let at_work = self.on && self.us != Us::Dead;
        if self.us != Us::Done && self.inactive == Top::Overlay && (at_work || !self.pivoting) {
            let defined = Self {
                inactive: Top::Base,
                turns: Turns::None,
                armed: self.pivoting,
                ..*self
            };
            all.extend(defined.fault());
        }
        all
    }

    /// What we do, if all goes well.
    fn ours(&self, all: &mut Vec<Self>) {
        match self.us {
            Us::Snapshot => {
                let taken = Self {
                    us: Us::Look,
                    ..self.snapshot()
                };
                all.push(taken);
            }
            Us::Look => {
                for settled in [false, true] {
                    all.push(self.looked(settled));
                }
            }
            Us::Do(step) => all.push(self.done(step, false)),
            Us::Dead | Us::Stuck(_) | Us::Done => {}
        }
    }

    fn looked(&self, settled: bool) -> Self {
        let us = match self.decide(settled) {
            Step::Home => Us::Done,
            Step::Wait => Us::Look,
            Step::Stay(why) => Us::Stuck(why),
            step => Us::Do(step),
        };
        let turns = if self.turns == Turns::None {
            Turns::Looked
        } else {
            self.turns
        };
        Self { us, turns, ..*self }
    }

    /// A step that was done, and what the loop does then.
    fn done(&self, step: Step, partly: bool) -> Self {
        let mut world = self.apply(step, partly);
        world.us = Us::Look;
        if step == Step::CommitBehindLibvirt {
            // The definition cannot be changed at the same instant; that follows at once.
            world.turns = Turns::None;
        } else if !partly
            && self.turns != Turns::None
            && step != Step::Compare
            && world
                != (Self {
                    us: Us::Look,
                    ..*self
                })
        {
            world.turns = Turns::Acted;
            world.armed &= world.inactive == Top::Base && world.qemu != Top::Base;
        }
        world
    }

    /// Calls that report an error, whatever they did, and those in which libvirtd is killed.
    fn calls_that_fail(&self, all: &mut Vec<Self>) {
        match self.us {
            Us::Snapshot => {
                // Not done; not done, but the file is there.
                all.extend(
                    Self {
                        us: Us::Look,
                        ..*self
                    }
                    .fault(),
                );
                if self.on {
                    let left = Self {
                        us: Us::Look,
                        overlay: Some(0),
                        ..*self
                    };
                    all.extend(left.fault());
                    // Done, but the inactive definition was not written; done, and forgotten altogether.
                    let done = self.snapshot();
                    let inactive = Self {
                        us: Us::Look,
                        inactive: Top::Base,
                        turns: Turns::None,
                        ..done
                    };
                    all.extend(inactive.fault());
                    all.extend(
                        Self {
                            live: Top::Base,
                            ..inactive
                        }
                        .fault(),
                    );
                }
            }
            Us::Do(step) => {
                all.extend(
                    Self {
                        us: Us::Look,
                        ..*self
                    }
                    .fault(),
                );
                all.extend(self.done(step, true).fault());
                if step == Step::Pivot && self.can_pivot() {
                    // Done, but the inactive definition was not written; done, and still shown as a job.
                    let done = self.apply(step, false);
                    let inactive = Self {
                        us: Us::Look,
                        inactive: Top::Overlay,
                        turns: Turns::None,
                        ..done
                    };
                    all.extend(inactive.fault());
                    let wedged = Self {
                        live: Top::Overlay,
                        mirror: Some(Pivoting),
                        ..inactive
                    };
                    all.extend(wedged.fault());
                    // Not done, and shown as being done.
                    all.extend(
                        Self {
                            us: Us::Look,
                            mirror: Some(Pivoting),
                            ..*self
                        }
                        .fault(),
                    );
                }
            }
            _ => {}
        }
    }

    fn snapshot(&self) -> Self {
        if !self.on {
            return *self;
        }
        Self {
            qemu: Top::Overlay,
            live: Top::Overlay,
            inactive: Top::Overlay,
            overlay: Some(0),
            base_is_newer: false,
            ..*self
        }
    }

    /// The base while an overlay is being merged into it: by itself it is worth nothing.
    fn half(&self) -> u8 {
        if self.overlay == Some(0) { self.base } else { 0 }
    }

    fn can_pivot(&self) -> bool {
        self.on
            && self.live == Top::Overlay
            && matches!(self.mirror, Some(Ready | Pivoting))
            && self.job == Some(true)
    }

    /// What a step does to the world; `partly` if it ends in the middle. What is not possible (any more) is refused.
    fn apply(&self, step: Step, partly: bool) -> Self {
        let mut world = *self;
        if step.is_delicate() && step != self.decide(true) {
            // The loop looks again right before.
            return world;
        }
        match step {
            Step::NextStartOnOverlay => world.inactive = Top::Overlay,
            Step::NextStartOnBase => world.inactive = Top::Base,
            Step::Note(pivoting) => world.pivoting = pivoting,
            Step::StartCommit => {
                if self.on && self.live == Top::Overlay && self.mirror.is_none() && self.job.is_none() {
                    world.base = self.half();
                    world.mirror = Some(Copying);
                    world.job = Some(false);
                }
            }
            Step::Pivot => {
                if self.can_pivot() {
                    world.base = self.worth(Top::Overlay);
                    world.qemu = Top::Base;
                    world.live = Top::Base;
                    world.inactive = Top::Base;
                    world.mirror = None;
                    world.job = None;
                }
            }
            Step::CommitBehindLibvirt => {
                if self.on && self.qemu == Top::Overlay && self.live == Top::Base {
                    if partly {
                        world.base = self.half();
                        world.job = Some(false);
                    } else {
                        world.base = self.worth(Top::Overlay);
                        world.qemu = Top::Base;
                        world.job = None;
                    }
                }
            }
            Step::CommitOffline => {
                if let (false, Some(overlay)) = (self.on, self.overlay) {
                    assert!(!self.split, "one of two versions is overwritten: {self:?}");
                    assert!(
                        overlay == 0 || overlay >= self.base,
                        "older data over newer: {self:?}"
                    );
                    world.base = if partly {
                        self.half()
                    } else {
                        self.worth(Top::Overlay)
                    };
                    world.base_is_newer = partly;
                    if !partly {
                        world.overlay = Some(0);
                    }
                }
            }
            Step::Compare => {
                let merged = |overlay| overlay == 0 || overlay == self.base && !self.split;
                world.same = Some(self.overlay.is_none_or(merged));
            }
            Step::Remove => {
                assert!(
                    !self.views().mentioned,
                    "the overlay is removed although something names it: {self:?}"
                );
                let merged = self
                    .overlay
                    .is_none_or(|overlay| overlay == 0 || overlay <= self.base && !self.split);
                assert!(
                    merged,
                    "the overlay is removed with the guest's newest data: {self:?}"
                );
                world.overlay = None;
            }
            Step::Wait | Step::Home | Step::Stay(_) => {}
        }
        world
    }

    /// The guest writes; a job goes on.
    fn guests(&self, all: &mut Vec<Self>) {
        if !self.on {
            return;
        }
        if self.newest < WRITES {
            let newest = self.newest + 1;
            match self.qemu {
                Top::Overlay => {
                    let written = Self {
                        newest,
                        overlay: Some(newest),
                        base_is_newer: false,
                        ..*self
                    };
                    all.push(written);
                    if self.job == Some(true) {
                        all.push(Self {
                            base: newest,
                            base_is_newer: true,
                            ..written
                        });
                    }
                }
                _ => all.push(Self {
                    newest,
                    base: newest,
                    base_is_newer: true,
                    ..*self
                }),
            }
        }
        all.extend(self.job_goes_on());
    }

    fn job_goes_on(&self) -> Option<Self> {
        if self.job == Some(false) || (self.job == Some(true) && self.base != self.worth(Top::Overlay)) {
            let base = self.worth(Top::Overlay);
            return Some(Self {
                base,
                job: Some(true),
                base_is_newer: true,
                ..*self
            });
        }
        let noticed = self.job == Some(true) && self.mirror == Some(Copying);
        noticed.then_some(Self {
            mirror: Some(Ready),
            ..*self
        })
    }

    /// Power cuts and starts.
    fn power(&self, all: &mut Vec<Self>) {
        if self.armed {
            return;
        }
        if self.on {
            let off = Self {
                on: false,
                qemu: Top::Nothing,
                live: Top::Nothing,
                mirror: None,
                job: None,
                same: None,
                ..*self
            };
            all.push(off);
            if self.job.is_some() {
                // Which of the two was closed last is not known.
                all.push(Self {
                    base_is_newer: !off.base_is_newer,
                    ..off
                });
            }
            return;
        }
        assert!(
            self.inactive == Top::Base || self.overlay.is_some(),
            "the next start names a file that is gone: {self:?}"
        );
        let mut on = Self {
            on: true,
            qemu: self.inactive,
            live: self.inactive,
            same: None,
            restarted: self.restarted || self.inactive == Top::Base && self.overlay > Some(0),
            ..*self
        };
        if !self.split && self.goes_back() {
            // The guest goes back in time. That could not be prevented if we have had no turn since, or have told that
            // it takes a person.
            let excused = self.turns != Turns::Acted || matches!(self.us, Us::Stuck(_));
            assert!(excused, "the guest is started without its newest data: {self:?}");
            if self.inactive == Top::Overlay {
                // What is in the overlay hides newer data in the base; there is nothing left to be right about.
                return;
            }
            on.split = true;
            // A guest that starts writes.
            on.base_is_newer = true;
            on.newest = on.base;
        }
        all.push(on);
    }

    /// What must hold in every state.
    fn check(&self) {
        if self.on && !self.split {
            assert_eq!(
                self.worth(self.qemu),
                self.newest,
                "the guest has lost data: {self:?}"
            );
        }
        if self.split {
            assert!(self.overlay.is_some(), "the other version is gone: {self:?}");
        }
        if self.us == Us::Done {
            assert!(
                self.overlay.is_none() && self.inactive != Top::Overlay,
                "not home: {self:?}"
            );
        }
    }

    /// Recovers with nothing else going wrong, and says where that ends.
    fn recovered(&self) -> Self {
        let mut world = Self {
            us: Us::Look,
            ..*self
        };
        for _ in 0..PATIENCE {
            world = match world.us {
                Us::Look => world.looked(true),
                Us::Do(step) => world.done(step, false),
                _ => return world,
            };
            while let Some(further) = world.job_goes_on() {
                world = further;
            }
            world.check();
        }
        panic!("no end of recovery from {self:?}: {world:?}");
    }

    /// That a recovery ends at home, or has a good reason not to.
    fn check_recovery(&self) {
        let end = self.recovered();
        match end.us {
            Us::Done => assert_eq!(end.worth(end.inactive), end.newest, "{self:?}: {end:?}"),
            Us::Stuck(why) => {
                let reason = match why {
                    Why::Wedged => {
                        end.on
                            && end.qemu == Top::Base
                            && end.live == Top::Overlay
                            && end.inactive == Top::Base
                    }
                    Why::Diverged => end.restarted || !end.on,
                    Why::Ambiguous => !end.on,
                    _ => false,
                };
                assert!(reason, "{why:?} from {self:?}: {end:?}");
                assert!(end.overlay.is_some(), "{self:?}: {end:?}");
            }
            _ => panic!("{self:?}: {end:?}"),
        }
    }
}

#[test]
fn whatever_happens_the_guest_comes_home_with_all_its_data() {
    // Each state, and the one before it, so that a history can be told.
    let mut seen = HashMap::from([(START, START)]);
    let mut queue = VecDeque::from([(START, 0_usize)]);
    let (mut depth, mut recoveries, mut stuck) = (0, 0_usize, HashSet::new());
    while let Some((world, at)) = queue.pop_front() {
        depth = depth.max(at);
        let explored = catch_unwind(|| {
            world.check();
            if matches!(world.us, Us::Dead | Us::Stuck(_)) {
                world.check_recovery();
            }
            world.successors()
        });
        let successors = explored.unwrap_or_else(|panic| {
            let mut history = vec![world];
            while let Some(before) = history
                .last()
                .and_then(|world| seen.get(world))
                .filter(|_| history.len() <= at)
            {
                history.push(*before);
            }
            for world in history.iter().rev() {
                println!("{world:?}");
            }
            resume_unwind(panic)
        });
        recoveries += usize::from(matches!(world.us, Us::Dead | Us::Stuck(_)));
        if let Us::Stuck(why) = world.us {
            stuck.insert(why);
        }
        for next in successors {
            seen.entry(next).or_insert_with(|| {
                queue.push_back((next, at + 1));
                world
            });
        }
    }
    println!(
        "{} states, {recoveries} recoveries, histories of up to {depth} events with up to {FAULTS} faults; ends: {stuck:?}",
        seen.len()
    );
    assert!(seen.len() > FLOOR, "{} states", seen.len());
    // What is explained to a person does occur.
    for why in [Why::Wedged, Why::Diverged, Why::Ambiguous] {
        assert!(stuck.contains(&why), "{why:?} never occurs");
    }
}

//! What is on record of a VM: what it says of the repository, what is acknowledged, what is remembered afterwards.

use jiff::Timestamp;
use strongroom_points::store::{ChunkId, Repository};
use strongroom_points::trust::chain::{self, ChainProblem, Head, Link, Records, Walk};
use strongroom_points::trust::ledger::Ledger;

use super::missing_disks::MissingDisk;
use super::{Problem, Request, Scope, Share, Work};
use crate::run::event::Code;
use crate::run::state::StateError;

impl Work<'_> {
    /// Takes in what is on record, here and at the witness.
    pub(super) fn known(&mut self, repository: &Repository, scope: &Scope, witness: Option<&[Head]>) {
        let id = repository.id().to_string();
        self.known = match Ledger::open(self.here.state.path(), &scope.vm) {
            Ok(ledger) => ledger.records(&id),
            Err(error) => {
                self.problem(Problem::new("records", format!("failed to {error}")));
                Records::default()
            }
        };
        let told = witness.unwrap_or_default().iter();
        self.known
            .heads
            .extend(told.filter(|head| head.vm == scope.vm).cloned());
    }

    /// Whether the chain holds, and nothing has dropped out of it.
    pub(super) fn chain(&mut self, repository: &mut Repository, request: &Request, scope: &Scope) {
        let id = repository.id().to_string();
        let time = repository.timestamp();
        let mut known = std::mem::take(&mut self.known);
        let mut links = std::mem::take(&mut self.links);
        if scope.when.is_some() {
            // One of many: it can only be compared with what is on record of it.
            known.lost.clear();
            known.heads.retain(|head| {
                links.iter().any(|link| link.sequence == head.sequence) && head.repository == id
            });
            let walk = chain::walk(&links, &known, &id, time);
            self.problems(
                walk.problems
                    .iter()
                    .map(|problem| Problem::new(problem.kind(), problem.to_string())),
            );
            self.links = links;
            if let Some(seen) = repository.replayed().map(str::to_owned) {
                let problem = ChainProblem::Replayed {
                    repository: time,
                    seen,
                };
                self.problem(Problem::new(problem.kind(), problem.to_string()));
            }
            return;
        }
        if known.heads.is_empty() {
            self.report.notes.push(
                "no record of the newest restore point, neither here nor at a witness: that the newest ones are missing, \
                 or all of the repository is an old copy, would not be noticed"
                    .into(),
            );
        }
        known
            .lost
            .extend(self.stated.take().map(|(_, lost)| lost).unwrap_or_default());
        let mut walk = chain::walk(&links, &known, &id, time);
        let missing = self.missing_disks(scope);
        if request.acknowledge {
            match self.acknowledge(&id, &walk, &missing) {
                Ok(()) => {
                    known.acknowledged.append(&mut walk.missing);
                    known.left_behind.extend(walk.elsewhere.map(|head| head.lost()));
                    walk = chain::walk(&links, &known, &id, time);
                }
                Err(error) => self.problem(Problem::new("records", format!("failed to {error}"))),
            }
        } else {
            for disk in missing {
                let text = format!(
                    "{}; if that was meant: {}",
                    disk.text(),
                    self.how_to_acknowledge()
                );
                self.report.notes.push(text);
                self.report.dropped.push(disk);
            }
        }
        self.rolled_back(repository, request, &mut walk);
        let hint = format!("; if that was meant: {}", self.how_to_acknowledge());
        self.problems(walk.problems.iter().map(|problem| {
            let hint = if problem.can_be_acknowledged() { &hint } else { "" };
            Problem::new(problem.kind(), format!("{problem}{hint}"))
        }));
        self.report.removed = walk.removed;
        self.links.append(&mut links);
    }

    /// An old copy by Borg's own record: said once, and accepted with everything else that is acknowledged.
    fn rolled_back(&mut self, repository: &mut Repository, request: &Request, walk: &mut Walk) {
        let Some(seen) = repository.replayed().map(str::to_owned) else {
            return;
        };
        if request.acknowledge {
            match repository.accept_state() {
                Ok(()) => self.report.acknowledged.push(format!(
                    "the repository is from {}, and was seen from here with changes of {seen}",
                    repository.timestamp()
                )),
                Err(error) => self.problem(Problem::new("records", format!("failed to {error}"))),
            }
        } else if !walk.problems.iter().any(|problem| problem.kind() == "rollback") {
            let repository = repository.timestamp();
            walk.problems
                .insert(0, ChainProblem::Replayed { repository, seen });
        }
    }

    fn how_to_acknowledge(&self) -> String {
        format!("`strongroom verify {} --acknowledge`", self.report.vm)
    }

    /// The disks that have dropped out without being acknowledged.
    fn missing_disks(&self, scope: &Scope) -> Vec<MissingDisk> {
        let mut missing = self.disks.missing();
        if missing.is_empty() {
            return missing;
        }
        // Records that cannot be read have been told of, and excuse nothing.
        if let Ok(ledger) = Ledger::open(self.here.state.path(), &scope.vm) {
            missing.retain(|disk| {
                let (before, after) = disk.between;
                let since = ledger.left_out(&disk.disk);
                !since.is_some_and(|since| before < since && since <= after)
            });
        }
        missing
    }

    /// Remembers that what is missing is meant to be. If that is everything, or nothing and all is well, it is the VM that was
    /// given up.
    fn acknowledge(&mut self, id: &str, walk: &Walk, disks: &[MissingDisk]) -> Result<(), StateError> {
        let mut ledger = Ledger::open(self.here.state.path(), &self.report.vm)?;
        ledger.acknowledge(id, &walk.missing)?;
        if let Some(head) = &walk.elsewhere {
            ledger.acknowledge(&head.repository, &[head.lost()])?;
        }
        for disk in disks {
            ledger.leave_out(&disk.disk, disk.between.1)?;
        }
        drop(ledger);
        let all_is_well = walk.problems.is_empty() && self.report.problems.is_empty() && disks.is_empty();
        let missing = walk.missing.iter();
        let gone = missing.map(|lost| format!("restore point {} ({}) is gone", lost.sequence, lost.archive));
        let elsewhere = walk.elsewhere.iter().map(|head| {
            format!(
                "restore point {} ({}) is not in this repository, but in {}",
                head.sequence, head.archive, head.repository
            )
        });
        let texts = gone.chain(elsewhere).chain(disks.iter().map(MissingDisk::text));
        self.report.acknowledged.extend(texts);
        if self.may_be_given_up() && (self.is_empty || all_is_well) {
            self.give_up()?;
        }
        Ok(())
    }

    /// Whether it can be acknowledged that the VM was given up: not of one that this configuration has backed up.
    pub(super) fn may_be_given_up(&self) -> bool {
        !self.here.settings.is_configured(&self.report.vm)
    }

    /// What is to be said of a VM that is not there.
    pub(super) fn how_to_give_up(&self) -> String {
        if self.may_be_given_up() {
            let how = self.how_to_acknowledge();
            format!("; it is not configured here; if the VM was given up: {how}")
        } else {
            String::new()
        }
    }

    /// Remembers that the VM need not be there any more.
    pub(super) fn give_up(&mut self) -> Result<(), StateError> {
        Ledger::open(self.here.state.path(), &self.report.vm)?.give_up(Timestamp::now())?;
        self.report.acknowledged.push(
            "it is not configured here, and need not be there any more, until it is heard of again".into(),
        );
        Ok(())
    }

    /// What this machine knows from now on: the newest restore point, if all is well, and what is damaged.
    pub(super) fn remember(&mut self, repository: &Repository, request: &Request, scope: &Scope) {
        let part = self.report.part;
        let looked_at = |id: &ChunkId| {
            let read = request.data && part.is_none_or(|part| part.has(id));
            // A chunk that no restore point uses any more is no damage.
            (read && self.seen.contains(id)) || (scope.when.is_none() && !self.seen.contains(id))
        };
        let newest = self.links.iter().max_by_key(|link| link.sequence);
        let head = newest.map(|link: &Link| Head {
            format: 1,
            vm: scope.vm.clone(),
            repository: repository.id().to_string(),
            archive: link.archive.clone(),
            sequence: link.sequence,
            hash: link.hash.clone(),
            committed: repository.timestamp(),
            counter: None,
        });
        let head = head.filter(|_| self.report.problems.is_empty() && scope.when.is_none());
        let kept = Ledger::open(self.here.state.path(), &scope.vm).and_then(|mut ledger| {
            ledger.looked_at(&self.damaged, looked_at)?;
            if let (Some(Share::Next(_)), Some(part), None) = (request.part, part, &scope.when) {
                ledger.read(part)?;
            }
            head.map_or(Ok(()), |head| ledger.advance(head))
        });
        if let Err(error) = kept {
            let text = format!("what was found is not kept: failed to {error}");
            self.here.warn(Code::Records, text);
        }
    }
}

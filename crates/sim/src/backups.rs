//! Checkpoints and backup jobs. A checkpoint is a persistent dirty bitmap of its name in each of its images; all of them record,
//! so that each has everything that was written since it was made.

use strongroom_hypervisor::{BackupJob, BadBitmap, HypervisorError};

use crate::domains::view_socket;
use crate::server::View;
use crate::world::{Job, Machine};
use crate::{Told, image, refused};

/// Why a bitmap is not believed.
const BROKEN: &str = "its bitmap is missing or inconsistent";

impl Machine {
    /// The targets of a checkpoint.
    fn checkpoint(&self, name: &str) -> Option<&[String]> {
        let found = self.checkpoints.iter().find(|(known, _)| known == name);
        found.map(|(_, targets)| targets.as_slice())
    }

    pub fn check_checkpoint(&self, name: &str) -> Told<Vec<BadBitmap>> {
        let Some(targets) = self.checkpoint(name) else {
            return refused(format!("check checkpoint {name:?}"), "there is none");
        };
        if self.live.is_none() {
            return Ok(Vec::new());
        }
        let images = self.images();
        let broken = |target: &&String| {
            let image = images.iter().find(|(of, ..)| of == *target);
            image.is_some_and(|(_, image, format)| {
                let info = image::info(image, format).ok();
                let bitmaps = info.map(|info| info.bitmaps).unwrap_or_default();
                !bitmaps.iter().any(|bitmap| {
                    let records = bitmap.flags.iter().any(|flag| flag == "auto");
                    bitmap.name == name && bitmap.is_consistent() && records
                })
            })
        };
        let bad = targets.iter().filter(broken).map(|target| BadBitmap {
            target: target.clone(),
            why: BROKEN.into(),
        });
        Ok(bad.collect())
    }

    pub fn create_checkpoint(&mut self, name: &str, targets: &[String]) -> Told<()> {
        let what = || format!("create checkpoint {name:?}");
        if self.checkpoint(name).is_some() {
            return refused(what(), "it exists already");
        }
        // All or none.
        let images = self.images();
        let mut tracked = Vec::new();
        for target in targets {
            match images.iter().find(|(of, ..)| of == target) {
                None => return refused(what(), format!("there is no disk {target:?}")),
                Some((_, image, format)) if format == "qcow2" => tracked.push(image),
                Some(_) => return refused(what(), format!("disk {target:?} has no place for a bitmap")),
            }
        }
        for image in tracked {
            image::bitmap(image, &["--add"], name).or_else(|error| refused(what(), error))?;
        }
        self.checkpoints.push((name.into(), targets.to_vec()));
        Ok(())
    }

    pub fn delete_checkpoint(&mut self, name: &str) -> Told<()> {
        let what = || format!("delete checkpoint {name:?}");
        if name.contains('\0') {
            return refused(what(), "a name has no NUL in it");
        }
        let Some(targets) = self.checkpoint(name).map(<[String]>::to_vec) else {
            return Ok(());
        };
        if self.live.is_none() {
            return refused(what(), "it can be deleted only while the domain runs");
        }
        for (_, image, format) in self.images().iter().filter(|(of, ..)| targets.contains(of)) {
            if format == "qcow2" {
                // One that is lost or broken keeps nothing from being deleted.
                let _ = image::bitmap(image, &["--remove"], name);
            }
        }
        self.checkpoints.retain(|(known, _)| known != name);
        Ok(())
    }

    pub fn begin_backup(&mut self, job: &BackupJob) -> Told<()> {
        let what = || format!("start a backup job of {:?}", self.stored.name);
        let images = self.images();
        let busy = self
            .live
            .as_ref()
            .is_some_and(|live| live.job.is_some() || live.disks.iter().any(|disk| disk.committing));
        if busy {
            return Err(HypervisorError::Busy {
                domain: self.stored.name.clone(),
                message: "another job holds it".into(),
            });
        }
        let Some(socket) = job.listener.socket() else {
            return refused(what(), "it can only be served at a socket");
        };
        for since in job.disks.iter().filter_map(|disk| disk.since.as_ref()) {
            if self.checkpoint(since).is_none() {
                return refused(
                    what(),
                    format!("there is no checkpoint {since:?}, and no bitmap of it"),
                );
            }
        }
        let mut views = Vec::new();
        let mut begun = || -> Result<(), String> {
            for disk in &job.disks {
                let target = &disk.target;
                let found = images.iter().find(|(of, ..)| of == target);
                let (_, image, format) = found.ok_or_else(|| format!("there is no disk {target:?}"))?;
                let socket = view_socket(socket, target);
                let since = disk.since.as_deref();
                views.push(View::begin(
                    target,
                    &disk.scratch,
                    &socket,
                    (image, format),
                    since,
                )?);
            }
            Ok(())
        };
        let begun = begun().or_else(|error| refused(what(), error));
        let tracked = job.disks.iter().filter(|disk| disk.checkpoint);
        let targets: Vec<String> = tracked.map(|disk| disk.target.clone()).collect();
        let done = begun.and_then(|()| match &job.checkpoint {
            Some(name) => self.create_checkpoint(name, &targets),
            None => Ok(()),
        });
        let listener = job.listener.clone();
        let job = Job { listener, views };
        match (done, &mut self.live) {
            (Ok(()), Some(live)) => live.job = Some(job),
            (done, _) => {
                job.end();
                return done;
            }
        }
        Ok(())
    }
}

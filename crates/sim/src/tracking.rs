//! What is left of checkpoints: the bitmaps in the images.

use strongroom_hypervisor::{StoredBitmap, Tracking};
use uuid::Uuid;

use crate::{SimHost, Told, image, refused};

impl Tracking for SimHost {
    fn bitmaps(&self, domain: Uuid) -> Told<Vec<StoredBitmap>> {
        self.ask("bitmaps", |world| {
            let mut found = Vec::new();
            let images = world.machine(domain)?.images();
            for (target, image, format) in images.iter().filter(|(_, _, format)| format == "qcow2") {
                let info = image::info(image, format)
                    .or_else(|error| refused(format!("look for the bitmaps of {target}"), error))?;
                found.extend(info.bitmaps.into_iter().map(|bitmap| StoredBitmap {
                    target: target.clone(),
                    sound: bitmap.is_consistent() && bitmap.flags.iter().any(|flag| flag == "auto"),
                    name: bitmap.name,
                }));
            }
            Ok(found)
        })
    }

    fn remove_bitmap(&self, domain: Uuid, target: &str, name: &str) -> Told<()> {
        self.act("remove_bitmap", |world| {
            let images = world.machine(domain)?.images();
            let Some((_, image, format)) = images.iter().find(|(of, ..)| of == target) else {
                return Ok(());
            };
            let what = || format!("remove bitmap {name:?} from disk {target}");
            let info = image::info(image, format).or_else(|error| refused(what(), error))?;
            if !info.bitmaps.iter().any(|bitmap| bitmap.name == name) {
                return Ok(());
            }
            image::bitmap(image, &["--remove"], name).or_else(|error| refused(what(), error))
        })
    }

    fn forget_checkpoint(&self, domain: Uuid, name: &str) -> Told<()> {
        self.act("forget_checkpoint", |world| {
            let known = &mut world.machine_mut(domain)?.checkpoints;
            known.retain(|(of, _)| of != name);
            Ok(())
        })
    }

    fn redefine_checkpoint(&self, domain: Uuid, name: &str, targets: &[String]) -> Told<()> {
        self.act("redefine_checkpoint", |world| {
            let machine = world.machine_mut(domain)?;
            machine.checkpoints.push((name.into(), targets.to_vec()));
            let bad = machine.check_checkpoint(name)?;
            if let Some(bad) = bad.first() {
                machine.checkpoints.retain(|(of, _)| of != name);
                return refused(format!("define checkpoint {name:?} again"), bad.why.clone());
            }
            Ok(())
        })
    }
}

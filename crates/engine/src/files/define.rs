//! Defining a domain whose disks have just taken their places.

use std::time::{Duration, Instant};

use strongroom_hypervisor::HypervisorError;
use uuid::Uuid;

use super::Inventory;
use super::staged::InstalledFile;
use crate::run::context::Context;
use crate::run::event::Code;

/// How long a hypervisor that does not answer is asked what it has done.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two questions.
const RETRY: Duration = Duration::from_millis(500);

/// Defines a domain that is not there yet, and gives its files back, to be kept. After a failure they are gone.
///
/// A hypervisor that says that it failed may have done it all the same, and died before it could say so: so files go only
/// if no domain has them, and stay where that cannot be told.
pub fn define<'a>(
    context: &Context<'_>,
    xml: &str,
    files: Vec<InstalledFile<'a>>,
) -> Result<(Uuid, Vec<InstalledFile<'a>>), HypervisorError> {
    let error = match context.hypervisor.define(xml, false) {
        Ok(uuid) => return Ok((uuid, files)),
        Err(error) => error,
    };
    let patience = Instant::now() + PATIENCE;
    loop {
        let found = Inventory::take(context.hypervisor)
            .map_err(|error| error.to_string())
            .and_then(|inventory| {
                let user = inventory.any_user(files.iter().map(InstalledFile::destination));
                user.map(|held| held.map(|held| (held.domain.clone(), held.uuid)))
                    .map_err(|unread| format!("{:?}: {}", unread.domain, unread.reason))
            });
        match found {
            Ok(None) => return Err(error),
            Ok(Some((domain, uuid))) => {
                context.warn(
                    Code::DefinedAnyway,
                    format!("{domain} is defined, although this failed: {error}"),
                );
                return Ok((uuid, files));
            }
            Err(_) if Instant::now() < patience => std::thread::sleep(RETRY),
            Err(unknown) => {
                for file in files {
                    context.warn(
                        Code::FileKept,
                        format!(
                            "{} stays, as a domain may have it: {unknown}",
                            file.destination().display()
                        ),
                    );
                    file.leave();
                }
                return Err(error);
            }
        }
    }
}

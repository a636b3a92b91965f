//! A hypervisor that does not answer: a call that hangs in it cannot be ended, so what waits for it is given up.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use signal_hook::low_level::exit;
use strongroom_engine::fleet::FleetError;
use strongroom_hypervisor::Timed;
use strongroom_libvirt::Libvirt;

use crate::documents::Failed;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::ui::{Ui, output};

/// Between two looks at whether it still answers.
const LOOK: Duration = Duration::from_millis(500);

/// Why a call is not waited for any longer, if it has taken longer than this.
fn given_up(hypervisor: &Timed<Libvirt>, limit: Duration) -> Option<Failure> {
    let (call, time) = hypervisor.longest()?;
    let seconds = time.as_secs();
    (time > limit).then(|| FleetError::NoAnswer { call, seconds }.into())
}

/// Ends the program as if it had been killed once a call takes too long: what it had begun is on record.
pub fn watch(hypervisor: &Arc<Timed<Libvirt>>, limit: Option<Duration>, ui: &Arc<Ui>) {
    let Some(limit) = limit else { return };
    let (watched, ui) = (Arc::downgrade(hypervisor), Arc::clone(ui));
    thread::spawn(move || {
        while let Some(hypervisor) = watched.upgrade() {
            if let Some(failure) = given_up(&hypervisor, limit) {
                ui.failure(&failure);
                if ui.json() {
                    ui.document_with_warnings(Failed {
                        error: &failure.message,
                        hint: failure.hint.as_deref(),
                    });
                }
                let _ = output::finish();
                exit(Exit::Failed.code().into());
            }
            drop(hypervisor);
            thread::sleep(LOOK);
        }
    });
}

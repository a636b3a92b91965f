//! `strongroom thaw-watchdog`: the process that thaws a guest when the run that froze it does not. Hidden: a backup starts
//! it, and speaks to it as [`strongroom_engine::capture::watchdog`] says.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use strongroom_child::Needs;
use strongroom_engine::capture::watchdog::keeper::Keeper;
use strongroom_engine::capture::watchdog::{Reply, read_line};
use strongroom_engine::run::context::Launch;
use strongroom_hypervisor::{Hypervisor as _, HypervisorError};
use strongroom_libvirt::Libvirt;
use uuid::Uuid;

use crate::args::{Global, ThawWatchdog};
use crate::exit::Exit;

/// How a backup starts it: this very program, also when its file has been replaced by a newer one meanwhile.
pub fn launch(uri: &str) -> Box<Launch> {
    let uri = uri.to_owned();
    Box::new(move |domain: Uuid, budget: Duration| {
        let mut command = strongroom_child::command("/proc/self/exe", Needs::Hypervisor);
        command
            .args(["--connect", &uri, "thaw-watchdog", &domain.to_string()])
            .args(["--budget-ms", &budget.as_millis().to_string()]);
        command
    })
}

/// Watches. It ends when there is nothing left to thaw.
pub fn run(global: &Global, args: &ThawWatchdog) -> Exit {
    // A session of its own, and deaf to what ends a session: it has to outlive the run, however that ends.
    let _ = rustix::process::setsid();
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    let mut reply = |message: &Reply| {
        // The run may not be there any more to hear it.
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{message}").and_then(|()| out.flush());
    };
    let hypervisor = match Libvirt::connect(global.connect.as_deref().unwrap_or_default()) {
        Ok(hypervisor) => hypervisor,
        Err(error) => {
            reply(&Reply::Failed(error.to_string()));
            return Exit::Failed;
        }
    };
    let (sender, messages) = channel();
    std::thread::spawn(move || {
        let mut pipe = std::io::stdin().lock();
        while let Some(line) = read_line(&mut pipe) {
            if line.parse().is_ok_and(|message| sender.send(message).is_err()) {
                break;
            }
        }
    });
    let is_off = || match hypervisor.domain(&args.domain.to_string()) {
        Ok(domain) => !domain.state.is_active(),
        Err(error) => matches!(error, HypervisorError::NoSuchDomain(..)),
    };
    let budget = Duration::from_millis(args.budget_ms);
    Keeper::new(&hypervisor, args.domain, &is_off, budget).stand(&messages, &mut reply);
    Exit::Done
}

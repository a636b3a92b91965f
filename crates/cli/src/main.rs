//! The command line of strongroom: arguments → settings → command → output.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod args;
mod cmd;
mod config_file;
mod documents;
mod exit;
mod failure;
mod prompt;
mod replace;
mod settings;
mod signals;
mod ui;
mod unanswered;

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser as _;
use strongroom_engine::run::event::Code;

use args::{Cli, Command};
use documents::Failed;
use exit::Exit;
use failure::Failure;
use settings::Settings;
use signals::Signals;
use ui::{Ui, output};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return not_a_command(&answer).into(),
    };
    if let Command::ThawWatchdog(args) = &cli.command {
        // No terminal, no signals: only the pipe to the run that it watches.
        return cmd::thaw_watchdog::run(&cli.global, args).into();
    }
    let ui = Arc::new(Ui::new(&cli.global));
    let exit = run(&cli, &ui).unwrap_or_else(|failure| {
        ui.failure(&failure);
        if ui.json() {
            ui.document_with_warnings(Failed {
                error: &failure.message,
                hint: failure.hint.as_deref(),
            });
        }
        failure.exit
    });
    for left in strongroom_child::take_left() {
        ui.warn(Code::ProcessLeft, None, left.to_string());
    }
    let exit = output::finish().map_or_else(
        |failure| {
            ui.failure(&failure);
            failure.exit
        },
        |()| exit,
    );
    let exit = if exit == Exit::Done && ui.warnings() > 0 {
        Exit::Warnings
    } else {
        exit
    };
    exit.into()
}

/// What clap answers by itself: `--help` and `--version`, or what is wrong with the command line.
fn not_a_command(answer: &clap::Error) -> Exit {
    let printed = answer.print().and_then(|()| std::io::stdout().flush());
    match printed {
        _ if answer.use_stderr() => Exit::Usage,
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let words = output::failure(&error).message;
            let _ = writeln!(std::io::stderr(), "strongroom: failed to {words}");
            Exit::Failed
        }
        _ => Exit::Done,
    }
}

fn run(cli: &Cli, ui: &Arc<Ui>) -> Result<Exit, Failure> {
    let signals = Signals::handle().map_err(Failure::failed)?;
    let settings = Settings::new(&cli.global, signals, Arc::clone(ui));
    command(cli, &settings).map_err(|failure| match settings.signals.cancel().check() {
        // Whatever failed first when the command was stopped: it was stopped.
        Err(cancelled) => Failure::failed(format!("finish: {cancelled}")),
        Ok(()) => failure,
    })
}

fn command(cli: &Cli, settings: &Settings) -> Result<Exit, Failure> {
    match &cli.command {
        Command::Init(args) => cmd::init::run(settings, args),
        Command::Adopt(args) => cmd::adopt::run(settings, args),
        Command::Attest(args) => cmd::attest::run(settings, args),
        Command::Audit(args) => cmd::audit::run(settings, args),
        Command::Backup(args) => cmd::backup::run(settings, args),
        Command::Create(args) => cmd::create::run(settings, args),
        Command::BackupVm(args) => cmd::backup_vm::run(settings, args),
        Command::Template(args) => cmd::template::run(settings, args),
        Command::List(args) => cmd::list::run(settings, args),
        Command::Show(args) => cmd::show::run(settings, args),
        Command::Restore(args) => cmd::restore::run(settings, args),
        Command::Status(args) => cmd::status::run(settings, args),
        Command::Verify(args) => cmd::verify::run(settings, args),
        Command::Seal(args) => cmd::seal::run(settings, args),
        Command::VerifyImage(args) => cmd::seal::verify(settings, args),
        Command::Repo(args) => cmd::repo::run(settings, args),
        Command::Recover(args) => cmd::recover::run(settings, args),
        Command::Release(args) => cmd::release::run(settings, args),
        Command::HypervisorRights(args) => cmd::hypervisor_rights::run(settings, args),
        Command::ThawWatchdog(args) => Ok(cmd::thaw_watchdog::run(&cli.global, args)),
        Command::Man { directory } => cmd::reference::man(directory),
        Command::Completions { shell } => Ok(cmd::reference::completions(*shell)),
    }
}

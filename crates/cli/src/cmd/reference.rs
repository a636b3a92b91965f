//! Man pages and completions, from the definition of the command line.

use std::path::Path;

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::ui::output;

/// Writes `strongroom.1` and a page for each command.
pub fn man(directory: &Path) -> Result<Exit, Failure> {
    let failed = |error| Failure::failed(format!("write man pages to {}: {error}", directory.display()));
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(failed)?;
    Ok(Exit::Done)
}

/// Prints the completion script.
pub fn completions(shell: clap_complete::Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "strongroom", &mut script);
    output::write(&script);
    Exit::Done
}

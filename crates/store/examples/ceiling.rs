//! How fast the engine itself is, without hashing, compressing or encrypting: `ceiling put|get|open REPOSITORY …`.
//!
//! `put COUNT BYTES THREADS` stores random objects and commits, `get THREADS` reads all objects, `open` opens and puts one
//! byte. Each prints seconds of the clock and of the CPU, and the peak of memory.

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use strongroom_store::{Id, Options, Repository, Result, Store as _};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: usize| args.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (Some(what), Some(path)) = (args.first(), args.get(1)) else {
        println!("usage: ceiling put|get|open REPOSITORY [COUNT BYTES THREADS]");
        return Ok(());
    };
    let path = Path::new(path);
    let since = Instant::now();
    match what.as_str() {
        "put" => put(path, number(2, 256), number(3, 4 << 20), number(4, 1))?,
        "get" => get(path, number(2, 1))?,
        _ => {
            let repository = Repository::open(path, &Options::write())?;
            println!(
                "opened after {:.3} s, {} objects",
                since.elapsed().as_secs_f64(),
                repository.count()?
            );
            repository.put(&Id([0xee; 32]), b"x")?;
            repository.commit()?;
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or_default();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: u64 = stat
        .split(' ')
        .skip(13)
        .take(2)
        .filter_map(|text| text.parse::<u64>().ok())
        .sum();
    println!(
        "{:.2} s, CPU {:.2} s, {peak}",
        since.elapsed().as_secs_f64(),
        ticks as f64 / 100.0
    );
    Ok(())
}

fn put(path: &Path, count: usize, bytes: usize, threads: usize) -> Result<()> {
    let repository = Repository::open(path, &Options::write())?;
    let object: Vec<u8> = (0..bytes).map(|at| ((at * at) >> 7) as u8).collect();
    std::thread::scope(|scope| {
        let puts: Vec<_> = (0..threads)
            .map(|thread| {
                let (repository, object) = (&repository, &object);
                scope.spawn(move || {
                    (thread..count)
                        .step_by(threads)
                        .try_for_each(|n| repository.put(&id(n), object))
                })
            })
            .collect();
        puts.into_iter()
            .try_for_each(|put| put.join().unwrap_or(Err(strongroom_store::Error::Doomed)))
    })?;
    repository.commit()
}

fn get(path: &Path, threads: usize) -> Result<()> {
    let repository = Repository::open(path, &Options::read())?;
    let ids = repository.list(None, usize::MAX)?;
    std::thread::scope(|scope| {
        let gets: Vec<_> = (0..threads)
            .map(|thread| {
                let (repository, ids) = (&repository, &ids);
                scope.spawn(move || {
                    let mut object = Vec::new();
                    ids.iter()
                        .skip(thread)
                        .step_by(threads)
                        .try_for_each(|id| repository.get(id, &mut object))
                })
            })
            .collect();
        gets.into_iter()
            .try_for_each(|get| get.join().unwrap_or(Err(strongroom_store::Error::Doomed)))
    })
}

/// Ids that lie in the index as random ones do.
fn id(n: usize) -> Id {
    let mut id = [0x5a; 32];
    id[..8].copy_from_slice(&(n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    Id(id)
}

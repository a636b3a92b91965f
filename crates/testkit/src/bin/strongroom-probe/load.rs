//! A steady stream of bulk writes, to make the guest's disk busy.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::pattern::{Noise, random_seed};

const BLOCK: usize = 1 << 20;
/// The file is overwritten in a circle of this many blocks.
const BLOCKS: u64 = 128;

/// Writes fresh random data in 1 MiB steps, each flushed, at a given rate.
pub struct Load {
    path: PathBuf,
    running: Option<Running>,
}

struct Running {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Load {
    /// A load on the file `load.dat` in `dir`; nothing is written yet.
    pub fn new(dir: &Path) -> Self {
        Self {
            path: dir.join("load.dat"),
            running: None,
        }
    }

    /// Writes `rate` MiB each second from now on.
    pub fn start(&mut self, rate: u64) -> io::Result<String> {
        self.stop()?;
        let pause = Duration::from_secs(1) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.path)?;
        let mut noise = Noise::new(random_seed()?);
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = thread::spawn(move || {
            let mut block = vec![0; BLOCK];
            while !stopped.load(Ordering::Relaxed) {
                let begin = Instant::now();
                noise.fill(&mut block);
                let index = count.fetch_add(1, Ordering::Relaxed) % BLOCKS;
                file.write_all_at(&block, index * BLOCK as u64)?;
                file.sync_data()?;
                thread::sleep(pause.saturating_sub(begin.elapsed()));
            }
            Ok(())
        });
        self.running = Some(Running {
            stop,
            written,
            thread,
        });
        Ok(String::new())
    }

    /// Ends the load; returns how many MiB it has written, or the write error that ended it.
    pub fn stop(&mut self) -> io::Result<u64> {
        let Some(running) = self.running.take() else {
            return Ok(0);
        };
        running.stop.store(true, Ordering::Relaxed);
        running
            .thread
            .join()
            .map_err(|_| io::Error::other("the load thread panicked"))??;
        Ok(running.written.load(Ordering::Relaxed))
    }
}

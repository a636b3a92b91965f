//! Data whose every byte can be verified after a restore.
//!
//! Two kinds, both in one directory:
//! - `ring.dat` and `log.dat`: a writer overwrites random 4 KiB slots of the ring, one at a time,
//!   each made durable; then it appends a record of that write to the log and makes that durable
//!   too. So at any instant the ring holds exactly what the log tells, except for at most one
//!   newer slot: the write whose record was still to come. A copy of the disk that is no single
//!   instant, or that lost a write, breaks this.
//! - `data-SEED-MIB.bin`: random data that its own name can reproduce.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::meter::Meter;

const SLOT: usize = 4096;
const SLOTS: u32 = 4096;
/// A log record: sequence number, slot number, checksum of the slot, checksum of the record.
const RECORD: usize = 32;
const BLOCK: usize = 1 << 20;

/// The xorshift64* generator: fast, seeded, and incompressible enough to look like ciphertext.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
    }
}

/// Eight bytes of the kernel's randomness.
pub fn random_seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(u64::from_le_bytes(seed))
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .chunks_exact(8)
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, word| {
            (sum.rotate_left(5) ^ word_at(word, 0)).wrapping_mul(0x0100_0000_01b3)
        })
}

/// The little-endian number at byte `at`; zero beyond the end.
fn word_at(bytes: &[u8], at: usize) -> u64 {
    let word = bytes
        .get(at..at + 8)
        .and_then(|word| word.try_into().ok())
        .unwrap_or([0; 8]);
    u64::from_le_bytes(word)
}

fn bad(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The content of a slot: sequence number, slot number, noise, and a checksum over all that.
fn slot_content(slot: u32, seq: u64) -> Vec<u8> {
    let mut content = vec![0; SLOT];
    Noise::new(seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(slot)).fill(&mut content);
    content[..8].copy_from_slice(&seq.to_le_bytes());
    content[8..16].copy_from_slice(&u64::from(slot).to_le_bytes());
    let sum = checksum(&content[..SLOT - 8]);
    content[SLOT - 8..].copy_from_slice(&sum.to_le_bytes());
    content
}

fn record_content(slot: u32, seq: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&seq.to_le_bytes());
    record[8..16].copy_from_slice(&u64::from(slot).to_le_bytes());
    record[16..24].copy_from_slice(&checksum(&slot_content(slot, seq)).to_le_bytes());
    let sum = checksum(&record[..24]);
    record[24..].copy_from_slice(&sum.to_le_bytes());
    record
}

/// What the ring and its log were found to hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Slots in the ring; zero when there is none yet.
    pub slots: usize,
    /// Writes in the log.
    pub records: usize,
    /// The slot whose write the log does not tell yet.
    in_flight: Option<(u32, u64)>,
}

/// Writes the ring and its log, from a thread of its own while started.
pub struct Writer {
    dir: PathBuf,
    meter: Arc<Meter>,
    /// Held for each write, so that `verify` sees no half-done step of our own.
    turn: Arc<Mutex<()>>,
    running: Option<(Arc<AtomicBool>, JoinHandle<io::Result<()>>)>,
}

impl Writer {
    /// A writer in `dir`; nothing is written yet.
    pub fn new(dir: &Path, meter: Arc<Meter>) -> Self {
        Self {
            dir: dir.to_owned(),
            meter,
            turn: Arc::default(),
            running: None,
        }
    }

    /// Begins, or goes on where an earlier run has stopped, with `pause` between two writes.
    pub fn start(&mut self, pause: Duration) -> io::Result<String> {
        self.stop()?;
        if !self.dir.join("ring.dat").exists() {
            create_ring(&self.dir)?;
        }
        let found = self.verify()?;
        let ring = OpenOptions::new().write(true).open(self.dir.join("ring.dat"))?;
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log.dat"))?;
        sync_dir(&self.dir)?;
        let mut seq = found.records as u64;
        if let Some((slot, newer)) = found.in_flight {
            log.write_all(&record_content(slot, newer))?;
            seq = newer;
        }
        let mut noise = Noise::new(random_seed()?);
        let (turn, meter) = (Arc::clone(&self.turn), Arc::clone(&self.meter));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let guard = turn.lock().unwrap_or_else(PoisonError::into_inner);
                seq += 1;
                let slot = (noise.next() % u64::from(SLOTS)) as u32;
                let content = slot_content(slot, seq);
                let begin = Instant::now();
                let result = ring
                    .write_all_at(&content, u64::from(slot) * SLOT as u64)
                    .and_then(|()| ring.sync_data());
                meter.record(begin.elapsed(), result.is_ok());
                result?;
                log.write_all(&record_content(slot, seq))?;
                log.sync_data()?;
                drop(guard);
                thread::sleep(pause);
            }
            Ok(())
        });
        self.running = Some((stop, thread));
        Ok(String::new())
    }

    /// Stops after the write at hand; reports the write error that has ended the writer, if any.
    pub fn stop(&mut self) -> io::Result<String> {
        if let Some((stop, thread)) = self.running.take() {
            stop.store(true, Ordering::Relaxed);
            thread
                .join()
                .map_err(|_| io::Error::other("the pattern thread panicked"))??;
        }
        Ok(String::new())
    }

    /// Reads ring and log in full and checks every byte and their agreement.
    pub fn verify(&self) -> io::Result<Found> {
        let _guard = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = match fs::read(self.dir.join("ring.dat")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Found {
                    slots: 0,
                    records: 0,
                    in_flight: None,
                });
            }
            result => result?,
        };
        let log = match fs::read(self.dir.join("log.dat")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            result => result?,
        };
        check(&ring, &log)
    }
}

/// Makes a ring of slots that were never written (sequence number 0), visible only when complete.
fn create_ring(dir: &Path) -> io::Result<()> {
    let temporary = dir.join("ring.tmp");
    let mut file = File::create(&temporary)?;
    for slot in 0..SLOTS {
        file.write_all(&slot_content(slot, 0))?;
    }
    file.sync_all()?;
    fs::rename(&temporary, dir.join("ring.dat"))?;
    sync_dir(dir)
}

fn check(ring: &[u8], log: &[u8]) -> io::Result<Found> {
    if ring.len() != SLOT * SLOTS as usize {
        return Err(bad(format!("ring.dat has {} bytes", ring.len())));
    }
    let mut expected = vec![0; SLOTS as usize];
    let records = log.chunks_exact(RECORD);
    let count = records.len();
    for (seq, record) in (1..).zip(records) {
        let slot = word_at(record, 8) as u32 % SLOTS;
        if record != record_content(slot, seq) {
            return Err(bad(format!("log.dat: record {seq} is damaged or out of order")));
        }
        expected[slot as usize] = seq;
    }
    let mut in_flight = None;
    for ((slot, content), expected) in (0..).zip(ring.chunks_exact(SLOT)).zip(expected) {
        let seq = word_at(content, 0);
        if content != slot_content(slot, seq) {
            return Err(bad(format!("ring.dat: slot {slot} is damaged")));
        }
        if seq == count as u64 + 1 && in_flight.is_none() {
            in_flight = Some((slot, seq));
        } else if seq != expected {
            return Err(bad(format!(
                "ring.dat: slot {slot} holds write {seq}, the log tells {expected}"
            )));
        }
    }
    Ok(Found {
        slots: SLOTS as usize,
        records: count,
        in_flight,
    })
}

/// Writes `mib` MiB of fresh random data, durable when this returns the file's name.
pub fn write_file(dir: &Path, mib: u64) -> io::Result<String> {
    let seed = random_seed()?;
    let name = format!("data-{seed:016x}-{mib}.bin");
    let temporary = dir.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    let mut noise = Noise::new(seed);
    let mut block = vec![0; BLOCK];
    for _ in 0..mib {
        noise.fill(&mut block);
        file.write_all(&block)?;
    }
    file.sync_all()?;
    fs::rename(&temporary, dir.join(&name))?;
    sync_dir(dir)?;
    Ok(name)
}

/// Checks every byte of every file of [`write_file`]; returns how many there are.
pub fn verify_files(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(stem) = name
            .strip_prefix("data-")
            .and_then(|rest| rest.strip_suffix(".bin"))
        else {
            continue;
        };
        let parsed = stem
            .split_once('-')
            .and_then(|(seed, mib)| Some((u64::from_str_radix(seed, 16).ok()?, mib.parse::<u64>().ok()?)));
        let (seed, mib) = parsed.ok_or_else(|| bad(format!("{name}: not a name of ours")))?;
        if entry.metadata()?.len() != mib << 20 {
            return Err(bad(format!("{name}: has {} bytes", entry.metadata()?.len())));
        }
        let mut file = File::open(entry.path())?;
        let mut noise = Noise::new(seed);
        let (mut block, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
        for index in 0..mib {
            file.read_exact(&mut block)?;
            noise.fill(&mut expected);
            if block != expected {
                return Err(bad(format!("{name}: damaged in MiB {index}")));
            }
        }
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path) -> Writer {
        let mut writer = Writer::new(dir, Meter::start());
        writer.start(Duration::ZERO).unwrap();
        while fs::metadata(dir.join("log.dat")).unwrap().len() < 20 * RECORD as u64 {
            thread::sleep(Duration::from_millis(1));
        }
        writer.stop().unwrap();
        writer
    }

    fn last_slot(dir: &Path) -> u64 {
        let log = fs::read(dir.join("log.dat")).unwrap();
        word_at(&log, log.len() - RECORD + 8)
    }

    #[test]
    fn what_was_written_verifies_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = written(dir.path());
        let first = writer.verify().unwrap();
        assert!(first.records >= 20 && first.slots == 4096, "{first:?}");
        writer.start(Duration::ZERO).unwrap();
        thread::sleep(Duration::from_millis(20));
        writer.stop().unwrap();
        assert!(writer.verify().unwrap().records > first.records);
    }

    #[test]
    fn one_write_without_its_record_is_fine_two_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = written(dir.path());
        let log = OpenOptions::new()
            .write(true)
            .open(dir.path().join("log.dat"))
            .unwrap();
        let records = writer.verify().unwrap().records as u64;
        log.set_len((records - 1) * RECORD as u64).unwrap();
        let found = writer.verify().unwrap();
        assert_eq!(found.in_flight.map(|(_, seq)| seq), Some(records));
        // The next start writes the record that is missing.
        writer.start(Duration::ZERO).unwrap();
        writer.stop().unwrap();
        let records = writer.verify().unwrap().records as u64;
        assert!(records > found.records as u64);
        log.set_len((records - 5) * RECORD as u64).unwrap();
        assert!(writer.verify().unwrap_err().to_string().contains("the log tells"));
    }

    #[test]
    fn a_lost_write_and_a_flipped_bit_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let writer = written(dir.path());
        let slot = last_slot(dir.path());
        let ring = OpenOptions::new()
            .write(true)
            .open(dir.path().join("ring.dat"))
            .unwrap();
        ring.write_all_at(&slot_content(slot as u32, 0), slot * SLOT as u64)
            .unwrap();
        assert!(writer.verify().unwrap_err().to_string().contains("holds write 0"));
        ring.write_all_at(&[0x55], slot * SLOT as u64 + 2000).unwrap();
        assert!(writer.verify().unwrap_err().to_string().contains("is damaged"));
    }

    #[test]
    fn data_files_are_checked_against_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let name = write_file(dir.path(), 2).unwrap();
        write_file(dir.path(), 1).unwrap();
        assert_eq!(verify_files(dir.path()).unwrap(), 2);
        let file = OpenOptions::new()
            .write(true)
            .open(dir.path().join(&name))
            .unwrap();
        file.write_all_at(&[0; 16], (1 << 20) + 17).unwrap();
        assert!(
            verify_files(dir.path())
                .unwrap_err()
                .to_string()
                .contains("damaged in MiB 1")
        );
        file.set_len(5).unwrap();
        assert!(
            verify_files(dir.path())
                .unwrap_err()
                .to_string()
                .contains("5 bytes")
        );
    }
}

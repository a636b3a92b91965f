//! A disk as it looks to a holder of its image without a key: its parts, what they begin with, and what samples of their
//! data look like.
//!
//! The samples are chosen so that two disks which were once one are compared where it counts: the first blocks of the
//! data, which every file system writes, and of all allocated blocks those whose numbers have the smallest hashes (the
//! same for every disk). Equal ciphertext at the same place is the same plaintext under the same key.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::Extent;
use crate::cover::{ExtentMap, Kind};
use crate::entropy::{Look, entropy, look, written};
use crate::luks::Luks;
use crate::partitions::{Purpose, Region, Table, regions};
use crate::source::{BlockSource, ReadError};

/// Bytes in a sample.
pub const BLOCK: u64 = 4096;
/// Samples at the start of a region's data.
const FIRST: u64 = 64;
/// Samples chosen among all that is allocated.
const CHOSEN: usize = 512;
/// Page sizes whose last bytes may hold the signature of a swap area.
const PAGES: [usize; 4] = [4096, 8192, 16384, 65536];
/// Signatures of swap areas (mkswap(8)) and of a hibernated system in one (the kernel's kernel/power/swap.c).
const SIGNATURES: [&[u8]; 4] = [b"SWAPSPACE2", b"SWAP-SPACE", b"S1SUSPEND\0", b"S2SUSPEND\0"];

/// What was seen of a disk.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Size in bytes.
    pub size: u64,
    /// How it is divided.
    pub table: Table,
    /// Its parts.
    pub parts: Vec<Part>,
}

/// A part of it.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where it is.
    pub region: Region,
    /// What it begins with.
    pub content: Content,
    /// Samples: of the data of a LUKS volume, else of all of it.
    pub samples: Samples,
}

/// What a part begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The header of a LUKS volume.
    Luks(Box<Luks>),
    /// A swap area in clear text, by its signature.
    Swap(&'static str),
    /// Nothing that is known here.
    Other,
}

/// Samples of a region.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Blocks with anything in them.
    pub written: u64,
    /// Those of them that do not look like ciphertext.
    pub clear: u64,
    /// The lowest entropy among all, in bits per byte; 8 if there is none.
    pub lowest: f64,
    /// Of blocks that look like ciphertext: where they are, counted from the start of the data, and their first
    /// bytes that are not zero.
    pub cipher: BTreeSet<(u64, [u8; 32])>,
}

impl Samples {
    /// How many blocks hold the same ciphertext at the same place.
    pub fn shared(&self, other: &Self) -> usize {
        self.cipher.intersection(&other.cipher).count()
    }
}

impl Survey {
    /// Looks at a disk: headers, and some samples.
    pub fn take(disk: &mut impl BlockSource, allocated: &ExtentMap) -> Result<Self, ReadError> {
        let size = disk.size();
        let (table, regions) = regions(disk)?;
        let mut parts = Vec::with_capacity(regions.len());
        for region in regions {
            let content = content(disk, &region)?;
            let end = region.offset.saturating_add(region.length).min(size);
            let data = match &content {
                Content::Luks(luks) => luks.data(end),
                _ => vec![(region.offset, end.saturating_sub(region.offset))],
            };
            let samples = sample(disk, allocated, &data)?;
            parts.push(Part {
                region,
                content,
                samples,
            });
        }
        Ok(Self { size, table, parts })
    }

    /// The LUKS volumes on it, each with the samples of its data.
    pub fn volumes(&self) -> impl Iterator<Item = (&Luks, &Samples)> {
        self.parts.iter().filter_map(|part| match &part.content {
            Content::Luks(luks) => Some((&**luks, &part.samples)),
            _ => None,
        })
    }
}

impl Part {
    /// Whether it is for starting the machine: as its type says, or, beside an encrypted one, by its size.
    pub fn is_boot(&self, encrypted_beside: bool) -> bool {
        const LARGEST: u64 = 2 << 30;
        self.region.purpose == Purpose::Boot
            || (encrypted_beside && self.region.partition.is_some() && self.region.length <= LARGEST)
    }
}

fn content(disk: &mut impl BlockSource, region: &Region) -> Result<Content, ReadError> {
    if let Some(luks) = Luks::read(disk, region.offset, region.length)? {
        return Ok(Content::Luks(Box::new(luks)));
    }
    let room = region.length.min(disk.size().saturating_sub(region.offset));
    let mut start = vec![0; room.min(PAGES[3] as u64) as usize];
    disk.read_at(region.offset, &mut start)?;
    let signature = PAGES
        .iter()
        .filter_map(|page| start.get(page - 10..*page))
        .find_map(|end| SIGNATURES.iter().find(|signature| end == **signature));
    Ok(match signature {
        Some(signature) => Content::Swap(
            std::str::from_utf8(signature)
                .unwrap_or_default()
                .trim_end_matches('\0'),
        ),
        None => Content::Other,
    })
}

fn sample(
    disk: &mut impl BlockSource,
    allocated: &ExtentMap,
    data: &[(u64, u64)],
) -> Result<Samples, ReadError> {
    let mut samples = Samples {
        lowest: 8.0,
        ..Samples::default()
    };
    let Some((origin, _)) = data.first() else {
        return Ok(samples);
    };
    let mut block = vec![0; BLOCK as usize];
    for number in choose(allocated, data, *origin) {
        disk.read_at(origin + number * BLOCK, &mut block)?;
        let look = look(&block);
        if look == Look::Zero {
            continue;
        }
        samples.written += 1;
        samples.lowest = samples.lowest.min(entropy(&block));
        if look == Look::Clear {
            samples.clear += 1;
        } else if let Some(start) = written(&block).next().and_then(|sector| sector.first_chunk()) {
            samples.cipher.insert((number, *start));
        }
    }
    Ok(samples)
}

/// Numbers of the blocks to look at, counted from `origin`, in order.
fn choose(allocated: &ExtentMap, data: &[(u64, u64)], origin: u64) -> BTreeSet<u64> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut smallest: BTreeSet<(u64, u64)> = BTreeSet::new();
    let mut first = BTreeSet::new();
    for (offset, length) in data {
        let Ok(region) = Extent::new(*offset, *length) else {
            continue;
        };
        for (extent, kind) in allocated.within(region) {
            if kind != Kind::Data {
                continue;
            }
            let from = extent.offset().saturating_sub(origin).div_ceil(BLOCK);
            let to = extent.end().saturating_sub(origin) / BLOCK;
            for number in from..to {
                if number < FIRST {
                    first.insert(number);
                }
                let hash = hasher.hash_one(number);
                if smallest.len() < CHOSEN {
                    smallest.insert((hash, number));
                } else if smallest.last().is_some_and(|largest| hash < largest.0) {
                    smallest.pop_last();
                    smallest.insert((hash, number));
                }
            }
        }
    }
    first.extend(smallest.into_iter().map(|(_, number)| number));
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Bytes that look like ciphertext, the same for each key and place.
    fn cipher(key: u64, length: usize) -> Vec<u8> {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let words = (0..length as u64 / 8).map(|at| hasher.hash_one((key, at)).to_le_bytes());
        words.flatten().collect()
    }

    fn take(mut disk: Vec<u8>) -> Survey {
        let allocated = ExtentMap::uniform(disk.len() as u64, Kind::Data);
        Survey::take(&mut disk, &allocated).unwrap()
    }

    #[test]
    fn what_is_allocated_is_sampled_in_the_same_places() {
        let mut map = ExtentMap::new();
        for kind in [Kind::Zero, Kind::Data, Kind::Zero, Kind::Data] {
            map.push(64 << 20, kind).unwrap();
        }
        let all = [(0, map.size())];
        let chosen = choose(&map, &all, 0);
        assert_eq!(chosen.len(), CHOSEN, "nothing is written at the start");
        let inside = |number: &u64| map.at(number * BLOCK) == Some(Kind::Data);
        assert!(chosen.iter().all(inside));
        // Beside what only one of two disks has, half of the samples are of what both have.
        let half = ExtentMap::uniform(128 << 20, Kind::Data);
        let both = choose(&half, &[(0, half.size())], 0);
        let common = both.intersection(&chosen).count();
        assert!(common > CHOSEN / 4, "{common}");
        // Of another place the numbers are the same, if they are counted from there.
        let shifted = ExtentMap::uniform((128 << 20) + 512, Kind::Data);
        assert_eq!(choose(&shifted, &[(512, 128 << 20)], 512), both);
    }

    #[test]
    fn equal_keys_show_and_others_do_not() {
        let one = take(cipher(1, 4 * MIB));
        let two = take(cipher(2, 4 * MIB));
        let samples = |survey: &Survey| survey.parts[0].samples.clone();
        assert!(samples(&one).written > 500);
        assert_eq!(
            (samples(&one).clear, samples(&one).shared(&samples(&two))),
            (0, 0)
        );
        assert!(samples(&one).lowest > 7.9);
        // Most of it was written anew since.
        let mut changed = cipher(1, 4 * MIB);
        changed[MIB / 2..].copy_from_slice(&cipher(2, 4 * MIB)[MIB / 2..]);
        assert!(samples(&one).shared(&samples(&take(changed))) > 50);
        // Clear text in common is no key in common.
        let clear = || take(b"the same text, again and again. ".repeat(MIB / 8));
        assert_eq!(samples(&clear()).shared(&samples(&clear())), 0);
        assert_eq!(samples(&clear()).clear, samples(&clear()).written);
    }

    #[test]
    fn swap_is_known_by_its_signature() {
        for page in PAGES {
            for signature in SIGNATURES {
                let mut disk = vec![0; MIB];
                disk[page - 10..page].copy_from_slice(signature);
                let found = take(disk).parts[0].content.clone();
                assert!(matches!(found, Content::Swap(text) if signature.starts_with(text.as_bytes())));
            }
        }
        assert_eq!(take(vec![0; MIB]).parts[0].content, Content::Other);
        assert_eq!(take(vec![0; 100]).parts[0].content, Content::Other);
    }
}

//! Ciphertext told from clear text by its looks.
//!
//! Ciphertext is evenly distributed over all byte values. With n bytes that are, 2·n·ln 2·(8 − H) follows a χ²
//! distribution with 255 degrees of freedom (the G-test; H is the Shannon entropy in bits per byte): about 255, and
//! practically never above 512. Text, tables and code are thousands above it. What was compressed well is not told from
//! ciphertext; a file system always has more than that.

/// Bytes that a disk writes at once.
const SECTOR: usize = 512;
/// The largest G of what counts as evenly distributed.
const LIMIT: f64 = 512.0;

/// What bytes look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing but zeroes: never written, or discarded.
    Zero,
    /// Evenly distributed.
    Cipher,
    /// Anything else.
    Clear,
}

/// What a block looks like. Sectors of zeroes in it do not count: they were never written.
pub fn look(block: &[u8]) -> Look {
    let mut counts = [0_u64; 256];
    for sector in written(block) {
        for byte in sector {
            counts[usize::from(*byte)] += 1;
        }
    }
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return Look::Zero;
    }
    let excess = 2.0 * total as f64 * std::f64::consts::LN_2 * (8.0 - entropy_of(&counts, total));
    if excess <= LIMIT {
        Look::Cipher
    } else {
        Look::Clear
    }
}

/// Shannon entropy of the sectors that are not all zeroes, in bits per byte; 0 if there is none.
pub fn entropy(block: &[u8]) -> f64 {
    let mut counts = [0_u64; 256];
    for byte in written(block).flatten() {
        counts[usize::from(*byte)] += 1;
    }
    entropy_of(&counts, counts.iter().sum())
}

/// The sectors that hold anything.
pub(crate) fn written(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    block
        .chunks(SECTOR)
        .filter(|sector| sector.iter().any(|byte| *byte != 0))
}

fn entropy_of(counts: &[u64; 256], total: u64) -> f64 {
    let total = total as f64;
    let used = counts.iter().filter(|count| **count > 0);
    used.map(|count| *count as f64 / total)
        .map(|share| -share * share.log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn looks() {
        assert_eq!(look(&[0; 4096]), Look::Zero);
        assert_eq!(look(&[]), Look::Zero);
        assert_eq!(look(&[7; 4096]), Look::Clear);
        let text = include_str!("entropy.rs").as_bytes();
        assert_eq!(look(&text[..2048]), Look::Clear);
        assert!(entropy(&text[..2048]) < 6.0);
        let even: Vec<u8> = (0..4096).map(|at| at as u8).collect();
        assert!((entropy(&even) - 8.0).abs() < 1e-9);
        assert!(entropy(&[0; 512]).abs() < 1e-9);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn random_bytes_are_ciphertext(bytes in prop::collection::vec(any::<u64>(), 512), sectors in 1_usize..8) {
            let mut block: Vec<u8> = bytes.iter().flat_map(|word| spread(*word)).collect();
            prop_assert_eq!(look(&block), Look::Cipher);
            // Also where only some sectors were written.
            block[sectors * SECTOR..].fill(0);
            prop_assert_eq!(look(&block), Look::Cipher);
        }
    }

    /// proptest prefers small and special numbers: mixed, they are evenly distributed.
    fn spread(word: u64) -> [u8; 8] {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(word).to_le_bytes()
    }
}

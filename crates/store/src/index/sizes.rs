//! When Borg's hash table gets another size, and which (`_hashindex.c`: the same list and fractions since 1.0).

const SIZES: [u32; 58] = [
    1031,
    2053,
    4099,
    8209,
    16411,
    32771,
    65537,
    131_101,
    262_147,
    445_649,
    757_607,
    1_287_917,
    2_189_459,
    3_065_243,
    4_291_319,
    6_007_867,
    8_410_991,
    11_775_359,
    16_485_527,
    23_079_703,
    27_695_653,
    33_234_787,
    39_881_729,
    47_858_071,
    57_429_683,
    68_915_617,
    82_698_751,
    99_238_507,
    119_086_189,
    144_378_011,
    157_223_263,
    173_476_439,
    190_253_911,
    209_915_011,
    230_493_629,
    253_169_431,
    278_728_861,
    306_647_623,
    337_318_939,
    370_742_809,
    408_229_973,
    449_387_209,
    493_428_073,
    543_105_119,
    596_976_533,
    657_794_869,
    722_676_499,
    795_815_791,
    874_066_969,
    962_279_771,
    1_057_701_643,
    1_164_002_657,
    1_280_003_147,
    1_407_800_297,
    1_548_442_699,
    1_703_765_389,
    1_873_768_367,
    2_062_383_853,
];

/// Buckets of a new table.
pub(super) const SMALLEST: u32 = SIZES[0];
/// No table has more.
pub(super) const LARGEST: u32 = SIZES[57];

fn position(buckets: u32) -> usize {
    SIZES.partition_point(|size| *size < buckets)
}

/// The next larger size.
pub(super) fn above(buckets: u32) -> u32 {
    SIZES[(position(buckets) + 1).min(SIZES.len() - 1)]
}

/// The next smaller size.
pub(super) fn below(buckets: u32) -> u32 {
    SIZES[position(buckets).saturating_sub(1)]
}

/// A table with more entries grows before the next one.
pub(super) fn most(buckets: u32) -> u32 {
    if buckets >= LARGEST {
        i32::MAX as u32
    } else {
        (f64::from(buckets) * 0.75) as u32
    }
}

/// A table with fewer entries shrinks.
pub(super) fn fewest(buckets: u32) -> u32 {
    if buckets <= SMALLEST {
        0
    } else {
        (f64::from(buckets) * 0.25) as u32
    }
}

/// A table with no more empty buckets is made anew, without its deleted ones.
pub(super) fn least_empty(buckets: u32) -> u32 {
    1 + (f64::from(buckets) * (1.0 - 0.93)) as u32
}

//! Every seed of the fuzz targets, and cuts of it, through the same assertions as under the fuzzer.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[path = "../../../../fuzz/src/lib.rs"]
mod fuzz;

fn corpus() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus"))
}

fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let names = entries.map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("a plain name")
    });
    names.collect()
}

#[test]
fn every_target_has_a_corpus_and_a_binary() {
    let targets: BTreeSet<String> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(targets.len(), fuzz::TARGETS.len());
    assert_eq!(names_in(corpus()), targets);
    let binaries = names_in(&corpus().with_file_name("fuzz_targets"));
    let binaries: BTreeSet<String> = binaries
        .iter()
        .filter_map(|file| file.strip_suffix(".rs"))
        .map(str::to_owned)
        .collect();
    assert_eq!(binaries, targets);
}

#[test]
fn seeds_hold_what_the_targets_assert() {
    for (name, target) in fuzz::TARGETS {
        let directory = corpus().join(name);
        let seeds = names_in(&directory);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for seed in seeds {
            let data = fs::read(directory.join(&seed)).unwrap();
            // Whole, and as it looks when it ends early: at each byte near the start, then here and there.
            let cuts = (0..data.len()).filter(|cut| *cut < 64 || cut % 97 == 0);
            for cut in cuts.chain([data.len()]) {
                let held = catch_unwind(|| target(&data[..cut]));
                assert!(held.is_ok(), "{name}: the first {cut} bytes of seed {seed}");
            }
        }
    }
}

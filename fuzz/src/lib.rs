//! What the fuzz targets do with their bytes: each function reads them as one format and asserts what has to hold
//! for whatever came in.
//!
//! The targets in `fuzz_targets` call these under libFuzzer. The test `corpus` in `crates/cli` includes this file
//! and feeds it the corpus, so that the same assertions run on the stable toolchain with every other test.

pub mod borg;
pub mod disk;
pub mod engine;
pub mod libvirt;
pub mod sparse;
pub mod store;

/// A target takes any bytes and panics if something is wrong.
pub type Target = fn(&[u8]);

/// All targets by name, which is that of their corpus too.
pub const TARGETS: &[(&str, Target)] = &[
    ("borg_archive", borg::archive),
    ("borg_items", borg::items),
    ("borg_key_blob", borg::key_blob),
    ("borg_manifest", borg::manifest),
    ("borg_msgpack", borg::msgpack),
    ("borg_name", borg::name),
    ("borg_object", borg::object),
    ("borg_reply", borg::reply),
    ("change_map", disk::change_map),
    ("domain", libvirt::definition),
    ("domain_chains", libvirt::chains),
    ("domain_retarget", libvirt::retarget),
    ("gpt", disk::gpt),
    ("headers", engine::headers),
    ("image_seal", engine::image_seal),
    ("luks", disk::luks),
    ("manifest", engine::manifest),
    ("point_name", engine::point_name),
    ("provision_words", engine::provision_words),
    ("qemu_monitor", libvirt::monitor),
    ("store_config", store::config),
    ("store_hints", store::hints),
    ("store_index", store::index),
    ("store_integrity", store::integrity),
    ("store_lock", store::lock),
    ("store_segment", store::segment),
    ("survey", disk::survey),
    ("swap_header", disk::swap_header),
    ("swap_layout", disk::swap_layout),
    ("tang_advertisement", engine::tang_advertisement),
    ("witness", engine::witness),
];

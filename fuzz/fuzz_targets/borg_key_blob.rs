//! Target `borg_key_blob`: see the function it calls.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom_fuzz::borg::key_blob(data));

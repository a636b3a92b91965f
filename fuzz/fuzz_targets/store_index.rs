//! Target `store_index`: see the function it calls.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom_fuzz::store::index(data));

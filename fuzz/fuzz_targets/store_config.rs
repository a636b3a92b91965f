//! Target `store_config`: see the function it calls.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom_fuzz::store::config(data));

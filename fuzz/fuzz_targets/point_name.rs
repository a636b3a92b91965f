//! Target `point_name`: see the function it calls.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom_fuzz::engine::point_name(data));

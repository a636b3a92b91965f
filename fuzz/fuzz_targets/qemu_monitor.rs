//! Target `qemu_monitor`: see the function it calls.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom_fuzz::libvirt::monitor(data));

//! See `tidegate_fuzz::drain_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::drain_frame(input));

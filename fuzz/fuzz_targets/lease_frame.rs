//! See `tidegate_fuzz::lease_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::lease_frame(input));

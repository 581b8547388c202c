//! See `tidegate_fuzz::endpoint`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::endpoint(input));

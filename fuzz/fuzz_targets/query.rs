//! See `tidegate_fuzz::query`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::query(input));

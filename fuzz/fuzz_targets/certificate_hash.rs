//! See `tidegate_fuzz::certificate_hash`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::certificate_hash(input));

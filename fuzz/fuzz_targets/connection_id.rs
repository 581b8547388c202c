//! See `tidegate_fuzz::connection_id`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::connection_id(input));

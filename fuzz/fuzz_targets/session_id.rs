//! See `tidegate_fuzz::session_id`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::session_id(input));

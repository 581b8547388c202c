//! See `tidegate_fuzz::history_query`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::history_query(input));

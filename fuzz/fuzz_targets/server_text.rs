//! See `tidegate_fuzz::server_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::server_text(input));

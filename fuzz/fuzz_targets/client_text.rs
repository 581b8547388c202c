//! See `tidegate_fuzz::client_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::client_text(input));

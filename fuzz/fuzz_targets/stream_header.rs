//! See `tidegate_fuzz::stream_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::stream_header(input));

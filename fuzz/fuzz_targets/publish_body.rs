//! See `tidegate_fuzz::publish_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::publish_body(input));

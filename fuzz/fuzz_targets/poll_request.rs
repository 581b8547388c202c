//! See `tidegate_fuzz::poll_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::poll_request(input));

//! See `tidegate_fuzz::ticket_content`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::ticket_content(input));

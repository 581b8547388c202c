//! See `tidegate_fuzz::server_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::server_message(input));

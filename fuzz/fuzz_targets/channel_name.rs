//! See `tidegate_fuzz::channel_name`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::channel_name(input));

//! See `tidegate_fuzz::channel_poll`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::channel_poll(input));

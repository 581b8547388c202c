//! See `tidegate_fuzz::log_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::log_frame(input));

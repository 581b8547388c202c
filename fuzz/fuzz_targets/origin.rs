//! See `tidegate_fuzz::origin`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::origin(input));

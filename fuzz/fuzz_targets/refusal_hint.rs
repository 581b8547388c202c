//! See `tidegate_fuzz::refusal_hint`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::refusal_hint(input));

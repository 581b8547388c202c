//! See `tidegate_fuzz::token_claims`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::token_claims(input));

//! See `tidegate_fuzz::resume_ticket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::resume_ticket(input));

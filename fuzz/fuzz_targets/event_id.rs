//! See `tidegate_fuzz::event_id`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::event_id(input));

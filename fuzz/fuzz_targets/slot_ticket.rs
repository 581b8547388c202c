//! See `tidegate_fuzz::slot_ticket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::slot_ticket(input));

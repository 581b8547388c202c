//! See `tidegate_fuzz::tls_ticket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::tls_ticket(input));

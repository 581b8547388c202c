//! See `tidegate_fuzz::websocket_reader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::websocket_reader(input));

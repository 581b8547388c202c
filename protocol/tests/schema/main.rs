//! The schema as others see it: `tidegate.proto`, the test vectors and `docs/PROTOCOL.md`, each held to the code.

mod document;
mod proto;
mod samples;
mod vectors;

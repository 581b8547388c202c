//! Storms and drains of a fleet on a virtual clock; `cargo xtask sim storm` builds and runs this in release mode.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate_interop_tests::storm::main()
}

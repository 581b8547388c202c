//! The benchmarks; `cargo xtask bench` builds and runs this in release mode.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate_interop_tests::bench::main()
}

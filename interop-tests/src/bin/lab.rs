//! The link laboratory for programs of any kind; `docs/LAB.md` shows how.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate_interop_tests::lab::cli::main()
}

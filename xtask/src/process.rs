//! Running other programs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result, bail};

/// Runs to the end with our own output; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs to the end with our own output, and hands its exit code on: for programs that explain their own failures.
pub(crate) fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let status = status(command)?;
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        Some(code) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        None => ExitCode::FAILURE,
    })
}

/// Runs to the end and returns what it printed; an exit code other than 0 is an error that shows its complaints.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` ended with {}:\n{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something that is not UTF-8", line(command)))
}

/// The path of a program, as the shell would find it.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let file = format!("{program}{}", std::env::consts::EXE_SUFFIX);
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(&file)).find(|candidate| is_executable(candidate))
}

/// The cargo that runs us, or the one of the shell.
pub(crate) fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Takes out what `cargo run` told us about our own package: build scripts (ring's is one) watch those variables
/// and would compile anew whenever a build under xtask follows one without it.
pub(crate) fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// The command line, to show.
pub(crate) fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_stem().unwrap_or_else(|| command.get_program()).to_string_lossy().into_owned();
    command.get_args().fold(name, |line, arg| {
        let arg = arg.to_string_lossy();
        let plain =
            !arg.is_empty() && arg.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:@,+".contains(c));
        if plain { format!("{line} {arg}") } else { format!("{line} '{arg}'") }
    })
}

fn status(command: &mut Command) -> Result<ExitStatus> {
    eprintln!("  $ {}", line(command));
    command.status().with_context(|| format!("cannot start `{}`", line(command)))
}

#[cfg(unix)]
fn is_executable(path: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &std::path::Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_line_can_be_pasted() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["nextest", "run", "-E", "not test(x)"]);
        assert_eq!(line(&command), "cargo nextest run -E 'not test(x)'");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("tidegate-no-such-program")).expect_err("there is no such program");
        assert!(error.to_string().contains("tidegate-no-such-program"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_failing_program_shows_its_complaint() {
        let error =
            capture(Command::new("sh").args(["-c", "echo oh no >&2; exit 3"])).expect_err("it exits with 3");
        assert!(error.to_string().contains("oh no") && error.to_string().contains('3'), "{error}");
        assert!(which("sh").is_some_and(|path| path.is_absolute()));
    }
}

//! Steps of a long command: a heading, the time taken, and on failure what to do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Counts and times the steps of one run; the first that fails ends it.
pub(crate) struct Steps {
    started: Instant,
    count: usize,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { started: now(), count: 0 }
    }

    /// Runs one step; `remedy` tells a newcomer what to do when it fails.
    pub(crate) fn run<T>(&mut self, name: &str, remedy: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.heading(name);
        let started = now();
        let result =
            step().with_context(|| format!("step \"{name}\" failed; what to do: {remedy}\n\nbecause"))?;
        eprintln!("  ok, {}", seconds(now() - started));
        Ok(result)
    }

    /// Announces the step that ends the run with a summary of its own, after which nothing may be printed.
    pub(crate) fn last(&mut self, name: &str) {
        let before = self.started;
        self.heading(name);
        eprintln!("  {} steps before this one took {}", self.count - 1, seconds(now() - before));
    }

    fn heading(&mut self, name: &str) {
        self.count += 1;
        eprintln!("\n== {}. {name}", self.count);
    }
}

#[expect(clippy::disallowed_methods, reason = "xtask times its own steps; nothing here is simulated")]
fn now() -> Instant {
    Instant::now()
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_step_the_remedy_and_the_cause() {
        let error = Steps::new()
            .run("tidy", "mend it", || -> Result<()> { anyhow::bail!("a line is wrong") })
            .expect_err("the step fails");
        let text = format!("{error:#}");
        for part in ["\"tidy\"", "mend it", "a line is wrong"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

//! `bench attack`: far more clients than an edge takes, most of which never mean to come in; addresses that may be forged;
//! slots, tickets and targets that are.

mod forged;
mod initials;
mod overload;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::cli::AttackArgs;
use super::report::{Quantiles, short};
use super::trial::{self, Verdict};
use crate::gateway::Gateway;

use self::forged::Forgeries;
use self::initials::Amplification;
use self::overload::Overload;

/// Runs and prints. 1 where anything is not as it should be.
pub(super) fn run(arguments: &AttackArgs) -> Result<ExitCode> {
    trial::run("attack", arguments.json.as_deref(), measure(arguments), |figures| print(arguments, figures))
}

#[derive(Debug, Serialize)]
struct Figures {
    overload: Overload,
    /// By the flood, and by first flights that nobody follows up, on an edge that has room.
    flooded: Amplification,
    calm: Amplification,
    slots: Forgeries,
    first_ids: Forgeries,
    resumes: Forgeries,
    targets: Forgeries,
}

async fn measure(arguments: &AttackArgs) -> Result<Figures> {
    eprintln!("an edge with room: first flights that nobody follows up");
    let calm = Gateway::dev(CALM).await?;
    let silent = initials::silent(&calm, SILENT).await?;
    eprintln!("forged resume tickets");
    let resumes = forged::resumes(&calm, arguments.forged).await?;
    eprintln!("forged goaway targets");
    let targets = forged::targets(&calm, arguments.forged).await?;
    drop(calm);
    eprintln!("overload");
    let edge = Gateway::dev(&config(arguments)).await?;
    let (overload, flooded, [slots, first_ids]) = overload::run(&edge, arguments).await?;
    Ok(Figures { overload, flooded, calm: silent, slots, first_ids, resumes, targets })
}

fn config(arguments: &AttackArgs) -> String {
    format!("node.workers = {}\nadmission.rate = {}\n", arguments.workers, arguments.admission)
}

fn print(arguments: &AttackArgs, figures: &Figures) -> bool {
    let Figures { overload, flooded, calm, slots, first_ids, resumes, targets } = figures;
    println!(
        "Rate {}/s. For {:.1} s: {:.0} first flights by UDP a second, {:.0} TCP connects, {:.0} clients by WebSocket that mean \
         it ({:.0} asked, {:.0} came in). Decisions: {}.\n",
        arguments.admission,
        overload.seconds,
        overload.initials,
        overload.silent_connects,
        overload.asked + overload.came_again,
        overload.asked,
        overload.opened,
        overload
            .decisions
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect::<Vec<_>>()
            .join(", "),
    );
    for (index, what) in ["admitted", "opened"].into_iter().enumerate() {
        let figures = || overload.by_second.iter().map(|second| second[index]);
        let least = figures().fold(f64::INFINITY, f64::min);
        let quantiles = Quantiles::of(figures());
        println!(
            "In single seconds {what}: {} to {}, median {}.",
            short(least),
            short(quantiles.max),
            short(quantiles.p50),
        );
    }
    println!();
    let mut verdict = Verdict::new();
    let rate = f64::from(arguments.admission);
    let within = |figure: f64| (figure / rate - 1.0).abs() <= 0.05;
    let target = format!("{} to {}", short(0.95 * rate), short(1.05 * rate));
    verdict.row("admitted a second", target.clone(), short(overload.admitted), within(overload.admitted));
    verdict.row("sessions opened a second", target, short(overload.opened), within(overload.opened));
    for (what, bytes) in
        [("bytes to an address for each from it, flooded", flooded), ("the same with room", calm)]
    {
        verdict.row(
            what,
            "<= 3".to_owned(),
            format!("{} (most {:.2})", short(bytes.all), bytes.most),
            bytes.most <= 3.0,
        );
    }
    for (what, forged) in [
        ("slots", slots),
        ("slots as connection ids", first_ids),
        ("resume tickets", resumes),
        ("goaway targets", targets),
    ] {
        let measured = format!("{} of {}", forged.honoured, forged.tried);
        let is_met = forged.honoured == 0 && forged.tried >= u64::from(arguments.forged);
        verdict.row(&format!("forged {what} honoured"), "0".to_owned(), measured, is_met);
    }
    verdict.print(&overload.failures)
}

/// First flights from an address of their own each.
const SILENT: usize = 200;
/// Everybody has a place.
const CALM: &str = "admission.rate = 100000\n";
/// The measurement begins when the door is full.
const WARM_UP: Duration = Duration::from_secs(5);

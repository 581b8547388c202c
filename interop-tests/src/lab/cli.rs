//! The `lab` program: runs other programs at the two ends of a link.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::process::{ExitCode, ExitStatus};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use tidegate_transport::clock;
use tidegate_transport::netem::{Counters, Loss, NatConfig, Profile};
use tokio::process::{Child, Command};

use super::{Control, Lab, LabConfig, PUBLIC};
use crate::wait::until;

/// Runs a program behind an emulated link: lossy, slow, changing, the same every time
///
/// Two network namespaces, joined by a seeded link: PROGRAM runs in the client's (10.77.0.1), --server in the server's
/// (10.77.0.2). Loss, rate, jitter, reordering, duplication and MTU count for each direction. Needs root.
#[derive(Debug, Parser)]
#[command(name = "lab", max_term_width = 100, after_help = EXAMPLES)]
pub(super) struct Cli {
    /// Decides which packets are lost; the same seed loses the same ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Round trip time, half of it each way
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    rtt: Duration,
    /// A further delay of each packet, uniform between 0 and this; keeps the order
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    jitter: Duration,
    /// 2% (independent), 2%/3 (runs of 3 on average), GE(p=0.01,r=0.3,bad=0.5)
    #[arg(long, default_value = "none")]
    loss: Loss,
    /// Mean run of lost packets, for a --loss that is only a percentage
    #[arg(long, value_name = "PACKETS")]
    burst: Option<f64>,
    /// Bits per second, such as 10mbit or 500kbit [default: no limit]
    #[arg(long, value_parser = rate)]
    rate: Option<u64>,
    /// The same from the client to the server, where it differs
    #[arg(long, value_parser = rate)]
    up_rate: Option<u64>,
    /// Bytes that wait for the rate; more are dropped [default: 100 ms of the rate, at least 15000]
    #[arg(long, value_name = "BYTES")]
    queue: Option<usize>,
    /// Packets held back and overtaken: PROBABILITY/TIME, such as 1%/20ms
    #[arg(long, value_parser = reorder)]
    reorder: Option<(f64, Duration)>,
    /// Packets that arrive twice, such as 0.5%
    #[arg(long, default_value = "0", value_parser = probability)]
    duplicate: f64,
    /// MTU of the devices, bytes
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(68..))]
    mtu: u16,
    /// Drops larger packets on the way, which the programs are not told
    #[arg(long, value_name = "BYTES")]
    path_mtu: Option<usize>,
    /// No NAT: the server sees the client's own address
    #[arg(long)]
    no_nat: bool,
    /// The NAT forgets a UDP mapping that is unused for so long, such as 30s [default: never]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    nat_expiry: Option<Duration>,
    /// UDP does not pass, from the start
    #[arg(long)]
    block_udp: bool,
    /// Something that happens at a time after PROGRAM was started, repeatable: 5s=outage:8s, 5s=rebind, 5s=rebind-udp,
    /// 5s=change-address, 5s=block-udp, 5s=allow-udp
    #[arg(long = "at", value_name = "TIME=EVENT")]
    events: Vec<Event>,
    /// A shell command for the server's end; it is killed when PROGRAM has ended
    #[arg(long, value_name = "COMMAND")]
    server: Option<String>,
    /// Start PROGRAM when this TCP port of the server accepts connections
    #[arg(long, value_name = "PORT", requires = "server")]
    ready: Option<u16>,
    /// The client's program and its arguments; it finds the addresses in LAB_CLIENT, LAB_SERVER and LAB_PUBLIC
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  lab --rtt 350ms --loss 2% --burst 3 --rate 10mbit --seed 7 \\
      --server 'python3 -m http.server 80' --ready 80 -- curl http://10.77.0.2/
  lab --at 2s=outage:8s -- ping -c 15 10.77.0.2";

/// The whole program: sets up, runs, prints what happened to the packets, ends with PROGRAM's status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitStatus> {
    let lab = Lab::start(cli.config()?)?;
    let control = lab.control();
    control.block_udp(cli.block_udp);
    let _server = match &cli.server {
        Some(command) => Some(start_server(&lab, command, cli.ready).await?),
        None => None,
    };
    let (program, arguments) = cli.program.split_first().context("which program?")?;
    let mut command = Command::from(lab.client().command(program));
    with_addresses(&mut command, &lab).args(arguments).kill_on_drop(true);
    let mut client = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let mut events = cli.events.clone();
    events.sort_by_key(|event| event.at);
    let status = tokio::select! {
        status = client.wait() => status.context("waiting for the program")?,
        // Ctrl-C reaches the program as well; the namespaces are removed on the way out.
        _ = tokio::signal::ctrl_c() => client.wait().await.context("waiting for the program")?,
        never = play(events, control) => match never {},
    };
    report(&cli, control);
    Ok(status)
}

/// Its standard output goes where the lab's own reports go: the client's is for whoever reads the lab's.
async fn start_server(lab: &Lab, command: &str, ready: Option<u16>) -> Result<Child> {
    let mut shell = Command::from(lab.server().command("sh"));
    let output = io::stderr().as_fd().try_clone_to_owned().context("standard error")?;
    with_addresses(&mut shell, lab).args(["-c", command]).stdout(output).kill_on_drop(true);
    let mut child = shell.spawn().context("cannot start the server")?;
    if let Some(port) = ready {
        let address = (lab.server().address(), port);
        let accepting = until(format!("port {port} of the server"), || {
            let connected = lab.server().run(|| TcpStream::connect(address));
            async move { connected?.context("connecting").map(drop) }
        });
        tokio::select! {
            accepting = accepting => accepting?,
            status = child.wait() => bail!("the server has ended with {}", status?),
        }
    }
    Ok(child)
}

/// Lets the events happen, then waits for ever.
async fn play(events: Vec<Event>, control: &Control) -> std::convert::Infallible {
    let start = clock::now();
    for event in events {
        tokio::time::sleep_until((start + event.at).into()).await;
        eprintln!("lab: {:?} after {:?}", event.what, event.at);
        event.what.happen(control);
    }
    std::future::pending().await
}

fn with_addresses<'a>(command: &'a mut Command, lab: &Lab) -> &'a mut Command {
    let public = lab.control().public_address().unwrap_or_else(|| lab.client().address());
    command
        .env("LAB_CLIENT", lab.client().address().to_string())
        .env("LAB_SERVER", lab.server().address().to_string())
        .env("LAB_PUBLIC", public.to_string())
}

fn report(cli: &Cli, control: &Control) {
    let counters = control.counters();
    eprintln!("lab: seed {}", cli.seed);
    for (name, link) in [("up", counters.up), ("down", counters.down)] {
        eprintln!("lab: {name:<4} {}", describe(&link));
    }
    let path = counters.path;
    eprintln!(
        "lab: path {} blocked, {} foreign; nat {} mapped, {} expired, {} rebound, {} unmapped",
        path.blocked, path.foreign, path.nat.mapped, path.nat.expired, path.nat.rebound, path.nat.unmapped
    );
}

fn describe(link: &Counters) -> String {
    let share = if link.offered == 0 { 0.0 } else { 100.0 * link.lost as f64 / link.offered as f64 };
    format!(
        "{} packets, {} bytes; {} lost ({share:.2} %), {} queue full, {} too big, {} in an outage, {} twice, \
         {} held back; {} over 1 ms late, at most {:?}",
        link.offered,
        link.offered_bytes,
        link.lost,
        link.queue_full,
        link.too_big,
        link.outage,
        link.duplicated,
        link.held_back,
        link.late,
        link.latest
    )
}

impl Cli {
    fn config(&self) -> Result<LabConfig> {
        let loss = match (self.loss, self.burst) {
            (loss, None) => loss,
            (Loss::None, Some(_)) => bail!("--burst needs a --loss"),
            (Loss::Uniform(mean), Some(burst)) if burst >= 1.0 && mean < 1.0 => Loss::bursts(mean, burst),
            (Loss::Uniform(_), Some(_)) => bail!("--burst is at least 1, and not everything can be lost"),
            (Loss::GilbertElliott { .. }, Some(_)) => bail!("this --loss says itself how it bursts"),
        };
        let profile = |rate: Option<u64>| {
            let mut profile = Profile::delay(self.rtt / 2).with_jitter(self.jitter).with_loss(loss);
            profile = profile.with_duplicate(self.duplicate);
            if let Some((probability, extra)) = self.reorder {
                profile = profile.with_reorder(probability, extra);
            }
            if let Some(rate) = rate {
                let usual = usize::try_from(rate / 80).unwrap_or(usize::MAX).max(15_000);
                profile = profile.with_rate(rate, self.queue.unwrap_or(usual));
            }
            profile.with_mtu(self.path_mtu.unwrap_or(usize::MAX))
        };
        let nat = NatConfig::new(PUBLIC);
        let nat = match self.nat_expiry {
            Some(expiry) => nat.with_udp_expiry(expiry),
            None => nat,
        };
        Ok(LabConfig {
            seed: self.seed,
            up: profile(self.up_rate.or(self.rate)),
            down: profile(self.rate),
            nat: (!self.no_nat).then_some(nat),
            mtu: self.mtu,
        })
    }
}

/// Something that happens to the path.
#[derive(Debug, Clone, Copy)]
struct Event {
    at: Duration,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Outage(Duration),
    Rebind,
    RebindUdp,
    ChangeAddress,
    BlockUdp,
    AllowUdp,
}

impl What {
    fn happen(self, control: &Control) {
        match self {
            Self::Outage(duration) => control.outage(duration),
            Self::Rebind => control.rebind_nat(),
            Self::RebindUdp => control.rebind_nat_udp(),
            Self::ChangeAddress => drop(control.change_address()),
            Self::BlockUdp => control.block_udp(true),
            Self::AllowUdp => control.block_udp(false),
        }
    }
}

impl FromStr for Event {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (at, what) = text.split_once('=').context("write TIME=EVENT, such as 5s=outage:8s")?;
        let at = humantime::parse_duration(at)?;
        let what = match what.split_once(':') {
            Some(("outage", duration)) => What::Outage(humantime::parse_duration(duration)?),
            None if what == "rebind" => What::Rebind,
            None if what == "rebind-udp" => What::RebindUdp,
            None if what == "change-address" => What::ChangeAddress,
            None if what == "block-udp" => What::BlockUdp,
            None if what == "allow-udp" => What::AllowUdp,
            _ => bail!(
                "`{what}` is none of outage:TIME, rebind, rebind-udp, change-address, block-udp, allow-udp"
            ),
        };
        Ok(Self { at, what })
    }
}

/// `10mbit`, `500kbit`, `1gbit`, or bits per second.
fn rate(text: &str) -> Result<u64> {
    let lower = text.to_ascii_lowercase();
    let units = [("gbit", 1_000_000_000_u64), ("mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((lower.strip_suffix(name)?, unit)))
        .unwrap_or((&lower, 1));
    let number: f64 = number.trim().parse().context("write 10mbit, 500kbit or bits per second")?;
    let rate = number * unit as f64;
    ensure!((1.0..1e15).contains(&rate), "a rate is positive");
    Ok(rate as u64)
}

fn reorder(text: &str) -> Result<(f64, Duration)> {
    let (share, extra) = text.split_once('/').context("write PROBABILITY/TIME, such as 1%/20ms")?;
    Ok((probability(share)?, humantime::parse_duration(extra)?))
}

/// Read as an independent loss is: `2%` or `0.02`.
fn probability(text: &str) -> Result<f64> {
    match text.parse()? {
        Loss::None => Ok(0.0),
        Loss::Uniform(probability) => Ok(probability),
        Loss::GilbertElliott { .. } => bail!("`{text}` is no probability: write 0.02 or 2%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &str) -> Result<LabConfig> {
        Cli::try_parse_from(arguments.split_whitespace().chain(["--", "true"]))?.config()
    }

    #[test]
    fn the_example_says_what_it_means() {
        let config = config("lab --rtt 350ms --loss 2% --burst 3 --rate 10mbit --seed 7").unwrap();
        assert_eq!(config.seed, 7);
        let wanted = Profile::delay(Duration::from_millis(175))
            .with_loss(Loss::bursts(0.02, 3.0))
            .with_rate(10_000_000, 125_000);
        assert_eq!(config.up, wanted);
        assert_eq!(config.down, wanted);
        assert_eq!(config.nat, Some(NatConfig::new(PUBLIC)));
    }

    #[test]
    fn the_directions_may_differ_in_rate() {
        let config = config("lab --rate 1.5mbit --up-rate 500kbit --queue 9000 --no-nat").unwrap();
        assert_eq!((config.up.rate, config.up.queue), (Some(500_000), 9_000));
        assert_eq!((config.down.rate, config.down.queue), (Some(1_500_000), 9_000));
        assert_eq!(config.nat, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            "lab --burst 3",
            "lab --loss 2%/3 --burst 3",
            "lab --loss 2% --burst 0.5",
            "lab --rate 0",
            "lab --rate fast",
            "lab --reorder 1%",
            "lab --at 5s=lunch",
            "lab --at outage:5s",
            "lab --ready 80",
        ] {
            assert!(config(wrong).is_err(), "{wrong}");
        }
        assert!(config("lab --at 5s=outage:8s --at 1s=rebind-udp --reorder 1%/20ms").is_ok());
    }
}

//! Exactly once, both ways: connections are killed at random moments, on every transport and while they change, and 50
//! channels are published all the time. Nothing is lost, doubled or out of order at the application, and every publish is
//! stored once. `TIDEGATE_SEED` repeats the choices of a run, though not its timing.

mod account;
mod attack;
mod load;
mod native;
mod script;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tidegate_client::Transport;
use tidegate_interop_tests::clients::browser::Browser;
use tidegate_interop_tests::gateway::Gateway;
use tidegate_transport::clock;

use account::Account;
use attack::Middle;
use load::Load;
use native::Native;
use script::Script;

/// What is under attack: one client that joins every channel from its beginning, and publishes on them too.
trait Subject {
    /// Waits until so many more publications have come. Says what it is connected by, if anything.
    async fn deliver(&mut self, more: u64) -> Result<Option<Transport>>;

    /// Asks it to move there, and does not wait.
    async fn begin_move(&mut self, to: Transport) -> Result<()>;

    /// It publishes nothing any more, and all that it did publish is acknowledged.
    async fn stop(&mut self) -> Result<()>;

    /// Waits until it has everything up to these offsets, by channel; and ends it.
    async fn finish(self, heads: &[u64]) -> Result<Account>;
}

/// How one run goes.
struct Plan {
    seed: u64,
    kills: usize,
    /// The client's.
    transports: &'static [Transport],
}

async fn run<S: Subject>(gateway: &Arc<Gateway>, middle: &Middle, mut subject: S, plan: &Plan) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    let begin = clock::now();
    let load = Load::begin(gateway, &mut rng);
    let (mut kills, mut moves) = (0, 0);
    let mut by = [0; 4];
    while kills < plan.kills {
        let more = rng.random_range(1..40);
        let after = |kills| format!("SEED={} after {kills} kills: {by:?}", plan.seed);
        let mut here = subject.deliver(more).await.with_context(|| after(kills))?;
        if rng.random_bool(0.3) {
            let to = plan.transports[rng.random_range(0..plan.transports.len())];
            subject.begin_move(to).await?;
            moves += 1;
            here = subject.deliver(rng.random_range(0..5)).await.with_context(|| after(kills))?;
        }
        // Now and then once more at once: in the middle of coming back.
        for _ in 0..if rng.random_bool(0.15) { 2 } else { 1 } {
            let Some(here) = here else { continue };
            let other = plan.transports[rng.random_range(0..plan.transports.len())];
            let targets: &[Transport] = match rng.random_range(0..4) {
                0 => plan.transports,
                1 => &[other],
                _ => &[here],
            };
            for target in targets {
                let hit = middle.kill(&mut rng, *target).await;
                // Only the one that it was on counts.
                if hit > 0 && *target == here {
                    kills += 1;
                    by[*target as usize] += 1;
                }
            }
        }
    }
    let took = begin.elapsed();
    subject.stop().await.with_context(|| format!("SEED={}", plan.seed))?;
    let stored = load.end().await.with_context(|| format!("SEED={}", plan.seed))?;
    let heads = account::heads(gateway).await?;
    let account = subject.finish(&heads).await.with_context(|| format!("SEED={}", plan.seed))?;
    let metrics = Metrics::read(gateway).await?;
    let summary = format!(
        "SEED={}: {kills} kills ({by:?} by QUIC, WebTransport, WebSocket, long poll), {moves} moves asked for, in \
         {took:?}; {}; {}",
        plan.seed,
        metrics.summary(),
        account.summary
    );
    account::check(gateway, &stored, &account).await.with_context(|| summary.clone())?;
    println!("{summary}");
    // What never happened proves nothing.
    let were_all = plan.transports.iter().all(|transport| by[*transport as usize] > plan.kills / 20);
    ensure!(were_all && metrics.duplicates > 0.0, "{summary}");
    ensure!(metrics.honoured > plan.kills as f64 / 10.0 && metrics.theft == 0.0, "{summary}");
    Ok(())
}

/// What the gateway saw of it.
struct Metrics {
    /// Publishes that came again.
    duplicates: f64,
    /// Tickets that resumed the session, ..
    honoured: f64,
    /// .. that did once more, ..
    repeated: f64,
    /// .. or were taken for stolen.
    theft: f64,
}

impl Metrics {
    async fn read(gateway: &Gateway) -> Result<Self> {
        let all = gateway.metrics().await?;
        let of = |name: &str| all.get(name).copied().unwrap_or(0.0);
        Ok(Self {
            duplicates: of("tidegate_core_duplicate_keys_total"),
            honoured: of(r#"tidegate_edge_resumes_total{result="honoured"}"#),
            repeated: of(r#"tidegate_edge_resumes_total{result="repeated"}"#),
            theft: of(r#"tidegate_edge_resumes_total{result="theft"}"#),
        })
    }

    fn summary(&self) -> String {
        let Self { duplicates, honoured, repeated, theft } = self;
        format!(
            "{duplicates} publishes came again; {honoured} resumed, {repeated} once more, {theft} for stolen"
        )
    }
}

/// A black hole is noticed by idle timeouts, which are short here so that there can be many.
const CONFIG: &str = "[quic]\nidle_timeout = \"300ms\"\n\n[namespaces.default]\nhistory_count = 20000\nhistory_bytes = \
                      \"64MiB\"\nhistory_age = \"1h\"\n";

fn seed(usual: u64) -> Result<u64> {
    match std::env::var("TIDEGATE_SEED") {
        Ok(seed) => seed.parse().context("TIDEGATE_SEED is a number"),
        Err(_) => Ok(usual),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_client_loses_and_doubles_nothing_over_500_kills() -> Result<()> {
    let gateway = Arc::new(Gateway::dev(CONFIG).await?);
    let middle = Middle::begin(&gateway, gateway.addresses.tls).await?;
    let plan = Plan {
        seed: seed(1)?,
        kills: KILLS,
        transports: &[Transport::Quic, Transport::WebSocket, Transport::LongPoll],
    };
    let subject = Native::begin(&gateway, &middle).await?;
    run(&gateway, &middle, subject, &plan).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_js_client_in_chromium_loses_and_doubles_nothing_over_500_kills() -> Result<()> {
    let gateway = Arc::new(Gateway::dev(CONFIG).await?);
    let middle = Middle::begin(&gateway, gateway.addresses.plain).await?;
    let plan = Plan {
        seed: seed(2)?,
        kills: KILLS,
        transports: &[Transport::Quic, Transport::WebSocket, Transport::LongPoll],
    };
    let browser = Browser::launch().await?;
    browser.open_to_anywhere("kills", &format!("{}dev.json", gateway.page())).await?;
    let subject = Script::begin(browser, &gateway, &middle, plan.transports).await?;
    run(&gateway, &middle, subject, &plan).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_js_client_in_node_loses_and_doubles_nothing_over_500_kills() -> Result<()> {
    let gateway = Arc::new(Gateway::dev(CONFIG).await?);
    let middle = Middle::begin(&gateway, gateway.addresses.plain).await?;
    let plan =
        Plan { seed: seed(3)?, kills: KILLS, transports: &[Transport::WebSocket, Transport::LongPoll] };
    let subject = Script::begin(Browser::node()?, &gateway, &middle, plan.transports).await?;
    run(&gateway, &middle, subject, &plan).await
}

fn channel(number: usize) -> String {
    format!("room:{number}")
}

const CHANNELS: usize = 50;
const KILLS: usize = 500;
/// Publishes of a client that wait for their answers at once.
const PUBLISHERS: usize = 4;
/// Between an answer and the next publish of a publisher: so much load, and no more.
const PAUSE: Duration = Duration::from_millis(20);
/// From here on the clients number theirs.
const FIRST_OWN: u64 = 1 << 40;

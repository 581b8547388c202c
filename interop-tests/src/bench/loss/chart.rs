//! The chart: a panel for each number of channels and round trip, p99 over loss, a line for each transport.

use std::fmt::Write as _;

use super::Report;
use super::cell::{Carrier, Lossy};

/// A stand-alone SVG image.
pub(super) fn draw(report: &Report) -> String {
    let calm = || report.results.iter().filter(|result| result.cell.flood == 0).map(|result| &result.cell);
    let rtts = distinct(calm().map(|cell| cell.rtt_ms));
    let channels = distinct(calm().map(|cell| cell.channels));
    let losses = distinct(calm().map(|cell| cell.loss));
    let width = LEFT + rtts.len() as f64 * (PANEL_WIDTH + GAP);
    let height = TOP + channels.len() as f64 * (PANEL_HEIGHT + GAP) + 10.0;
    let mut svg = String::new();
    let mut put = |text: String| svg.push_str(&text);
    put(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"600\">p99 from publish to application over a lossy link</text>\n\
         <text x=\"{LEFT}\" y=\"40\">{} publications/s over all channels, {} B, {} Mbit/s; seed {}</text>\n",
        report.work.per_second,
        report.work.payload,
        report.work.rate / 1_000_000,
        report.seed
    ));
    for (index, carrier) in Carrier::ALL.into_iter().enumerate() {
        let x = LEFT + index as f64 * 120.0;
        put(format!(
            "<line x1=\"{x}\" y1=\"56\" x2=\"{}\" y2=\"56\" stroke=\"{}\" stroke-width=\"3\"/>\
             <text x=\"{}\" y=\"60\">{}</text>\n",
            x + 22.0,
            color(carrier),
            x + 28.0,
            carrier.name()
        ));
    }
    for (row, &channels) in channels.iter().enumerate() {
        for (column, &rtt_ms) in rtts.iter().enumerate() {
            let x = LEFT + column as f64 * (PANEL_WIDTH + GAP);
            let y = TOP + row as f64 * (PANEL_HEIGHT + GAP);
            put(panel(report, rtt_ms, channels, &losses, x, y));
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(report: &Report, rtt_ms: u64, channels: u32, losses: &[Lossy], x: f64, y: f64) -> String {
    let mut svg = format!(
        "<rect x=\"{x}\" y=\"{y}\" width=\"{PANEL_WIDTH}\" height=\"{PANEL_HEIGHT}\" fill=\"#fafafa\" stroke=\"#ccc\"/>\n\
         <text x=\"{}\" y=\"{}\" font-weight=\"600\">RTT {rtt_ms} ms, {channels} {}</text>\n",
        x + 6.0,
        y - 6.0,
        if channels == 1 { "channel" } else { "channels" }
    );
    let across = |index: usize| x + PANEL_WIDTH * (index as f64 + 0.5) / losses.len() as f64;
    let up = |millis: f64| {
        let share = (millis.clamp(LOWEST, HIGHEST) / LOWEST).log10() / (HIGHEST / LOWEST).log10();
        y + PANEL_HEIGHT * (1.0 - share)
    };
    let mut put = |text: String| svg.push_str(&text);
    for millis in TICKS {
        let at = up(millis);
        let label = if millis < 1000.0 { format!("{millis} ms") } else { format!("{} s", millis / 1000.0) };
        put(format!(
            "<line x1=\"{x}\" y1=\"{at}\" x2=\"{}\" y2=\"{at}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"9\">{label}</text>\n",
            x + PANEL_WIDTH,
            x - 4.0,
            at + 3.0
        ));
    }
    for (index, loss) in losses.iter().enumerate() {
        let label = format!("{} %{}", loss.mean * 100.0, if loss.burst > 1.0 { "*" } else { "" });
        put(format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" font-size=\"9\">{label}</text>\n",
            across(index),
            y + PANEL_HEIGHT + 12.0
        ));
    }
    for carrier in Carrier::ALL {
        let mut points = String::new();
        let mut dots = String::new();
        for result in &report.results {
            let cell = &result.cell;
            let here =
                (cell.carrier, cell.rtt_ms, cell.channels, cell.flood) == (carrier, rtt_ms, channels, 0);
            let place = losses.iter().position(|loss| *loss == cell.loss);
            if let (true, Some(place), Some(p99)) = (here, place, result.p99_ms) {
                let (x, y) = (across(place), up(p99));
                // Writing to a string cannot fail.
                let _ = write!(points, "{x:.1},{y:.1} ");
                let _ = write!(
                    dots,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{}\"><title>{cell}: {p99:.0} ms</title></circle>",
                    color(carrier)
                );
            }
        }
        put(format!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>{dots}\n",
            color(carrier)
        ));
    }
    svg
}

fn distinct<T: PartialEq + Copy>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut distinct = Vec::new();
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

/// Told apart by people who see few colours, too.
fn color(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Quic => "#0072b2",
        Carrier::WebTransport => "#009e73",
        Carrier::WebSocket => "#d55e00",
    }
}

const LEFT: f64 = 60.0;
const TOP: f64 = 95.0;
const PANEL_WIDTH: f64 = 250.0;
const PANEL_HEIGHT: f64 = 150.0;
const GAP: f64 = 50.0;
/// Of the vertical axis, milliseconds, logarithmic.
const LOWEST: f64 = 20.0;
const HIGHEST: f64 = 30_000.0;
const TICKS: [f64; 6] = [30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0];

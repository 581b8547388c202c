//! The pictures: what happened over time, stand-alone SVG.

use std::fmt::Write as _;

/// One line of a panel.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// A panel: a title, what its vertical axis says, lines, and a level to compare them with.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) unit: String,
    pub(super) lines: Vec<Line>,
    pub(super) level: Option<(f64, String)>,
    /// Of the vertical axis; what is higher is cut.
    pub(super) top: f64,
}

/// All panels, one below the other, over the same seconds.
pub(super) fn draw(title: &str, subtitle: &str, seconds: f64, panels: &[Panel]) -> String {
    let width = LEFT + WIDTH + 20.0;
    let height = TOP + panels.len() as f64 * (HEIGHT + GAP) + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"600\">{title}</text>\n\
         <text x=\"{LEFT}\" y=\"40\">{subtitle}</text>\n"
    );
    let names = panels.first().map(|panel| panel.lines.iter().map(|line| &line.name));
    for (index, name) in names.into_iter().flatten().enumerate() {
        let x = LEFT + index as f64 * 150.0;
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"56\" x2=\"{}\" y2=\"56\" stroke=\"{}\" stroke-width=\"3\"/><text x=\"{}\" y=\"60\">{name}</text>",
            x + 22.0,
            COLORS[index % COLORS.len()],
            x + 28.0
        );
    }
    for (index, panel) in panels.iter().enumerate() {
        svg.push_str(&draw_panel(panel, seconds, TOP + index as f64 * (HEIGHT + GAP)));
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_panel(panel: &Panel, seconds: f64, y: f64) -> String {
    let across = |second: f64| LEFT + WIDTH * second / seconds;
    let up = |value: f64| y + HEIGHT * (1.0 - (value / panel.top).clamp(0.0, 1.0));
    let mut svg = format!(
        "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fafafa\" stroke=\"#ccc\"/>\n\
         <text x=\"{LEFT}\" y=\"{}\" font-weight=\"600\">{}</text>\n",
        y - 6.0,
        panel.title
    );
    let mut put = |text: String| svg.push_str(&text);
    for quarter in 0..=4 {
        let value = panel.top * f64::from(quarter) / 4.0;
        let label = if panel.top <= 4.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        put(format!(
            "<line x1=\"{LEFT}\" y1=\"{at}\" x2=\"{}\" y2=\"{at}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"9\">{label} {}</text>\n",
            LEFT + WIDTH,
            LEFT - 4.0,
            up(value) + 3.0,
            panel.unit,
            at = up(value),
        ));
    }
    let step =
        [1.0, 5.0, 10.0, 30.0, 60.0, 120.0].into_iter().find(|step| seconds / step <= 12.0).unwrap_or(300.0);
    let mut second = 0.0;
    while second <= seconds {
        put(format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" font-size=\"9\">{second:.0} s</text>\n",
            across(second),
            y + HEIGHT + 12.0
        ));
        second += step;
    }
    if let Some((level, name)) = &panel.level {
        put(format!(
            "<line x1=\"{LEFT}\" y1=\"{at}\" x2=\"{}\" y2=\"{at}\" stroke=\"#333\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"9\">{name}</text>\n",
            LEFT + WIDTH,
            LEFT + WIDTH - 4.0,
            up(*level) - 3.0,
            at = up(*level),
        ));
    }
    for (index, line) in panel.lines.iter().enumerate() {
        let mut points = String::new();
        for (second, value) in &line.points {
            let _ = write!(points, "{:.1},{:.1} ", across(*second), up(*value));
        }
        put(format!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\n",
            COLORS[index % COLORS.len()]
        ));
    }
    svg
}

/// Told apart by people who see few colours, too.
const COLORS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
const LEFT: f64 = 80.0;
const TOP: f64 = 95.0;
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 150.0;
const GAP: f64 = 45.0;

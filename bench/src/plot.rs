//! Line plots as inline SVG; colours come from the page's style, so that they fit light and dark.

use std::fmt::Write;

/// Size of a plot and of its margins, in units of the SVG.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;
/// About so many marks on an axis.
const TICKS: f64 = 5.0;
/// Colours that the page's style has.
pub(crate) const COLOURS: usize = 8;

/// A line with its name.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// In the order of x.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A plot of lines over time.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    /// Powers of ten on the y axis.
    pub(crate) logarithmic: bool,
    pub(crate) series: Vec<Series>,
}

/// Range of an axis, and where on the plot its values are.
struct Axis {
    from: f64,
    to: f64,
    logarithmic: bool,
    /// Places of both ends.
    places: (f64, f64),
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| {
            if self.logarithmic {
                value.max(self.from).log10()
            } else {
                value
            }
        };
        let (from, to) = (scale(self.from), scale(self.to));
        let share = (scale(value) - from) / (to - from);
        self.places.0 + share.clamp(0.0, 1.0) * (self.places.1 - self.places.0)
    }

    /// Where the marks are.
    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let (from, to) = (
                self.from.log10().round() as i32,
                self.to.log10().round() as i32,
            );
            return (from..=to).map(|power| 10f64.powi(power)).collect();
        }
        let step = nice((self.to - self.from) / TICKS);
        let count = ((self.to - self.from) / step + 1e-9) as u32;
        (0..=count)
            .map(|n| self.from + f64::from(n) * step)
            .collect()
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `value`.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.max(f64::MIN_POSITIVE).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter();
    let mut factor = factor.filter(|factor| factor * power >= value * (1.0 - 1e-9));
    factor.next().unwrap_or(10.0) * power
}

/// A number of few characters.
pub(crate) fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        v if v == v.trunc() || v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{unit}")
}

/// Text for HTML and SVG.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

impl Plot {
    fn axes(&self) -> Option<(Axis, Axis)> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let last = points().map(|point| point.0).reduce(f64::max)?;
        let values = || {
            points()
                .map(|point| point.1)
                .filter(|value| value.is_finite())
        };
        let top = values().reduce(f64::max)?;
        let (from, to) = if self.logarithmic {
            let least = values().filter(|&value| value > 0.0).reduce(f64::min)?;
            let (from, to) = (least.log10().floor(), top.log10().ceil());
            (10f64.powf(from), 10f64.powf(to.max(from + 1.0)))
        } else {
            let step = nice(top.max(1e-9) / TICKS);
            (0.0, (top.max(1e-9) / step).ceil() * step)
        };
        let x = Axis {
            from: 0.0,
            to: last.max(1e-9),
            logarithmic: false,
            places: (LEFT, WIDTH - RIGHT),
        };
        let y = Axis {
            from,
            to,
            logarithmic: self.logarithmic,
            places: (HEIGHT - BOTTOM, TOP),
        };
        Some((x, y))
    }

    /// The plot with its title and legend; only a sentence where there are no points.
    pub(crate) fn figure(&self) -> String {
        let title = escaped(&self.title);
        let Some((x, y)) = self.axes() else {
            return format!("<p>{title}: nothing was measured.</p>\n");
        };
        let mut out = format!(
            "<figure><figcaption>{title}</figcaption>\n\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n"
        );
        let bottom = HEIGHT - BOTTOM;
        for tick in y.ticks() {
            let (at, end, label) = (y.place(tick), WIDTH - RIGHT, short(tick));
            let text = LEFT - 8.0;
            add(
                &mut out,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" \
                     y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"y\" x=\"{text}\" y=\"{at:.1}\">{label}</text>"
                ),
            );
        }
        for tick in x.ticks() {
            let (at, label, text) = (x.place(tick), short(tick), bottom + 16.0);
            add(
                &mut out,
                format_args!("<text class=\"x\" x=\"{at:.1}\" y=\"{text}\">{label}</text>"),
            );
        }
        add(
            &mut out,
            format_args!(
                "<text class=\"x\" x=\"{}\" y=\"{}\">seconds</text>\
             <text class=\"unit\" x=\"4\" y=\"10\">{}</text>",
                WIDTH / 2.0,
                HEIGHT - 4.0,
                escaped(self.unit)
            ),
        );
        self.draw(&x, &y, &mut out);
        out.push_str("</svg>\n<p class=\"legend\">");
        for (index, series) in self.series.iter().enumerate() {
            let name = escaped(&series.name);
            let colour = index % COLOURS;
            add(
                &mut out,
                format_args!("<span class=\"k{colour}\">{name}</span>"),
            );
        }
        out.push_str("</p></figure>\n");
        out
    }

    /// The lines.
    fn draw(&self, x: &Axis, y: &Axis, out: &mut String) {
        for (index, series) in self.series.iter().enumerate() {
            if let [(px, py)] = series.points[..] {
                // A line of one point is not seen.
                add(
                    out,
                    format_args!(
                        "<circle class=\"c{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"/>",
                        index % COLOURS,
                        x.place(px),
                        y.place(py)
                    ),
                );
            }
            let points = series.points.iter();
            let points = points.map(|&(px, py)| format!("{:.1},{:.1}", x.place(px), y.place(py)));
            let points = points.collect::<Vec<_>>().join(" ");
            add(
                out,
                format_args!(
                    "<polyline class=\"c{}\" points=\"{points}\"><title>{}</title></polyline>",
                    index % COLOURS,
                    escaped(&series.name)
                ),
            );
        }
    }
}

fn add(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("a String takes every text");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(logarithmic: bool, points: &[(f64, f64)]) -> Plot {
        Plot {
            title: "a < b".to_owned(),
            unit: "µs",
            logarithmic,
            series: vec![Series {
                name: "p50 & p99".to_owned(),
                points: points.to_vec(),
            }],
        }
    }

    #[test]
    fn lines_run_from_corner_to_corner() {
        let figure = plot(false, &[(0.0, 0.0), (5.0, 50.0), (10.0, 100.0)]).figure();
        assert!(
            figure.contains("points=\"64.0,226.0 405.0,120.0 746.0,14.0\""),
            "{figure}"
        );
        assert!(figure.contains("a &lt; b") && figure.contains("p50 &amp; p99"));
        let figure = plot(true, &[(1.0, 10.0), (2.0, 1000.0)]).figure();
        assert!(
            figure.contains("points=\"405.0,226.0 746.0,14.0\""),
            "{figure}"
        );
        assert_eq!(figure.matches("class=\"grid\"").count(), 3);
    }

    #[test]
    fn nothing_is_said_and_not_drawn() {
        assert!(plot(false, &[]).figure().contains("nothing was measured"));
        assert!(
            plot(true, &[(1.0, 0.0)])
                .figure()
                .contains("nothing was measured")
        );
        assert!(plot(false, &[(0.0, 0.0)]).figure().contains("<svg"));
        let alone = plot(false, &[(1.0, 10.0)]).figure();
        assert!(alone.contains("<circle class=\"c0\" cx=\"746.0\" cy=\"14.0\""));
    }

    #[test]
    fn numbers_are_short_and_steps_are_round() {
        for (value, text) in [
            (0.0, "0"),
            (12.34, "12.3"),
            (123.4, "123"),
            (25_500.0, "25.5k"),
        ] {
            assert_eq!(short(value), text);
        }
        for (value, round) in [(0.3, 0.5), (7.0, 10.0), (20.0, 20.0), (11.0, 20.0)] {
            assert!(
                (nice(value) - round).abs() < 1e-9,
                "{value}: {}",
                nice(value)
            );
        }
    }
}

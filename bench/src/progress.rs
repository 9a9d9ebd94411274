//! What is shown on standard error while jobs run: a live view on a terminal, else lines.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::When;
use crate::section::Section;
use crate::tally::{Live, process_cpu};
use crate::timeline::Timeline;

/// How often the live view is renewed.
const RENEWAL: Duration = Duration::from_millis(500);
/// How often a line is written where nobody watches.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the end of the jobs is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Points of the sparkline.
const SPARKS: usize = 60;
const SPARK_SIGNS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How progress is shown.
pub(crate) enum Progress {
    /// Not at all.
    Silent,
    /// A few lines that are renewed.
    Live,
    /// A line now and then.
    Lines(Duration),
}

/// What is looked at.
pub(crate) struct View<'a> {
    pub(crate) sections: &'a [Section],
    /// Of every section, its threads.
    pub(crate) lives: &'a [Vec<Live>],
    pub(crate) timelines: &'a [Timeline<'a>],
}

impl Progress {
    /// Progress as the command line asks for it.
    pub(crate) fn new(when: When, interval: Duration) -> Self {
        match (when, std::io::stderr().is_terminal()) {
            (When::Never, _) => Self::Silent,
            (_, true) => Self::Live,
            (When::Always, false) => Self::Lines(interval),
            (When::Auto, false) => Self::Lines(LINE_INTERVAL),
        }
    }

    /// Watches until `finished`; the processor time of this process at `measured_from`.
    pub(crate) fn watch(
        &self,
        view: &View<'_>,
        measured_from: Instant,
        finished: impl Fn() -> bool,
    ) -> Duration {
        let start = Instant::now();
        let mut cpu = process_cpu();
        let mut ramping = measured_from > start;
        let mut screen = Screen::new(self);
        let mut next = start + self.pause();
        while !finished() {
            let now = Instant::now();
            if ramping && now >= measured_from {
                (ramping, cpu) = (false, process_cpu());
            }
            if now >= next {
                next += self.pause();
                screen.show(view, now - start);
            }
            let wait = if ramping {
                measured_from.saturating_duration_since(now)
            } else {
                LOOK
            };
            thread::sleep(wait.min(LOOK));
        }
        screen.clear();
        cpu
    }

    fn pause(&self) -> Duration {
        match self {
            Self::Silent => Duration::from_secs(3600),
            Self::Live => RENEWAL,
            Self::Lines(pause) => *pause,
        }
    }
}

/// The screen, and what was on it last.
struct Screen {
    bar: Option<ProgressBar>,
    lines: bool,
    last: Option<(Duration, u64, u64)>,
    rates: VecDeque<f64>,
}

impl Screen {
    fn new(progress: &Progress) -> Self {
        let live = matches!(progress, Progress::Live);
        let bar = live.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is valid"));
            bar
        });
        Self {
            bar,
            lines: matches!(progress, Progress::Lines(_)),
            last: None,
            rates: VecDeque::new(),
        }
    }

    fn show(&mut self, view: &View<'_>, elapsed: Duration) {
        if self.bar.is_none() && !self.lines {
            return;
        }
        let (requests, bytes) = sum(view.lives.iter().flatten());
        let (then, requests_then, bytes_then) = self.last.unwrap_or_default();
        let seconds = (elapsed - then).as_secs_f64().max(1e-9);
        let iops = (requests - requests_then) as f64 / seconds;
        let bytes_per_second = (bytes - bytes_then) as f64 / seconds;
        self.last = Some((elapsed, requests, bytes));
        let share = share(view);
        let mut text = rates(elapsed, iops, bytes_per_second, share);
        for (section, timeline) in view.sections.iter().zip(view.timelines) {
            if let Some((kind, p50, p99)) = timeline.latest() {
                let name = &section.name;
                let lead = if self.lines { "; " } else { "\n" };
                text += &format!(
                    "{lead}{name}: {} p50 {p50:.0} µs, p99 {p99:.0} µs",
                    kind.name()
                );
            }
        }
        let Some(bar) = &self.bar else {
            eprintln!("{text}");
            return;
        };
        self.rates.push_back(iops);
        if self.rates.len() > SPARKS {
            self.rates.pop_front();
        }
        bar.set_message(format!("{text}\n{}", sparkline(self.rates.iter().copied())));
        bar.tick();
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn sum<'a>(lives: impl Iterator<Item = &'a Live>) -> (u64, u64) {
    lives
        .map(Live::read)
        .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
}

/// How much of the work is done, if work and not time is what ends all jobs.
fn share(view: &View<'_>) -> Option<f64> {
    let totals = view.sections.iter().map(Section::total_bytes);
    let total: u64 = totals.collect::<Option<Vec<_>>>()?.iter().sum();
    let (_, bytes) = sum(view.lives.iter().flatten());
    Some(bytes as f64 / total as f64)
}

fn rates(elapsed: Duration, iops: f64, bytes_per_second: f64, share: Option<f64>) -> String {
    let share = share.map_or(String::new(), |share| format!("  {:3.0} %", share * 100.0));
    format!(
        "{:6.1} s  {iops:9.0} IOPS  {:9.1} MB/s{share}",
        elapsed.as_secs_f64(),
        bytes_per_second / 1e6
    )
}

/// Bars from zero to the largest.
fn sparkline(values: impl Iterator<Item = f64> + Clone) -> String {
    let largest = values.clone().fold(0.0, f64::max);
    let top = SPARK_SIGNS.len() - 1;
    let sign = |value: f64| {
        let step = if largest > 0.0 {
            (value / largest * top as f64).round()
        } else {
            0.0
        };
        SPARK_SIGNS[(step as usize).min(top)]
    };
    values.map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_reaches_from_zero_to_the_largest() {
        assert_eq!(sparkline([0.0, 50.0, 100.0].into_iter()), "▁▅█");
        assert_eq!(sparkline([0.0, 0.0].into_iter()), "▁▁");
    }
}

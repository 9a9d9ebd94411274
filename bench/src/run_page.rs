//! `taipan-bench report`: one HTML page of the results of runs, with plots over time.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Args;
use taipan_bench::fake_s3::dates::iso_date;

use crate::outcome::{Interval, JobOutcome, KindInterval, Outcome, SCHEMA};
use crate::page::{Cell, Page, number, text};
use crate::plot::{Plot, Series};

/// Options of `taipan-bench report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Results that `taipan-bench run --output FILE` or `--json` wrote
    #[arg(required = true, value_name = "RESULT.json")]
    results: Vec<PathBuf>,

    /// The page to write
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
}

/// Writes the page.
pub(crate) fn write(args: &ReportArgs) -> Result<()> {
    let mut outcomes = Vec::new();
    let place = args.output.canonicalize().ok();
    for path in &args.results {
        ensure!(
            place.is_none() || place != path.canonicalize().ok(),
            "{} is a result: the page has no place there",
            path.display()
        );
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let outcome: Outcome = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no result of this version", path.display()))?;
        ensure!(
            outcome.schema == SCHEMA,
            "{} has schema {}, not {SCHEMA}",
            path.display(),
            outcome.schema
        );
        let stem = path.file_stem().unwrap_or_default();
        outcomes.push((stem.to_string_lossy().into_owned(), outcome));
    }
    std::fs::write(&args.output, page(&outcomes))
        .with_context(|| format!("writing {}", args.output.display()))?;
    crate::tell(&format!("{}\n", args.output.display()))
}

/// The page of named results.
fn page(outcomes: &[(String, Outcome)]) -> String {
    let mut page = Page::new("taipan-bench");
    overview(&mut page, outcomes);
    for (name, outcome) in outcomes {
        page.heading(name);
        let more = [
            ("taipan-bench", outcome.version.clone()),
            (
                "began",
                iso_date(UNIX_EPOCH + Duration::from_secs(outcome.started_unix)),
            ),
        ];
        page.facts(&outcome.machine, &more);
        if outcome.interrupted {
            page.alarm("The run was interrupted.");
        }
        for error in &outcome.sums.errors {
            page.alarm(error);
        }
        for job in &outcome.jobs {
            one_job(&mut page, job);
        }
    }
    page.finish()
}

fn overview(page: &mut Page, outcomes: &[(String, Outcome)]) {
    let mut rows = Vec::new();
    for (name, outcome) in outcomes {
        for job in &outcome.jobs {
            let ok = || match job.sums.ok {
                true => text("yes"),
                false => Cell::Bad("NO".to_owned()),
            };
            if job.sums.kinds.is_empty() {
                let mut row = vec![text(name), text(&job.name), text("nothing answered")];
                row.extend((0..7).map(|_| Cell::Number("–".to_owned())));
                row.push(ok());
                rows.push(row);
            }
            for kind in &job.sums.kinds {
                let latency = &kind.latency_us;
                rows.push(vec![
                    text(name),
                    text(&job.name),
                    text(&kind.kind),
                    number(kind.iops, 0),
                    number(kind.megabytes_per_second, 1),
                    number(latency.p50, 1),
                    number(latency.p99, 1),
                    number(latency.p999, 1),
                    number(latency.max, 1),
                    number(job.sums.client_cpu.us_per_request, 2),
                    ok(),
                ]);
            }
        }
    }
    let head = [
        "result",
        "job",
        "kind",
        "IOPS",
        "MB/s",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "max µs",
        "client µs",
        "all good",
    ];
    page.table(&head, &rows);
}

fn one_job(page: &mut Page, job: &JobOutcome) {
    let spec = &job.workload;
    let fsync = match spec.fsync {
        0 => String::new(),
        count => format!(", flush every {count}"),
    };
    let places = match spec.rw.sequential() {
        true => "in order".to_owned(),
        false => spec.distribution.to_string(),
    };
    page.paragraph(&format!(
        "[{}] {} {}, depth {}, {} thread(s), places {places}{fsync}{}, engine {}, {:.2} s on {}",
        job.name,
        spec.rw,
        spec.request_bytes,
        job.iodepth,
        spec.jobs,
        if job.fua { ", FUA" } else { "" },
        job.engine,
        job.sums.elapsed_seconds,
        job.target
    ));
    if let Some(verified) = &job.sums.verify {
        let rest = match verified.cut_short {
            true => "; not all was read back",
            false => "",
        };
        page.paragraph(&format!(
            "Verified {} blocks, {} of them bad{}.",
            verified.blocks_checked, verified.blocks_bad, rest
        ));
    }
    let kinds = job.sums.kinds.iter();
    let names = |has_bytes: bool| {
        let kinds = kinds.clone().filter(move |k| !has_bytes || k.bytes > 0);
        kinds.map(|kind| kind.kind.as_str())
    };
    let requests: Value = |kind| kind.requests as f64;
    let megabytes: Value = |kind| kind.bytes as f64 / 1e6;
    page.html(&rates(job, names(false), ("requests per second", "1/s"), requests).figure());
    page.html(&rates(job, names(true), ("throughput", "MB/s"), megabytes).figure());
    for kind in &job.sums.kinds {
        page.html(&latencies(job, &kind.kind).figure());
    }
}

/// Something per second, of each of `kinds`.
fn rates<'a>(
    job: &JobOutcome,
    kinds: impl Iterator<Item = &'a str>,
    (what, unit): (&str, &'static str),
    count: Value,
) -> Plot {
    let series = |kind: &str| {
        let mut begin = 0.0;
        let point = |interval: &Interval| {
            let seconds = interval.at_seconds - begin;
            begin = interval.at_seconds;
            let found = of(interval, kind).map_or(0.0, count);
            (interval.at_seconds, found / seconds.max(1e-9))
        };
        Series {
            name: kind.to_owned(),
            points: job.intervals.iter().map(point).collect(),
        }
    };
    Plot {
        title: format!("[{}] {what}", job.name),
        unit,
        logarithmic: false,
        series: kinds.map(series).collect(),
    }
}

/// One number of an interval.
type Value = fn(&KindInterval) -> f64;

/// Percentiles of one kind.
fn latencies(job: &JobOutcome, kind: &str) -> Plot {
    let lines: [(&str, Value); 4] = [
        ("p50", |interval| interval.p50_us),
        ("p99", |interval| interval.p99_us),
        ("p99.9", |interval| interval.p999_us),
        ("max", |interval| interval.max_us),
    ];
    let series = |(name, value): (&str, Value)| {
        let point = |interval: &Interval| Some((interval.at_seconds, value(of(interval, kind)?)));
        Series {
            name: name.to_owned(),
            points: job.intervals.iter().filter_map(point).collect(),
        }
    };
    Plot {
        title: format!("[{}] latency of {kind}", job.name),
        unit: "µs",
        logarithmic: true,
        series: lines.into_iter().map(series).collect(),
    }
}

fn of<'a>(interval: &'a Interval, kind: &str) -> Option<&'a KindInterval> {
    interval.kinds.iter().find(|found| found.kind == kind)
}

//! `taipan verify`: whether a backend holds all of its volumes and snapshots, whole.

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures::executor::block_on;
use indicatif::ProgressBar;
use serde::Serialize;
use taipan_engine::backend::Backend;
use taipan_engine::error::Error;
use taipan_engine::registry::{NamedVolume, list_volumes, resolve_name};
use taipan_engine::size::human;
use taipan_engine::verify::{
    Affected, Finding, Options, Progress, Severity, VolumeReport, verify_volume,
};
use taipan_engine::volume::VolumeName;

use crate::backend;
use crate::cli::{Target, volume_name};
use crate::failure::{Exit, Failure, Outcome};
use crate::output::percent;
use crate::table::Fields;
use crate::tell;

const EXIT_CODES: &str = "Exit codes: 0 clean, 1 degraded (nothing is lost), 2 data is lost, \
3 data is damaged, 4 the check could not be made (usage, I/O).";

/// Exit code if nothing could be found out.
pub(crate) const UNCHECKED: u8 = 4;
/// Ranges of an image that are shown unless all are asked for.
const RANGES_SHOWN: usize = 8;

/// Arguments of `verify`.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Verify {
    /// A volume of `--backend`, with its snapshots and points in time, or a backend, such as
    /// s3://bucket/prefix?endpoint=https://host or dir:/path: then all its volumes, unless one is
    /// named.
    #[arg(value_name = "VOLUME|URL")]
    what: String,
    /// A volume of that backend.
    #[arg(value_parser = volume_name)]
    volume: Option<VolumeName>,
    /// The backend of a volume; keys as for `backend probe`. By default that of the daemon, or, if
    /// none runs, the directory DIR/objects.
    #[arg(long, value_name = "URL")]
    backend: Option<String>,
    /// Read every chunk and check the CRC of every block, instead of only asking for each chunk.
    #[arg(long)]
    deep: bool,
    /// Show every affected range, not only the first few.
    #[arg(long, short)]
    all: bool,
    /// No progress on standard error.
    #[arg(long, short)]
    quiet: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Found {
    backend: String,
    deep: bool,
    /// The worst of all volumes; absent if nothing is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    severity: Option<Severity>,
    volumes: Vec<VolumeReport>,
    /// Entries of names that cannot be read.
    problems: Vec<String>,
}

/// Runs the command. The exit codes are its own.
pub(crate) fn run(target: &Target, args: &Verify) -> ExitCode {
    match check(target, args) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(severity)) => ExitCode::from(match severity {
            Severity::Degraded => 1,
            Severity::Lost => 2,
            Severity::Corrupt => 3,
        }),
        Err(failure) => {
            tell(target, &failure);
            ExitCode::from(UNCHECKED)
        }
    }
}

/// Checks and prints; the worst that was found.
fn check(target: &Target, args: &Verify) -> Outcome<Option<Severity>> {
    let (url, volume) = args.subject(target)?;
    let backend = backend::open(target, &url)?;
    let (volumes, problems) = block_on(chosen(&*backend, volume.as_ref()))?;
    let bar = bar(args.quiet);
    let shown = RefCell::new(String::new());
    let progress = |progress: Progress<'_>| {
        if *shown.borrow() != progress.image {
            progress.image.clone_into(&mut shown.borrow_mut());
            bar.set_message(progress.image.to_owned());
        }
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let options = Options {
        deep: args.deep,
        progress: &progress,
    };
    let mut reports = Vec::new();
    for volume in &volumes {
        reports.push(block_on(verify_volume(&*backend, volume, &options))?);
    }
    bar.finish_and_clear();
    let damaged_names = (!problems.is_empty()).then_some(Severity::Degraded);
    let worst = reports.iter().filter_map(VolumeReport::severity).max();
    let found = Found {
        backend: backend.describe(),
        deep: args.deep,
        severity: worst.max(damaged_names),
        volumes: reports,
        problems: problems.iter().map(Error::to_string).collect(),
    };
    target
        .form()
        .print(&found, |found| render(found, args.all))?;
    Ok(found.severity)
}

impl Verify {
    /// Backend, and volume if not all.
    fn subject(&self, target: &Target) -> Outcome<(String, Option<VolumeName>)> {
        let is_url =
            self.what.contains("://") || ["dir:", "mem:"].iter().any(|s| self.what.starts_with(s));
        match (is_url, &self.volume) {
            (true, volume) => Ok((self.what.clone(), volume.clone())),
            (false, None) => {
                let name = volume_name(&self.what)?;
                let given = self.backend.clone();
                Ok((
                    given.unwrap_or_else(|| backend::of_daemon(target)),
                    Some(name),
                ))
            }
            (false, Some(_)) => {
                let what = format!("{:?} is no URL of a backend, such as dir:/path", self.what);
                Err(Failure::new(Exit::Usage, what))
            }
        }
    }
}

/// The volumes to be checked, and entries of names that are damaged.
async fn chosen(
    backend: &dyn Backend,
    volume: Option<&VolumeName>,
) -> Outcome<(Vec<NamedVolume>, Vec<Error>)> {
    let Some(name) = volume else {
        let listing = list_volumes(backend).await?;
        return Ok((listing.volumes, listing.problems));
    };
    let Some(id) = resolve_name(backend, name).await? else {
        let what = format!(
            "there is no volume \"{name}\" in {} (--backend URL names another backend)",
            backend.describe()
        );
        return Err(Failure::new(Exit::NotFound, what));
    };
    let name = name.clone();
    Ok((vec![NamedVolume { name, id }], Vec::new()))
}

/// Objects checked, on standard error; hidden if that is no terminal.
fn bar(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    bar.enable_steady_tick(Duration::from_millis(200));
    let template = "{spinner} {msg}: {pos} of {len} chunks, {eta} left";
    match indicatif::ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn render(found: &Found, all: bool) -> String {
    let mut out = String::new();
    for problem in &found.problems {
        out.push_str(&format!("a name is damaged: {problem}\n"));
    }
    for report in &found.volumes {
        let verdict = match report.severity() {
            None if found.deep => "clean, every block read",
            None => "clean (all objects are there; --deep reads them)",
            Some(Severity::Degraded) => "degraded, nothing is lost",
            Some(Severity::Lost) => "DATA IS LOST",
            Some(Severity::Corrupt) => "DATA IS DAMAGED",
        };
        let (chunks, mapped) = (human(report.chunk_bytes), human(report.mapped_bytes));
        let live = percent(report.live_bytes, report.chunk_bytes);
        let mut fields = Fields::default();
        fields
            .add("volume", report.volume.as_str())
            .add("verdict", verdict)
            .add("manifest", report.manifest.to_string())
            .add("data", format!("{mapped} of {}", human(report.size_bytes)))
            .add("snapshots", report.snapshots.to_string())
            .add("points in time", report.points.to_string())
            .add(
                "chunks",
                format!("{} ({chunks}, {live} live)", report.chunks),
            );
        for finding in &report.findings {
            fields.add("FINDING", text(finding, all));
        }
        out.push_str(&fields.render());
        out.push('\n');
    }
    if found.volumes.is_empty() {
        out.push_str("the backend has no volumes\n");
    }
    out
}

fn text(finding: &Finding, all: bool) -> String {
    let mut lines = vec![format!("{}: {}", finding.object, finding.what)];
    lines.extend(
        finding
            .affected
            .iter()
            .map(|affected| ranges(affected, all)),
    );
    if finding.affected.is_empty() {
        lines.push("no block of any image is affected".to_owned());
    }
    lines.join("\n")
}

/// `vol@snap: 8 KiB at 4096+8192, …`.
fn ranges(affected: &Affected, all: bool) -> String {
    let bytes: u64 = affected.ranges.iter().map(|range| range.length_bytes).sum();
    let shown = if all { usize::MAX } else { RANGES_SHOWN };
    let texts = affected.ranges.iter().take(shown);
    let texts: Vec<String> = texts
        .map(|range| format!("{}+{}", range.offset_bytes, range.length_bytes))
        .collect();
    let more = affected.ranges.len().saturating_sub(shown);
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more (--all shows them)"),
    };
    let image = &affected.image;
    match texts.is_empty() {
        true => format!("all of {image}"),
        false => format!("{image}: {} at {}{more}", human(bytes), texts.join(", ")),
    }
}

//! What a comparison found: samples, medians beside each other, bars; as Markdown, JSON and HTML.

use serde::Serialize;
use taipan_engine::size;
use taipan_nbd::TransmissionFlags;

use super::Target;
use super::clients::Found;
use super::lines::{
    Bar, Base, LOG_ONLY, Line, Load, NULL, Prepare, RAW, TWO_CORES, Unit, WITH_IDLE,
};
use super::server::{Server, Usage};
use super::statistics::Spread;
use crate::machine::Machine;
use crate::outcome::Latency;
use crate::page::{Cell, Page, text};

/// Version of the JSON.
const SCHEMA: u32 = 1;
/// Least part of a burst's answered bytes that is in the WAL.
const WAL_SHARE_MIN: f64 = 0.95;
const MEMORY: &str = "nbdkit memory";
const INTERRUPTED: &str = "INTERRUPTED: what was not measured until then is missing.";

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) line: String,
    pub(crate) target: String,
    pub(crate) round: u32,
    /// `requests_per_second`, `megabytes_per_second` or `seconds`.
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    pub(crate) latency_us: Option<Latency>,
    pub(crate) server_us_per_request: Option<f64>,
    /// Of taipand's data cores.
    pub(crate) data_core_us_per_request: Option<f64>,
    pub(crate) client_us_per_request: f64,
    pub(crate) resident_bytes: Option<u64>,
    /// Of a map; what it took says little without.
    pub(crate) extents: Option<u64>,
    /// Part of the answered bytes that is in taipand's WAL.
    pub(crate) wal_share: Option<f64>,
}

/// What a target says of itself.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TargetFacts {
    pub(crate) name: String,
    pub(crate) survives: String,
    pub(crate) durable_flush: bool,
    pub(crate) flush: bool,
    pub(crate) fua: bool,
    pub(crate) multi_conn: bool,
    pub(crate) trim: bool,
    pub(crate) zeroes: bool,
    /// Smallest, preferred and largest request, if the server says.
    pub(crate) block_sizes: Option<(u32, u32, u32)>,
}

/// A target without a number.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Left {
    pub(crate) line: String,
    pub(crate) target: String,
    pub(crate) why: String,
    /// A measurement was begun, or a server that is there did not start.
    pub(crate) failed: bool,
}

/// How it was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) rounds: u32,
    pub(crate) transport: &'static str,
    /// Of a timed measurement, of `qemu-img bench`, of the burst before the reads.
    pub(crate) seconds: f64,
    pub(crate) qemu_seconds: f64,
    pub(crate) burst_seconds: f64,
    /// Of taipand; files and bursts are parts of it.
    pub(crate) wal_bytes: u64,
}

impl Settings {
    fn words(&self) -> String {
        format!(
            "Over {}; {} s a measurement, {} s of qemu-img bench, bursts of {} s; WAL of {}.",
            self.transport,
            self.seconds,
            self.qemu_seconds,
            self.burst_seconds,
            size::exact(self.wal_bytes)
        )
    }
}

/// Everything that was found.
#[derive(Serialize)]
pub(crate) struct Comparison {
    schema: u32,
    version: &'static str,
    machine: Machine,
    disk: String,
    #[serde(flatten)]
    settings: Settings,
    /// Whether a signal ended it before its time.
    pub(crate) interrupted: bool,
    pub(crate) server_cpus: String,
    pub(crate) client_cpus: String,
    pub(crate) targets: Vec<TargetFacts>,
    pub(crate) left: Vec<Left>,
    pub(crate) samples: Vec<Sample>,
    #[serde(serialize_with = "names")]
    pub(crate) lines: Vec<Line>,
}

/// What the client does on a line.
#[derive(Serialize)]
struct LoadTold<'a> {
    line: &'a str,
    load: String,
}

fn names<S: serde::Serializer>(lines: &[Line], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(lines.iter().map(|line| &line.name))
}

impl Sample {
    /// What a client found, and what the server used for it.
    pub(crate) fn new(
        line: &Line,
        target: &str,
        round: u32,
        found: &Found,
        (before, after): (Usage, Usage),
        wal_bytes: Option<f64>,
    ) -> Self {
        let requests = found.requests.max(1.0);
        let each = |seconds: f64| seconds * 1e6 / requests;
        let server = target != RAW;
        let data = each(after.data_seconds - before.data_seconds);
        let share = wal_bytes.map(|bytes| (bytes / found.written_bytes.max(1.0)).min(1.0));
        Self {
            line: line.name.clone(),
            target: target.to_owned(),
            round,
            unit: line.unit.name(),
            value: found.value,
            latency_us: found.latency.clone(),
            // The process's clock is coarser than that of its threads.
            server_us_per_request: server
                .then(|| each(after.cpu_seconds - before.cpu_seconds).max(data)),
            data_core_us_per_request: (after.data_seconds > 0.0).then_some(data),
            client_us_per_request: each(found.client_cpu_seconds),
            resident_bytes: server.then_some(after.resident_bytes),
            extents: found.extents,
            wal_share: share.filter(|_| line.wal_share),
        }
    }
}

impl TargetFacts {
    /// Of a server's export.
    pub(crate) fn of_server(server: &Server) -> Self {
        let can = |flag| server.export.flags.contains(flag);
        let sizes = server.export.block_sizes;
        Self {
            name: server.peer.name.clone(),
            survives: server.peer.survives.clone(),
            durable_flush: server.peer.durable_flush,
            flush: can(TransmissionFlags::SEND_FLUSH),
            fua: can(TransmissionFlags::SEND_FUA),
            multi_conn: can(TransmissionFlags::CAN_MULTI_CONN),
            trim: can(TransmissionFlags::SEND_TRIM),
            zeroes: can(TransmissionFlags::SEND_WRITE_ZEROES),
            block_sizes: sizes.map(|all| (all.minimum, all.preferred, all.maximum_payload)),
        }
    }

    /// Of a file or device.
    pub(crate) fn raw() -> Self {
        Self {
            name: RAW.to_owned(),
            survives: "flushed writes".to_owned(),
            durable_flush: true,
            flush: true,
            fua: true,
            multi_conn: true,
            trim: false,
            zeroes: false,
            block_sizes: None,
        }
    }
}

const NO_FLUSH: &str = "the export offers no FLUSH";

/// Why a line cannot be measured on a target, by the flags of its export.
pub(crate) fn cannot(line: &Line, target: &Target) -> Option<&'static str> {
    let Target::Running(server) = target else {
        return None;
    };
    let facts = TargetFacts::of_server(server);
    if matches!(line.prepare, Prepare::Cold(_)) && server.peer.prefill {
        return Some("its data does not outlive a restart");
    }
    let Load::Own { flags, .. } = &line.load else {
        let flushes = matches!(line.load, Load::Upload { .. });
        return (flushes && !facts.flush).then_some(NO_FLUSH);
    };
    let has = |words: &str| flags.iter().any(|flag| flag.starts_with(words));
    let several = flags
        .iter()
        .find_map(|flag| flag.strip_prefix("--numjobs="))
        .is_some_and(|count| count != "1");
    let flushes = has("--fsync=") || has("--end-fsync");
    match () {
        () if flushes && !facts.flush => Some(NO_FLUSH),
        () if has("--fua") && !facts.fua => Some("the export offers no FUA"),
        () if several && flushes && !facts.multi_conn => {
            Some("the export does not promise that its connections agree")
        }
        () if line.load_word().contains("trim") && !facts.trim => Some("the export offers no TRIM"),
        () if line.load_word().contains("zeroes") && !facts.zeroes => {
            Some("the export offers no WRITE_ZEROES")
        }
        () => None,
    }
}

/// A value with its unit.
pub(crate) fn shown(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Requests if value >= 10_000.0 => format!("{:.1} k/s", value / 1e3),
        Unit::Requests => format!("{value:.0} /s"),
        Unit::Megabytes => format!("{value:.0} MB/s"),
        Unit::Seconds => format!("{value:.3} s"),
    }
}

/// One target on one line.
struct Row {
    target: String,
    value: Spread,
    extents: Option<f64>,
    /// How much better the subject is; above 1 it is.
    ratio: Option<f64>,
    /// Whether an answer promises what the subject's promises.
    comparable: bool,
    latency: [Option<f64>; 3],
    server_us: Option<f64>,
    data_us: Option<f64>,
    client_us: f64,
    resident_bytes: Option<f64>,
    survives: String,
}

/// A bar and whether it was reached.
pub(crate) struct Verdict {
    words: String,
    reached: Option<bool>,
}

impl Comparison {
    /// Nothing was measured yet.
    pub(crate) fn new(machine: Machine, disk: String, settings: Settings) -> Self {
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            machine,
            disk,
            settings,
            interrupted: false,
            server_cpus: String::new(),
            client_cpus: String::new(),
            targets: Vec::new(),
            left: Vec::new(),
            samples: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// What went wrong.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &Left> {
        self.left.iter().filter(|left| left.failed)
    }

    /// Bars that were missed.
    pub(crate) fn misses(&self) -> usize {
        let verdicts = self.lines.iter().flat_map(|line| self.verdicts(line));
        verdicts
            .filter(|verdict| verdict.reached == Some(false))
            .count()
    }

    fn of<'a>(&'a self, line: &'a str, target: &'a str) -> impl Iterator<Item = &'a Sample> {
        let samples = self.samples.iter();
        samples.filter(move |sample| sample.line == line && sample.target == target)
    }

    fn median(&self, line: &str, target: &str, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        Spread::of(self.of(line, target).filter_map(of)).map(|spread| spread.median)
    }

    fn value(&self, line: &str, target: &str) -> Option<f64> {
        self.median(line, target, |sample| Some(sample.value))
    }

    fn rows(&self, line: &Line) -> Vec<Row> {
        let ours = self.value(&line.name, line.subject);
        let row = |facts: &TargetFacts| {
            let (name, target) = (&line.name, &facts.name);
            let value = Spread::of(self.of(name, target).map(|sample| sample.value))?;
            let latency = |of: fn(&Latency) -> f64| {
                self.median(name, target, |sample| sample.latency_us.as_ref().map(of))
            };
            let ratio = ours.map(|ours| match line.unit {
                Unit::Seconds => value.median / ours,
                _ => ours / value.median,
            });
            let resident = |sample: &Sample| sample.resident_bytes.map(|bytes| bytes as f64);
            Some(Row {
                target: target.clone(),
                ratio: ratio.filter(|_| target != line.subject),
                comparable: facts.durable_flush || !line.asks_for_durability(),
                latency: [latency(|l| l.p50), latency(|l| l.p99), latency(|l| l.p999)],
                server_us: self.median(name, target, |s| s.server_us_per_request),
                data_us: self.median(name, target, |s| s.data_core_us_per_request),
                client_us: self.median(name, target, |s| Some(s.client_us_per_request))?,
                resident_bytes: self.median(name, target, resident),
                survives: facts.survives.clone(),
                extents: self.median(name, target, |s| s.extents.map(|count| count as f64)),
                value,
            })
        };
        self.targets.iter().filter_map(row).collect()
    }

    fn verdicts(&self, line: &Line) -> Vec<Verdict> {
        let Some(ours) = self.value(&line.name, line.subject) else {
            return Vec::new();
        };
        let mut verdicts: Vec<_> = line
            .bars
            .iter()
            .map(|bar| self.bar(line, bar, ours))
            .collect();
        if let Some(most) = line.cpu_bar {
            let data = self.median(&line.name, line.subject, |s| s.data_core_us_per_request);
            let theirs = self.median(&line.name, MEMORY, |s| s.server_us_per_request);
            let part = data.zip(theirs).map(|(data, theirs)| data / theirs);
            let found = beside(part, most);
            verdicts.push(Verdict {
                words: format!("CPU of data cores ≤ {most} × {MEMORY}: {found}"),
                reached: part.map(|part| part <= most),
            });
        }
        if line.wal_share {
            let shares = self
                .of(&line.name, line.subject)
                .filter_map(|sample| sample.wal_share);
            if let Some(share) = Spread::of(shares) {
                verdicts.push(Verdict {
                    words: format!("in the WAL within the window: {:.1} %", share.least * 100.0),
                    reached: Some(share.least >= WAL_SHARE_MIN),
                });
            }
        }
        verdicts
    }

    /// Whether the subject reaches the least of a bar's multiples.
    fn bar(&self, line: &Line, bar: &Bar, ours: f64) -> Verdict {
        let mut words = Vec::new();
        let mut least: Option<f64> = None;
        for (base, factor) in bar {
            let (name, value) = match base {
                Base::Target(target) => ((*target).to_owned(), self.value(&line.name, target)),
                Base::Ceiling => (
                    "the client's ceiling".to_owned(),
                    self.value(&line.name, NULL),
                ),
                Base::Line(other) => (
                    format!("its own {other:?}"),
                    self.value(other, line.subject),
                ),
            };
            let found = beside(value.map(|value| ours / value), *factor);
            words.push(format!("≥ {factor} × {name}: {found}"));
            let floor = value.map(|value| value * factor);
            least = match (least, floor) {
                (Some(least), Some(floor)) => Some(least.min(floor)),
                (least, floor) => least.or(floor),
            };
        }
        Verdict {
            words: words.join(" or "),
            reached: least.map(|least| ours >= least),
        }
    }

    /// Every single measurement, and every bar, as one JSON object.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct BarTold<'a> {
            line: &'a str,
            bar: String,
            reached: Option<bool>,
        }
        #[derive(Serialize)]
        struct Told<'a> {
            #[serde(flatten)]
            comparison: &'a Comparison,
            loads: Vec<LoadTold<'a>>,
            bars: Vec<BarTold<'a>>,
        }
        let loads = self.lines.iter().map(|line| LoadTold {
            line: &line.name,
            load: line.load_words(),
        });
        let bars = self.lines.iter().flat_map(|line| {
            let told = |verdict: Verdict| BarTold {
                line: &line.name,
                bar: verdict.words,
                reached: verdict.reached,
            };
            self.verdicts(line).into_iter().map(told)
        });
        serde_json::to_string_pretty(&Told {
            comparison: self,
            loads: loads.collect(),
            bars: bars.collect(),
        })
    }

    /// The report as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut out = format!(
            "Medians (least–most) of {} interleaved rounds. {} {}\n\n",
            self.settings.rounds,
            self.machine_words(),
            self.settings.words()
        );
        table(&mut out, &TARGET_HEAD, &self.target_rows());
        for line in &self.lines {
            out += &format!("\n### {}\n\n`{}`\n\n", line.name, line.load_words());
            table(&mut out, &line_head(line), &self.line_rows(line));
            for verdict in self.verdicts(line) {
                out += &format!("\n* {}", verdict.sentence());
            }
            out += "\n";
        }
        if self.interrupted {
            out += &format!("\n{INTERRUPTED}\n");
        }
        if !self.left.is_empty() {
            out += "\n### Not measured\n\n";
            for left in &self.left {
                out += &format!("* {}\n", left.sentence());
            }
        }
        out
    }

    /// The report as a page.
    pub(crate) fn html(&self) -> String {
        let mut page = Page::new("taipan-bench compare");
        let more = [
            ("disk", self.disk.clone()),
            ("CPUs of servers", self.server_cpus.clone()),
            ("CPUs of clients", self.client_cpus.clone()),
            ("rounds", self.settings.rounds.to_string()),
            ("measured", self.settings.words()),
            ("taipan-bench", self.version.to_owned()),
        ];
        page.facts(&self.machine, &more);
        cells(&mut page, &TARGET_HEAD, self.target_rows());
        for line in &self.lines {
            page.heading(&line.name);
            page.paragraph(&line.load_words());
            cells(&mut page, &line_head(line), self.line_rows(line));
            for verdict in self.verdicts(line) {
                match verdict.reached {
                    Some(false) => page.alarm(&verdict.sentence()),
                    _ => page.paragraph(&verdict.sentence()),
                }
            }
        }
        if self.interrupted {
            page.alarm(INTERRUPTED);
        }
        for left in &self.left {
            page.alarm(&left.sentence());
        }
        page.finish()
    }

    fn machine_words(&self) -> String {
        format!(
            "{} × {}, {}, {}; servers on CPUs {}, clients on {}.",
            self.machine.cpus,
            self.machine.cpu,
            self.machine.kernel,
            self.disk,
            self.server_cpus,
            self.client_cpus
        )
    }

    fn target_rows(&self) -> Vec<Vec<String>> {
        let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        let row = |facts: &TargetFacts| {
            let sizes = facts.block_sizes.map_or_else(
                || "not said".to_owned(),
                |(least, best, most)| format!("{least} / {best} / {most}"),
            );
            vec![
                facts.name.clone(),
                facts.survives.clone(),
                yes(facts.durable_flush),
                yes(facts.flush),
                yes(facts.fua),
                yes(facts.multi_conn),
                sizes,
            ]
        };
        self.targets.iter().map(row).collect()
    }

    fn line_rows(&self, line: &Line) -> Vec<Vec<String>> {
        let micro =
            |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |us| format!("{us:.2}"));
        let row = |row: Row| {
            let Spread {
                median,
                least,
                most,
                ..
            } = row.value;
            let spread = format!("{}–{}", shown(line.unit, least), shown(line.unit, most));
            let latency = row
                .latency
                .map(|value| value.map_or_else(|| "–".to_owned(), |us| format!("{us:.0}")));
            let server = match row.data_us {
                Some(data) => format!("{} ({data:.2} data cores)", micro(row.server_us)),
                None => micro(row.server_us),
            };
            let extents = row.extents.map(|count| format!(", {count:.0} extents"));
            let extents = extents.unwrap_or_default();
            let mebibytes = row.resident_bytes.map(|bytes| bytes / f64::from(1 << 20));
            vec![
                row.target,
                format!("{} ({spread}){extents}", shown(line.unit, median)),
                match (row.ratio, row.comparable) {
                    (None, _) => "–".to_owned(),
                    (_, false) => "not durable".to_owned(),
                    (Some(ratio), true) => format!("{ratio:.2}"),
                },
                latency.join(" / "),
                server,
                format!("{:.2}", row.client_us),
                mebibytes.map_or_else(|| "–".to_owned(), |mib| format!("{mib:.0}")),
                row.survives,
            ]
        };
        self.rows(line).into_iter().map(row).collect()
    }
}

const TARGET_HEAD: [&str; 7] = [
    "target",
    "survives a power loss",
    "FLUSH is durable",
    "FLUSH",
    "FUA",
    "multi-conn",
    "block sizes",
];

/// A ratio beside its bar, with a digit more where it would look like the bar.
fn beside(ratio: Option<f64>, bar: f64) -> String {
    match ratio {
        None => "not measured".to_owned(),
        Some(ratio) if format!("{ratio:.2}") == format!("{bar:.2}") => format!("{ratio:.3}"),
        Some(ratio) => format!("{ratio:.2}"),
    }
}

fn line_head(line: &Line) -> [&'static str; 8] {
    [
        "target",
        "median (least–most)",
        match line.subject {
            WITH_IDLE => "with idle volumes / target",
            LOG_ONLY => "with commits off / target",
            TWO_CORES => "two data cores / target",
            _ => "taipand / target",
        },
        "p50 / p99 / p99.9 µs",
        "server CPU µs per request",
        "client CPU µs",
        "resident MiB",
        "survives a power loss",
    ]
}

impl Verdict {
    fn sentence(&self) -> String {
        let end = match self.reached {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "not known",
        };
        format!("{} — {end}", self.words)
    }
}

impl Left {
    fn sentence(&self) -> String {
        let failed = if self.failed { "FAILED: " } else { "" };
        format!("{failed}{} on {}: {}", self.line, self.target, self.why)
    }
}

fn table(out: &mut String, head: &[&str], rows: &[Vec<String>]) {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    *out += &line(head.iter().map(|&text| text.to_owned()).collect());
    *out += &format!("|{}\n", "---|".repeat(head.len()));
    for row in rows {
        *out += &line(row.clone());
    }
}

fn cells(page: &mut Page, head: &[&str], rows: Vec<Vec<String>>) {
    let row = |row: Vec<String>| row.into_iter().map(text).collect::<Vec<Cell>>();
    page.table(head, &rows.into_iter().map(row).collect::<Vec<_>>());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::lines::{OURS, Sizes, Suite, lines};
    use super::super::peers::Transport;
    use super::*;

    fn comparison() -> Comparison {
        let sizes = Sizes {
            wal_bytes: 4 << 30,
            seconds: Duration::from_secs(1),
            burst_seconds: Duration::from_secs(1),
            mapped_bytes: Vec::new(),
            idle_volumes: 1,
            transport: Transport::Unix,
        };
        let settings = Settings {
            rounds: 3,
            transport: "tcp",
            seconds: 1.5,
            qemu_seconds: 10.0,
            burst_seconds: 1.0,
            wal_bytes: 4 << 30,
        };
        let mut comparison = Comparison::new(Machine::default(), "a disk".to_owned(), settings);
        comparison.lines = lines(&[Suite::Kvm], &sizes);
        comparison.lines.truncate(1);
        for name in [OURS, MEMORY, NULL, RAW] {
            comparison.targets.push(TargetFacts {
                name: name.to_owned(),
                survives: format!("what {name} keeps"),
                ..TargetFacts::raw()
            });
        }
        comparison
    }

    fn measure(comparison: &mut Comparison, target: &str, values: [f64; 3], cpu: f64) {
        let line = comparison.lines[0].clone();
        for (round, value) in (0..).zip(values) {
            let found = Found {
                value,
                requests: 1e6,
                written_bytes: 1000.0,
                latency: None,
                extents: None,
                client_cpu_seconds: 2.0,
            };
            let data = if target == OURS { cpu } else { 0.0 };
            let after = Usage {
                cpu_seconds: cpu,
                data_seconds: data,
                resident_bytes: 5 << 20,
            };
            let usage = (Usage::default(), after);
            let wal = (target == OURS).then_some(960.0);
            let sample = Sample::new(&line, target, round, &found, usage, wal);
            comparison.samples.push(sample);
        }
    }

    #[test]
    fn a_ratio_just_below_its_bar_does_not_look_like_it() {
        let told = |ratio| beside(ratio, 1.1);
        let told = [None, Some(1.097), Some(1.1), Some(1.09)].map(told);
        assert_eq!(told, ["not measured", "1.097", "1.100", "1.09"]);
    }

    #[test]
    fn medians_ratios_and_bars_are_told() {
        let mut comparison = comparison();
        measure(
            &mut comparison,
            OURS,
            [200_000.0, 900_000.0, 300_000.0],
            1.0,
        );
        measure(&mut comparison, MEMORY, [200_000.0; 3], 2.0);
        measure(&mut comparison, RAW, [250_000.0; 3], 0.0);
        let told = comparison.markdown();
        for words in [
            "Over tcp; 1.5 s a measurement, 10 s of qemu-img bench, bursts of 1 s; WAL of 4GiB.",
            "| taipand | 300.0 k/s (200.0 k/s–900.0 k/s) | – |",
            "| nbdkit memory | 200.0 k/s (200.0 k/s–200.0 k/s) | 1.50 |",
            "1.00 (1.00 data cores) | 2.00 | 5 | what taipand keeps",
            "≥ 1.2 × nbdkit memory: 1.50 or ≥ 0.9 × the client's ceiling: not measured — reached",
            "≥ 1.7 × raw: 1.20 — MISSED",
            "CPU of data cores ≤ 0.75 × nbdkit memory: 0.50 — reached",
            "in the WAL within the window: 96.0 % — reached",
        ] {
            assert!(told.contains(words), "{words:?} is not in\n{told}");
        }
        assert_eq!(comparison.misses(), 1);
        let page = comparison.html();
        assert!(page.contains("what nbdkit memory keeps") && page.contains("MISSED"));
        let json: serde_json::Value = serde_json::from_str(&comparison.json().unwrap()).unwrap();
        assert_eq!(json["samples"].as_array().unwrap().len(), 9);
        assert_eq!(json["samples"][0]["unit"], "requests_per_second");
        assert_eq!(json["bars"][1]["reached"], false);
        assert_eq!(json["lines"][0], "randwrite 4k d32 burst");
    }

    #[test]
    fn an_answer_that_promises_less_has_no_ratio() {
        let mut comparison = comparison();
        comparison.lines[0].load = Load::Upload { bytes: 4096 };
        comparison.targets[1].durable_flush = false;
        measure(&mut comparison, OURS, [200.0; 3], 1.0);
        measure(&mut comparison, MEMORY, [400.0; 3], 2.0);
        measure(&mut comparison, RAW, [400.0; 3], 0.0);
        for sample in &mut comparison.samples[..3] {
            sample.extents = Some(7);
        }
        let told = comparison.markdown();
        assert!(told.contains("200 /s), 7 extents |"), "{told}");
        let memory = "| nbdkit memory | 400 /s (400 /s–400 /s) | not durable |";
        assert!(told.contains(memory), "{told}");
        assert!(told.contains("| raw | 400 /s (400 /s–400 /s) | 0.50 |"));
        assert!(told.contains("| taipand / target |"));
        comparison.lines[0].subject = WITH_IDLE;
        let told = comparison.markdown();
        assert!(told.contains("| with idle volumes / target |"), "{told}");
    }

    #[test]
    fn the_lesser_of_two_bars_is_enough() {
        let mut comparison = comparison();
        measure(&mut comparison, OURS, [200.0; 3], 1.0);
        measure(&mut comparison, MEMORY, [190.0; 3], 2.0);
        measure(&mut comparison, NULL, [220.0; 3], 1.0);
        let line = comparison.lines[0].clone();
        let verdicts = comparison.verdicts(&line);
        assert_eq!(verdicts[0].reached, Some(true), "{}", verdicts[0].words);
        assert_eq!(verdicts[1].reached, None, "raw was not measured");
    }

    #[test]
    fn who_was_left_out_is_said() {
        let mut comparison = comparison();
        comparison.left.push(Left {
            line: "all lines".to_owned(),
            target: "nbd-server".to_owned(),
            why: "nbd-server is not there".to_owned(),
            failed: false,
        });
        assert!(
            comparison
                .markdown()
                .contains("all lines on nbd-server: nbd-server is not there")
        );
        assert_eq!(comparison.failures().count(), 0);
    }
}

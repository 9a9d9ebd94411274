//! The suites: what is measured on every target, and the bars that taipand is held to.

use std::time::Duration;

use clap::ValueEnum;
use taipan_engine::size::exact;

use super::peers::Transport;

/// Groups of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Suite {
    /// One guest: 4 KiB at depth 1 to 32, and QEMU's own client
    Kvm,
    /// Writes each followed by a FLUSH, and FUA
    Commit,
    /// 256 KiB, nbdcopy, conversion of a sparse image
    Bulk,
    /// 70 % reads, evenly and by Zipf's law
    Mixed,
    /// Discard, zeroes, the map of extents
    Metadata,
    /// Read latency right after a burst of writes
    Burst,
    /// Connections, volumes, mapped bytes
    Scale,
    /// Ten times the WAL, with everything else going on
    Sustained,
    /// Two data cores beside one, on two CPUs that the client shares
    Cores,
}

/// Sizes and times that lines are made of.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub(crate) wal_bytes: u64,
    pub(crate) seconds: Duration,
    pub(crate) burst_seconds: Duration,
    /// Volumes of the line about mapped bytes.
    pub(crate) mapped_bytes: Vec<u64>,
    pub(crate) idle_volumes: u32,
    pub(crate) transport: Transport,
}

impl Sizes {
    /// Bytes of a burst: all of it fits the WAL.
    fn burst(&self) -> u64 {
        self.wal_bytes * 3 / 8
    }

    /// Bytes that stay in memory.
    fn hot(&self) -> u64 {
        (self.wal_bytes / 8).min(256 << 20)
    }

    /// Bytes that are copied.
    fn copy(&self) -> u64 {
        (self.wal_bytes / 4).min(1 << 30)
    }

    /// Bytes of the files and exports that every line fits in.
    pub(crate) fn disk(&self) -> u64 {
        self.wal_bytes / 2
    }
}

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Requests per second.
    Requests,
    /// Megabytes per second.
    Megabytes,
    /// Seconds; less is better.
    Seconds,
}

impl Unit {
    /// Its name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests_per_second",
            Self::Megabytes => "megabytes_per_second",
            Self::Seconds => "seconds",
        }
    }
}

/// What loads a target.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// `taipan-bench run` with these options; rates of one kind or [`ALL_KINDS`], latencies of
    /// perhaps another.
    Own {
        flags: Vec<String>,
        kind: &'static str,
        latency: &'static str,
    },
    /// A job file; the last job counts.
    Jobs { text: String, kind: &'static str },
    /// `qemu-img bench` at depth 16 over the first bytes of the export.
    QemuBench { write: bool, area_bytes: u64 },
    /// `nbdcopy` of a file with data everywhere.
    Upload { bytes: u64 },
    /// `nbdcopy` to nowhere.
    Download { bytes: u64 },
    /// `qemu-img convert` of a file with data in one MiB of ten.
    Convert { bytes: u64 },
    /// `nbdinfo --map`.
    Map,
}

/// What is done before a target is measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prepare {
    Nothing,
    /// Data everywhere in the first bytes.
    Fill(u64),
    /// The same, then the server is restarted and the page cache dropped before every measurement.
    Cold(u64),
    /// 4 KiB written here and there, so many bytes.
    Scatter {
        bytes: u64,
        area_bytes: u64,
    },
}

/// A server of its own for every measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fresh {
    pub(crate) size_bytes: u64,
    pub(crate) wal_bytes: u64,
}

/// What a bar is a multiple of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Base {
    Target(&'static str),
    /// The null server.
    Ceiling,
    /// The subject itself, on another line.
    Line(&'static str),
}

/// A floor: the least of its multiples.
pub(crate) type Bar = Vec<(Base, f64)>;

/// One line of the comparison.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) suite: Suite,
    pub(crate) name: String,
    pub(crate) load: Load,
    pub(crate) unit: Unit,
    pub(crate) prepare: Prepare,
    pub(crate) fresh: Option<Fresh>,
    /// Whether the raw file or device can do it.
    pub(crate) raw: bool,
    /// Whether the null server takes part.
    pub(crate) ceiling: bool,
    /// What is held to the bars.
    pub(crate) subject: &'static str,
    pub(crate) bars: Vec<Bar>,
    /// Most CPU time of the data cores per request, as a part of nbdkit memory's.
    pub(crate) cpu_bar: Option<f64>,
    /// Whether taipand's answered bytes must be in the WAL in the end.
    pub(crate) wal_share: bool,
}

/// The rate of reads, writes and whatever else there is, together.
pub(crate) const ALL_KINDS: &str = "all";

pub(crate) const OURS: &str = "taipand";
pub(crate) const NULL: &str = "null server";
pub(crate) const RAW: &str = "raw";
/// With volumes that nobody uses; measured beside itself without them.
pub(crate) const WITH_IDLE: &str = "taipand, idle volumes beside";
/// That commits nothing: what is not in memory is in its WAL alone.
pub(crate) const LOG_ONLY: &str = "taipand, commits off";
/// With as many data cores, on the CPUs that its clients have, too.
pub(crate) const ONE_CORE: &str = "taipand, 1 data core";
pub(crate) const TWO_CORES: &str = "taipand, 2 data cores";
/// A machine of few CPUs, for taipand with so many data cores and its clients.
pub(crate) const FEW_CPUS: &str = "0,1";
const MEMORY: &str = "nbdkit memory";
const FILE: &str = "nbdkit file";
const QEMU: &str = "qemu-nbd";

impl Line {
    fn new(suite: Suite, name: impl Into<String>, load: Load) -> Self {
        let own = matches!(load, Load::Own { .. } | Load::Jobs { .. });
        let bench = matches!(load, Load::QemuBench { .. });
        Self {
            suite,
            name: name.into(),
            unit: Unit::Requests,
            prepare: Prepare::Nothing,
            fresh: None,
            raw: own || bench,
            ceiling: own || bench,
            subject: OURS,
            bars: Vec::new(),
            cpu_bar: None,
            wal_share: false,
            load,
        }
    }

    fn own(suite: Suite, name: impl Into<String>, flags: &str) -> Self {
        let mut words = flags.split_whitespace();
        let rw = words
            .find(|word| word.starts_with("--rw="))
            .unwrap_or_default();
        let kind = match rw.trim_start_matches("--rw=") {
            rw if rw.contains("trim") => "trim",
            rw if rw.contains("zeroes") => "zeroes",
            rw if rw.contains("write") => "write",
            _ => "read",
        };
        let latency = if flags.contains("--fsync=1") {
            "flush"
        } else {
            kind
        };
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        Self::new(
            suite,
            name,
            Load::Own {
                flags,
                kind,
                latency,
            },
        )
    }

    /// Whether a target takes part, by its name.
    pub(crate) fn is_for(&self, target: &str) -> bool {
        match target {
            RAW => self.raw,
            NULL => self.ceiling,
            WITH_IDLE | LOG_ONLY => self.subject == target,
            ONE_CORE | TWO_CORES => self.suite == Suite::Cores,
            _ if self.suite == Suite::Cores => false,
            OURS => self.subject != LOG_ONLY,
            // Variants that the user added stand beside taipand itself.
            name if name.starts_with(OURS) => self.subject == OURS,
            _ => self.subject != WITH_IDLE,
        }
    }

    /// CPUs of its client, if not those of all.
    pub(crate) fn client_cpus(&self) -> Option<&'static str> {
        (self.suite == Suite::Cores).then_some(FEW_CPUS)
    }

    /// What the client does, in words that can be given to it.
    pub(crate) fn load_words(&self) -> String {
        let words = match &self.load {
            Load::Own { flags, .. } => format!("taipan-bench run {}", flags.join(" ")),
            Load::Jobs { text, .. } => {
                let words: Vec<_> = text.split_whitespace().collect();
                format!("taipan-bench run with the job file {}", words.join(" "))
            }
            Load::QemuBench { write, area_bytes } => format!(
                "qemu-img bench -d 16 -s 4096{} over {area_bytes} bytes",
                if *write { " -w" } else { "" }
            ),
            Load::Upload { bytes } => format!("nbdcopy --flush of {bytes} bytes"),
            Load::Download { bytes } => format!("nbdcopy of {bytes} bytes to null:"),
            Load::Convert { bytes } => format!("qemu-img convert -n of a sparse {bytes} bytes"),
            Load::Map => "nbdinfo --map".to_owned(),
        };
        match self.client_cpus() {
            Some(cpus) => format!("{words}, it and the server on CPUs {cpus}"),
            None => words,
        }
    }

    /// The kind of its requests, where they are of one.
    pub(crate) fn load_word(&self) -> &'static str {
        match self.load {
            Load::Own { kind, .. } | Load::Jobs { kind, .. } => kind,
            _ => "",
        }
    }

    /// Whether what is measured is how fast data becomes durable.
    pub(crate) fn asks_for_durability(&self) -> bool {
        let durable = ["--fsync=", "--end-fsync", "--fua"];
        match &self.load {
            Load::Own { flags, .. } => flags
                .iter()
                .any(|flag| durable.iter().any(|word| flag.starts_with(word))),
            Load::Upload { .. } => true,
            _ => false,
        }
    }

    fn fill(mut self, bytes: u64) -> Self {
        self.prepare = Prepare::Fill(bytes);
        self
    }

    fn prepared(mut self, prepare: Prepare) -> Self {
        self.prepare = prepare;
        self
    }

    fn fresh(mut self, size_bytes: u64, wal_bytes: u64) -> Self {
        self.fresh = Some(Fresh {
            size_bytes,
            wal_bytes,
        });
        self.raw = false;
        self
    }

    fn unit(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    fn bar(mut self, target: &'static str, factor: f64) -> Self {
        self.bars.push(vec![(Base::Target(target), factor)]);
        self
    }

    fn bar_or(mut self, target: &'static str, factor: f64, other: (Base, f64)) -> Self {
        self.bars.push(vec![(Base::Target(target), factor), other]);
        self
    }

    fn cpu(mut self, part: f64) -> Self {
        self.cpu_bar = Some(part);
        self
    }
}

/// All lines of the suites, in order.
pub(crate) fn lines(suites: &[Suite], sizes: &Sizes) -> Vec<Line> {
    let of = |suite: &Suite| match suite {
        Suite::Kvm => kvm(sizes),
        Suite::Commit => commit(sizes),
        Suite::Bulk => bulk(sizes),
        Suite::Mixed => mixed(sizes),
        Suite::Metadata => metadata(sizes),
        Suite::Burst => burst(sizes),
        Suite::Scale => scale(sizes),
        Suite::Sustained => sustained(sizes),
        Suite::Cores => cores(sizes),
    };
    let mut lines: Vec<Line> = suites.iter().flat_map(of).collect();
    if sizes.transport == Transport::Tcp {
        for line in lines.iter_mut().filter(|line| line.suite == Suite::Kvm) {
            line.cpu_bar = None;
            // That server cannot show what is on disk only.
            line.bars = match line.prepare {
                Prepare::Cold(_) => Vec::new(),
                _ => vec![vec![(Base::Target(MEMORY), 1.2)]],
            };
        }
    }
    lines
}

/// `--size` and `--runtime` for some time over an area.
fn timed(sizes: &Sizes, area_bytes: u64) -> String {
    format!(
        "--size={area_bytes} --runtime={}",
        sizes.seconds.as_secs_f64()
    )
}

fn kvm(sizes: &Sizes) -> Vec<Line> {
    let (hot, burst) = (sizes.hot(), sizes.burst());
    let timed = timed(sizes, hot);
    let ceiling = || (Base::Ceiling, 0.9);
    let own = |name: &str, flags: &str| Line::own(Suite::Kvm, name, flags);
    let qemu = |name: &str, write| {
        let area_bytes = hot;
        Line::new(Suite::Kvm, name, Load::QemuBench { write, area_bytes })
    };
    let mut write_burst = own(
        "randwrite 4k d32 burst",
        &format!("--rw=randwrite --bs=4k --iodepth=32 --size={burst}"),
    );
    write_burst.wal_share = true;
    let cold = Prepare::Cold(sizes.disk());
    let all = format!(
        "--size={} --runtime={}",
        sizes.disk(),
        sizes.seconds.as_secs_f64()
    );
    let from_disk = |name: &str| {
        own(name, &format!("--rw=randread --bs=4k --iodepth=32 {all}"))
            .prepared(cold.clone())
            .bar(RAW, 0.75)
            .bar(QEMU, 1.3)
    };
    let read = |depth| format!("--rw=randread --bs=4k --iodepth={depth} {timed}");
    let write = |depth| format!("--rw=randwrite --bs=4k --iodepth={depth} {timed}");
    vec![
        write_burst
            .bar_or(MEMORY, 1.2, ceiling())
            .bar(RAW, 1.7)
            .cpu(0.75),
        own("randread 4k d32 memory", &read(32))
            .fill(hot)
            .bar_or(MEMORY, 1.8, ceiling())
            .cpu(0.55),
        own("randread 4k d1", &read(1)).fill(hot).bar(MEMORY, 1.2),
        own("randwrite 4k d1", &write(1)).bar(MEMORY, 1.1),
        own("randread 4k d16", &read(16)).fill(hot),
        own("randwrite 4k d16", &write(16)),
        qemu("qemu-img bench read 4k d16", false)
            .fill(hot)
            .bar(MEMORY, 1.6)
            .bar(QEMU, 2.5),
        qemu("qemu-img bench write 4k d16", true)
            .bar(MEMORY, 1.25)
            .bar(QEMU, 2.0),
        Line {
            subject: LOG_ONLY,
            ..from_disk("randread 4k d32 from disk only: the WAL")
        },
        from_disk("randread 4k d32 from disk only: committed chunks"),
    ]
}

fn commit(sizes: &Sizes) -> Vec<Line> {
    let timed = timed(sizes, sizes.hot());
    let own = |name: String, flags: String| Line::own(Suite::Commit, name, &flags);
    let mut lines = Vec::new();
    for (block, factor) in [("4k", 1.25), ("16k", 1.1), ("64k", 1.0)] {
        let flags = format!("--rw=randwrite --bs={block} --iodepth=1 --fsync=1 {timed}");
        let line = own(format!("write+flush {block} d1"), flags).bar(FILE, factor);
        lines.push(if block == "4k" {
            line.bar(RAW, 0.8)
        } else {
            line
        });
    }
    for depth in [4, 16] {
        let flags = format!("--rw=randwrite --bs=4k --iodepth={depth} --fsync=1 {timed}");
        lines.push(own(format!("write+flush 4k d{depth}"), flags));
    }
    const WRITERS: &str = "write 4k, 16 connections";
    let sixteen = format!("--rw=randwrite --bs=4k --iodepth=1 --numjobs=16 {timed}");
    lines.push(own(WRITERS.to_owned(), sixteen.clone()));
    lines.push(
        own(
            "write+flush 4k, 16 connections".to_owned(),
            format!("{sixteen} --fsync=1"),
        )
        .bar_or(FILE, 4.0, (Base::Line(WRITERS), 0.4)),
    );
    for depth in [1, 16] {
        let flags = format!("--rw=randwrite --bs=4k --iodepth={depth} --fua {timed}");
        lines.push(own(format!("write FUA 4k d{depth}"), flags));
    }
    lines
}

fn bulk(sizes: &Sizes) -> Vec<Line> {
    let (burst, hot, bytes) = (sizes.burst(), sizes.hot(), sizes.copy());
    let timed = timed(sizes, hot);
    let copy = |name: &str, load| Line::new(Suite::Bulk, name, load).fresh(bytes, sizes.wal_bytes);
    let write = format!("--rw=write --bs=256k --iodepth=8 --size={burst}");
    let mut write = Line::own(Suite::Bulk, "write 256k d8 burst", &write);
    write.wal_share = true;
    let read = format!("--rw=read --bs=256k --iodepth=8 {timed}");
    vec![
        write.unit(Unit::Megabytes).bar(RAW, 0.85),
        Line::own(Suite::Bulk, "read 256k d8 memory", &read)
            .fill(hot)
            .unit(Unit::Megabytes)
            .bar(MEMORY, 1.1),
        copy("nbdcopy in, with flush", Load::Upload { bytes }).unit(Unit::Megabytes),
        copy("nbdcopy out", Load::Download { bytes })
            .fill(bytes)
            .unit(Unit::Megabytes),
        copy("qemu-img convert, sparse image", Load::Convert { bytes }).unit(Unit::Seconds),
    ]
}

fn mixed(sizes: &Sizes) -> Vec<Line> {
    let hot = sizes.hot();
    let timed = timed(sizes, hot);
    let base = format!("--rw=randrw --rwmixread=70 --bs=4k {timed}");
    let line = |name: &str, more: &str| {
        let mut line = Line::own(Suite::Mixed, name, &format!("{base} {more}")).fill(hot);
        if let Load::Own { kind, .. } = &mut line.load {
            *kind = ALL_KINDS;
        }
        line
    };
    vec![
        line("70/30 4k d16", "--iodepth=16"),
        line(
            "70/30 4k d16 zipf",
            "--iodepth=16 --random-distribution=zipf:1.1",
        ),
        line("70/30 4k d16, 4 connections", "--iodepth=16 --numjobs=4"),
    ]
}

fn metadata(sizes: &Sizes) -> Vec<Line> {
    let bytes = sizes.copy();
    let timed = timed(sizes, bytes);
    let own = |name: &str, rw: &str| {
        let flags = format!("--rw={rw} --bs=64k --iodepth=8 {timed}");
        Line::own(Suite::Metadata, name, &flags)
            .fresh(bytes, sizes.wal_bytes)
            .fill(bytes)
    };
    let scatter = Prepare::Scatter {
        bytes: bytes / 16,
        area_bytes: bytes,
    };
    vec![
        own("discard 64k d8", "randtrim"),
        own("zeroes 64k d8", "randzeroes"),
        Line::new(Suite::Metadata, "map of scattered writes", Load::Map)
            .fresh(bytes, sizes.wal_bytes)
            .prepared(scatter)
            .unit(Unit::Seconds),
    ]
}

fn burst(sizes: &Sizes) -> Vec<Line> {
    let text = format!(
        "[global]\nbs=4k\nsize={}\n[burst]\nrw=randwrite\niodepth=32\nruntime={}\n\
         [after]\nstonewall\nrw=randread\niodepth=1\nruntime={}\n",
        sizes.burst(),
        sizes.burst_seconds.as_secs_f64(),
        sizes.seconds.as_secs_f64()
    );
    let kind = "read";
    vec![Line::new(
        Suite::Burst,
        "randread 4k d1 right after a burst",
        Load::Jobs { text, kind },
    )]
}

fn scale(sizes: &Sizes) -> Vec<Line> {
    let hot = sizes.hot();
    let mut lines = Vec::new();
    for rw in ["randread", "randwrite"] {
        for connections in [1, 4, 16, 64] {
            let flags = format!(
                "--rw={rw} --bs=4k --iodepth=4 --numjobs={connections} {}",
                timed(sizes, hot)
            );
            let name = format!("{rw} 4k d4, {connections} connections");
            let line = Line::own(Suite::Scale, name, &flags).fill(hot);
            lines.push(if connections == 64 {
                line.bar(MEMORY, 1.3)
            } else {
                line
            });
        }
    }
    for rw in ["randread", "randwrite"] {
        let flags = format!("--rw={rw} --bs=4k --iodepth=32 {}", timed(sizes, hot));
        let name = format!("{rw} 4k d32, {} idle volumes", sizes.idle_volumes);
        let mut line = Line::own(Suite::Scale, name, &flags)
            .fill(hot)
            .bar(OURS, 0.95);
        (line.subject, line.raw, line.ceiling) = (WITH_IDLE, false, false);
        lines.push(line);
    }
    for &mapped in &sizes.mapped_bytes {
        let flags = format!(
            "--rw=randread --bs=4k --iodepth=32 {}",
            timed(sizes, mapped)
        );
        let name = format!("randread 4k d32, {} mapped", exact(mapped));
        let line = Line::own(Suite::Scale, name, &flags).fresh(mapped, sizes.wal_bytes);
        lines.push(line.fill(mapped));
    }
    lines
}

fn cores(sizes: &Sizes) -> Vec<Line> {
    let hot = sizes.hot();
    let own = |rw: &str, depth: u32, connections: u32| {
        let flags = format!(
            "--rw={rw} --bs=4k --iodepth={depth} --numjobs={connections} {}",
            timed(sizes, hot)
        );
        let name = format!("few CPUs: {rw} 4k d{depth}, connections: {connections}");
        Line::own(Suite::Cores, name, &flags)
    };
    let qemu = |word: &str, write| {
        let name = format!("few CPUs: qemu-img bench {word} 4k d16");
        let area_bytes = hot;
        Line::new(Suite::Cores, name, Load::QemuBench { write, area_bytes })
    };
    let lines = vec![
        own("randread", 32, 1).fill(hot),
        own("randwrite", 32, 1),
        own("randread", 16, 4).fill(hot),
        own("randwrite", 16, 4),
        qemu("read", false).fill(hot),
        qemu("write", true),
    ];
    let held = |line: Line| Line {
        subject: TWO_CORES,
        raw: false,
        ceiling: false,
        ..line.bar(ONE_CORE, 0.9)
    };
    lines.into_iter().map(held).collect()
}

fn sustained(sizes: &Sizes) -> Vec<Line> {
    let wal = (sizes.wal_bytes / 16).max(128 << 20);
    let bytes = 10 * wal;
    let flags = format!("--rw=randwrite --bs=4k --iodepth=32 --size={bytes} --end-fsync");
    let mut line = Line::own(
        Suite::Sustained,
        "randwrite 4k d32, ten times the WAL",
        &flags,
    );
    line = line.fresh(bytes, wal).bar(FILE, 1.2);
    line.ceiling = false;
    vec![line]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::job_file;

    fn sizes() -> Sizes {
        Sizes {
            wal_bytes: 4 << 30,
            seconds: Duration::from_secs(4),
            burst_seconds: Duration::from_secs(10),
            mapped_bytes: vec![1 << 30],
            idle_volumes: 1000,
            transport: Transport::Unix,
        }
    }

    #[test]
    fn every_suite_has_lines_with_names_of_their_own() {
        for &suite in Suite::value_variants() {
            assert!(!lines(&[suite], &sizes()).is_empty(), "{suite:?}");
        }
        let lines = lines(Suite::value_variants(), &sizes());
        let names: BTreeSet<_> = lines.iter().map(|line| &line.name).collect();
        assert_eq!(names.len(), lines.len());
        for line in &lines {
            for (base, _) in line.bars.iter().flatten() {
                if let Base::Line(other) = base {
                    assert!(names.contains(&(*other).to_owned()), "{other}");
                }
            }
        }
    }

    #[test]
    fn servers_take_part_where_they_say_something() {
        let lines = lines(Suite::value_variants(), &sizes());
        const VARIANT: &str = "taipand, two cores";
        let all = [
            OURS, VARIANT, WITH_IDLE, LOG_ONLY, QEMU, ONE_CORE, TWO_CORES,
        ];
        let who = |word: &str| -> Vec<_> {
            let line = lines.iter().find(|line| line.name.contains(word));
            let line = line.unwrap_or_else(|| panic!("a line with {word:?}"));
            let those = all.iter().copied();
            those.filter(|name| line.is_for(name)).collect()
        };
        assert_eq!(who("4k d1"), [OURS, VARIANT, QEMU]);
        assert_eq!(who("the WAL"), [LOG_ONLY, QEMU]);
        assert_eq!(who("idle volumes"), [OURS, WITH_IDLE]);
        assert_eq!(who("few CPUs"), [ONE_CORE, TWO_CORES]);
    }

    #[test]
    fn the_loads_are_understood() {
        for line in lines(Suite::value_variants(), &sizes()) {
            let text = match &line.load {
                Load::Own { flags, .. } => flags
                    .iter()
                    .map(|flag| format!("{}\n", flag.trim_start_matches("--")))
                    .fold("[a]\nfilename=nbd://h/\n".to_owned(), |all, one| all + &one),
                Load::Jobs { text, .. } => text.replace("[global]", "[global]\nuri=nbd://h/"),
                _ => continue,
            };
            let jobs = job_file::parse(&text, &job_file::Settings::new());
            let jobs = jobs.unwrap_or_else(|error| panic!("{}: {error:#}", line.name));
            let options = &jobs.last().unwrap().options;
            let end = options.size.unwrap().0;
            let room = line
                .fresh
                .map_or_else(|| sizes().disk(), |fresh| fresh.size_bytes);
            assert!(end <= room, "{} does not fit", line.name);
        }
    }

    #[test]
    fn what_counts_is_the_flush_behind_a_write() {
        let lines = lines(&[Suite::Commit], &sizes());
        let Load::Own { kind, latency, .. } = &lines[0].load else {
            panic!("the first line is ours");
        };
        assert_eq!((*kind, *latency), ("write", "flush"));
        let durable = lines.iter().filter(|line| line.asks_for_durability());
        assert_eq!(durable.count(), lines.len() - 1, "all but plain writes");
    }
}

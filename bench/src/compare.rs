//! `taipan-bench compare`: the same jobs on several servers in turn, round after round.

mod clients;
mod lines;
mod names;
mod peers;
mod results;
mod server;
pub(crate) mod statistics;
mod warden;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use taipan_engine::size::ByteSize;

use self::clients::{Clients, Unable, write_data};
use self::lines::{
    FEW_CPUS, LOG_ONLY, Line, NULL, ONE_CORE, OURS, Prepare, RAW, Sizes, Suite, TWO_CORES,
    WITH_IDLE, lines,
};
use self::names::{lines_meant, names_in};
use self::peers::{Peer, Texts, Transport};
use self::results::{Comparison, Left, Sample, Settings, TargetFacts};
use self::server::{Server, Site};
use self::statistics::order;
use self::warden::Warden;
use crate::interruption;
use crate::machine::{Machine, disk_of};
use crate::options::duration;
use crate::report_files::NewFiles;

const MIB: u64 = 1 << 20;

/// Options of `taipan-bench compare`.
///
/// Exit codes: 0 measured; 1 a measurement failed, or with --check a bar was missed; 2 the command
/// line is wrong; 130 interrupted, and what was measured until then is reported.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Suites to run
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kvm,commit")]
    suite: Vec<Suite>,

    /// Only lines of these names, or with one of these words in their names, with commas between
    #[arg(long, value_name = "WORDS")]
    lines: Vec<String>,

    /// Only these targets (names of peers and variants, raw, null server), with commas between them
    #[arg(long, value_name = "NAMES")]
    only: Vec<String>,

    /// More servers, or others in the place of the known ones, in the form of peers.toml
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,

    /// Another taipand to compare, with more options: NAME=OPTIONS, such as 'two cores=--cores 0,1'
    /// (with --server-cpus all, or two of them)
    #[arg(long, value_name = "NAME=OPTIONS")]
    variant: Vec<String>,

    /// The daemon; the default is the one beside this program
    #[arg(long, value_name = "PATH")]
    taipand: Option<PathBuf>,

    /// A block device for `raw` in the place of a file; ITS CONTENT IS OVERWRITTEN
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,

    /// How servers are reached
    #[arg(long, value_enum, default_value_t = Transport::Unix)]
    transport: Transport,

    /// Rounds; every target is measured once a round
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Time of a timed measurement
    #[arg(long, default_value = "4", value_parser = duration)]
    seconds: Duration,

    /// Time of a run of qemu-img bench
    #[arg(long, default_value = "10", value_parser = duration)]
    qemu_seconds: Duration,

    /// Time of the burst before the reads of the suite burst
    #[arg(long, default_value = "10", value_parser = duration)]
    burst_seconds: Duration,

    /// WAL of taipand; bursts, files and exports of all servers are parts of it
    #[arg(long, default_value = "4GiB")]
    wal_size: ByteSize,

    /// Mapped bytes of the volumes of the suite scale
    #[arg(long, value_delimiter = ',', default_value = "1GiB,4GiB")]
    mapped: Vec<ByteSize>,

    /// Idle volumes of the suite scale
    #[arg(long, default_value_t = 999, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    idle_volumes: u32,

    /// CPUs of servers as taskset takes them, or all; the default is the first half
    #[arg(long, value_name = "LIST")]
    server_cpus: Option<String>,

    /// CPUs of clients as taskset takes them, or all; the default is the second half
    #[arg(long, value_name = "LIST")]
    client_cpus: Option<String>,

    /// Where data, WAL and files go; everything there is removed again
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// The report as Markdown; it is also printed
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// Every single measurement as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// The report as one HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Exit with 1 if taipand misses a bar
    #[arg(long)]
    check: bool,
}

/// What is measured.
enum Target {
    Running(Box<Server>),
    Raw(PathBuf),
}

impl Target {
    fn name(&self) -> &str {
        match self {
            Self::Running(server) => &server.peer.name,
            Self::Raw(_) => RAW,
        }
    }

    fn address(&self) -> String {
        match self {
            Self::Running(server) => server.uri.clone(),
            Self::Raw(path) => path.display().to_string(),
        }
    }

    fn settle(&self) -> Result<()> {
        match self {
            Self::Running(server) => server.settle(),
            Self::Raw(_) => Ok(()),
        }
    }
}

/// A comparison under way.
struct Course<'a> {
    args: &'a CompareArgs,
    sizes: Sizes,
    lines: Vec<Line>,
    home: &'a Path,
    texts: Texts,
    peers: Vec<Peer>,
    /// Names of the only targets; none for all.
    only: Vec<String>,
    clients: Clients,
    server_cpus: Option<String>,
    comparison: Comparison,
    seed: u64,
}

/// How a comparison ended.
pub(crate) enum Ended {
    /// All was measured, and with --check all bars were reached.
    Good,
    /// A measurement failed, nothing was measured, or with --check a bar was missed.
    Failed,
    /// The command line is wrong.
    Misused(anyhow::Error),
}

/// Compares, and reports.
pub(crate) fn compare(args: &CompareArgs) -> Result<Ended> {
    let places = [&args.markdown, &args.json, &args.html];
    let new_files = NewFiles::claim(places.into_iter().flatten())?;
    let bench = std::env::current_exe().context("where this program is")?;
    // Ends after everything below: what it removes is not to be there any more.
    let warden = Warden::start(&bench)?;
    let parent = tempfile::Builder::new()
        .prefix("taipan-compare-")
        .tempdir_in(&args.dir);
    let folder = parent.with_context(|| format!("a directory in {}", args.dir.display()))?;
    let home = folder.path().canonicalize()?;
    warden.directory(&home)?;
    let mut course = match Course::new(args, &home, &warden) {
        Ok(course) => course,
        Err(error) => return Ok(Ended::Misused(error)),
    };
    // It ends with the comparison, not with the thread that waits for signals.
    let ending = Arc::downgrade(&warden);
    interruption::watch(move || {
        if let Some(warden) = ending.upgrade() {
            warden.end_client();
        }
    })?;
    course.run();
    let comparison = &mut course.comparison;
    comparison.interrupted = interruption::asked();
    let markdown = comparison.markdown();
    // What one place does not take is still told in the others.
    let mut told = crate::tell(&markdown);
    let json = comparison.json()? + "\n";
    let files = [
        (&args.markdown, markdown),
        (&args.json, json),
        (&args.html, comparison.html()),
    ];
    // The reports may need the room that the data took.
    drop(folder);
    new_files.keep();
    for (path, text) in files {
        if let Some(path) = path {
            let written = fs::write(path, text);
            let written = written.with_context(|| format!("writing {}", path.display()));
            told = told.and(written);
        }
    }
    told?;
    ensure!(
        comparison.interrupted || !comparison.samples.is_empty(),
        "nothing was measured"
    );
    let missed = args.check && comparison.misses() > 0;
    Ok(match comparison.failures().count() == 0 && !missed {
        true => Ended::Good,
        false => Ended::Failed,
    })
}

impl<'a> Course<'a> {
    fn new(args: &'a CompareArgs, home: &'a Path, warden: &Arc<Warden>) -> Result<Self> {
        let bench = std::env::current_exe().context("where this program is")?;
        let taipand = args.taipand.clone();
        let taipand = taipand.unwrap_or_else(|| bench.with_file_name("taipand"));
        let mut texts = Texts::default();
        texts
            .set("bench", bench.display())
            .set("taipand", taipand.display());
        let (servers, clients) = cpu_halves();
        let cpus = |asked: &Option<String>, half: String| match asked.as_deref() {
            Some("all") => None,
            Some(list) => Some(list.to_owned()),
            None => Some(half),
        };
        let server_cpus = cpus(&args.server_cpus, servers);
        let client_cpus = cpus(&args.client_cpus, clients);
        ensure!(
            args.wal_size.0 >= 256 * MIB,
            "--wal-size is at least 256MiB"
        );
        let sizes = Sizes {
            wal_bytes: args.wal_size.0,
            seconds: args.seconds,
            burst_seconds: args.burst_seconds,
            mapped_bytes: args.mapped.iter().map(|size| size.0).collect(),
            idle_volumes: args.idle_volumes,
            transport: args.transport,
        };
        let mut course = Self {
            comparison: Comparison::new(Machine::here(), disk_of(home), settings(args)),
            clients: Clients {
                bench,
                cpus: client_cpus.clone(),
                qemu_seconds: args.qemu_seconds,
                dir: home.to_owned(),
                warden: Arc::clone(warden),
            },
            peers: Vec::new(),
            only: Vec::new(),
            args,
            lines: wanted_lines(args, &sizes)?,
            sizes,
            home,
            texts,
            server_cpus,
            seed: 0,
        };
        let shown = |cpus: &Option<String>| cpus.clone().unwrap_or_else(|| "all".to_owned());
        course.comparison.server_cpus = shown(&course.server_cpus);
        course.comparison.client_cpus = shown(&client_cpus);
        course.peers = course.wanted_peers()?;
        Ok(course)
    }

    /// The servers that take part; missing ones are said.
    fn wanted_peers(&mut self) -> Result<Vec<Peer>> {
        let mut peers = peers::all(self.args.peers.as_deref())?;
        let ours = peers.iter().find(|peer| peer.name == OURS).cloned();
        for variant in &self.args.variant {
            let (name, options) = variant
                .split_once('=')
                .with_context(|| format!("--variant {variant}: it is NAME=OPTIONS"))?;
            let mut peer = ours.clone().context("there is no peer named taipand")?;
            peer.name = format!("{OURS}, {name}");
            let reserved = [WITH_IDLE, LOG_ONLY, ONE_CORE, TWO_CORES].contains(&peer.name.as_str());
            ensure!(
                !reserved,
                "--variant {variant}: there is a {} already",
                peer.name
            );
            peer.command
                .extend(options.split_whitespace().map(str::to_owned));
            peers.push(peer);
        }
        // The client's own ceiling comes first.
        peers.insert(0, null_peer());
        let mut known: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
        known.push(RAW);
        self.only = names_in(&self.args.only, &known)?;
        let mut found = Vec::new();
        for peer in peers {
            if !self.wanted(&peer.name) {
                continue;
            }
            if let Err(error) = peer.program(&self.texts) {
                self.leave_out("all lines", &peer.name, &error.to_string(), false);
            } else if peer.over(self.args.transport).is_none() {
                let why = format!("it is not reached over {:?}", self.args.transport);
                self.leave_out("all lines", &peer.name, &why, false);
            } else {
                found.push(peer);
            }
        }
        Ok(found)
    }

    fn wanted(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn leave_out(&mut self, line: &str, target: &str, why: &str, failed: bool) {
        if interruption::asked() {
            return;
        }
        eprintln!("{line}: without {target}: {why}");
        self.comparison.left.push(Left {
            line: line.to_owned(),
            target: target.to_owned(),
            why: why.to_owned(),
            failed,
        });
    }

    /// The same after an attempt. What another one's target is unable to do is said once, and is no
    /// failure.
    fn leave_out_after(&mut self, line: &str, target: &str, error: &anyhow::Error) {
        let failed = target.starts_with(OURS) || error.downcast_ref::<Unable>().is_none();
        let is_it = |left: &Left| left.line == line && left.target == target && !left.failed;
        if failed || !self.comparison.left.iter().any(is_it) {
            self.leave_out(line, target, &format!("{error:#}"), failed);
        }
    }

    fn run(&mut self) {
        let all = self.lines.clone().into_iter();
        let (standing, fresh): (Vec<_>, Vec<_>) = all.partition(|line| line.fresh.is_none());
        if !standing.is_empty() {
            let mut targets = self.start_all(&standing);
            for line in &standing {
                eprintln!("{}", line.name);
                self.standing_line(line, &mut targets);
                self.comparison.lines.push(line.clone());
                if interruption::asked() {
                    return;
                }
            }
        }
        for line in &fresh {
            eprintln!("{}", line.name);
            self.fresh_line(line);
            self.comparison.lines.push(line.clone());
            if interruption::asked() {
                return;
            }
        }
    }

    /// Starts all servers; one that does not start is said and left out.
    fn start_all(&mut self, lines: &[Line]) -> Vec<Target> {
        let mut peers = self.peers.clone();
        let is_subject = |name| lines.iter().any(|line| line.subject == name);
        if let Some(ours) = peers.iter().find(|peer| peer.name == OURS).cloned() {
            if is_subject(WITH_IDLE) {
                peers.push(ours.clone().with_idle_volumes(self.args.idle_volumes));
            }
            if is_subject(TWO_CORES) {
                peers.push(ours.clone().with_cores(ONE_CORE, "0"));
                peers.push(ours.clone().with_cores(TWO_CORES, FEW_CPUS));
            }
            if is_subject(LOG_ONLY) {
                peers.push(ours.without_commits(self.sizes.disk()));
            }
        }
        peers.retain(|peer| lines.iter().any(|line| line.is_for(&peer.name)));
        let mut targets = Vec::new();
        for peer in peers {
            // A disk image or memory is as large as a line needs, a volume costs nothing.
            let size = if peer.disk {
                self.sizes.disk()
            } else {
                self.sizes.wal_bytes
            };
            match self.start(&peer, size, self.sizes.wal_bytes) {
                Ok(server) => {
                    self.comparison
                        .targets
                        .push(TargetFacts::of_server(&server));
                    targets.push(Target::Running(Box::new(server)));
                }
                Err(error) => self.leave_out("all lines", &peer.name, &format!("{error:#}"), true),
            }
        }
        if self.wanted(RAW) && lines.iter().any(|line| line.raw) {
            match self.raw() {
                Ok(path) => {
                    self.comparison.targets.push(TargetFacts::raw());
                    targets.push(Target::Raw(path));
                }
                Err(error) => self.leave_out("all lines", RAW, &format!("{error:#}"), true),
            }
        }
        targets
    }

    fn raw(&self) -> Result<PathBuf> {
        if let Some(device) = &self.args.device {
            return Ok(device.clone());
        }
        let path = self.home.join("raw.disk");
        write_data(&path, self.sizes.disk(), 1)?;
        Ok(path)
    }

    fn start(&self, peer: &Peer, size_bytes: u64, wal_bytes: u64) -> Result<Server> {
        interruption::check()?;
        let place = format!("{}-{}", short(&peer.name), size_bytes / MIB);
        let dir = self.home.join(&place);
        let disk = self.home.join(place + ".disk");
        if peer.disk && fs::metadata(&disk).map_or(0, |found| found.len()) != size_bytes {
            write_data(&disk, size_bytes, 1)?;
        }
        let server = Server::start(
            peer,
            &Site {
                dir: &dir,
                transport: self.args.transport,
                size_bytes,
                wal_bytes,
                disk: peer.disk.then_some(disk.as_path()),
                cpus: match peer.name.as_str() {
                    ONE_CORE | TWO_CORES => Some(FEW_CPUS),
                    _ => self.server_cpus.as_deref(),
                },
                texts: &self.texts,
                warden: &self.clients.warden,
            },
        )?;
        if peer.prefill {
            self.clients
                .fill(&server.uri, size_bytes.min(self.sizes.disk()))?;
        }
        Ok(server)
    }

    /// A line on servers that stay: all rounds of all targets that can do it.
    fn standing_line(&mut self, line: &Line, targets: &mut [Target]) {
        let mut those: Vec<usize> = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            if !line.is_for(target.name()) {
                continue;
            }
            if let Some(why) = results::cannot(line, target) {
                self.leave_out(&line.name, target.name(), why, false);
                continue;
            }
            match self.prepare(line, target) {
                Ok(()) => those.push(index),
                Err(error) => {
                    self.leave_out(&line.name, target.name(), &format!("{error:#}"), true);
                }
            }
        }
        for round in 0..self.args.rounds {
            for which in order(round as usize, those.len()) {
                let target = &mut targets[those[which]];
                let measured = self.measure(line, target, round);
                // Also behind one that failed.
                let finished = finish(target);
                if let Err(error) = measured.and(finished) {
                    let name = target.name().to_owned();
                    self.leave_out_after(&line.name, &name, &error);
                }
                if interruption::asked() {
                    return;
                }
            }
        }
    }

    /// A line for which every measurement has a server of its own.
    fn fresh_line(&mut self, line: &Line) {
        let Some(fresh) = line.fresh else {
            return;
        };
        let null = |peer: &Peer| peer.name != NULL || line.ceiling;
        let peers: Vec<Peer> = self
            .peers
            .iter()
            .filter(|peer| null(peer))
            .cloned()
            .collect();
        for round in 0..self.args.rounds {
            for which in order(round as usize, peers.len()) {
                let peer = &peers[which];
                let measured = self
                    .start(peer, fresh.size_bytes, fresh.wal_bytes)
                    .and_then(|server| {
                        let facts = TargetFacts::of_server(&server);
                        if self
                            .comparison
                            .targets
                            .iter()
                            .all(|known| known.name != facts.name)
                        {
                            self.comparison.targets.push(facts);
                        }
                        let mut target = Target::Running(Box::new(server));
                        if let Some(why) = results::cannot(line, &target) {
                            return Ok(Some(why));
                        }
                        self.prepare(line, &target)?;
                        let measured = self.measure(line, &mut target, round);
                        let finished = finish(&target);
                        measured.and(finished).map(|()| None)
                    });
                match measured {
                    Ok(None) => {}
                    // Said once.
                    Ok(Some(why)) if round == 0 => {
                        self.leave_out(&line.name, &peer.name, why, false);
                    }
                    Ok(Some(_)) => {}
                    Err(error) => self.leave_out_after(&line.name, &peer.name, &error),
                }
                self.tidy_up(&peer.name);
                if interruption::asked() {
                    return;
                }
            }
        }
    }

    /// Removes the data of taipand's kind, which would otherwise be found by the next start.
    fn tidy_up(&self, name: &str) {
        let start = short(name);
        let entries = fs::read_dir(self.home).into_iter().flatten().flatten();
        for entry in entries {
            let path = entry.path();
            if path.is_dir() && entry.file_name().to_string_lossy().starts_with(&start) {
                // What is left is removed with everything else in the end.
                let _ = fs::remove_dir_all(path);
            }
        }
    }

    fn prepare(&self, line: &Line, target: &Target) -> Result<()> {
        match (&line.prepare, target) {
            (Prepare::Nothing, _) | (_, Target::Raw(_)) => {}
            (Prepare::Fill(bytes) | Prepare::Cold(bytes), _) => {
                self.clients.fill(&target.address(), *bytes)?;
            }
            (Prepare::Scatter { bytes, area_bytes }, _) => {
                self.clients
                    .scatter(&target.address(), *bytes, *area_bytes)?;
            }
        }
        finish(target)
    }

    fn measure(&mut self, line: &Line, target: &mut Target, round: u32) -> Result<()> {
        if let (Prepare::Cold(_), Target::Running(server)) = (&line.prepare, &mut *target) {
            server.restart()?;
            server.settle()?;
            forget_pages();
        }
        self.seed += 1;
        let (before, wal) = match target {
            Target::Running(server) => (server.usage(), server.wal_bytes()?),
            Target::Raw(_) => Default::default(),
        };
        let clients = self.clients.on(line.client_cpus());
        let found = clients.load(&target.address(), &line.load, line.unit, self.seed)?;
        let (after, wal_after) = match target {
            Target::Running(server) => (server.usage(), server.wal_bytes()?),
            Target::Raw(_) => Default::default(),
        };
        let written = wal.zip(wal_after).map(|(before, after)| after - before);
        let sample = Sample::new(line, target.name(), round, &found, (before, after), written);
        eprintln!(
            "  {:24} {}",
            sample.target,
            results::shown(line.unit, sample.value)
        );
        self.comparison.samples.push(sample);
        Ok(())
    }
}

/// Stands for a target in paths: those of sockets are short.
fn short(name: &str) -> String {
    format!("{:08x}", crc32c::crc32c(name.as_bytes()))
}

/// Waits until a target has done what it does behind its answers, so that this is not in the way of
/// the next one: packing and uploading, and what the kernel has still to write.
fn finish(target: &Target) -> Result<()> {
    target.settle()?;
    rustix::fs::sync();
    Ok(())
}

/// The warden's process.
pub(crate) fn warden() -> Result<()> {
    warden::watch(std::io::stdin().lock())
}

fn settings(args: &CompareArgs) -> Settings {
    Settings {
        rounds: args.rounds,
        transport: match args.transport {
            Transport::Unix => "unix",
            Transport::Tcp => "tcp",
        },
        seconds: args.seconds.as_secs_f64(),
        qemu_seconds: args.qemu_seconds.as_secs_f64(),
        burst_seconds: args.burst_seconds.as_secs_f64(),
        wal_bytes: args.wal_size.0,
    }
}

/// The lines that are asked for.
fn wanted_lines(args: &CompareArgs, sizes: &Sizes) -> Result<Vec<Line>> {
    let mut all = lines(&args.suite, sizes);
    let names: Vec<_> = all.iter().map(|line| line.name.as_str()).collect();
    let chosen = lines_meant(&args.lines, &names);
    all.retain(|line| chosen.contains(&line.name));
    ensure!(
        !all.is_empty(),
        "no line of the suites has one of these words in its name: {}",
        args.lines.join(", ")
    );
    Ok(all)
}

/// The null server as a peer.
fn null_peer() -> Peer {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    Peer {
        name: NULL.to_owned(),
        command: words("{bench} null-server --size {size}"),
        needs: Vec::new(),
        unix: words("--socket {socket}"),
        tcp: words("--listen 127.0.0.1:{port}"),
        uri_unix: Some("nbd+unix:///?socket={socket}".to_owned()),
        uri_tcp: Some("nbd://127.0.0.1:{port}/".to_owned()),
        survives: "stores nothing: the client's ceiling".to_owned(),
        durable_flush: false,
        disk: false,
        prefill: false,
        control: None,
        metrics: None,
        files: Default::default(),
        idle_volumes: 0,
    }
}

/// The first half of the CPUs for servers, the second for clients.
fn cpu_halves() -> (String, String) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let half = cpus / 2;
    let range = |from: usize, to: usize| match to - from {
        1 => from.to_string(),
        _ => format!("{from}-{}", to - 1),
    };
    match cpus {
        1 => ("0".to_owned(), "0".to_owned()),
        _ => (range(0, half), range(half, cpus)),
    }
}

/// Has the kernel forget what it holds of files, so that what was just written is read from disk by
/// everybody. Without the right to do so, servers that read through the page cache are at an
/// advantage.
fn forget_pages() {
    rustix::fs::sync();
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "1") {
        eprintln!("  the page cache was not dropped: {error}");
    }
}

//! Settings from file and flags, given a meaning and checked as a whole.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use taipan_engine::size;
use taipan_engine::volume::{
    Ack, BURST_SECONDS_MAX, Durability, INTERVAL_SECONDS_MAX, OnLostCache, PITR_SECONDS_MAX,
    SIZE_BYTES_MAX, VolumeName, VolumeSettings,
};

use super::cpus;
use super::document::Document;
use super::flags::Flags;
use super::places;
use super::settings::{
    Cache, Commit, Config, Cores, DATA_CORES_MAX, Fencing, Limits, LogFormat, Logging,
    MEMORY_BYTES_MIN, OnFull, VolumeConfig, VolumesOpen, WAL_BYTES_MAX, WAL_BYTES_MIN, Wal,
    WalSync,
};

/// What of the machine decides defaults.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPUs that this process may run on, ascending.
    pub cpus: Vec<usize>,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl Machine {
    /// This machine.
    pub fn detect() -> Self {
        Self {
            cpus: cpus::allowed(),
            memory_bytes: crate::budget::machine_memory_bytes(),
        }
    }
}

/// Every problem of a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(Vec<String>);

impl Problems {
    /// The problems; never empty.
    pub fn list(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "the configuration has {count} problem{plural}:")?;
        self.0.iter().try_for_each(|p| write!(f, "\n  {p}"))
    }
}

impl std::error::Error for Problems {}

/// The effective configuration of `flags` and the file that they name. The file system is looked at
/// (do directories exist?), never changed.
pub fn load(flags: &Flags, machine: &Machine) -> Result<Config, Problems> {
    let mut document = Document::default();
    if let Some(path) = &flags.config {
        match std::fs::read_to_string(path) {
            Ok(text) => document.read_file(&path.display().to_string(), &text),
            Err(error) => document.problem(format!(
                "--config {}: cannot be read: {error}",
                path.display()
            )),
        }
    }
    flags.lay_over(&mut document);
    let config = interpret(&mut document, &flags.volumes, machine);
    check_clashes(&mut document, &config);
    places::check(&mut document, &config);
    super::tls::check(&mut document, &config);
    let problems = document.finish();
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(Problems(problems))
    }
}

/// Reads every key; what cannot be read becomes a problem and takes its default.
pub(super) fn interpret(doc: &mut Document, volumes: &[String], machine: &Machine) -> Config {
    let data_dir = doc.path("data").unwrap_or_else(default_data_dir);
    let listen = doc.addresses("nbd.listen");
    let backend = match doc.text("backend") {
        Some(url) => absolute_backend(url),
        None => format!("dir:{}", data_dir.join("objects").display()),
    };
    Config {
        runtime_dir: doc.path("runtime_dir"),
        volumes_open: read_volumes_open(doc),
        volumes: read_volumes(doc, volumes),
        listen: listen.unwrap_or_else(|| vec![SocketAddr::from(([127, 0, 0, 1], 10809))]),
        socket: doc
            .path("nbd.socket")
            .unwrap_or_else(|| data_dir.join("nbd.sock")),
        control_socket: doc
            .path("control.socket")
            .unwrap_or_else(|| data_dir.join("control.sock")),
        metrics: read_metrics(doc),
        backend,
        fencing: doc
            .choice(
                "fencing",
                &[("required", Fencing::Required), ("none", Fencing::None)],
            )
            .unwrap_or_default(),
        drain_on_stop: doc.boolean("drain_on_stop").unwrap_or(false),
        cores: read_cores(doc, machine),
        wal: read_wal(doc),
        cache: read_cache(doc, machine),
        commit: Commit {
            interval: doc
                .seconds("commit.interval_seconds", 1..=3600)
                .unwrap_or(Duration::from_secs(30)),
            pending_bytes: doc
                .size("commit.pending_size", (1 << 20)..=(1 << 40))
                .unwrap_or(64 << 20),
        },
        access: super::access::read(doc),
        tls: super::tls::read(doc),
        compaction: super::compaction::read(doc),
        space: super::space::read(doc),
        reads: super::reads::read(doc),
        limits: read_limits(doc),
        log: read_log(doc),
        data_dir,
    }
}

fn default_data_dir() -> PathBuf {
    // Fails only without a working directory; the relative path then fails with a clear error.
    std::path::absolute("taipan-data").unwrap_or_else(|_| PathBuf::from("taipan-data"))
}

/// The URL with an absolute path, so that it means the same wherever it is read again.
fn absolute_backend(url: String) -> String {
    match backend_dir(&url).map(std::path::absolute) {
        Some(Ok(path)) => format!("dir:{}", path.display()),
        _ => url,
    }
}

fn read_volumes_open(doc: &mut Document) -> VolumesOpen {
    let words = [
        ("auto", VolumesOpen::Auto),
        ("all", VolumesOpen::All),
        ("own", VolumesOpen::Own),
    ];
    doc.choice("volumes_open", &words).unwrap_or_default()
}

fn read_metrics(doc: &mut Document) -> Option<SocketAddr> {
    let default = SocketAddr::from(([127, 0, 0, 1], 10880));
    if doc.is_word("metrics.listen", "off") {
        return None;
    }
    let Some(text) = doc.text("metrics.listen") else {
        return Some(default);
    };
    doc.address("metrics.listen", &text).or(Some(default))
}

fn read_cores(doc: &mut Document, machine: &Machine) -> Cores {
    let data = doc.texts("cores.data").and_then(|texts| {
        match cpus::parse_list(&texts.join(","), &machine.cpus, DATA_CORES_MAX) {
            Ok(list) => Some(list),
            Err(why) => {
                doc.refuse("cores.data", why);
                None
            }
        }
    });
    let uploader = doc
        .integer("cores.uploader", 0..=4095)
        .map(|cpu| cpu as usize);
    if let Some(cpu) = uploader
        && !machine.cpus.contains(&cpu)
    {
        let allowed = cpus::show_list(&machine.cpus);
        doc.refuse(
            "cores.uploader",
            format!("CPU {cpu} is not among {allowed}"),
        );
    }
    let data = data.unwrap_or_else(|| cpus::default_data(&machine.cpus));
    Cores {
        uploader: uploader.unwrap_or_else(|| cpus::uploader_beside(&data, &machine.cpus)),
        pin: doc.boolean("cores.pin").unwrap_or(machine.cpus.len() > 2),
        spin: Duration::from_micros(doc.integer("cores.spin_us", 0..=1000).unwrap_or(100)),
        data,
    }
}

fn read_wal(doc: &mut Document) -> Wal {
    let size_bytes = if doc.is_word("wal.size", "auto") {
        None
    } else {
        doc.size("wal.size", WAL_BYTES_MIN..=WAL_BYTES_MAX)
    };
    let modes = [
        ("auto", WalSync::Auto),
        ("dsync", WalSync::Dsync),
        ("fdatasync", WalSync::Fdatasync),
    ];
    let when_full = [("wait", OnFull::Wait), ("enospc", OnFull::Enospc)];
    Wal {
        size_bytes,
        sync: doc.choice("wal.sync", &modes).unwrap_or_default(),
        flush_interval: doc
            .millis("wal.flush_interval_ms", 1..=60_000)
            .unwrap_or(Duration::from_millis(100)),
        flush_size_bytes: doc
            .size("wal.flush_size", (16 << 20)..=(256 << 20))
            .unwrap_or(64 << 20),
        on_full: doc.choice("wal.on_full", &when_full).unwrap_or_default(),
    }
}

fn read_cache(doc: &mut Document, machine: &Machine) -> Cache {
    let key = "cache.size";
    if doc.is_word(key, "auto") || !doc.has(key) {
        doc.text(key);
        return Cache { size_bytes: None };
    }
    let percent = doc.texts(key).and_then(|texts| {
        let number = texts.first()?.strip_suffix('%')?;
        Some(number.trim().parse::<u64>())
    });
    let size_bytes = match percent {
        None => doc.size(key, MEMORY_BYTES_MIN..=(1 << 44)),
        Some(Ok(percent)) if (1..=90).contains(&percent) => {
            Some((machine.memory_bytes / 100 * percent).max(MEMORY_BYTES_MIN))
        }
        Some(_) => {
            doc.refuse(key, "a percentage must be within 1% to 90%");
            None
        }
    };
    Cache { size_bytes }
}

fn read_limits(doc: &mut Document) -> Limits {
    // One request of 64 MiB, the largest that the protocol part accepts, must always fit.
    let request_bytes = (64 << 20)..=(1 << 40);
    Limits {
        connections_max: doc
            .integer("limits.connections_max", 1..=65_536)
            .map_or(1024, |n| n as u32),
        handshake_timeout: doc
            .seconds("limits.handshake_timeout_seconds", 1..=600)
            .unwrap_or(Duration::from_secs(10)),
        tcp_user_timeout: doc
            .seconds("limits.tcp_user_timeout_seconds", 1..=3600)
            .unwrap_or(Duration::from_secs(30)),
        request_bytes_per_connection: doc
            .size("limits.request_bytes_per_connection", request_bytes.clone())
            .unwrap_or(64 << 20),
        request_bytes_total: doc
            .size("limits.request_bytes_total", request_bytes)
            .unwrap_or(256 << 20),
        requests_per_connection: doc
            .integer("limits.requests_per_connection", 1..=65_536)
            .map_or(1024, |n| n as u32),
    }
}

fn read_log(doc: &mut Document) -> Logging {
    let filter = doc.text("log.filter").unwrap_or_else(|| "info".to_owned());
    if let Err(why) = crate::logging::check_filter(&filter) {
        doc.refuse("log.filter", why);
    }
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Logging {
        filter,
        format: doc.choice("log.format", &formats).unwrap_or_default(),
    }
}

fn read_volumes(doc: &mut Document, flags: &[String]) -> Vec<VolumeConfig> {
    let mut volumes = Vec::new();
    let mut places: BTreeMap<VolumeName, String> = BTreeMap::new();
    let mut add =
        |doc: &mut Document, place: String, volume: VolumeConfig| match places.get(&volume.name) {
            Some(first) => doc.problem(format!(
                "{place}: volume {} is also at {first}",
                volume.name
            )),
            None => {
                places.insert(volume.name.clone(), place);
                volumes.push(volume);
            }
        };
    for index in 0..doc.tables("volume") {
        if let Some(volume) = read_volume(doc, index) {
            let place = doc.place(&format!("volume[{index}].name"));
            add(doc, place, volume);
        }
    }
    for flag in flags {
        match volume_flag(flag) {
            Ok(volume) => add(doc, format!("--volume {flag}"), volume),
            Err(why) => doc.problem(format!("--volume {flag}: {why}")),
        }
    }
    volumes
}

fn read_volume(doc: &mut Document, index: usize) -> Option<VolumeConfig> {
    let key = |field: &str| format!("volume[{index}].{field}");
    let acks = [("memory", Ack::Memory), ("durable", Ack::Durable)];
    let policies = [
        ("continue", OnLostCache::Continue),
        ("read_only", OnLostCache::ReadOnly),
        ("refuse", OnLostCache::Refuse),
    ];
    let (name_key, size_key) = (key("name"), key("size"));
    let name_text = doc.text(&name_key);
    let size_bytes = doc.size(&size_key, 512..=SIZE_BYTES_MAX);
    let small = 0..=u64::from(u32::MAX);
    let block_size = doc.size(&key("block_size"), small.clone());
    let chunk_size = doc.size(&key("chunk_size"), small);
    let ack = doc.choice(&key("ack"), &acks);
    let on_lost_cache = doc.choice(&key("on_lost_cache"), &policies);
    let promises = [("local", Durability::Local), ("remote", Durability::Remote)];
    let durability = doc.choice(&key("durability"), &promises);
    let day = 0..=INTERVAL_SECONDS_MAX;
    let rpo_seconds = doc.integer(&key("rpo_seconds"), day.clone());
    let rpo_bytes = doc.size(&key("rpo_bytes"), 0..=u64::MAX >> 1);
    let interval = doc.integer(&key("commit_interval_seconds"), day);
    let requests = doc.integer(&key("requests_per_hour"), 0..=u64::MAX >> 1);
    let iops = doc.integer(&key("iops"), 0..=u64::MAX >> 1);
    let bandwidth = doc.size(&key("bandwidth"), 0..=u64::MAX >> 1);
    let burst = doc.integer(&key("burst_seconds"), 0..=BURST_SECONDS_MAX);
    let window = doc.integer(&key("pitr_window_seconds"), 0..=PITR_SECONDS_MAX);
    for required in [&name_key, &size_key] {
        if !doc.has(required) {
            doc.problem(format!("{required}: missing"));
        }
    }
    let name = name_text.and_then(|text| match VolumeName::parse(&text) {
        Ok(name) => Some(name),
        Err(error) => {
            doc.refuse(&name_key, error);
            None
        }
    });
    let defaults = VolumeSettings::with_size(size_bytes?);
    let settings = VolumeSettings {
        block_size_bytes: block_size.map_or(defaults.block_size_bytes, |b| b as u32),
        chunk_size_bytes: chunk_size.map_or(defaults.chunk_size_bytes, |b| b as u32),
        ack: ack.unwrap_or(defaults.ack),
        on_lost_cache: on_lost_cache.unwrap_or(defaults.on_lost_cache),
        durability: durability.unwrap_or(defaults.durability),
        rpo_seconds: rpo_seconds.unwrap_or(defaults.rpo_seconds),
        rpo_bytes: rpo_bytes.unwrap_or(defaults.rpo_bytes),
        commit_interval_seconds: interval.unwrap_or(defaults.commit_interval_seconds),
        requests_per_hour: requests.unwrap_or(defaults.requests_per_hour),
        iops: iops.unwrap_or(defaults.iops),
        bandwidth_bytes: bandwidth.unwrap_or(defaults.bandwidth_bytes),
        burst_seconds: burst.unwrap_or(defaults.burst_seconds),
        pitr_window_seconds: window.unwrap_or(defaults.pitr_window_seconds),
        ..defaults
    };
    if let Err(error) = settings.validate() {
        doc.refuse(&size_key, error);
    }
    name.map(|name| VolumeConfig { name, settings })
}

/// Reads `NAME:SIZE`; the name may hold colons.
fn volume_flag(text: &str) -> Result<VolumeConfig, String> {
    let Some((name, size)) = text.rsplit_once(':') else {
        return Err("write NAME:SIZE, for example vol0:10GiB".to_owned());
    };
    let name = VolumeName::parse(name).map_err(|e| e.to_string());
    let size = size::parse(size).map_err(|e| e.to_string());
    let (name, size) = match (name, size) {
        (Ok(name), Ok(size)) => (name, size),
        (Err(name), Err(size)) => return Err(format!("{name}; {size}")),
        (Err(why), _) | (_, Err(why)) => return Err(why),
    };
    let settings = VolumeSettings::with_size(size);
    settings.validate().map_err(|e| e.to_string())?;
    Ok(VolumeConfig { name, settings })
}

/// Settings that are right each by itself and wrong together.
fn check_clashes(doc: &mut Document, config: &Config) {
    if config.socket == config.control_socket {
        doc.refuse(
            "nbd.socket",
            "is the same path as control.socket; NBD and the control API need a socket each",
        );
    }
    for (index, address) in config.listen.iter().enumerate() {
        let again = config.listen[..index].contains(address);
        if again && address.port() != 0 {
            doc.refuse("nbd.listen", format!("{address} is listed twice"));
        }
        if config.metrics == Some(*address) && address.port() != 0 {
            doc.refuse(
                "metrics.listen",
                format!("{address} is an address for NBD too"),
            );
        }
    }
    let halves = [
        (
            "wal.flush_size",
            config.wal.flush_size_bytes,
            "cache.size",
            config.cache.size_bytes,
        ),
        (
            "commit.pending_size",
            config.commit.pending_bytes,
            "wal.size",
            config.wal.size_bytes,
        ),
    ];
    for (key, bytes, of_key, of_bytes) in halves {
        if let Some(of_bytes) = of_bytes
            && bytes > of_bytes / 2
        {
            let (bytes, of_bytes) = (size::exact(bytes), size::exact(of_bytes));
            doc.refuse(
                key,
                format!("{bytes} is more than half of {of_key}, which is {of_bytes}"),
            );
        }
    }
    if config.limits.request_bytes_per_connection > config.limits.request_bytes_total {
        doc.refuse(
            "limits.request_bytes_per_connection",
            "is more than limits.request_bytes_total",
        );
    }
    for own in ["", "wal", "volumes", "quarantine", "metadata"] {
        let clash = config.data_dir.join(own);
        if backend_dir(&config.backend) == Some(clash.as_path()) {
            let text = "is used by the daemon itself; give the backend a directory of its own";
            doc.refuse("backend", format!("{} {text}", clash.display()));
        }
    }
}

/// The directory of a `dir:` backend.
pub(super) fn backend_dir(url: &str) -> Option<&Path> {
    url.strip_prefix("dir:").map(Path::new)
}

//! The effective configuration as a file that says the same.

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::path::Path;

use taipan_engine::size;
use taipan_engine::volume::{Ack, Durability, OnLostCache};

use super::cpus;
use super::settings::{Config, Fencing, LogFormat, OnFull, VolumeConfig, VolumesOpen, WalSync};

impl Config {
    /// The configuration as TOML; reading it back gives the same.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        self.print(&mut out).unwrap_or_default();
        out
    }

    fn print(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "data = {}", path(&self.data_dir))?;
        match &self.runtime_dir {
            Some(dir) => writeln!(out, "runtime_dir = {}", path(dir))?,
            None => writeln!(out, "# runtime_dir: chosen at start, under /dev/shm")?,
        }
        writeln!(out, "backend = {}", text(&self.backend))?;
        let fencing = match self.fencing {
            Fencing::Required => "required",
            Fencing::None => "none",
        };
        writeln!(out, "fencing = {}", text(fencing))?;
        writeln!(out, "drain_on_stop = {}", self.drain_on_stop)?;
        super::reads::print(out, &self.reads)?;
        let volumes_open = match self.volumes_open {
            VolumesOpen::Auto => "auto",
            VolumesOpen::All => "all",
            VolumesOpen::Own => "own",
        };
        writeln!(out, "volumes_open = {}", text(volumes_open))?;

        writeln!(out, "\n[nbd]")?;
        let listen = self.listen.iter().map(|a| text(&a.to_string()));
        let listen = listen.collect::<Vec<_>>().join(", ");
        writeln!(out, "listen = [{listen}]")?;
        writeln!(out, "socket = {}", path(&self.socket))?;
        super::access::print_listing(out, &self.access)?;
        super::tls::print(out, self.tls.as_ref())?;
        writeln!(out, "\n[control]")?;
        writeln!(out, "socket = {}", path(&self.control_socket))?;
        writeln!(out, "\n[metrics]")?;
        let metrics = self.metrics.as_ref().map(SocketAddr::to_string);
        writeln!(
            out,
            "listen = {}",
            text(metrics.as_deref().unwrap_or("off"))
        )?;
        self.print_machine(out)?;
        self.print_storage(out)?;
        super::access::print_rules(out, &self.access)?;
        self.volumes.iter().try_for_each(|v| print_volume(out, v))
    }

    fn print_machine(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\n[cores]")?;
        writeln!(out, "data = {}", text(&cpus::show_list(&self.cores.data)))?;
        writeln!(out, "uploader = {}", self.cores.uploader)?;
        writeln!(out, "pin = {}", self.cores.pin)?;
        writeln!(out, "spin_us = {}", self.cores.spin.as_micros())?;

        let limits = &self.limits;
        writeln!(out, "\n[limits]")?;
        writeln!(out, "connections_max = {}", limits.connections_max)?;
        let seconds = limits.handshake_timeout.as_secs();
        writeln!(out, "handshake_timeout_seconds = {seconds}")?;
        let seconds = limits.tcp_user_timeout.as_secs();
        writeln!(out, "tcp_user_timeout_seconds = {seconds}")?;
        let bytes = size_text(limits.request_bytes_per_connection);
        writeln!(out, "request_bytes_per_connection = {bytes}")?;
        let bytes = size_text(limits.request_bytes_total);
        writeln!(out, "request_bytes_total = {bytes}")?;
        let requests = limits.requests_per_connection;
        writeln!(out, "requests_per_connection = {requests}")?;

        writeln!(out, "\n[log]")?;
        writeln!(out, "filter = {}", text(&self.log.filter))?;
        let format = match self.log.format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        writeln!(out, "format = {}", text(format))
    }

    fn print_storage(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\n[wal]")?;
        match self.wal.size_bytes {
            Some(bytes) => writeln!(out, "size = {}", size_text(bytes))?,
            None => writeln!(out, "size = \"auto\" # 4GiB or a tenth of the free disk")?,
        }
        let sync = match self.wal.sync {
            WalSync::Auto => "auto",
            WalSync::Dsync => "dsync",
            WalSync::Fdatasync => "fdatasync",
        };
        writeln!(out, "sync = {}", text(sync))?;
        let millis = self.wal.flush_interval.as_millis();
        writeln!(out, "flush_interval_ms = {millis}")?;
        writeln!(out, "flush_size = {}", size_text(self.wal.flush_size_bytes))?;
        let on_full = match self.wal.on_full {
            OnFull::Wait => "wait",
            OnFull::Enospc => "enospc",
        };
        writeln!(out, "on_full = {}", text(on_full))?;

        writeln!(out, "\n[cache]")?;
        match self.cache.size_bytes {
            Some(bytes) => writeln!(out, "size = {}", size_text(bytes))?,
            None => writeln!(out, "size = \"auto\" # a tenth of memory")?,
        }

        writeln!(out, "\n[commit]")?;
        let seconds = self.commit.interval.as_secs();
        writeln!(out, "interval_seconds = {seconds}")?;
        let bytes = size_text(self.commit.pending_bytes);
        writeln!(out, "pending_size = {bytes}")?;
        self.compaction.print(out)?;
        self.space.print(out)
    }
}

fn print_volume(out: &mut String, volume: &VolumeConfig) -> fmt::Result {
    let settings = &volume.settings;
    writeln!(out, "\n[[volume]]")?;
    writeln!(out, "name = {}", text(volume.name.as_str()))?;
    writeln!(out, "size = {}", size_text(settings.size_bytes))?;
    let bytes = size_text(settings.block_size_bytes.into());
    writeln!(out, "block_size = {bytes}")?;
    let bytes = size_text(settings.chunk_size_bytes.into());
    writeln!(out, "chunk_size = {bytes}")?;
    let ack = match settings.ack {
        Ack::Memory => "memory",
        Ack::Durable => "durable",
    };
    writeln!(out, "ack = {}", text(ack))?;
    let on_lost_cache = match settings.on_lost_cache {
        OnLostCache::Continue => "continue",
        OnLostCache::ReadOnly => "read_only",
        OnLostCache::Refuse => "refuse",
    };
    writeln!(out, "on_lost_cache = {}", text(on_lost_cache))?;
    let durability = match settings.durability {
        Durability::Local => "local",
        Durability::Remote => "remote",
    };
    writeln!(out, "durability = {}", text(durability))?;
    writeln!(out, "rpo_seconds = {}", settings.rpo_seconds)?;
    writeln!(out, "rpo_bytes = {}", size_text(settings.rpo_bytes))?;
    let seconds = settings.commit_interval_seconds;
    writeln!(out, "commit_interval_seconds = {seconds}")?;
    writeln!(out, "requests_per_hour = {}", settings.requests_per_hour)?;
    writeln!(out, "iops = {}", settings.iops)?;
    writeln!(out, "bandwidth = {}", size_text(settings.bandwidth_bytes))?;
    writeln!(out, "burst_seconds = {}", settings.burst_seconds)?;
    let seconds = settings.pitr_window_seconds;
    writeln!(out, "pitr_window_seconds = {seconds}")
}

/// The word for a value.
pub(super) fn word<T: PartialEq + Copy>(words: &[(&str, T)], value: T) -> String {
    let found = words.iter().find(|(_, other)| *other == value);
    text(found.map_or("", |(word, _)| *word))
}

pub(super) fn text(text: &str) -> String {
    toml::Value::from(text).to_string()
}

pub(super) fn path(path: &Path) -> String {
    text(&path.to_string_lossy())
}

pub(super) fn size_text(bytes: u64) -> String {
    text(&size::exact(bytes))
}

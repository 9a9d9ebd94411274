//! The command line of `taipand`, taken in as raw settings so that its problems are reported
//! together with those of the file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::document::{Document, Raw};

/// Serves network block devices and keeps every flushed byte.
#[derive(Debug, Parser)]
#[command(
    name = "taipand",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true
)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Take over from the daemon that serves this data directory: its clients do not notice
    #[arg(long)]
    pub takeover: bool,
    /// How to serve.
    #[command(flatten)]
    pub flags: Flags,
}

/// What `taipand` can do besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check the configuration, print all problems or the effective settings, and exit.
    CheckConfig {
        /// The same flags as for serving.
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Say what damaged WAL files have lost and, with --yes, give that up: what can be read goes to
    /// new files, the damaged ones are kept. The daemon must not run
    AcceptWalDamage {
        /// Shards that a refused start named, such as 3,7
        #[arg(value_name = "SHARD[,SHARD]")]
        shards: String,
        /// Do it; otherwise nothing is changed
        #[arg(long)]
        yes: bool,
        /// The same flags as for serving.
        #[command(flatten)]
        flags: Box<Flags>,
    },
}

/// Flags; each wins over its key in the configuration file.
#[derive(Clone, Debug, Default, Args)]
pub struct Flags {
    /// Data directory: WAL, volume heads, sockets, default backend [default: ./taipan-data]
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// Volume to create if it does not exist; may be given several times
    #[arg(long = "volume", value_name = "NAME:SIZE")]
    pub volumes: Vec<String>,
    /// Address for NBD; may be given several times [default: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<String>,
    /// Serve NBD on the unix socket only
    #[arg(long)]
    pub no_listen: bool,
    /// Directory with server-cert.pem, server-key.pem and ca-cert.pem (that of the clients'
    /// authority): NBD over TCP needs TLS then
    #[arg(long, value_name = "DIR")]
    pub tls_certificates: Option<String>,
    /// TLS of NBD over TCP: off, allow or require
    #[arg(long, value_name = "MODE")]
    pub tls: Option<String>,
    /// Unix socket for NBD [default: <data>/nbd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
    /// Directory on a tmpfs for memory that outlives the process [default: under /dev/shm]
    #[arg(long, value_name = "TMPFS")]
    pub runtime_dir: Option<String>,
    /// CPUs of the data cores, such as 0-2,5 [default: all but one]
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// Where chunks are stored: s3://bucket/…, dir:/path or mem: [default: dir:<data>/objects]
    #[arg(long, value_name = "URL")]
    pub backend: Option<String>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Bytes of the write-ahead log [default: 4GiB or a tenth of the free disk]
    #[arg(long, value_name = "SIZE")]
    pub wal_size: Option<String>,
    /// Bytes or percent of memory for batches and the read cache [default: a tenth of memory]
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<String>,
    /// Address of /metrics and /healthz, or off [default: 127.0.0.1:10880]
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub metrics: Option<String>,
    /// How WAL writes are made durable: auto, dsync or fdatasync
    #[arg(long, value_name = "MODE")]
    pub wal_sync: Option<String>,
    /// When told to stop, pack and commit everything first
    #[arg(long)]
    pub drain: bool,
    /// Log filter, such as info or taipan_engine=debug,info
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Any other key of the configuration file; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Flags {
    /// Lays the flags over what the file said. Volumes are added, not replaced; see `load`.
    pub(super) fn lay_over(&self, document: &mut Document) {
        for assignment in &self.set {
            match assignment.split_once('=') {
                Some((key, value)) => {
                    let place = format!("--set {}", key.trim());
                    document.set(key.trim(), &place, Raw::of_text(value.trim()));
                }
                None => document.problem(format!("--set {assignment}: write KEY=VALUE")),
            }
        }
        let texts = [
            ("data", "--data", &self.data),
            ("nbd.socket", "--socket", &self.socket),
            (
                "tls.certificates",
                "--tls-certificates",
                &self.tls_certificates,
            ),
            ("tls.mode", "--tls", &self.tls),
            ("runtime_dir", "--runtime-dir", &self.runtime_dir),
            ("cores.data", "--cores", &self.cores),
            ("backend", "--backend", &self.backend),
            ("wal.size", "--wal-size", &self.wal_size),
            ("wal.sync", "--wal-sync", &self.wal_sync),
            ("cache.size", "--cache-size", &self.cache_size),
            ("metrics.listen", "--metrics", &self.metrics),
            ("log.filter", "--log", &self.log),
        ];
        for (key, flag, text) in texts {
            if let Some(text) = text {
                document.set(key, flag, Raw::Text(text.clone()));
            }
        }
        if self.drain {
            document.set("drain_on_stop", "--drain", Raw::Boolean(true));
        }
        if self.no_listen {
            document.set("nbd.listen", "--no-listen", Raw::List(Vec::new()));
        }
        if !self.listen.is_empty() {
            if self.no_listen {
                document.problem("--listen and --no-listen contradict each other".to_owned());
            }
            let addresses = self.listen.iter().cloned().map(Raw::Text).collect();
            document.set("nbd.listen", "--listen", Raw::List(addresses));
        }
    }
}

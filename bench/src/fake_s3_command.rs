//! `taipan-bench fake-s3`: the fake S3 server as a process.

use std::io::{Write, stdout};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use taipan_bench::fake_s3::{ConditionalWrites, Config, FakeS3, Script};

/// Options of `taipan-bench fake-s3`. It serves until it is killed.
#[derive(Debug, Args)]
pub(crate) struct FakeS3Args {
    /// Where S3 is served; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Where /-/faults, /-/stats, /-/log and /-/objects are served, also while S3 plays dead
    #[arg(long, default_value = "127.0.0.1:0")]
    admin: SocketAddr,

    /// The one bucket there is
    #[arg(long, default_value = "taipan")]
    bucket: String,

    /// Milliseconds added to every request
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,

    /// Faults from the start, as JSON of the form that PUT /-/faults takes
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,

    /// Written when the server listens: its address, and in a second line the admin's
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,

    /// Conditional writes that are honoured; others are ignored without a word
    #[arg(long, value_enum, default_value_t = Conditional::Full)]
    conditional_writes: Conditional,

    /// Takes bodies whose x-amz-checksum-crc32c is wrong
    #[arg(long)]
    no_checksums: bool,

    /// Memory for bodies that is touched at the start, so that taking them in costs less later
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    prepared_mib: usize,

    /// Answers 501 to DeleteObjects
    #[arg(long)]
    no_batch_delete: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Conditional {
    /// If-None-Match and If-Match
    Full,
    /// If-None-Match alone
    CreateOnly,
    /// None
    None,
}

impl From<Conditional> for ConditionalWrites {
    fn from(conditional: Conditional) -> Self {
        match conditional {
            Conditional::Full => Self::Full,
            Conditional::CreateOnly => Self::CreateOnly,
            Conditional::None => Self::None,
        }
    }
}

/// Serves until the process is killed.
pub(crate) fn serve(args: &FakeS3Args) -> Result<()> {
    let server = FakeS3::start(config(args)?).context("starting the fake S3 server")?;
    let addresses = format!("{}\n{}\n", server.address(), server.admin_address());
    if let Some(path) = &args.port_file {
        write_whole(path, &addresses)?;
    }
    println!(
        "s3 {} bucket {} admin http://{}/-/",
        server.endpoint(),
        server.bucket(),
        server.admin_address()
    );
    stdout().flush()?;
    loop {
        std::thread::park();
    }
}

fn config(args: &FakeS3Args) -> Result<Config> {
    let script = match &args.script {
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("reading {path:?}"))?;
            serde_json::from_slice(&text).with_context(|| format!("faults in {path:?}"))?
        }
        None => Script::default(),
    };
    Ok(Config {
        listen: args.listen,
        admin: args.admin,
        bucket: args.bucket.clone(),
        delay: Duration::from_millis(args.delay_ms),
        script,
        conditional_writes: args.conditional_writes.into(),
        checksums_verified: !args.no_checksums,
        batch_delete: !args.no_batch_delete,
        prepared_bytes: args.prepared_mib << 20,
        ..Config::default()
    })
}

/// A reader that polls for the file never sees half of it.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let unfinished = path.with_extension("new");
    std::fs::write(&unfinished, text)
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| format!("writing {path:?}"))
}

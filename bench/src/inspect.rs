//! What a target can take, and whether that is what a job asks for.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use taipan_engine::size;
use taipan_nbd::{ClientExport, HeaderStyle, TransmissionFlags};

use crate::connection::Connection;
use crate::file_target::{self, Access};
use crate::options::{IoEngine, JobOptions};
use crate::pattern::{REQUEST_BYTES_MAX, RequestBytes, Rw};
use crate::uri::Address;
use crate::wire::Wire;
use crate::workload::Spec;

/// An opened target of one thread.
pub(crate) enum Opened {
    /// A connection.
    Nbd((Wire, HeaderStyle)),
    /// A file.
    File(Arc<File>),
    /// Its executor opens it, on the thread.
    Later,
}

/// What a target can take.
pub(crate) struct Abilities {
    pub(crate) bytes: u64,
    pub(crate) request_bytes_max: u32,
}

/// Opens the target once, to see what it can do. `writes`: whether anything will be written.
pub(crate) fn inspect(
    options: &JobOptions,
    spec: &Spec,
    writes: bool,
) -> Result<(Abilities, Opened)> {
    let rw = spec.rw;
    let later = options.engine() == IoEngine::Glommio;
    let (abilities, opened) = match options.target()? {
        Address::File(path) => {
            ensure!(
                rw.moves_data() || !later,
                "--ioengine glommio neither trims nor zeroes a file"
            );
            let writes = writes || !rw.moves_data();
            let access = match (writes, options.size) {
                (true, Some(_)) => Access::Create,
                (true, None) => Access::Write,
                (false, _) => Access::Read,
            };
            let (file, bytes) = file_target::open(path, access)?;
            check_alignment(
                &spec.request_bytes,
                spec.offset,
                file_target::direct_bytes(&file),
                "O_DIRECT",
            )?;
            let bytes = lay_out(options, path, bytes, writes)?;
            let request_bytes_max = REQUEST_BYTES_MAX;
            (
                Abilities {
                    bytes,
                    request_bytes_max,
                },
                Opened::File(Arc::new(file)),
            )
        }
        address => {
            let Connection { wire, export } = Connection::open(address, options.replies)?;
            let sizes = export.block_sizes;
            let max = sizes.map_or(32 << 20, |s| s.maximum_payload);
            check_flags(options, &export, rw, writes)?;
            if let Some(sizes) = sizes {
                check_alignment(
                    &spec.request_bytes,
                    spec.offset,
                    sizes.minimum,
                    "the export",
                )?;
            }
            (
                Abilities {
                    bytes: export.size,
                    request_bytes_max: max,
                },
                Opened::Nbd((wire, export.headers)),
            )
        }
    };
    Ok((abilities, if later { Opened::Later } else { opened }))
}

/// Opens the target once more; `writes`: whether anything will be changed.
pub(crate) fn open(options: &JobOptions, writes: bool) -> Result<Opened> {
    if options.engine() == IoEngine::Glommio {
        return Ok(Opened::Later);
    }
    match options.target()? {
        Address::File(path) => {
            let access = if writes { Access::Write } else { Access::Read };
            let (file, _) = file_target::open(path, access)?;
            Ok(Opened::File(Arc::new(file)))
        }
        address => {
            let Connection { wire, export } = Connection::open(address, options.replies)?;
            Ok(Opened::Nbd((wire, export.headers)))
        }
    }
}

fn check_flags(options: &JobOptions, export: &ClientExport, rw: Rw, writes: bool) -> Result<()> {
    let can = |flag| export.flags.contains(flag);
    let changes = writes || !rw.moves_data();
    ensure!(
        !(can(TransmissionFlags::READ_ONLY) && changes),
        "the export is read-only"
    );
    ensure!(
        !rw.trims() || can(TransmissionFlags::SEND_TRIM),
        "the export offers no TRIM"
    );
    ensure!(
        !rw.zeroes() || can(TransmissionFlags::SEND_WRITE_ZEROES),
        "the export offers no WRITE_ZEROES"
    );
    let flushes = (options.fsync > 0 || options.end_fsync) && writes;
    ensure!(
        !flushes || can(TransmissionFlags::SEND_FLUSH),
        "the export offers no FLUSH"
    );
    let fua = options.fua && writes;
    ensure!(
        !fua || can(TransmissionFlags::SEND_FUA),
        "the export offers no FUA"
    );
    let agreeing = options.numjobs > 1 && (flushes || options.verify.is_some());
    ensure!(
        !agreeing || can(TransmissionFlags::CAN_MULTI_CONN),
        "the export does not promise that its connections agree (CAN_MULTI_CONN); use --numjobs 1"
    );
    Ok(())
}

fn check_alignment(
    request_bytes: &RequestBytes,
    offset: u64,
    minimum: u32,
    who: &str,
) -> Result<()> {
    let aligned =
        request_bytes.min.is_multiple_of(minimum) && offset.is_multiple_of(u64::from(minimum));
    ensure!(
        aligned,
        "{who} takes multiples of {minimum} bytes only, for --bs and --offset"
    );
    Ok(())
}

/// Makes a file long enough for the run; its size in bytes.
fn lay_out(options: &JobOptions, path: &Path, bytes: u64, writes: bool) -> Result<u64> {
    let size = options.size.map_or(0, |size| size.0);
    let wanted = options.offset.saturating_add(size);
    if wanted <= bytes || !writes {
        ensure!(
            bytes > 0,
            "{} is empty; a run that writes makes it as large as --size says",
            path.display()
        );
        return Ok(bytes);
    }
    eprintln!(
        "laying out {} up to {}",
        path.display(),
        size::human(wanted)
    );
    file_target::lay_out(path, bytes, wanted)?;
    Ok(wanted)
}

/// Bytes of the area.
pub(crate) fn area(options: &JobOptions, abilities: &Abilities) -> Result<u64> {
    let rest = abilities
        .bytes
        .checked_sub(options.offset)
        .with_context(|| {
            format!(
                "--offset lies behind the target's {}",
                size::human(abilities.bytes)
            )
        })?;
    Ok(options.size.map_or(rest, |size| size.0))
}

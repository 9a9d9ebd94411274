//! `taipan volume warm`: fills the caches of the appliance with a volume's blocks.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use taipan_engine::api::{WarmState, WarmStatus, WarmVolume};
use taipan_engine::size::ByteSize;
use taipan_engine::volume::VolumeName;

use crate::cli::volume_name;
use crate::control::Control;
use crate::failure::Outcome;
use crate::output::Form;

/// How often a warm-up that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Arguments of `volume warm`.
#[derive(Args, Debug)]
pub(crate) struct Warm {
    /// Name of the volume.
    #[arg(value_parser = volume_name)]
    name: VolumeName,
    /// Only this part of the volume, such as 10GiB:2GiB.
    #[arg(long, value_name = "OFFSET:LENGTH")]
    range: Option<ByteRange>,
    /// Wait until it is done.
    #[arg(long)]
    wait: bool,
    /// Start nothing, only tell how it is getting on.
    #[arg(long, conflicts_with_all = ["range", "wait"])]
    status: bool,
}

/// A part of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ByteRange {
    offset: u64,
    length: u64,
}

impl FromStr for ByteRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (offset, length) = text
            .split_once(':')
            .ok_or("write OFFSET:LENGTH, such as 10GiB:2GiB")?;
        let bytes = |text: &str| text.parse::<ByteSize>().map_err(|e| e.to_string());
        Ok(Self {
            offset: bytes(offset)?.0,
            length: bytes(length)?.0,
        })
    }
}

/// Runs it.
pub(crate) fn run(control: &Control, form: Form, warm: &Warm) -> Outcome<()> {
    if warm.status {
        return form.print(&control.warm_status(&warm.name)?, told);
    }
    let request = WarmVolume {
        offset_bytes: warm.range.map(|range| range.offset),
        length_bytes: warm.range.map(|range| range.length),
    };
    let mut status = control.warm(&warm.name, &request)?;
    while warm.wait && status.state == WarmState::Running {
        std::thread::sleep(LOOK);
        status = control.warm_status(&warm.name)?;
    }
    form.print(&status, told)
}

fn told(status: &WarmStatus) -> String {
    let WarmStatus {
        objects,
        objects_done,
        blocks,
        failed_blocks,
        ..
    } = status;
    let state = match status.state {
        WarmState::None => return "no warm-up was started since the daemon started\n".to_owned(),
        WarmState::Running => "running",
        WarmState::Done => "done",
        WarmState::Full => "the cache is full, the oldest objects were left out",
    };
    let failed = match failed_blocks {
        0 => String::new(),
        failed => format!(", {failed} could not be read"),
    };
    format!("{state}: {objects_done} of {objects} objects, {blocks} blocks read{failed}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_two_sizes() {
        let range = ByteRange::from_str("10GiB:4096").unwrap();
        assert_eq!((range.offset, range.length), (10 << 30, 4096));
        assert!(ByteRange::from_str("10GiB").is_err());
        assert!(ByteRange::from_str("10GB:1").is_err());
    }

    #[test]
    fn people_are_told_what_is_there_and_what_failed() {
        let status = WarmStatus {
            state: WarmState::Done,
            objects: 4,
            objects_done: 4,
            blocks: 1000,
            failed_blocks: 3,
        };
        let text = told(&status);
        assert_eq!(
            text,
            "done: 4 of 4 objects, 1000 blocks read, 3 could not be read\n"
        );
    }
}

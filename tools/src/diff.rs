//! `taipan diff`: what changed in a volume between two snapshots or since one, by the index alone.

use std::fmt::Write;

use futures::executor::block_on;
use taipan_engine::api::{ImagePoint, VolumeChanges};
use taipan_engine::index::Changed;
use taipan_engine::registry::read_images;
use taipan_engine::size::human;

use crate::backend;
use crate::cli::{Diff, Target};
use crate::control::Control;
use crate::failure::Outcome;
use crate::table::{Align, Table};

/// Runs the command.
pub(crate) fn run(target: &Target, args: &Diff) -> Outcome<()> {
    let Diff {
        volume, from, to, ..
    } = args;
    let changes = match &args.backend {
        None => Control::new(target.control_socket())?.changes(volume, from, to.as_ref())?,
        Some(url) => {
            let backend = backend::open(target, url)?;
            let images = block_on(read_images(&*backend, volume, from, to.as_ref()));
            let (from, to) = images.map_err(|error| backend::not_found_in(&*backend, error))?;
            VolumeChanges::between(&from, &to, usize::MAX)?
        }
    };
    target.form().print(&changes, text)
}

/// What people call an image.
fn name(point: &ImagePoint) -> String {
    match &point.snapshot {
        Some(name) => format!("snapshot \"{name}\""),
        None => format!("the last committed cut (manifest {})", point.manifest),
    }
}

fn text(changes: &VolumeChanges) -> String {
    let mut table = Table::new(&[
        ("OFFSET", Align::Right),
        ("LENGTH", Align::Right),
        ("NOW", Align::Left),
    ]);
    for range in &changes.ranges {
        let now = match range.now {
            Changed::Data => "data",
            Changed::Zeros => "zeros",
        };
        table.row([
            range.offset.to_string(),
            range.length.to_string(),
            now.to_owned(),
        ]);
    }
    let mut out = match changes.ranges.as_slice() {
        [] => String::new(),
        _ => table.render(),
    };
    let (volume, from, to) = (&changes.volume, name(&changes.from), name(&changes.to));
    let (data, zeros) = (human(changes.data_bytes), human(changes.zero_bytes));
    let _ = write!(
        out,
        "volume \"{volume}\", from {from} to {to}: {data} of data and {zeros} of zeros changed"
    );
    let (before, after) = (changes.from.size_bytes, changes.to.size_bytes);
    if after > before {
        let _ = write!(out, ", {} larger", human(after - before));
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use taipan_engine::api::ChangedSpan;
    use taipan_engine::identity::VolumeId;
    use taipan_engine::snapshot::SnapshotName;
    use taipan_engine::volume::VolumeName;

    use super::*;

    fn point(snapshot: Option<&str>) -> ImagePoint {
        ImagePoint {
            snapshot: snapshot.map(|name| SnapshotName::parse(name).unwrap()),
            id: None,
            manifest: 9,
            epoch: 4,
            size_bytes: 1 << 20,
        }
    }

    #[test]
    fn people_see_the_ranges_and_between_what_they_are() {
        let mut changes = VolumeChanges {
            volume: VolumeName::parse("v").unwrap(),
            id: VolumeId(1),
            from: point(Some("a")),
            to: point(None),
            block_size_bytes: 4096,
            data_bytes: 4096,
            zero_bytes: 4096,
            ranges: Vec::new(),
        };
        let empty = text(&changes);
        assert!(empty.starts_with("volume \"v\", from snapshot \"a\" to the last committed cut"));
        for (offset, now) in [(8192, Changed::Data), (65536, Changed::Zeros)] {
            let length = 4096;
            changes.ranges.push(ChangedSpan {
                offset,
                length,
                now,
            });
        }
        changes.to.size_bytes = 2 << 20;
        let said = text(&changes);
        assert!(said.contains("  8192    4096  data\n"), "{said}");
        assert!(said.contains(" 65536    4096  zeros\n"), "{said}");
        let sums = "4 KiB of data and 4 KiB of zeros changed, 1 MiB larger\n";
        assert!(said.ends_with(sums), "{said}");
    }
}

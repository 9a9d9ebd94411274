//! `taipan volume history`, and the points in time that other commands name.

use taipan_engine::api::VolumeHistory;
use taipan_engine::error::Error;
use taipan_engine::point::{Point, PointName, PointTable};
use taipan_engine::size::human;
use taipan_engine::snapshot::{ImageName, SnapshotName};
use taipan_engine::timestamp::UnixMs;
use taipan_engine::volume::VolumeName;

use crate::control::Control;
use crate::failure::{Exit, Failure, Outcome};
use crate::output::human_seconds;
use crate::table::{Align, Table};

/// What a person wrote to say where to go back to: `daily`, `@12`, `2026-11-21T20:00:00Z`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// One image only can be meant.
    Image(ImageName),
    /// A time, unless a snapshot is called so.
    TimeOr(UnixMs, SnapshotName),
}

/// Reads a [`Wanted`].
pub(crate) fn wanted(text: &str) -> Result<Wanted, Error> {
    let image: ImageName = text.parse()?;
    Ok(match (image, text.parse()) {
        (ImageName::Snapshot(name), Ok(time)) => Wanted::TimeOr(time, name),
        (image, _) => Wanted::Image(image),
    })
}

/// The image that is meant, as it is named and as it is told to people. Of a time it is the last
/// point at or before.
pub(crate) fn resolve(
    control: &Control,
    volume: &VolumeName,
    wanted: &Wanted,
) -> Outcome<(ImageName, String)> {
    let point = match wanted {
        Wanted::Image(ImageName::Snapshot(name)) => {
            let all = control.snapshots(volume)?.snapshots;
            return match all.iter().any(|known| known.name == *name) {
                true => Ok(snapshot(name)),
                false => Err(neither(volume, name)),
            };
        }
        Wanted::Image(ImageName::Point(point)) => *point,
        Wanted::TimeOr(time, name) => {
            let all = control.snapshots(volume)?.snapshots;
            if all.iter().any(|known| known.name == *name) {
                return Ok(snapshot(name));
            }
            PointName::Time(*time)
        }
    };
    let points = PointTable::new(control.history(volume)?.points);
    let found = points.and_then(|points| points.find(point));
    let found = found.map_err(|error| {
        let text = format!("volume \"{volume}\": {error}");
        Failure::new(Exit::NotFound, text)
    })?;
    let name = PointName::Manifest(found.manifest);
    let told = format!("{name} ({})", committed(&found));
    Ok((ImageName::Point(name), told))
}

/// It may have been meant as a time.
fn neither(volume: &VolumeName, name: &SnapshotName) -> Failure {
    let text = format!(
        "volume \"{volume}\" has no snapshot \"{name}\"; a time is written as \
         2026-11-21T20:00:00Z, a point in time as @12"
    );
    Failure::new(Exit::NotFound, text)
}

fn snapshot(name: &SnapshotName) -> (ImageName, String) {
    (ImageName::Snapshot(name.clone()), name.to_string())
}

/// When it was committed, if that is known.
fn committed(point: &Point) -> String {
    match point.committed.0 {
        0 => "before the first commit".to_owned(),
        _ => point.committed.to_string(),
    }
}

/// What people read.
pub(crate) fn list(history: &VolumeHistory) -> String {
    let (volume, window) = (&history.volume, history.window_seconds);
    if window == 0 {
        return format!(
            "volume \"{volume}\" keeps no points in time; see `taipan volume set {volume} \
             --pitr-window-seconds N`\n"
        );
    }
    let mut table = Table::new(&[
        ("POINT", Align::Left),
        ("COMMITTED", Align::Left),
        ("EPOCH", Align::Right),
        ("ADDED", Align::Right),
    ]);
    for point in &history.points {
        table.row([
            PointName::Manifest(point.manifest).to_string(),
            committed(point),
            point.epoch.to_string(),
            human(point.added_bytes),
        ]);
    }
    let kept = human_seconds(window as f64);
    format!("{}kept for {kept} at least\n", table.render())
}

#[cfg(test)]
mod tests {
    use taipan_engine::identity::{Epoch, ManifestNum};

    use super::*;

    #[test]
    fn what_is_wanted_is_told_apart() {
        let time = UnixMs(1_795_291_200_000);
        let name = |text| SnapshotName::parse(text).unwrap();
        for (text, expected) in [
            ("daily", Wanted::Image(ImageName::Snapshot(name("daily")))),
            (
                "@12",
                Wanted::Image(ImageName::Point(PointName::Manifest(ManifestNum(12)))),
            ),
            (
                "@2026-11-21T20:00:00Z",
                Wanted::Image(ImageName::Point(PointName::Time(time))),
            ),
            (
                "2026-11-21T20:00:00Z",
                Wanted::TimeOr(time, name("2026-11-21T20:00:00Z")),
            ),
        ] {
            assert_eq!(wanted(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "a@b", "@", "@noon"] {
            assert!(wanted(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn people_see_the_points_and_the_window() {
        let point = |manifest, committed| Point {
            manifest: ManifestNum(manifest),
            epoch: Epoch(manifest + 100),
            committed: UnixMs(committed),
            age_ms: 0,
            added_bytes: 8192,
        };
        let mut history = VolumeHistory {
            volume: VolumeName::parse("v").unwrap(),
            window_seconds: 3600,
            points: vec![point(1, 0), point(12, 1_795_291_200_000)],
        };
        let text = list(&history);
        assert!(text.contains("@1     before the first commit"), "{text}");
        let line = "@12    2026-11-21T20:00:00Z       112  8 KiB";
        assert!(text.contains(line), "{text}");
        assert!(text.ends_with("kept for 1 h 0 min at least\n"), "{text}");
        history.window_seconds = 0;
        assert!(list(&history).contains("--pitr-window-seconds"));
    }
}

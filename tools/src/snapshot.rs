//! `taipan snapshot …`: create, list, show, delete.

use clap::Subcommand;
use taipan_engine::api::{
    SnapshotInfo, SnapshotList, SnapshotState, SnapshotWait, TakeSnapshot, TakeSnapshotGroup,
    VolumeInfo,
};
use taipan_engine::snapshot::{QualifiedImage, QualifiedName, SnapshotName};
use taipan_engine::timestamp::UnixMs;
use taipan_engine::volume::VolumeName;

use crate::cli::{Target, snapshot_name, volume_name};
use crate::control::Control;
use crate::failure::{Exit, Failure, Outcome};
use crate::history::{self, Wanted};
use crate::table::{Align, Fields, Table};
use crate::volume::{confirm, word};

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot of a running volume: everything answered before. Writes go on. With --group
    /// of several volumes by one cut: none holds a write begun after another was answered that its
    /// volume's snapshot lacks.
    Create {
        /// Name of the volume; with --group of two or more.
        #[arg(value_name = "VOLUME", value_parser = volume_name, required = true)]
        volumes: Vec<VolumeName>,
        /// Name of the snapshot (of each): up to 255 bytes of UTF-8 without `/` and `@`.
        #[arg(value_parser = snapshot_name)]
        snapshot: SnapshotName,
        /// Of all these volumes together. The group exists once all its snapshots are committed.
        #[arg(long)]
        group: bool,
        /// Return when its content is fixed, not when it is in the backend. It is gone if the
        /// daemon ends before that; `taipan snapshot show` tells when it is committed.
        #[arg(long)]
        no_wait: bool,
    },
    /// List the snapshots of a volume, oldest first.
    List {
        /// Name of the volume.
        #[arg(value_parser = volume_name)]
        volume: VolumeName,
    },
    /// Show one snapshot.
    Show {
        /// The snapshot.
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: QualifiedName,
    },
    /// Delete a snapshot, for good. The volume's next commits free what only it needed.
    Delete {
        /// The snapshot.
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: QualifiedName,
    },
}

/// Runs one subcommand.
pub(crate) fn run(target: &Target, command: &SnapshotCommand) -> Outcome<()> {
    let control = Control::new(target.control_socket())?;
    let form = target.form();
    match command {
        SnapshotCommand::Create {
            volumes,
            snapshot,
            group,
            no_wait,
        } => {
            let wait = match no_wait {
                true => SnapshotWait::Taken,
                false => SnapshotWait::Committed,
            };
            let name = snapshot.clone();
            match volumes.as_slice() {
                [volume] if !group => {
                    let request = TakeSnapshot { name, wait };
                    form.print(&control.take_snapshot(volume, &request)?, taken)
                }
                [_, _, ..] if *group => {
                    let volumes = volumes.clone();
                    let request = TakeSnapshotGroup {
                        volumes,
                        name,
                        wait,
                    };
                    let all = control.take_snapshot_group(&request)?;
                    form.print(&all, |all| all.snapshots.iter().map(taken).collect())
                }
                _ => {
                    let text = "name one volume, or with --group two or more, then the snapshot";
                    Err(Failure::new(Exit::Usage, text))
                }
            }
        }
        SnapshotCommand::List { volume } => form.print(&control.snapshots(volume)?, list),
        SnapshotCommand::Show { snapshot: of } => {
            form.print(&control.snapshot(&of.volume, &of.snapshot)?, show)
        }
        SnapshotCommand::Delete { snapshot: of } => {
            control.delete_snapshot(&of.volume, &of.snapshot)?;
            let answer = serde_json::json!({ "deleted": of.to_string() });
            form.print(&answer, |_| format!("snapshot \"{of}\" is deleted\n"))
        }
    }
}

/// Creates a volume as a clone of a snapshot or point in time.
pub(crate) fn clone(target: &Target, of: &QualifiedImage, name: &VolumeName) -> Outcome<()> {
    let control = Control::new(target.control_socket())?;
    let created = control.clone_image((&of.volume, &of.image), name)?;
    let text = |info: &VolumeInfo| format!("volume \"{}\" is a clone of \"{of}\"\n", info.name);
    target.form().print(&created, text)
}

/// Takes a volume back to a snapshot or point in time.
pub(crate) fn roll_back(
    target: &Target,
    volume: &VolumeName,
    to: &Wanted,
    yes: bool,
) -> Outcome<()> {
    let control = Control::new(target.control_socket())?;
    let (to, told) = history::resolve(&control, volume, to)?;
    if !yes {
        let question = format!("Give up what was written to \"{volume}\" since \"{told}\"? [y/N] ");
        confirm(&question, "nothing was rolled back")?;
    }
    let info = control.roll_back(volume, &to)?;
    let text = |info: &VolumeInfo| format!("volume \"{}\" is as at \"{told}\"\n", info.name);
    target.form().print(&info, text)
}

fn taken(info: &SnapshotInfo) -> String {
    let (volume, name) = (&info.volume, &info.name);
    let more = match info.state {
        SnapshotState::Committed => "committed",
        SnapshotState::Taken => "taken; it is gone if the daemon ends before it is committed",
        SnapshotState::Asked => "asked for",
    };
    format!("snapshot \"{volume}@{name}\" is {more}\n")
}

/// A number that only committed snapshots have.
fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn list(list: &SnapshotList) -> String {
    if list.snapshots.is_empty() {
        return "the volume has no snapshots\n".to_owned();
    }
    let mut table = Table::new(&[
        ("SNAPSHOT", Align::Left),
        ("STATE", Align::Left),
        ("ASKED FOR AT", Align::Left),
        ("MANIFEST", Align::Right),
        ("EPOCH", Align::Right),
        ("ID", Align::Left),
    ]);
    for info in &list.snapshots {
        table.row([
            info.name.to_string(),
            word(info.state),
            UnixMs(info.asked_at_ms).to_string(),
            or_dash(info.manifest),
            or_dash(info.epoch),
            info.id.to_string(),
        ]);
    }
    table.render()
}

fn show(info: &SnapshotInfo) -> String {
    let mut fields = Fields::default();
    fields
        .add("snapshot", format!("{}@{}", info.volume, info.name))
        .add("id", info.id.to_string())
        .add("state", word(info.state))
        .add("asked for at", UnixMs(info.asked_at_ms).to_string())
        .add("manifest", or_dash(info.manifest))
        .add("generation", or_dash(info.generation))
        .add("epoch", or_dash(info.epoch));
    if !info.group.is_empty() {
        fields.add("group", info.group.join(", "));
    }
    fields.render()
}

#[cfg(test)]
mod tests {
    use taipan_engine::snapshot::{SnapshotId, SnapshotWish};

    use super::*;

    #[test]
    fn people_see_what_is_not_committed() {
        let wish = SnapshotWish {
            id: SnapshotId(7),
            name: SnapshotName::parse("daily").unwrap(),
            taken_ms: 5,
            group: None,
        };
        let volume = VolumeName::parse("v").unwrap();
        let info = SnapshotInfo::pending(&volume, &wish, true);
        assert!(taken(&info).contains("gone if the daemon ends"));
        assert!(show(&info).contains("v@daily"));
        let all = list(&SnapshotList {
            snapshots: vec![info],
        });
        let row = all.lines().last().expect("a row");
        let words: Vec<&str> = row.split_whitespace().collect();
        let time = "1970-01-01T00:00:00.005Z";
        assert_eq!(
            words,
            ["daily", "taken", time, "-", "-", "0000000000000007"]
        );
        assert!(list(&SnapshotList::default()).contains("no snapshots"));
    }
}

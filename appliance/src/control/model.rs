//! The one seam between the control plane and the rest of the daemon.

use taipan_engine::api::{
    CloneInfo, ConnectionInfo, ConnectionName, FlattenStatus, SnapshotInfo, Status, SweepReport,
    SweepVolume, TakeSnapshot, TakeSnapshotGroup, VolumeChanges, VolumeHistory, VolumeInfo,
    VolumePatch, WarmStatus, WarmVolume,
};
use taipan_engine::error::Result;
use taipan_engine::snapshot::{ImageName, SnapshotName};
use taipan_engine::volume::{VolumeName, VolumeSettings};

use crate::metrics::MetricsSnapshot;

/// What the control plane asks of the running daemon. Calls may block (they run on threads of
/// their own, never on a data core); each is safe to repeat.
pub trait Appliance: Send + Sync {
    /// Everything an operator may want to know now.
    fn status(&self) -> Status;

    /// All volumes, by name.
    fn list(&self) -> Vec<VolumeInfo>;

    /// One volume; `NotFound` if there is none of that name.
    fn show(&self, name: &VolumeName) -> Result<VolumeInfo>;

    /// Creates a volume, durably before it returns; `AlreadyExists` if the name is taken.
    /// `settings` were validated.
    fn create(&self, name: VolumeName, settings: VolumeSettings) -> Result<VolumeInfo>;

    /// Grows a volume to `size_bytes`, durably before it returns; `Invalid` if it would shrink.
    fn resize(&self, name: &VolumeName, size_bytes: u64) -> Result<VolumeInfo>;

    /// Changes settings of a volume, durably before it returns.
    fn configure(&self, name: &VolumeName, patch: VolumePatch) -> Result<VolumeInfo>;

    /// Opens a volume of another appliance for writing, which fences that one, and serves it;
    /// `Busy` if it is served here already.
    fn take_over(&self, name: &VolumeName) -> Result<VolumeInfo>;

    /// Starts to read the volume's blocks into the caches in the background; `Busy` while that is
    /// under way already.
    fn warm(&self, name: &VolumeName, request: WarmVolume) -> Result<WarmStatus>;

    /// How the volume's last warm-up is getting on.
    fn warm_status(&self, name: &VolumeName) -> Result<WarmStatus>;

    /// Deletes a volume; `Busy` while clients are connected.
    fn delete(&self, name: &VolumeName) -> Result<()>;

    /// Takes a snapshot: committed when it returns, or, on request, taken only. `AlreadyExists` if
    /// the name is in use.
    fn take_snapshot(&self, name: &VolumeName, request: TakeSnapshot) -> Result<SnapshotInfo>;

    /// Takes snapshots of several volumes by one cut: all committed when it returns, or, on
    /// request, taken only. They are told in the order of the request.
    fn take_snapshot_group(&self, request: TakeSnapshotGroup) -> Result<Vec<SnapshotInfo>>;

    /// All snapshots of a volume that is served here, oldest first.
    fn list_snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotInfo>>;

    /// Deletes a snapshot, durably before it returns; `Busy` while it is needed.
    fn delete_snapshot(&self, name: &VolumeName, snapshot: &SnapshotName) -> Result<()>;

    /// What changed in a volume that is shown here since snapshot `from`: up to snapshot `to`, or
    /// to its last committed cut.
    fn changes(
        &self,
        name: &VolumeName,
        from: &SnapshotName,
        to: Option<&SnapshotName>,
    ) -> Result<VolumeChanges>;

    /// The points in time of a volume that is served here.
    fn history(&self, name: &VolumeName) -> Result<VolumeHistory>;

    /// Takes a volume back to an image, durably before it returns; `Busy` while clients are
    /// connected.
    fn roll_back(&self, name: &VolumeName, to: &ImageName) -> Result<VolumeInfo>;

    /// Creates a volume as a clone of a snapshot, or of a point in time, which becomes a snapshot
    /// for that; durably before it returns. `AlreadyExists` if the name is taken, `Busy` while the
    /// snapshot is not committed.
    fn clone_image(
        &self,
        name: &VolumeName,
        of: &ImageName,
        clone: VolumeName,
    ) -> Result<VolumeInfo>;

    /// Packs and commits everything of the volume answered before the call, then returns.
    fn commit(&self, name: &VolumeName) -> Result<VolumeInfo>;

    /// Makes a clone independent of the volume that it was cloned from, in the background; repeated
    /// it goes on where it is.
    fn flatten(&self, name: &VolumeName) -> Result<FlattenStatus>;

    /// How that is getting on.
    fn flatten_status(&self, name: &VolumeName) -> Result<FlattenStatus>;

    /// The clones that need a snapshot of a volume that is served here.
    fn clones(&self, name: &VolumeName) -> Result<Vec<CloneInfo>>;

    /// Deletes what is stored under a volume that is served here and named by nothing, or only
    /// tells what that is.
    fn sweep(&self, name: &VolumeName, request: SweepVolume) -> Result<SweepReport>;

    /// All NBD connections, by name.
    fn connections(&self) -> Result<Vec<ConnectionInfo>>;

    /// Closes a connection; `NotFound` if there is none of that name.
    fn kick(&self, name: ConnectionName) -> Result<()>;

    /// Packs and commits everything answered before the call, then returns.
    fn drain(&self) -> Result<()>;

    /// All counters.
    fn metrics(&self) -> MetricsSnapshot;
}

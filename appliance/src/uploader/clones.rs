//! Clones of snapshots and of points in time. A point becomes a snapshot first, so that it stays
//! however old it gets; then it is cloned as any other.

use std::rc::Rc;
use std::time::SystemTime;

use crossbeam_channel::Sender;
use taipan_engine::error::{Error, ErrorKind, Result};
use taipan_engine::identity::{ManifestNum, VolumeId};
use taipan_engine::index::IndexedImage;
use taipan_engine::manifest::Manifest;
use taipan_engine::point::Point;
use taipan_engine::registry::{self, LocalHead, random_u64};
use taipan_engine::snapshot::{
    ImageName, KeptImage, Snapshot, SnapshotId, SnapshotName, SnapshotTable, SnapshotWish,
};
use taipan_engine::volume::VolumeName;

use super::changes::{Change, CloneOf, Configured, Image};
use super::control::answer;
use super::effects::Means;
use super::patience::{Answer, Zeal, until_known, while_answering};
use super::{Request, Uploader};
use crate::quarantine::unix_ms;

/// A point was kept as a snapshot, or not.
pub(crate) struct PointChange {
    id: VolumeId,
    result: Result<(Box<Configured>, IndexedImage)>,
    snapshot: SnapshotId,
    /// The clone that is wanted of it.
    name: VolumeName,
    answer: Answer,
}

/// A point that is to be kept.
struct Keeping {
    head: Manifest,
    local: LocalHead,
    table: SnapshotTable,
    point: Point,
    wish: SnapshotWish,
}

impl Keeping {
    async fn run(
        self,
        means: &Means,
        answer: &mut Answer,
    ) -> Result<(Box<Configured>, IndexedImage)> {
        let (backend, mut local) = (&*means.backend, self.local);
        let what = (&self.point, self.wish);
        let prepared = registry::prepare_kept_point(backend, &self.head, &self.table, what);
        let prepared = while_answering(backend, "read a point in time", prepared);
        let (next, image) = prepared.await?;
        let head = until_known(backend, "keep a point in time", answer, async || {
            registry::put_kept_point(backend, &next).await
        });
        let head = head.await?;
        local.advance(&head);
        let noted = means.save(local.clone()).await;
        let changed = Configured {
            head,
            local,
            decided: None,
            noted,
        };
        Ok((Box::new(changed), image))
    }
}

impl Uploader {
    /// The snapshot of which a clone of that image is made; none of a point that is none yet.
    pub(super) fn snapshot_to_clone(
        &self,
        name: &VolumeName,
        image: &ImageName,
    ) -> Result<(VolumeId, Option<Snapshot>)> {
        let (_, id) = self.find(name)?;
        match self.kept(id, image)? {
            KeptImage::Snapshot(snapshot) => Ok((id, Some(snapshot))),
            KeptImage::Point(point) => Ok((id, self.snapshot_at(id, point.manifest))),
        }
    }

    fn snapshot_at(&self, id: VolumeId, manifest: ManifestNum) -> Option<Snapshot> {
        let mut all = self.volumes[&id].commit.snapshots().iter();
        all.find(|snapshot| snapshot.manifest == manifest).cloned()
    }

    /// Begins to make a clone of a snapshot.
    pub(super) fn clone_snapshot(&mut self, id: VolumeId, snapshot: Snapshot, request: Request) {
        if let Request::Clone { name, reply, .. } = request {
            self.create_clone(id, snapshot, name, reply);
        }
    }

    fn create_clone(
        &mut self,
        parent: VolumeId,
        snapshot: Snapshot,
        name: VolumeName,
        reply: Sender<Result<()>>,
    ) {
        let now_ms = self.now_ms();
        let image = self.images.find((parent, snapshot.id), now_ms);
        let of = CloneOf {
            parent,
            snapshot,
            image,
        };
        self.create(name, Image::Snapshot(Box::new(of)), Zeal::UntilLate, reply);
    }

    /// Keeps the image that a clone was made of for more of them.
    pub(super) fn keep_image(&mut self, made_of: Image) {
        if let Image::Snapshot(of) = made_of
            && let Some(image) = of.image
        {
            let now_ms = self.now_ms();
            self.images.keep((of.parent, of.snapshot.id), image, now_ms);
        }
    }

    /// Begins to make a clone of a point in time; no commit of the volume is under way.
    pub(super) fn begin_clone_of_point(&mut self, id: VolumeId, request: Request) {
        let Request::Clone { image, .. } = &request else {
            return;
        };
        let point = match self.kept(id, image) {
            Ok(KeptImage::Point(point)) => point,
            // What was a point was not a snapshot.
            Ok(KeptImage::Snapshot(snapshot)) => return self.clone_snapshot(id, snapshot, request),
            Err(error) => return answer(request, error),
        };
        // Another request may have kept it meanwhile.
        if let Some(snapshot) = self.snapshot_at(id, point.manifest) {
            return self.clone_snapshot(id, snapshot, request);
        }
        let keeping = match self.keeping(id, point) {
            Ok(keeping) => keeping,
            Err(error) => return answer(request, error),
        };
        let Request::Clone { name, reply, .. } = request else {
            return;
        };
        self.volumes
            .get_mut(&id)
            .expect("it was looked at")
            .changing = true;
        let mut answer = Answer::new(reply, "the point is being kept, repeat to clone it");
        let (means, snapshot) = (Rc::clone(&self.means), keeping.wish.id);
        self.spawn_change(async move {
            let result = keeping.run(&means, &mut answer).await;
            Change::PointKept(Box::new(PointChange {
                id,
                result,
                snapshot,
                name,
                answer,
            }))
        });
    }

    fn keeping(&self, id: VolumeId, point: Point) -> Result<Keeping> {
        let name = SnapshotName::parse(&format!("point-{}", point.manifest))?;
        let pending = self.coordinator.pending_snapshots(id).count();
        if pending > 0 {
            let text = "a snapshot of the volume is being taken; try again later";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        let upload = &self.volumes[&id];
        upload.commit.may_take(&name, pending)?;
        Ok(Keeping {
            head: upload.head().clone(),
            local: upload.local.clone(),
            table: upload.commit.snapshots().clone(),
            point,
            wish: SnapshotWish {
                id: SnapshotId(random_u64()?),
                name,
                taken_ms: unix_ms(SystemTime::now()),
                group: None,
            },
        })
    }

    /// A point was kept: now it can be cloned.
    pub(super) fn point_kept(&mut self, change: PointChange) {
        let PointChange {
            id,
            result,
            snapshot: of,
            name,
            mut answer,
        } = change;
        let now_ms = self.now_ms();
        let result = result.and_then(|(changed, image)| {
            self.images.keep((id, of), image, now_ms);
            self.adopt_snapshots(id, *changed)
        });
        self.end_change(id, &result);
        if let Err(error) = result {
            answer.give(Err(error));
            return;
        }
        let volume = self.volumes.get(&id);
        let snapshot = volume.and_then(|volume| volume.commit.snapshots().by_id(of).cloned());
        match (snapshot, answer.into_reply()) {
            (Some(snapshot), Some(reply)) => self.create_clone(id, snapshot, name, reply),
            (None, Some(reply)) => {
                let text = "the volume is not served any more";
                let _ = reply.send(Err(Error::new(ErrorKind::Fenced, text)));
            }
            // Whoever asked was told to repeat.
            (_, None) => {}
        }
    }
}

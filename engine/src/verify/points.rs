//! The points in time of a volume: every manifest that is kept is taken up as a reader would, one
//! after the other, and each chunk that a point needs is looked at once.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt};

use super::report::{ImageSize, Report};
use super::{Bad, Check, HEADS_AT_ONCE, NO_INDEX, Severity, bad_blocks, needed, severity_of};
use crate::chunk::ChunkRef;
use crate::error::{Error, Result};
use crate::identity::ManifestNum;
use crate::index::rebuild::{Replay, rebuild};
use crate::manifest::Manifest;
use crate::object::{ChunkKey, ObjectKey};
use crate::point::{Point, PointTable};
use crate::registry::{History, read_history_at, read_manifest};

/// How far the manifests are taken up.
enum Walk {
    /// Nothing of what comes before is known.
    Unread,
    /// The image of this manifest.
    At(Box<At>),
    /// No image can be read up to the next checkpoint.
    Broken(Culprit),
}

struct At {
    manifest: Manifest,
    replay: Replay,
    /// Chunks that no earlier point has.
    fresh: Vec<ChunkRef>,
    /// It is not what an earlier point has become, and was not checked yet.
    is_anew: bool,
}

/// An object because of which nothing of an image can be read.
#[derive(Clone)]
struct Culprit {
    severity: Severity,
    object: String,
    what: String,
}

/// What cannot be read of points because of one object.
struct Hit {
    severity: Severity,
    what: String,
    first: ManifestNum,
    last: ManifestNum,
    /// Of any of these points; all if `None`.
    blocks: Option<BTreeSet<u64>>,
}

/// What is wrong with the points so far, by object.
#[derive(Default)]
struct Hits {
    of: BTreeMap<String, Hit>,
    /// Bad chunks of the last point and their live blocks: while these are the same, so is what
    /// cannot be read of them.
    last: Vec<(ChunkKey, u32)>,
}

impl Hits {
    fn note(&mut self, culprit: &Culprit, point: ManifestNum, blocks: Option<Vec<u64>>) {
        let hit = self.of.entry(culprit.object.clone());
        let hit = hit.or_insert_with(|| Hit {
            severity: culprit.severity,
            what: culprit.what.clone(),
            first: point,
            last: point,
            blocks: Some(BTreeSet::new()),
        });
        hit.last = point;
        hit.severity = hit.severity.max(culprit.severity);
        match (&mut hit.blocks, blocks) {
            (Some(all), Some(blocks)) => all.extend(blocks),
            (all, _) => *all = None,
        }
    }

    /// One finding for each object, with the points from the first to the last that it concerns.
    fn report(self, volume: &str, size: ImageSize, report: &mut Report) {
        for (object, hit) in self.of {
            let (first, last) = (hit.first, hit.last);
            let image = match first == last {
                true => format!("{volume}@@{first}"),
                false => format!("{volume}@@{first} to @@{last}"),
            };
            let affected = match hit.blocks {
                Some(blocks) => size.affected(&image, blocks.into_iter().collect()),
                None => Some(size.whole(&image)),
            };
            report.finding(hit.severity, &object, &hit.what, affected);
        }
    }
}

impl Check<'_> {
    /// Checks the points in time; `size` is that of the head.
    pub(super) async fn points(
        &mut self,
        volume: &str,
        size: ImageSize,
        points: &PointTable,
    ) -> Result<()> {
        let listed: BTreeMap<ManifestNum, Point> = points
            .iter()
            .map(|point| (point.manifest, *point))
            .collect();
        let (Some(since), Some((last, _))) = (points.since(), listed.last_key_value()) else {
            return Ok(());
        };
        let (backend, id) = (self.backend, self.volume.id);
        let numbers = (since.0..=last.0).map(ManifestNum);
        let reads = numbers.map(|number| async move {
            let read = read_manifest(backend, id, number).await;
            (number, read)
        });
        let mut reads = stream::iter(reads).buffered(HEADS_AT_ONCE);
        let (mut walk, mut hits) = (Walk::Unread, Hits::default());
        while let Some((number, read)) = reads.next().await {
            walk = self.take_up(walk, number, read).await?;
            if let Some(point) = listed.get(&number) {
                let image = format!("{volume}@@{number}");
                self.point(&image, &mut walk, point, &mut hits).await?;
            }
        }
        hits.report(volume, size, &mut self.report);
        Ok(())
    }

    /// Goes on to the next manifest.
    async fn take_up(
        &self,
        walk: Walk,
        number: ManifestNum,
        read: Result<Manifest>,
    ) -> Result<Walk> {
        let manifest = match read {
            Ok(manifest) => manifest,
            Err(error) => {
                let key = ObjectKey::manifest(self.volume.id, number);
                return self.broken(&[], key.as_str(), error).await;
            }
        };
        let object = manifest.object();
        // A reader of a point begins with the last checkpoint before it.
        match walk {
            Walk::Broken(culprit) if manifest.checkpoint.is_none() => Ok(Walk::Broken(culprit)),
            Walk::At(mut at) if manifest.checkpoint.is_none() => {
                let follows = manifest.check_follows(&at.manifest);
                let taken = match follows {
                    Ok(()) => at.replay.take(self.backend, &manifest).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = taken {
                    return self.broken(&[manifest], object.as_str(), error).await;
                }
                at.fresh.extend(&manifest.added);
                at.manifest = manifest;
                Ok(Walk::At(at))
            }
            _ => self.begin(manifest).await,
        }
    }

    /// Reads the image of a manifest from the checkpoint at or before it.
    async fn begin(&self, manifest: Manifest) -> Result<Walk> {
        let object = manifest.object();
        let history = match manifest.checkpoint {
            Some(_) => Ok(History {
                manifests: vec![manifest],
            }),
            None => read_history_at(self.backend, self.volume.id, manifest.number).await,
        };
        let mut history = match history {
            Ok(history) => history,
            Err(error) => return self.broken(&[], object.as_str(), error).await,
        };
        match rebuild(self.backend, &history.manifests).await {
            Ok(rebuilt) => Ok(Walk::At(Box::new(At {
                manifest: history.manifests.pop().expect("a history has a head"),
                fresh: needed(&rebuilt.base).collect(),
                replay: Replay::new(rebuilt),
                is_anew: true,
            }))),
            Err(error) => {
                self.broken(&history.manifests, object.as_str(), error)
                    .await
            }
        }
    }

    /// The image of the last of `chain` cannot be read: says because of what.
    async fn broken(&self, chain: &[Manifest], object: &str, error: Error) -> Result<Walk> {
        let Some(severity) = severity_of(&error) else {
            return Err(error);
        };
        let missing = self.missing(chain).await?;
        Ok(Walk::Broken(match missing.into_iter().next() {
            Some(key) => Culprit {
                severity: Severity::Lost,
                object: key.as_str().to_owned(),
                what: NO_INDEX.to_owned(),
            },
            None => Culprit {
                severity,
                object: object.to_owned(),
                what: format!("the image cannot be read: {error}"),
            },
        }))
    }

    /// Checks one point, up to whose manifest `walk` has come.
    async fn point(
        &mut self,
        image: &str,
        walk: &mut Walk,
        point: &Point,
        hits: &mut Hits,
    ) -> Result<()> {
        self.report.point();
        let at = match walk {
            Walk::At(at) => at,
            Walk::Broken(culprit) => {
                hits.note(culprit, point.manifest, None);
                return Ok(());
            }
            Walk::Unread => unreachable!("its manifest was taken up"),
        };
        if at.manifest.epoch != point.epoch {
            let culprit = Culprit {
                severity: Severity::Corrupt,
                object: at.manifest.object().as_str().to_owned(),
                what: "it is not the manifest of that point".to_owned(),
            };
            hits.note(&culprit, point.manifest, None);
            return Ok(());
        }
        let size = ImageSize::of(&at.manifest);
        let replay = &at.replay;
        let fresh = std::mem::take(&mut at.fresh).into_iter();
        let fresh = fresh.filter(|chunk| replay.needs(&chunk.key));
        self.check_chunks(image, size.block_size, fresh).await?;
        self.hit(at, point.manifest, hits);
        at.is_anew = false;
        Ok(())
    }

    /// Notes what of a point is in bad chunks.
    fn hit(&self, at: &At, point: ManifestNum, hits: &mut Hits) {
        let base = &at.replay.rebuilt.base;
        let bad = self.bad_chunks(base);
        let live = |(ordinal, (chunk, _)): (&_, &(ChunkRef, Bad))| {
            let entry = base.chunk(*ordinal);
            (chunk.key, entry.map_or(0, |entry| entry.live))
        };
        let mut now: Vec<_> = bad.iter().map(live).collect();
        now.sort_unstable();
        let is_known = now == std::mem::replace(&mut hits.last, now.clone());
        let mut blocks = match is_known && !at.is_anew {
            true => Default::default(),
            false => bad_blocks(base, &bad),
        };
        for (ordinal, (chunk, found)) in bad {
            let culprit = Culprit {
                severity: found.severity,
                object: chunk.key.to_string(),
                what: found.what,
            };
            let blocks = blocks.remove(&ordinal).unwrap_or_default();
            hits.note(&culprit, point, Some(blocks));
        }
    }
}

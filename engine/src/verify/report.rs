//! What a check of a volume found.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::block::BlockSize;
use crate::chunk::{ChunkRef, slot_stride};
use crate::index::rebuild::Rebuilt;
use crate::manifest::Manifest;
use crate::registry::NamedVolume;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// No block of any image is lost, but something is not as it should be.
    Degraded,
    /// An object that an image needs is not there.
    Lost,
    /// An object that an image needs is not what it was.
    Corrupt,
}

/// Bytes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ByteRange {
    /// First byte.
    pub offset_bytes: u64,
    /// How many.
    pub length_bytes: u64,
}

/// What of one image cannot be read because of a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Affected {
    /// Volume, volume and snapshot, or points in time from the first to the last that it concerns:
    /// then any of these ranges is of at least one of them.
    pub image: String,
    /// Ascending, disjoint. Empty if nothing is known of the image, not even its size.
    pub ranges: Vec<ByteRange>,
}

impl Affected {
    /// All of an image whose size is not known.
    pub(super) fn unknown(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            ranges: Vec::new(),
        }
    }
}

/// An object with which something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The object's key.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// What cannot be read because of it.
    pub affected: Vec<Affected>,
}

/// What was found of one volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeReport {
    /// Its name.
    pub volume: String,
    /// Its identity.
    pub id: String,
    /// Number of the head manifest.
    pub manifest: u64,
    /// Generation of its writer.
    pub generation: u64,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Bytes of the volume that hold data.
    pub mapped_bytes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Points in time.
    pub points: u64,
    /// Chunks that the volume names, those included that only snapshots need.
    pub chunks: u64,
    /// Bytes of these chunks.
    pub chunk_bytes: u64,
    /// Bytes of these chunks whose blocks are the newest version.
    pub live_bytes: u64,
    /// Chunks of all images that were looked at.
    pub chunks_checked: u64,
    /// Bytes of chunks that were read.
    pub read_bytes: u64,
    /// What is wrong, by object.
    pub findings: Vec<Finding>,
}

impl VolumeReport {
    /// The worst that was found.
    pub fn severity(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

/// Size and grain of an image.
#[derive(Clone, Copy)]
pub(super) struct ImageSize {
    bytes: u64,
    pub(super) block_size: BlockSize,
}

impl ImageSize {
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self {
            bytes: manifest.settings.size_bytes,
            block_size: manifest.settings.block_size(),
        }
    }

    pub(super) fn whole(self, image: &str) -> Affected {
        Affected {
            image: image.to_owned(),
            ranges: vec![ByteRange {
                offset_bytes: 0,
                length_bytes: self.bytes,
            }],
        }
    }

    /// These blocks as ranges; `None` if there are none.
    pub(super) fn affected(self, image: &str, mut blocks: Vec<u64>) -> Option<Affected> {
        blocks.sort_unstable();
        let block_bytes = self.block_size.bytes() as u64;
        let mut ranges: Vec<ByteRange> = Vec::new();
        for block in blocks {
            let offset_bytes = block * block_bytes;
            match ranges.last_mut() {
                Some(last) if last.offset_bytes + last.length_bytes == offset_bytes => {
                    last.length_bytes += block_bytes;
                }
                _ => ranges.push(ByteRange {
                    offset_bytes,
                    length_bytes: block_bytes,
                }),
            }
        }
        let image = image.to_owned();
        (!ranges.is_empty()).then_some(Affected { image, ranges })
    }
}

/// A report in the making.
pub(super) struct Report {
    report: VolumeReport,
    deep: bool,
    findings: BTreeMap<String, Finding>,
}

impl Report {
    pub(super) fn new(volume: &NamedVolume, deep: bool) -> Self {
        let report = VolumeReport {
            volume: volume.name.to_string(),
            id: volume.id.to_string(),
            manifest: 0,
            generation: 0,
            size_bytes: 0,
            mapped_bytes: 0,
            snapshots: 0,
            points: 0,
            chunks: 0,
            chunk_bytes: 0,
            live_bytes: 0,
            chunks_checked: 0,
            read_bytes: 0,
            findings: Vec::new(),
        };
        Self {
            report,
            deep,
            findings: BTreeMap::new(),
        }
    }

    pub(super) fn head(&mut self, head: &Manifest) {
        self.report.manifest = head.number.0;
        self.report.generation = head.generation.0;
        self.report.size_bytes = head.settings.size_bytes;
    }

    pub(super) fn index(&mut self, rebuilt: &Rebuilt, block_size: BlockSize) {
        let base = &rebuilt.base;
        let report = &mut self.report;
        report.mapped_bytes = base.mapped_blocks() * block_size.bytes() as u64;
        report.snapshots = rebuilt.snapshots.len() as u64;
        for (_, entry) in base.chunks() {
            report.chunks += 1;
            report.chunk_bytes += entry.reference.bytes;
            report.live_bytes += u64::from(entry.live) * slot_stride(block_size) as u64;
        }
    }

    pub(super) fn point(&mut self) {
        self.report.points += 1;
    }

    pub(super) fn checked(&mut self, reference: &ChunkRef) {
        self.report.chunks_checked += 1;
        if self.deep {
            self.report.read_bytes += reference.bytes;
        }
    }

    /// Notes what is wrong with an object. `None` of the image suffers by it: then nothing is lost.
    pub(super) fn finding(
        &mut self,
        severity: Severity,
        object: &str,
        what: &str,
        affected: Option<Affected>,
    ) {
        let finding = self
            .findings
            .entry(object.to_owned())
            .or_insert_with(|| Finding {
                severity: Severity::Degraded,
                object: object.to_owned(),
                what: what.to_owned(),
                affected: Vec::new(),
            });
        let Some(affected) = affected else { return };
        finding.severity = finding.severity.max(severity);
        finding.affected.push(affected);
    }

    pub(super) fn finish(self) -> VolumeReport {
        VolumeReport {
            findings: self.findings.into_values().collect(),
            ..self.report
        }
    }
}

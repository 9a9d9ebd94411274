//! Bytes of a manifest: encoder, decoder that cannot panic, and the rules between neighbours.

use bytes::Bytes;

use super::{
    CheckpointRef, HEADER_BYTES, LIST_MAX, MAGIC, MANIFEST_BYTES_MAX, Manifest, ManifestKind,
    Origin, VERSION,
};
use crate::chunk::ChunkRef;
use crate::error::{Error, Result};
use crate::identity::{Epoch, Generation, ManifestNum, VolumeId, WriterToken};
use crate::object::fields::{Fields, FieldsOut};
use crate::object::{ChunkKey, IndexKey, SealedRef};
use crate::point::Moment;
use crate::snapshot::{SNAPSHOTS_MAX, SnapshotChange, SnapshotId};
use crate::volume::{VolumeName, VolumeSettings};

const CRC_BYTES: usize = 4;

impl ManifestKind {
    fn code(self) -> u16 {
        match self {
            Self::Created => 1,
            Self::Opened => 2,
            Self::Commit => 3,
            Self::Configured => 4,
            Self::Tombstone => 5,
            Self::RolledBack => 6,
        }
    }

    fn from_code(code: u16) -> Option<Self> {
        [
            Self::Created,
            Self::Opened,
            Self::Commit,
            Self::Configured,
            Self::Tombstone,
            Self::RolledBack,
        ]
        .into_iter()
        .find(|kind| kind.code() == code)
    }
}

impl Manifest {
    /// The object's bytes. Panics if a list is above [`LIST_MAX`]: commits are bounded.
    pub fn encode(&self) -> Bytes {
        let longest = self.added.len().max(self.condemned.len());
        assert!(
            longest.max(self.dropped.len()) <= LIST_MAX,
            "manifest list too long"
        );
        let settings = serde_json::to_vec(&self.settings).expect("settings are plain data");
        let name = self.name.as_str().as_bytes();
        let total = HEADER_BYTES
            + name.len()
            + settings.len()
            + self.added.len() * ChunkRef::ENCODED_BYTES
            + (self.condemned.len() + self.dropped.len()) * SealedRef::ENCODED_BYTES
            + self.checkpoint.map_or(0, |_| CheckpointRef::ENCODED_BYTES)
            + snapshots_bytes(&self.snapshots)
            + self.origin.map_or(0, |_| Origin::ENCODED_BYTES)
            + self.moment.map_or(0, |_| Moment::ENCODED_BYTES)
            + CRC_BYTES;
        assert!(total <= MANIFEST_BYTES_MAX);
        let mut out = Vec::with_capacity(total);
        out.put(&MAGIC);
        out.put_u16(VERSION);
        out.put_u16(self.kind.code());
        out.put_u32(total as u32);
        out.put_u64(self.number.0);
        out.put_u64(self.number.0 - 1);
        out.put_u32(self.predecessor_crc);
        out.put_u16(name.len() as u16);
        out.put_u16(u16::try_from(settings.len()).expect("settings are below 64 KiB"));
        out.put_u64(self.generation.0);
        out.put_u64(self.token.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.volume.0);
        out.put_u32(self.added.len() as u32);
        out.put_u32(self.condemned.len() as u32);
        out.put_u32(self.dropped.len() as u32);
        out.put_u32(u32::from(self.checkpoint.is_some()));
        out.put_u32(self.snapshots.len() as u32);
        out.put_u16(u16::from(self.origin.is_some()));
        out.put_u16(u16::from(self.moment.is_some()));
        assert_eq!(out.len(), HEADER_BYTES);
        out.put(name);
        out.put(&settings);
        for chunk in &self.added {
            encode_chunk(chunk, &mut out);
        }
        for object in self.condemned.iter().chain(&self.dropped) {
            object.encode_into(&mut out);
        }
        if let Some(checkpoint) = &self.checkpoint {
            checkpoint.key.encode_into(&mut out);
            out.put_u64(checkpoint.bytes);
            out.put_u32(checkpoint.crc32c);
            out.put_u32(0);
        }
        for change in &self.snapshots {
            change.encode_into(&mut out);
        }
        if let Some(origin) = &self.origin {
            encode_origin(origin, &mut out);
        }
        if let Some(moment) = &self.moment {
            moment.encode_into(&mut out);
        }
        let crc = crc32c::crc32c(&out);
        out.put_u32(crc);
        assert_eq!(out.len(), total);
        Bytes::from(out)
    }

    /// Undoes [`Manifest::encode`];
    /// [`Corrupt`](crate::error::ErrorKind::Corrupt) for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(checked_content(bytes)?);
        fields.take(MAGIC.len())?;
        let (version, kind) = (fields.u16()?, fields.u16()?);
        if version != VERSION {
            return Err(Error::corrupt(format!(
                "manifest format {version} is not known to this release"
            )));
        }
        let kind = ManifestKind::from_code(kind)
            .ok_or_else(|| Error::corrupt(format!("unknown manifest kind {kind}")))?;
        let total = fields.u32()?;
        let number = ManifestNum(fields.u64()?);
        let predecessor = fields.u64()?;
        if total as usize != bytes.len() || number.0.checked_sub(1) != Some(predecessor) {
            return Err(Error::corrupt("the manifest's length or number is wrong"));
        }
        let predecessor_crc = fields.u32()?;
        let (name_bytes, settings_bytes) = (fields.u16()?, fields.u16()?);
        let generation = Generation(fields.u64()?);
        let token = WriterToken(fields.u64()?);
        let epoch = Epoch(fields.u64()?);
        // A number that nothing can follow was never written.
        if [number.0, generation.0, epoch.0].contains(&u64::MAX) {
            return Err(Error::corrupt("the manifest's numbers are out of bounds"));
        }
        let volume = VolumeId(fields.u64()?);
        let counts = [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
        let (snapshots, origins, moments) = (fields.u32()?, fields.u16()?, fields.u16()?);
        let too_many = counts.iter().any(|&n| n as usize > LIST_MAX);
        if origins.max(moments) > 1
            || counts[3] > 1
            || too_many
            || snapshots as usize > SNAPSHOTS_MAX
        {
            return Err(Error::corrupt("the manifest's counts are out of bounds"));
        }
        let manifest = Self {
            number,
            kind,
            predecessor_crc,
            generation,
            token,
            epoch,
            volume,
            name: decode_name(fields.take(usize::from(name_bytes))?)?,
            settings: decode_settings(fields.take(usize::from(settings_bytes))?)?,
            added: fields.list(counts[0], ChunkRef::ENCODED_BYTES, decode_chunk)?,
            condemned: fields.list(counts[1], SealedRef::ENCODED_BYTES, SealedRef::decode)?,
            dropped: fields.list(counts[2], SealedRef::ENCODED_BYTES, SealedRef::decode)?,
            checkpoint: decode_checkpoint(counts[3] == 1, &mut fields)?,
            snapshots: fields.list(
                snapshots,
                SnapshotChange::ENCODED_BYTES_MIN,
                SnapshotChange::decode,
            )?,
            origin: decode_origin(origins == 1, &mut fields)?,
            moment: (moments == 1)
                .then(|| Moment::decode(&mut fields))
                .transpose()?,
        };
        check_parts(&manifest)?;
        if fields.remaining() != 0 {
            return Err(Error::corrupt("bytes are left behind the manifest's lists"));
        }
        Ok(manifest)
    }
}

/// The CRC at the end of an encoded manifest (0 if it is too short to have one).
pub fn stored_crc(encoded: &[u8]) -> u32 {
    encoded
        .last_chunk::<CRC_BYTES>()
        .map_or(0, |crc| u32::from_le_bytes(*crc))
}

/// The content before the CRC, after magic, size and CRC were checked.
fn checked_content(bytes: &[u8]) -> Result<&[u8]> {
    if bytes.len() < HEADER_BYTES + CRC_BYTES || bytes.len() > MANIFEST_BYTES_MAX {
        return Err(Error::corrupt(format!(
            "{} bytes cannot be a manifest",
            bytes.len()
        )));
    }
    if !bytes.starts_with(&MAGIC) {
        return Err(Error::corrupt("this is no manifest: the magic differs"));
    }
    let content = &bytes[..bytes.len() - CRC_BYTES];
    if crc32c::crc32c(content) != stored_crc(bytes) {
        return Err(Error::corrupt("the manifest fails its CRC"));
    }
    Ok(content)
}

fn encode_chunk(chunk: &ChunkRef, out: &mut Vec<u8>) {
    chunk.key.encode_into(out);
    out.put_u32(chunk.head_bytes);
    out.put_u32(chunk.slots);
    out.put_u64(chunk.bytes);
}

fn decode_chunk(fields: &mut Fields<'_>) -> Result<ChunkRef> {
    Ok(ChunkRef {
        key: ChunkKey::decode(fields)?,
        head_bytes: fields.u32()?,
        slots: fields.u32()?,
        bytes: fields.u64()?,
    })
}

fn decode_checkpoint(present: bool, fields: &mut Fields<'_>) -> Result<Option<CheckpointRef>> {
    if !present {
        return Ok(None);
    }
    let checkpoint = CheckpointRef {
        key: IndexKey::decode(fields)?,
        bytes: fields.u64()?,
        crc32c: fields.u32()?,
    };
    match fields.u32()? {
        0 => Ok(Some(checkpoint)),
        _ => Err(Error::corrupt("a reserved field of the manifest is set")),
    }
}

fn encode_origin(origin: &Origin, out: &mut Vec<u8>) {
    out.put_u64(origin.volume.0);
    out.put_u64(origin.snapshot.0);
    out.put_u64(origin.manifest.0);
    out.put_u64(origin.epoch.0);
}

fn decode_origin(present: bool, fields: &mut Fields<'_>) -> Result<Option<Origin>> {
    if !present {
        return Ok(None);
    }
    Ok(Some(Origin {
        volume: VolumeId(fields.u64()?),
        snapshot: SnapshotId(fields.u64()?),
        manifest: ManifestNum(fields.u64()?),
        epoch: Epoch(fields.u64()?),
    }))
}

/// Only the first manifest of a clone has an origin, and begins with the image of another volume.
fn check_origin(manifest: &Manifest) -> Result<()> {
    let Some(origin) = &manifest.origin else {
        return Ok(());
    };
    let fits = (manifest.kind, manifest.number) == (ManifestKind::Created, ManifestNum(1))
        && manifest.checkpoint.is_some()
        && origin.volume != manifest.volume
        && origin.manifest.0 > 0;
    match fits {
        true => Ok(()),
        false => Err(Error::corrupt(
            "the manifest has an origin that it cannot have",
        )),
    }
}

/// What has rules of its own fits the rest.
fn check_parts(manifest: &Manifest) -> Result<()> {
    check_snapshots(manifest)?;
    check_origin(manifest)?;
    check_moment(manifest)?;
    match manifest.kind == ManifestKind::RolledBack && manifest.checkpoint.is_none() {
        true => Err(Error::corrupt("a rollback without its image")),
        false => Ok(()),
    }
}

/// A volume with a window for points in time has a moment in every manifest.
fn check_moment(manifest: &Manifest) -> Result<()> {
    let keeps = manifest.settings.pitr_window_seconds > 0;
    let since = manifest.moment.map(|moment| moment.since);
    let fits = since.is_none_or(|since| since.0 > 0 && since <= manifest.number);
    match fits && since.is_some() == keeps {
        true => Ok(()),
        false => Err(Error::corrupt(
            "the manifest keeps points in time that it cannot keep",
        )),
    }
}

/// What is not kept any more is not kept again, and time does not go back.
fn moment_follows(next: &Manifest, previous: &Manifest) -> bool {
    match (next.moment, previous.moment) {
        (None, _) => true,
        (Some(moment), None) => moment.since == next.number,
        (Some(moment), Some(before)) => {
            moment.since >= before.since && moment.age_ms >= before.age_ms
        }
    }
}

fn snapshots_bytes(changes: &[SnapshotChange]) -> usize {
    assert!(changes.len() <= SNAPSHOTS_MAX, "too many snapshots at once");
    changes.iter().map(SnapshotChange::encoded_bytes).sum()
}

/// A snapshot is the image of the manifest that takes it, or an earlier point that is kept; what is
/// deleted was there before.
fn check_snapshots(manifest: &Manifest) -> Result<()> {
    let fits = |change: &SnapshotChange| match change {
        SnapshotChange::Taken(snapshot) => {
            let group = snapshot.group.as_ref();
            group.is_none_or(|group| group.volumes().contains(&manifest.volume))
                && (snapshot.manifest, snapshot.generation, snapshot.epoch)
                    == (manifest.number, manifest.generation, manifest.epoch)
        }
        SnapshotChange::Kept(snapshot) => {
            let was_kept = |moment: Moment| moment.since <= snapshot.manifest;
            snapshot.manifest < manifest.number && manifest.moment.is_some_and(was_kept)
        }
        SnapshotChange::Deleted(snapshot) => snapshot.manifest < manifest.number,
    };
    match manifest.snapshots.iter().all(fits) {
        true => Ok(()),
        false => Err(Error::corrupt(
            "the manifest changes a snapshot that is not its own",
        )),
    }
}

fn decode_name(bytes: &[u8]) -> Result<VolumeName> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|name| VolumeName::parse(name).ok())
        .ok_or_else(|| Error::corrupt("the manifest's volume name is not valid"))
}

fn decode_settings(bytes: &[u8]) -> Result<VolumeSettings> {
    let refuse = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::corrupt("the manifest's settings are not known to this release").with_source(e)
    };
    let settings: VolumeSettings = serde_json::from_slice(bytes).map_err(|e| refuse(e.into()))?;
    settings.validate().map_err(|e| refuse(e.into()))?;
    Ok(settings)
}

/// The rules between a manifest and its predecessor.
pub(super) fn check_follows(next: &Manifest, previous: &Manifest) -> Result<()> {
    let opened = next.kind == ManifestKind::Opened;
    let generation_ok = if opened {
        next.generation == previous.generation.next()
    } else {
        next.generation == previous.generation && next.token == previous.token
    };
    let rules = [
        (next.volume == previous.volume, "it is of another volume"),
        (
            next.number == previous.number.next(),
            "its number does not follow",
        ),
        (
            next.predecessor_crc == previous.crc(),
            "it names another predecessor",
        ),
        (generation_ok, "its writer did not open the volume"),
        (next.epoch >= previous.epoch, "its epoch goes back"),
        (
            next.kind != ManifestKind::Created,
            "it creates the volume again",
        ),
        (
            previous.kind != ManifestKind::Tombstone,
            "the volume was deleted before it",
        ),
        (
            next.settings.block_size_bytes == previous.settings.block_size_bytes,
            "it changes the block size",
        ),
        (
            moment_follows(next, previous),
            "it keeps points in time that were given up",
        ),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        None => Ok(()),
        Some((_, why)) => Err(Error::corrupt(format!(
            "manifest {} may not follow {}: {why}",
            next.number, previous.number
        ))
        .with_volume(next.volume)),
    }
}

/// Fuzz entry: decoding any bytes does not panic, and what decodes encodes to an equal manifest.
pub fn fuzz_manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::decode(data) {
        let again = Manifest::decode(&manifest.encode()).expect("what was encoded decodes");
        assert_eq!(manifest, again);
    }
}

//! What became of a group of snapshots: one create-only object, so that whoever writes it first has
//! decided for all: complete, or given up.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Seal};
use crate::backend::{Backend, Portion, Put, read_checked};
use crate::error::{Error, Result};
use crate::failpoint::pass;
use crate::identity::VolumeId;
use crate::object::ObjectKey;
use crate::snapshot::{Group, SnapshotId, SnapshotName};

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupVerdict {
    /// All its snapshots are committed: it exists.
    Complete,
    /// One of them never will be: it never existed, and the others are deleted.
    GivenUp,
}

/// The object of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupEntry {
    schema: u32,
    crc32c: u32,
    /// By which it is known.
    pub lead: SnapshotId,
    /// Name of its snapshots.
    pub name: SnapshotName,
    /// Its volumes, ascending.
    pub volumes: Vec<VolumeId>,
    /// What became of it.
    pub verdict: GroupVerdict,
}

impl GroupEntry {
    /// An entry ready to be stored.
    pub fn new(name: SnapshotName, group: &Group, verdict: GroupVerdict) -> Self {
        let entry = Self {
            schema: 0,
            crc32c: 0,
            lead: group.lead(),
            name,
            volumes: group.volumes().to_vec(),
            verdict,
        };
        entry.sealed()
    }

    /// The object's bytes.
    pub fn encode(&self) -> Bytes {
        self.to_bytes()
    }

    /// Undoes [`GroupEntry::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let entry = Self::of_bytes(bytes)?;
        let group = Group::of(entry.lead, entry.volumes.clone())
            .map_err(|e| Error::corrupt("a group of snapshots is none").with_source(e))?;
        match entry == Self::new(entry.name.clone(), &group, entry.verdict) {
            true => Ok(entry),
            false => Err(Error::corrupt(
                "a group of snapshots fails its CRC or schema",
            )),
        }
    }
}

impl Entry for GroupEntry {
    const WHAT: &'static str = "a group of snapshots";

    fn seal(&mut self) -> Seal<'_> {
        Seal {
            schema: &mut self.schema,
            crc32c: &mut self.crc32c,
        }
    }
}

/// Decides what became of a group, unless somebody did before; what is decided. To be repeated
/// after an error.
pub async fn settle_group(
    backend: &dyn Backend,
    name: &SnapshotName,
    group: &Group,
    verdict: GroupVerdict,
) -> Result<GroupVerdict> {
    pass("group.put")?;
    let key = ObjectKey::group(group.lead());
    let entry = GroupEntry::new(name.clone(), group, verdict);
    if backend.put_if_absent(&key, entry.encode()).await? == Put::Created {
        return Ok(verdict);
    }
    let parse = |bytes: &Bytes| {
        let located = |e: Error| e.with_path(key.as_str());
        let stored = GroupEntry::decode(bytes).map_err(located)?;
        match (stored.lead, stored.volumes.as_slice()) == (group.lead(), group.volumes()) {
            true => Ok(stored.verdict),
            false => Err(located(Error::corrupt("another group is stored here"))),
        }
    };
    read_checked(backend, &key, Portion::Whole, parse).await
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::backend::{Fault, FaultRule, MemBackend};
    use crate::error::ErrorKind;

    fn group() -> Group {
        let members = vec![
            (VolumeId(0xB), SnapshotId(0x2)),
            (VolumeId(0xA), SnapshotId(0x9)),
        ];
        Group::new(members).unwrap()
    }

    fn name() -> SnapshotName {
        SnapshotName::parse("daily").unwrap()
    }

    #[test]
    fn golden_bytes() {
        let entry = GroupEntry::new(name(), &group(), GroupVerdict::Complete);
        let expected = concat!(
            r#"{"schema":1,"crc32c":CRC,"lead":"0000000000000009","name":"daily","#,
            r#""volumes":["000000000000000a","000000000000000b"],"verdict":"complete"}"#,
        );
        let crc = crc32c::crc32c(expected.replace("CRC", "0").as_bytes());
        let expected = expected.replace("CRC", &crc.to_string());
        assert_eq!(entry.encode(), expected.as_bytes());
        assert_eq!(GroupEntry::decode(expected.as_bytes()).unwrap(), entry);
        for (from, to) in [
            ("daily", "weekly"),
            (":1,", ":2,"),
            ("\"v", "\"w"),
            ("0b", "0a"),
        ] {
            let bad = expected.replacen(from, to, 1);
            let error = GroupEntry::decode(bad.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{bad}");
        }
    }

    #[test]
    fn a_group_has_at_least_two_volumes_each_once() {
        let member = |volume| (VolumeId(volume), SnapshotId(volume));
        for members in [vec![], vec![member(1)], vec![member(1), member(1)]] {
            assert_eq!(Group::new(members).unwrap_err().kind(), ErrorKind::Invalid);
        }
        let many = |count| Group::new((0..count).map(member).collect());
        assert!(many(64).is_ok() && many(65).is_err());
    }

    /// Whoever decides first decides for all, whatever became of the answers.
    #[test]
    fn the_first_verdict_holds() {
        for (first, second) in [
            (GroupVerdict::Complete, GroupVerdict::GivenUp),
            (GroupVerdict::GivenUp, GroupVerdict::Complete),
        ] {
            for lost in [false, true] {
                let backend = MemBackend::new();
                let settle = |verdict| block_on(settle_group(&backend, &name(), &group(), verdict));
                if lost {
                    let fault = Fault::FailAfter(ErrorKind::Transient);
                    backend.script(FaultRule::nth(0, fault));
                    assert!(settle(first).is_err());
                    backend.clear_script();
                }
                for verdict in [first, second, first] {
                    assert_eq!(settle(verdict).unwrap(), first);
                }
            }
        }
    }
}

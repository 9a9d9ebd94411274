//! A listing that is behind, up to showing nothing: it never makes an empty volume of a name that
//! has one, nor lets an old state be served. Reads of such a volume would be zeros.

use bytes::Bytes;

use super::*;
use crate::backend::{BoxFuture, Listed, Probe, Put};
use crate::snapshot::SnapshotId;

/// Everything is as it is, but lists show the past.
struct Behind {
    inner: MemBackend,
    shown: Vec<Listed>,
}

impl Behind {
    /// Lists `inner` as it is now, for ever.
    fn freeze(inner: &MemBackend) -> Self {
        let shown = block_on(inner.list("", None, usize::MAX)).unwrap();
        let inner = inner.clone();
        Self { inner, shown }
    }

    fn blind(inner: &MemBackend) -> Self {
        let (inner, shown) = (inner.clone(), Vec::new());
        Self { inner, shown }
    }
}

impl Backend for Behind {
    fn put_if_absent<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<Put>> {
        self.inner.put_if_absent(key, body)
    }

    fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>> {
        self.inner.put(key, body)
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
        self.inner.get(key)
    }

    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>> {
        self.inner.get_range(key, offset, len)
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
        self.inner.head(key)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let wanted = |one: &&Listed| {
            one.key.starts_with(prefix) && after.is_none_or(|after| one.key.as_str() > after)
        };
        let page = self.shown.iter().filter(wanted).take(max);
        let page = page.cloned().collect();
        Box::pin(async { Ok(page) })
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
        self.inner.delete(key)
    }

    fn probe(&self) -> BoxFuture<'_, Result<Probe>> {
        self.inner.probe()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[test]
fn a_configured_volume_that_a_listing_does_not_show_is_not_created_once_more() {
    let backend = MemBackend::new();
    create(&backend, 1, "vol0").unwrap();
    let before = block_on(backend.list("", None, usize::MAX)).unwrap();
    let behind = Behind::blind(&backend);
    assert!(block_on(list_volumes(&behind)).unwrap().volumes.is_empty());
    block_on(create_volume(&behind, seed(2), &name("vol0"), &settings())).unwrap_err();
    assert_eq!(listed(&backend), [("vol0".to_owned(), 1)]);
    let after = block_on(backend.list("", None, usize::MAX)).unwrap();
    assert_eq!(after, before, "nothing is left behind");
}

#[test]
fn an_opening_that_is_shown_an_old_head_serves_the_newest_or_nothing() {
    for (hidden, opens) in [(3, true), (40, false)] {
        let backend = MemBackend::new();
        let (old, new) = (Machine::new(), Machine::new());
        create(&backend, 1, "vol0").unwrap();
        let mut head = old.open(&backend, 1, 0).unwrap().history.head().clone();
        let behind = Behind::freeze(&backend);
        for epoch in 1..=hidden {
            head = ours(old.commit(&backend, &head, 10 * epoch));
        }
        let opened = block_on(open_for_writing(&behind, &new.heads, VolumeId(1), Epoch(0)));
        if opens {
            let own = opened.unwrap().history.head().clone();
            assert_eq!(own.number.0, head.number.0 + 1);
            assert_eq!((own.generation, own.epoch), (Generation(2), head.epoch));
        } else {
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::Transient);
            let still = block_on(read_head(&backend, VolumeId(1), None)).unwrap();
            assert_eq!(still, head, "nothing was written over it");
        }
    }
}

/// A list that is behind hides entries of a log of pins; whoever appends finds them.
#[test]
fn a_pin_loses_against_a_deletion_that_its_list_did_not_show() {
    let backend = MemBackend::new();
    let snapshot = SnapshotId(7);
    let pin = |backend: &dyn Backend, clone: u64| {
        block_on(pin(backend, VolumeId(1), snapshot, VolumeId(clone)))
    };
    let blind = Behind::blind(&backend);
    for clone in 1..=20 {
        pin(&blind, clone).unwrap();
    }
    let log = block_on(read_pins(&backend, VolumeId(1), snapshot)).unwrap();
    assert_eq!(log.pinned.len(), 20);
    let shown = Behind::freeze(&backend);
    for clone in 1..=20 {
        let released = release_pin(&backend, VolumeId(1), snapshot, VolumeId(clone));
        block_on(released).unwrap();
    }
    block_on(close_pins(&backend, VolumeId(1), snapshot)).unwrap();
    for behind in [&blind, &shown] {
        let error = pin(behind, 21).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
}

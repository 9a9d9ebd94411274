//! Rules that every backend keeps, as checks that panic; each wants an empty backend. The unit
//! tests run them on `mem:` and `dir:`, those of the tools on real and scripted S3 servers.

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::join_all;

use super::{Backend, Listed, Put};
use crate::error::ErrorKind;
use crate::object::ObjectKey;

/// A check; it panics if the backend breaks the rule.
pub type Check = fn(&dyn Backend);

/// All checks with their names.
pub const CHECKS: [(&str, Check); 5] = [
    ("created-once", an_object_is_created_once_and_read_back),
    ("ranges", ranges_are_exact_or_corrupt),
    ("lists", lists_are_in_order_and_paged),
    ("deletes", many_are_deleted_at_once),
    ("races", one_of_sixteen_racing_creators_wins),
];

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn keys(listed: &[Listed]) -> Vec<&str> {
    listed.iter().map(|object| object.key.as_str()).collect()
}

/// An object is created once, read back, replaced and deleted.
fn an_object_is_created_once_and_read_back(backend: &dyn Backend) {
    block_on(async {
        let key = key("v1/a/chunks/x");
        assert_eq!(backend.head(&key).await.unwrap(), None);
        let missing = backend.get(&key).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let first = backend
            .put_if_absent(&key, Bytes::from_static(b"first"))
            .await;
        assert_eq!(first.unwrap(), Put::Created);
        let second = backend
            .put_if_absent(&key, Bytes::from_static(b"2nd"))
            .await;
        assert_eq!(second.unwrap(), Put::Exists);
        assert_eq!(backend.get(&key).await.unwrap(), "first");
        assert_eq!(backend.head(&key).await.unwrap(), Some(5));
        backend.put(&key, Bytes::from_static(b"3rd")).await.unwrap();
        assert_eq!(backend.get(&key).await.unwrap(), "3rd");
        backend.delete(&key).await.unwrap();
        backend.delete(&key).await.unwrap();
        assert_eq!(backend.head(&key).await.unwrap(), None);
        let range = backend.get_range(&key, 0, 1).await.unwrap_err();
        assert_eq!(range.kind(), ErrorKind::NotFound);
    });
}

/// A range is exact or `Corrupt`.
fn ranges_are_exact_or_corrupt(backend: &dyn Backend) {
    block_on(async {
        let key = key("v1/o");
        backend
            .put(&key, Bytes::from_static(b"0123456789"))
            .await
            .unwrap();
        assert_eq!(backend.get_range(&key, 3, 4).await.unwrap(), "3456");
        assert_eq!(backend.get_range(&key, 10, 0).await.unwrap(), "");
        for (offset, len) in [(7, 4), (11, 0), (0, 11), (u64::MAX, 2), (1, u64::MAX)] {
            let error = backend.get_range(&key, offset, len).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{offset}+{len}");
        }
    });
}

/// Lists are in the order of keys or of their parts, and paged.
fn lists_are_in_order_and_paged(backend: &dyn Backend) {
    block_on(async {
        // '-' and '.' sort before '/', so the order of keys is not that of a tree.
        let mut all = ["v1/a-b", "v1/a.b", "v1/a/c", "v1/a/d/e", "v1/ab", "v1/b/x"];
        for text in all.iter().rev() {
            let body = Bytes::from_static(b"xy");
            backend.put(&key(text), body).await.unwrap();
        }
        let listed = backend.list("", None, 100).await.unwrap();
        assert!(listed.iter().all(|object| object.bytes == 2));
        if keys(&listed) != all {
            all.sort_by_key(|key| key.split('/').collect::<Vec<_>>());
        }
        assert_eq!(keys(&listed), all);
        for max in 1..=all.len() + 1 {
            assert_eq!(paged(backend, "v1/", max).await, all, "pages of {max}");
        }
        let prefixed = backend.list("v1/a", None, 100).await.unwrap();
        assert_eq!(keys(&prefixed), all[..5]);
        let folder = backend.list("v1/a/", Some("v1/a/c"), 100).await.unwrap();
        assert_eq!(keys(&folder), ["v1/a/d/e"]);
        // An `after` that is no object, before and behind the prefix, and among its objects.
        let before = backend.list("v1/b", Some("v1/aa"), 100).await.unwrap();
        assert_eq!(keys(&before), ["v1/b/x"]);
        let behind = backend.list("v1/b", Some("v1/c"), 9).await.unwrap();
        assert!(behind.is_empty());
        let among = backend.list("v1/b/", Some("v1/b/a"), 9).await.unwrap();
        assert_eq!(keys(&among), ["v1/b/x"]);
        assert!(backend.list("none/", None, 9).await.unwrap().is_empty());
        assert!(backend.list("v1/", None, 0).await.unwrap().is_empty());
    });
}

async fn paged(backend: &dyn Backend, prefix: &str, max: usize) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    loop {
        let after = all.last().map(String::as_str);
        let page = backend.list(prefix, after, max).await.unwrap();
        let is_last = page.len() < max;
        all.extend(page.into_iter().map(|object| object.key));
        if is_last {
            return all;
        }
    }
}

/// Of sixteen racing creators one wins, and its body is there.
fn one_of_sixteen_racing_creators_wins(backend: &dyn Backend) {
    for round in 0..20 {
        let key = key(&format!("v1/race/{round}"));
        let puts =
            (0..16).map(|writer: u8| backend.put_if_absent(&key, Bytes::from(vec![writer; 4096])));
        let results = block_on(join_all(puts));
        let winners: Vec<usize> = (0..16)
            .filter(|&writer| *results[writer].as_ref().unwrap() == Put::Created)
            .collect();
        assert_eq!(winners.len(), 1, "round {round}");
        let stored = block_on(backend.get(&key)).unwrap();
        assert_eq!(stored, vec![winners[0] as u8; 4096]);
    }
}

/// Many objects are deleted at once, absent ones among them, and no others.
fn many_are_deleted_at_once(backend: &dyn Backend) {
    block_on(async {
        let all: Vec<ObjectKey> = (0..7).map(|n| key(&format!("v1/d/{n}"))).collect();
        for key in &all {
            backend.put(key, Bytes::from_static(b"x")).await.unwrap();
        }
        let mut deleted = all[..5].to_vec();
        deleted.push(key("v1/d/absent"));
        backend.delete_many(&deleted).await.unwrap();
        backend.delete_many(&deleted[..1]).await.unwrap();
        backend.delete_many(&[]).await.unwrap();
        let left = backend.list("v1/", None, 100).await.unwrap();
        assert_eq!(keys(&left), ["v1/d/5", "v1/d/6"]);
    });
}

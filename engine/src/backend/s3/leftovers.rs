//! Scratch objects of probes that ended with their daemon, before they had removed them.

use super::requests::Page;

/// Above all scratch objects.
pub(super) const FOLDER: &str = "v1/probe";
/// No probe takes so long, and none of its requests comes so late.
const OLD_SECS: i64 = 24 * 3600;
/// No body of a scratch object is longer.
const BYTES_MAX: u64 = 64;

/// Keys of a listing that nothing but a probe makes, and that no probe needs any more; what is in
/// doubt stays. `now_secs` is the server's clock too.
pub(super) fn leftovers(page: &Page, now_secs: i64) -> impl Iterator<Item = &str> {
    let aged = page.objects.iter().zip(&page.stored_secs);
    aged.filter(move |(object, stored_secs)| {
        let is_old = stored_secs.is_some_and(|stored| now_secs.saturating_sub(stored) >= OLD_SECS);
        is_old && object.bytes <= BYTES_MAX && is_of_a_probe(&object.key)
    })
    .map(|(object, _)| object.key.as_str())
}

/// As [`Trial`](super::probe::Trial) names them.
fn is_of_a_probe(key: &str) -> bool {
    let below = key.strip_prefix(FOLDER).and_then(|k| k.strip_prefix('/'));
    let Some((folder, name)) = below.and_then(|key| key.split_once('/')) else {
        return false;
    };
    let is_digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    let numbered = |stem| {
        let number = name.strip_prefix(stem).unwrap_or_default();
        matches!(number.as_bytes(), [b'1'..=b'9'])
    };
    folder.len() == 16
        && folder.bytes().all(is_digit)
        && (name == "b" || name == "c" || numbered("a") || numbered("race"))
}

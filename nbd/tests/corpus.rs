//! Replays the corpus of the fuzz target, its prefixes, and its streams with a few bytes changed.

use std::path::Path;

use proptest::prelude::*;
use taipan_nbd::fuzz::{fuzz_negotiated, fuzz_server, fuzz_tls};

/// Every stream of the corpus with its name, in a fixed order.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let streams = streams_of("corpus/server");
    assert!(
        streams.len() >= 40,
        "only {} streams in the corpus",
        streams.len()
    );
    streams
}

fn streams_of(folder: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let directory = directory.join(folder);
    let mut streams: Vec<_> = std::fs::read_dir(directory)
        .expect("the corpus")
        .map(|entry| {
            let entry = entry.expect("an entry of the corpus");
            let stream = std::fs::read(entry.path()).expect("a stream of the corpus");
            (entry.file_name().to_string_lossy().into_owned(), stream)
        })
        .collect();
    streams.sort();
    streams
}

#[test]
fn the_border_to_tls_holds_against_its_corpus_cut_anywhere_with_any_byte_changed() {
    for (name, stream) in streams_of("corpus/tls") {
        eprintln!("{name}");
        for end in 0..=stream.len() {
            fuzz_tls(&stream[..end]);
        }
        for at in 0..stream.len() {
            for byte in [0, 1, 5, 7, 8, 11, 255, stream[at] ^ 1, stream[at] ^ 2] {
                let mut changed = stream.clone();
                changed[at] = byte;
                fuzz_tls(&changed);
            }
        }
    }
}

/// What long runs have found, as it is: fuzzing has tried its prefixes and changes.
fn replay_grown(target: &str, entry: impl Fn(&[u8])) {
    let streams = streams_of(&format!("grown/{target}"));
    let count = streams.len();
    assert!(count >= 50, "only {count} streams for {target}");
    for (name, stream) in streams {
        eprintln!("{target}/{name}");
        entry(&stream);
    }
}

#[test]
fn what_was_found_at_length_breaks_nothing() {
    replay_grown("server", fuzz_server);
    replay_grown("tls", fuzz_tls);
    replay_grown("negotiated", |stream| {
        fuzz_negotiated(stream);
    });
}

#[test]
fn the_corpus_and_all_its_prefixes_break_nothing() {
    for (name, stream) in corpus() {
        eprintln!("{name}");
        fuzz_server(&stream);
        for end in 0..stream.len().min(700) {
            fuzz_server(&stream[..end]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_streams_break_nothing(
        which: prop::sample::Index,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        streams in Just(corpus()),
    ) {
        let mut stream = which.get(&streams).1.clone();
        for (at, byte) in changes {
            if !stream.is_empty() {
                let at = at.index(stream.len());
                stream[at] = byte;
            }
        }
        fuzz_server(&stream);
    }

    #[test]
    fn noise_breaks_nothing(noise in prop::collection::vec(any::<u8>(), 0..400), fixed: bool) {
        let flags: &[u8] = if fixed { b"\0\0\0\x01IHAVEOPT\0\0\0" } else { b"" };
        fuzz_server(&[flags, &noise].concat());
    }
}

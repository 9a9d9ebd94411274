//! Replays the corpora of the fuzz targets (`engine/fuzz`), their prefixes, and their inputs with a
//! few bytes changed. `WRITE_CORPUS=1` writes the seeds anew after a format changed.

mod seeds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use taipan_engine::fuzz::TARGETS;

/// Bytes of all corpora together.
const CORPORA_BYTES_MAX: usize = 1 << 20;
/// Prefixes of one input that are tried; of a longer one these are spread over it.
const PREFIXES_MAX: usize = 300;

fn directory(target: &str) -> PathBuf {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    corpora.join(target)
}

/// The inputs of a target's corpus by name, in a fixed order.
fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let inputs = std::fs::read_dir(directory(target)).expect("the corpus");
    inputs
        .map(|input| {
            let input = input.expect("an input of the corpus");
            let bytes = std::fs::read(input.path()).expect("an input of the corpus");
            (input.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect()
}

#[test]
fn the_seeds_are_what_the_engine_writes() {
    let write = std::env::var_os("WRITE_CORPUS").is_some();
    for (target, seeds) in seeds::all() {
        if write {
            std::fs::create_dir_all(directory(target)).expect("a corpus");
            for (name, bytes) in &seeds {
                std::fs::write(directory(target).join(name), bytes).expect("a seed");
            }
        }
        let stored = corpus(target);
        for (name, bytes) in seeds {
            let same = stored.get(name) == Some(&bytes);
            assert!(same, "{target}/{name} differs; see the head of this file");
        }
    }
}

#[test]
fn every_target_has_a_small_corpus_that_reaches_the_values() {
    let mut total = 0;
    for (target, _) in TARGETS {
        let inputs = corpus(target);
        assert!(inputs.len() >= 3, "{target} has {}", inputs.len());
        total += inputs.values().map(Vec::len).sum::<usize>();
    }
    assert!(total <= CORPORA_BYTES_MAX, "{total} bytes");
    for (target, parses) in seeds::parsers() {
        let accepted = corpus(target).values().filter(|b| parses(b)).count();
        assert!(accepted >= 2, "{target}: {accepted} inputs are whole");
    }
}

#[test]
fn the_corpora_and_their_prefixes_break_nothing() {
    for (target, entry) in TARGETS {
        for (name, input) in corpus(target) {
            eprintln!("{target}/{name}");
            entry(&input);
            let step = input.len().div_ceil(PREFIXES_MAX).max(1);
            for end in (0..input.len()).step_by(step) {
                entry(&input[..end]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6000))]

    #[test]
    fn changed_inputs_break_nothing(
        target in 0..TARGETS.len(),
        which: prop::sample::Index,
        changes in prop::collection::vec(
            // Most of what matters is near the start.
            (any::<prop::sample::Index>(), prop::option::of(0..192usize), any::<u8>()),
            1..6,
        ),
        corpora in Just(TARGETS.map(|(target, _)| Vec::from_iter(corpus(target).into_values()))),
    ) {
        let mut input = which.get(&corpora[target]).clone();
        for (anywhere, near, byte) in changes {
            if !input.is_empty() {
                let at = near.unwrap_or_else(|| anywhere.index(input.len())) % input.len();
                input[at] = byte;
            }
        }
        TARGETS[target].1(&input);
    }

    #[test]
    fn noise_breaks_nothing(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        TARGETS.iter().for_each(|(_, entry)| entry(&noise));
    }
}

//! Bytes that nobody in his senses sends, from a seeded generator.

use std::path::Path;

use taipan_nbd::fuzz::{Reached, fuzz_negotiated};

use crate::splitmix::SplitMix;

fn option(stream: &mut Vec<u8>, number: u32, data: &[u8]) {
    stream.extend_from_slice(b"IHAVEOPT");
    stream.extend_from_slice(&number.to_be_bytes());
    stream.extend_from_slice(&(data.len() as u32).to_be_bytes());
    stream.extend_from_slice(data);
}

/// LIST_META_CONTEXT or SET_META_CONTEXT data.
fn context_data(random: &mut SplitMix) -> Vec<u8> {
    const QUERIES: [&str; 8] = [
        "base:allocation",
        "base:allocation",
        "qemu:dirty-bitmap:since-mon",
        "base:",
        "qemu:dirty-bitmap:",
        "x:y",
        ":",
        "plain",
    ];
    let export = if random.once_in(8) { b"a" } else { b"v" };
    let mut data = b"\0\0\0\x01".to_vec();
    data.extend_from_slice(export);
    let count = random.below(4) as u32;
    data.extend_from_slice(&count.to_be_bytes());
    let kinds = if random.once_in(3) { 8 } else { 3 };
    for _ in 0..count {
        let query = QUERIES[random.below(kinds) as usize];
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// One request with either header; the payload, if any, is mostly as long as it should be.
fn request(stream: &mut Vec<u8>, extended: bool, random: &mut SplitMix) {
    let any = random.below(9);
    let command = if random.once_in(3) { 7 } else { any };
    let mut flags = match random.below(4) {
        0 | 1 => 0,
        2 => 8,
        _ => 1_u16 << random.below(7),
    };
    let mut payload = Vec::new();
    if command == 1 {
        let len = random.below(30) as usize;
        payload = random.bytes(len);
    } else if command == 7 && extended && random.once_in(2) {
        flags |= 32;
        payload.extend_from_slice(&(1 + random.below(9000)).to_be_bytes());
        for _ in 0..random.below(3) {
            payload.extend_from_slice(&(random.below(4) as u32).to_be_bytes());
        }
    }
    let length = match random.below(4) {
        _ if !payload.is_empty() => payload.len() as u64,
        0 => random.next() >> random.below(64),
        _ => random.below(1 << 16),
    };
    let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
    stream.extend_from_slice(&magic.to_be_bytes());
    stream.extend_from_slice(&flags.to_be_bytes());
    stream.extend_from_slice(&(command as u16).to_be_bytes());
    stream.extend_from_slice(&random.next().to_be_bytes());
    let offset = random.next() >> random.below(64);
    stream.extend_from_slice(&offset.to_be_bytes());
    if extended {
        stream.extend_from_slice(&length.to_be_bytes());
    } else {
        stream.extend_from_slice(&(length as u32).to_be_bytes());
    }
    stream.extend_from_slice(&payload);
}

/// Options with data that is nearly right, requests of all kinds, and sometimes some noise.
fn client_stream(random: &mut SplitMix) -> Vec<u8> {
    let mut stream = vec![0, 0, 0, 3];
    let headers = random.below(3);
    if headers > 0 {
        option(&mut stream, if headers == 1 { 8 } else { 11 }, b"");
    }
    for _ in 0..random.below(4) {
        let data = context_data(random);
        match random.below(6) {
            0 => option(&mut stream, 9, &data),
            1 => {
                let len = random.below(20) as usize;
                let number = random.below(14) as u32;
                option(&mut stream, number, &random.bytes(len));
            }
            _ => option(&mut stream, 10, &data),
        }
    }
    if !random.once_in(8) {
        option(&mut stream, 7, b"\0\0\0\x01v\0\0");
    }
    for _ in 0..random.below(8) {
        request(&mut stream, headers == 2, random);
    }
    if random.once_in(3) {
        let at = random.below(stream.len() as u64) as usize;
        stream[at] = random.next() as u8;
    }
    stream
}

#[test]
fn streams_that_are_nearly_right_break_nothing() {
    let mut reached = Reached::default();
    for seed in 0..4000 {
        reached += fuzz_negotiated(&client_stream(&mut SplitMix(seed)));
    }
    // Streams that never get anywhere would break nothing either.
    let Reached {
        refused,
        served,
        status,
    } = reached;
    assert!(
        refused > 1000 && served > 1000 && status > 300,
        "{reached:?}"
    );
}

#[test]
fn noise_breaks_nothing() {
    let mut random = SplitMix(7);
    for _ in 0..3000 {
        let len = random.below(300) as usize;
        let mut noise = random.bytes(len);
        fuzz_negotiated(&noise);
        // A magic in front lets the noise reach further.
        let magics: [&[u8]; 3] = [
            &[0x67, 0x44, 0x66, 0x98],
            &[0x66, 0x8e, 0x33, 0xef],
            &[0x6e, 0x8a, 0x27, 0x8c],
        ];
        let magic = magics[random.below(3) as usize];
        noise.splice(..0, magic.iter().copied());
        if noise.len() > 8 {
            // A type that is known more often than not.
            noise[6] = if random.once_in(2) { 0x80 } else { 0 };
            noise[7] = random.below(8) as u8;
        }
        fuzz_negotiated(&noise);
    }
}

/// What real clients send (`TAIPAN_CORPUS` records it), all prefixes, and a few bytes changed.
#[test]
fn the_corpus_its_prefixes_and_its_neighbours_break_nothing() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/negotiated");
    let entries = std::fs::read_dir(directory).expect("the corpus");
    let paths = entries.map(|entry| entry.expect("an entry of the corpus").path());
    let mut streams: Vec<Vec<u8>> = paths
        .map(|path| std::fs::read(path).expect("a stream of the corpus"))
        .collect();
    streams.sort();
    assert!(streams.len() >= 10, "only {} streams", streams.len());
    let mut random = SplitMix(42);
    for stream in streams {
        for end in 0..=stream.len().min(600) {
            fuzz_negotiated(&stream[..end]);
        }
        for _ in 0..200 {
            let mut changed = stream.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(changed.len() as u64) as usize;
                changed[at] = random.next() as u8;
            }
            fuzz_negotiated(&changed);
        }
    }
}

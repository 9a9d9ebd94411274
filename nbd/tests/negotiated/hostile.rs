//! Bytes that nobody in his senses sends, from a seeded generator.

use std::path::Path;

use taipan_nbd::fuzz::fuzz_negotiated;

use crate::splitmix::SplitMix;

/// Options with data that is nearly right, requests of all kinds, and some noise.
fn client_stream(random: &mut SplitMix) -> Vec<u8> {
    let mut stream = vec![0, 0, 0, 3];
    for _ in 0..random.below(5) {
        let number = random.below(14) as u32;
        let data = option_data(number, random);
        stream.extend_from_slice(b"IHAVEOPT");
        stream.extend_from_slice(&number.to_be_bytes());
        stream.extend_from_slice(&(data.len() as u32).to_be_bytes());
        stream.extend_from_slice(&data);
    }
    if !random.once_in(8) {
        stream.extend_from_slice(b"IHAVEOPT\0\0\0\x07\0\0\0\x07\0\0\0\x01v\0\0");
    }
    for _ in 0..random.below(8) {
        let extended = random.once_in(2);
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        stream.extend_from_slice(&magic.to_be_bytes());
        stream.extend_from_slice(&(1_u16 << random.below(7)).to_be_bytes());
        stream.extend_from_slice(&(random.below(9) as u16).to_be_bytes());
        stream.extend_from_slice(&random.next().to_be_bytes());
        stream.extend_from_slice(&(random.next() >> random.below(64)).to_be_bytes());
        let length = random.next() >> random.below(64);
        if extended {
            stream.extend_from_slice(&length.to_be_bytes());
        } else {
            stream.extend_from_slice(&(length as u32).to_be_bytes());
        }
        let payload = random.below(30) as usize;
        stream.extend_from_slice(&random.bytes(payload));
    }
    for _ in 0..random.below(3) {
        let at = random.below(stream.len() as u64) as usize;
        stream[at] = random.next() as u8;
    }
    stream
}

fn option_data(number: u32, random: &mut SplitMix) -> Vec<u8> {
    match number {
        9 | 10 => {
            let mut data = b"\0\0\0\x01v".to_vec();
            let count = random.below(4) as u32;
            data.extend_from_slice(&count.to_be_bytes());
            for _ in 0..count {
                let queries = ["base:allocation", "base:", "qemu:dirty-bitmap:", "x:y", ":"];
                let query = queries[random.below(5) as usize];
                data.extend_from_slice(&(query.len() as u32).to_be_bytes());
                data.extend_from_slice(query.as_bytes());
            }
            data
        }
        8 | 11 if !random.once_in(8) => Vec::new(),
        _ => {
            let len = random.below(20) as usize;
            random.bytes(len)
        }
    }
}

#[test]
fn streams_that_are_nearly_right_break_nothing() {
    for seed in 0..4000 {
        fuzz_negotiated(&client_stream(&mut SplitMix(seed)));
    }
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

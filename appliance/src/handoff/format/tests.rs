//! Golden bytes, every message there and back, and bytes that are no frames.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use taipan_engine::core::Failure;
use taipan_nbd::{Agreement, Errno, HeaderStyle, MetaContext, Request};

use super::*;

fn passed() -> Passed {
    Passed {
        core: 1,
        read_only: false,
        age_ms: 2,
        size_bytes: 4096,
        tally: [3, 4, 5, 6],
        export: "v".to_owned(),
        peer: "p".to_owned(),
        agreement: Agreement {
            headers: HeaderStyle::Structured,
            contexts: vec![MetaContext {
                id: 1,
                name: "a:b".to_owned(),
            }],
            block_status_payload: true,
            df_bytes_max: 7,
        },
        begun: Begun::Write {
            request: Request {
                flags: 1,
                command: 1,
                cookie: 8,
                offset: 9,
                length: 10,
            },
            remaining: 10,
            failure: Some(Failure::Io),
        },
        input: vec![0xaa],
        output: vec![0xbb, 0xcc],
    }
}

fn messages() -> Vec<Message> {
    let text = || "a text".to_owned();
    let refused = Begun::Refused {
        request: Request {
            flags: 0,
            command: 77,
            cookie: u64::MAX,
            offset: 1,
            length: 2,
        },
        remaining: 0,
        errno: Errno::Inval,
    };
    vec![
        Message::Hello {
            pid: 1,
            release: text(),
        },
        Message::Welcome {
            pid: 2,
            release: text(),
            listeners: 3,
        },
        Message::Listener(ListenerNote {
            purpose: Purpose::HandOff,
            activated: true,
            path: text(),
        }),
        Message::Switch,
        Message::Connection(Box::new(passed())),
        Message::Connection(Box::new(Passed {
            begun: refused,
            ..passed()
        })),
        Message::Connection(Box::new(Passed {
            begun: Begun::Nothing,
            ..passed()
        })),
        Message::Parked { connections: 4 },
        Message::Taken,
        Message::Released,
        Message::Refused(text()),
    ]
}

fn decode(frame: &[u8]) -> Result<Message, BadFrame> {
    let (header, body) = frame.split_first_chunk().ok_or(BadFrame::Content)?;
    Message::decode(&Header::decode(header)?, body)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_golden_bytes_of_a_connection() {
    let frame = Message::Connection(Box::new(passed())).encode();
    let header = "5441495048414e440100050081000000000000000000000000000000";
    let body = "0100\
                00\
                01\
                01\
                07000000\
                0200000000000000\
                0010000000000000\
                0300000000000000040000000000000005000000000000000600000000000000\
                0100000076\
                0100000070\
                01000100000003000000613a62\
                01\
                01000100080000000000000009000000000000000a000000000000000a00000000000000\
                01\
                01000000aa\
                02000000bbcc";
    assert_eq!(hex(&frame[..28]), header);
    assert_eq!(hex(&frame[32..]), body);
    let crc = crc32c::crc32c(&[&frame[..28], &frame[32..]].concat());
    assert_eq!(frame[28..32], crc.to_le_bytes());
}

#[test]
fn every_message_comes_back_and_no_byte_of_it_may_be_wrong() {
    for message in messages() {
        let frame = message.encode();
        assert_eq!(decode(&frame), Ok(message.clone()));
        for at in 0..frame.len() {
            let mut wrong = frame.clone();
            wrong[at] ^= 4;
            assert!(decode(&wrong).is_err(), "byte {at} of {message:?}");
        }
        for len in 0..frame.len() {
            assert!(decode(&frame[..len]).is_err(), "{len} bytes of {message:?}");
        }
        let longer = [&frame[..], &[0]].concat();
        assert_eq!(decode(&longer), Err(BadFrame::Content));
    }
}

/// `WRITE_CORPUS=1` writes the seeds anew, after the format changed.
#[test]
fn the_corpus_of_the_fuzz_target_does_no_harm() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let dir = home.join("corpus/handoff");
    if std::env::var_os("WRITE_CORPUS").is_some() {
        for (number, message) in messages().iter().enumerate() {
            fs::write(dir.join(format!("message-{number:02}")), message.encode()).unwrap();
        }
    }
    let replay = |dir: PathBuf| {
        let entries = fs::read_dir(dir).unwrap();
        let inputs = entries.map(|entry| fs::read(entry.unwrap().path()).unwrap());
        inputs.map(|input| fuzz(&input)).count()
    };
    assert!(replay(dir) >= messages().len());
    // What a long run has found.
    assert!(replay(home.join("grown/handoff")) >= 50);
}

#[test]
fn another_version_is_named() {
    let mut frame = Message::Switch.encode();
    frame[8] = 9;
    assert_eq!(decode(&frame), Err(BadFrame::Version(9)));
    assert!(BadFrame::Version(9).to_string().contains("version 9"));
}

#[test]
fn a_length_takes_no_memory_before_its_bytes_are_there() {
    let mut frame = Message::Taken.encode();
    frame[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode(&frame), Err(BadFrame::Content));
}

proptest! {
    #[test]
    fn bytes_that_are_nearly_a_message_do_no_harm(
        which in 0..11_usize,
        at in any::<prop::sample::Index>(),
        with in prop::collection::vec(any::<u8>(), 0..6),
        cut in any::<bool>(),
    ) {
        let mut frame = messages()[which].encode();
        let at = at.index(frame.len());
        if cut {
            frame.truncate(at);
        }
        let at = at.min(frame.len());
        frame.splice(at..at, with);
        fuzz(&frame);
    }
}

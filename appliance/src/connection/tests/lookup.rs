//! Clients that name snapshots: the handshake waits until one is open, or known not to be.

use taipan_engine::identity::ManifestNum;
use taipan_nbd::LookupError;
use taipan_nbd::protocol::{option, option_reply};

use super::*;
use crate::directory::View;

/// The client's flags and a GO for the export.
fn go(name: &str) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(b"IHAVEOPT");
    bytes.extend_from_slice(&option::GO.to_be_bytes());
    bytes.extend_from_slice(&(name.len() as u32 + 6).to_be_bytes());
    bytes.extend_from_slice(&(name.len() as u32).to_be_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes
}

/// A client that has asked for the export, and heard the greeting.
fn asking(name: &str) -> Rig {
    let mut rig = Rig::fresh();
    assert_eq!(rig.received().len(), 18, "the greeting");
    rig.client.write_all(&go(name)).unwrap();
    rig
}

/// The kinds of the replies to GO.
fn kinds(mut bytes: &[u8]) -> Vec<u32> {
    let number = |bytes: &[u8], at: usize| {
        u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    };
    let mut kinds = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(number(bytes, 8), option::GO);
        kinds.push(number(bytes, 12));
        bytes = &bytes[20 + number(bytes, 16) as usize..];
    }
    kinds
}

#[test]
fn a_client_waits_until_its_snapshot_is_open() {
    let mut rig = asking("vol0@daily");
    assert_eq!(rig.turn(), Outcome::Looking);
    let awaited = rig.connection.awaited().unwrap();
    assert_eq!(
        (awaited.export.as_str(), &awaited.context),
        ("vol0@daily", &None)
    );
    assert!(rig.received().is_empty(), "nothing is answered yet");
    let local = LocalHead::named(
        VolumeId(9),
        VolumeName::parse("vol0").unwrap(),
        VolumeSettings::with_size(1 << 20),
    );
    let mut view = Volume::serving(VolumeSlot(1), &local, true);
    *view.read_only.get_mut() = true;
    view.view = Some(View::new("daily".parse().unwrap(), ManifestNum(5)));
    let view = Arc::new(view);
    let name = "vol0@daily".parse().unwrap();
    rig.directory.insert_view(name, Arc::clone(&view));
    let outcome = rig.with(
        |connection, around| match connection.found(Ok(()), around) {
            Outcome::Joining => connection.join(around),
            outcome => outcome,
        },
    );
    assert_eq!(outcome, Outcome::Waiting);
    assert_eq!(
        kinds(&rig.received()),
        [option_reply::INFO, option_reply::ACK]
    );
    assert_eq!(view.readers(), ["test"]);
    assert!(!view.close_unless_read());
    drop(rig);
    assert!(view.readers().is_empty());
    assert!(view.close_unless_read());
}

#[test]
fn a_refused_snapshot_is_told_and_the_handshake_goes_on() {
    let mut rig = asking("vol0@none");
    assert_eq!(rig.turn(), Outcome::Looking);
    let why = LookupError::Policy("too many".to_owned());
    rig.with(|connection, around| connection.found(Err(why), around));
    assert_eq!(kinds(&rig.received()), [option_reply::ERR_POLICY]);
    // Asked again, it is looked for again; another export is there.
    rig.client.write_all(&go("vol0@none")[4..]).unwrap();
    assert_eq!(rig.turn(), Outcome::Looking);
    let unknown = Err(LookupError::Unknown);
    rig.with(|connection, around| connection.found(unknown, around));
    assert_eq!(kinds(&rig.received()), [option_reply::ERR_UNKNOWN]);
    rig.client.write_all(&go("vol0")[4..]).unwrap();
    assert_eq!(
        kinds(&rig.received()),
        [option_reply::INFO, option_reply::ACK]
    );
}

#[test]
fn names_that_are_none_are_refused_at_once() {
    for name in [
        "vol0@",
        "@",
        "vol0@a@b",
        "vol0@a/b",
        "other@a",
        "vol0@\u{7}",
    ] {
        let mut rig = asking(name);
        assert_eq!(
            kinds(&rig.received()),
            [option_reply::ERR_UNKNOWN],
            "{name:?}"
        );
    }
}

//! The server's channel against rustls's own client, in memory.

use std::time::SystemTime;

use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;

use super::*;
use crate::authority::{Authority, Wanted};
use crate::files::CertificateFiles;
use crate::keeper::{Clients, Keeper, Look};

/// A server's directory and a client of the same authority.
struct Site {
    authority: Authority,
    directory: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let authority = Authority::new("ours");
        let directory = tempfile::tempdir().unwrap();
        authority.equip(directory.path(), &Wanted::server());
        Self {
            authority,
            directory,
        }
    }

    fn keeper(&self, clients: Clients) -> Keeper {
        let files = CertificateFiles::of_server(self.directory.path());
        Keeper::load(files, clients).unwrap()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let path = self.directory.path().join("ca-cert.pem");
        let found = crate::files::authorities(&path).unwrap();
        roots.extend(found.roots.iter().cloned());
        roots
    }

    /// A client that shows what `authority` issued to it.
    fn client(&self, shows: Option<(&Authority, Wanted)>) -> ClientConnection {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let config = match shows {
            None => builder.with_no_client_auth(),
            Some((authority, wanted)) => {
                let directory = tempfile::tempdir().unwrap();
                authority.issue(&wanted).write(directory.path(), "client");
                let files = CertificateFiles {
                    certificate: directory.path().join("client-cert.pem"),
                    key: directory.path().join("client-key.pem"),
                    authorities: None,
                };
                let own = files.own().unwrap();
                builder
                    .with_client_auth_cert(own.certificates, own.key)
                    .unwrap()
            }
        };
        let name = ServerName::try_from("localhost").unwrap();
        ClientConnection::new(Arc::new(config), name).unwrap()
    }
}

/// What both ends got, and whether the client has ended.
#[derive(Default)]
struct Got {
    server: Vec<u8>,
    client: Vec<u8>,
    ended: bool,
}

/// Carries bytes both ways, to the server in pieces, until nobody has anything to say.
fn carry(
    server: &mut ServerChannel,
    client: &mut ClientConnection,
    piece_bytes: usize,
) -> Result<Got, TlsError> {
    let mut got = Got::default();
    loop {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut to_server).unwrap();
        }
        for piece in to_server.chunks(piece_bytes) {
            let mut room = vec![0; piece.len() + RECORD_BYTES_MAX];
            let opened = server.open(piece, &mut room)?;
            got.server.extend_from_slice(&room[..opened.bytes]);
            got.ended |= opened.ended;
        }
        while server.wants_send() {
            server.send(&mut to_client).unwrap();
        }
        let mut rest = &to_client[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
            let mut room = [0; 1 << 16];
            while let Ok(n @ 1..) = client.reader().read(&mut room) {
                got.client.extend_from_slice(&room[..n]);
            }
        }
        if to_server.is_empty() && to_client.is_empty() {
            return Ok(got);
        }
    }
}

#[test]
fn what_goes_in_comes_out_in_pieces_of_any_size() {
    let site = Site::new();
    let keeper = site.keeper(Clients::Any);
    for piece_bytes in [1, 700, 100_000] {
        let mut server = ServerChannel::new(keeper.current()).unwrap();
        let mut client = site.client(None);
        client.set_buffer_limit(None);
        assert_eq!(server.seal(b"too early"), 0);
        carry(&mut server, &mut client, piece_bytes).unwrap();
        assert!(!server.is_handshaking());
        assert_eq!((server.version(), server.identity()), (Some("1.3"), None));
        let sent: Vec<u8> = (0..50_000_u32).map(|n| (n * 7) as u8).collect();
        client.writer().write_all(&sent).unwrap();
        let got = carry(&mut server, &mut client, piece_bytes).unwrap();
        assert!(got.server == sent && !got.ended);
        let mut said = 0;
        let mut heard = Vec::new();
        while said < sent.len() {
            said += server.seal(&sent[said..]);
            assert_eq!(server.seal(&sent[said..]), 0, "one portion at a time");
            assert!(server.sealed() > 0);
            let got = carry(&mut server, &mut client, piece_bytes).unwrap();
            heard.extend_from_slice(&got.client);
            assert_eq!(server.sealed(), 0);
        }
        assert!(heard == sent);
        client.send_close_notify();
        assert!(carry(&mut server, &mut client, piece_bytes).unwrap().ended);
    }
}

#[test]
fn clients_must_show_what_is_asked_of_them() {
    let site = Site::new();
    let stranger = Authority::new("another one");
    let good = || Some((&site.authority, Wanted::client("backup")));
    let expired = Wanted {
        expired: true,
        ..Wanted::client("backup")
    };
    let as_server = Wanted {
        server: true,
        ..Wanted::client("backup")
    };
    let rows = [
        ("none, any", Clients::Any, None, Some(None)),
        ("some, any", Clients::Any, good(), Some(None)),
        ("none, may", Clients::MayShow, None, Some(None)),
        (
            "good, may",
            Clients::MayShow,
            good(),
            Some(Some("cn:backup")),
        ),
        ("none, must", Clients::MustShow, None, None),
        (
            "good, must",
            Clients::MustShow,
            good(),
            Some(Some("cn:backup")),
        ),
        (
            "strange, may",
            Clients::MayShow,
            Some((&stranger, Wanted::client("backup"))),
            None,
        ),
        (
            "expired, must",
            Clients::MustShow,
            Some((&site.authority, expired)),
            None,
        ),
        (
            "a server's, must",
            Clients::MustShow,
            Some((&site.authority, as_server)),
            None,
        ),
    ];
    for (what, clients, shows, expected) in rows {
        let mut server = ServerChannel::new(site.keeper(clients).current()).unwrap();
        let mut client = site.client(shows);
        let done = carry(&mut server, &mut client, 1000).is_ok() && !server.is_handshaking();
        let identity = server.identity().map(|identity| identity.to_string());
        let told = done.then_some(identity.as_deref());
        assert_eq!(told, expected, "{what}");
    }
}

#[test]
fn what_is_no_tls_is_refused_with_an_alert_and_never_comes_out() {
    let site = Site::new();
    let keeper = site.keeper(Clients::Any);
    let option = b"IHAVEOPT\0\0\0\x07\0\0\0\x05\0\0\0\0v";
    let hello = {
        let mut bytes = Vec::new();
        site.client(None).write_tls(&mut bytes).unwrap();
        bytes
    };
    let changed = [&hello[..40], &[hello[40] ^ 1; 1], &hello[41..], option].concat();
    for wire in [&option[..], b"GET / HTTP/1.1\r\n\r\n", &changed] {
        let mut server = ServerChannel::new(keeper.current()).unwrap();
        let mut room = vec![0; wire.len() + RECORD_BYTES_MAX];
        let refused = server.open(wire, &mut room);
        assert!(refused.is_err(), "{refused:?}");
        assert!(room.iter().all(|byte| *byte == 0));
        let mut out = Vec::new();
        assert!(server.wants_send());
        server.send(&mut out).unwrap();
        assert!(!out.is_empty(), "an alert");
    }
}

#[test]
fn bad_files_are_refused_and_the_old_ones_stay() {
    let site = Site::new();
    let keeper = site.keeper(Clients::MustShow);
    let before = keeper.current();
    assert!(matches!(keeper.look(false), Look::Same));
    let key = site.directory.path().join("server-key.pem");
    let rows = [
        ("no key", "holds no private key"),
        ("", "holds no private key"),
    ];
    for (text, why) in rows {
        std::fs::write(&key, text).unwrap();
        let Look::Refused(error) = keeper.look(true) else {
            panic!("{text}")
        };
        assert!(error.to_string().contains(why), "{error}");
    }
    let other = site.authority.issue(&Wanted::server());
    other.write(site.directory.path(), "other");
    std::fs::rename(site.directory.path().join("other-key.pem"), &key).unwrap();
    let Look::Refused(error) = keeper.look(false) else {
        panic!("another certificate's key")
    };
    assert!(error.to_string().contains("with its key"), "{error}");
    assert!(matches!(keeper.look(false), Look::Same), "said once");
    assert!(Arc::ptr_eq(&before, &keeper.current()));
    other.write(site.directory.path(), "server");
    assert!(matches!(keeper.look(false), Look::Loaded));
    assert!(!Arc::ptr_eq(&before, &keeper.current()));
    // A file put there with an old date is a new file.
    let old = std::fs::File::options().write(true).open(&key).unwrap();
    old.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert!(matches!(keeper.look(false), Look::Loaded));
}

#[test]
fn certificates_can_be_asked_for_only_if_somebody_is_trusted() {
    let site = Site::new();
    std::fs::remove_file(site.directory.path().join("ca-cert.pem")).unwrap();
    let files = CertificateFiles::of_server(site.directory.path());
    assert!(Keeper::load(files.clone(), Clients::MustShow).is_err());
    assert!(Keeper::load(files, Clients::Any).is_ok());
}

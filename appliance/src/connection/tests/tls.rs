//! Connections under TLS: clients of others, and what lies on the border.

use std::path::{Path, PathBuf};

use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use taipan_nbd::TlsPolicy;
use taipan_nbd::protocol::{option, option_reply};
use taipan_tls::authority::{Authority, Wanted};
use taipan_tls::{CertificateFiles, Clients};

use super::foreign::{COPIED, copy, printed, with_server};
use super::*;
use crate::access::{Access, Grant, Rule};
use crate::config::Tls;

/// Certificates of a server and a client, in folders.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("ours");
        authority.equip(&folder.path().join("server"), &Wanted::server());
        authority.equip(&folder.path().join("client"), &Wanted::client("backup"));
        let authority = Authority::new("another");
        let stranger = folder.path().join("stranger");
        authority.equip(&stranger, &Wanted::client("backup"));
        Self { folder }
    }

    fn path(&self, of: &str) -> PathBuf {
        self.folder.path().join(of)
    }

    fn service(&self, policy: TlsPolicy, clients: Clients) -> Arc<TlsService> {
        let settings = Tls {
            files: CertificateFiles::of_server(&self.path("server")),
            clients,
            tcp: policy,
            unix: policy,
        };
        Arc::new(TlsService::load(&settings).unwrap())
    }

    fn rig(&self, policy: TlsPolicy) -> Rig {
        Rig::fresh_with(
            &Allowance::new(1 << 30),
            Some(self.service(policy, Clients::MayShow)),
        )
    }

    /// TLS of a client that shows a certificate.
    fn client(&self) -> ClientConnection {
        let read = |name: &str| std::fs::read(self.path("client").join(name)).unwrap();
        let certificate = |name| CertificateDer::from_pem_slice(&read(name)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate("ca-cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&read("client-key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate("client-cert.pem")], key)
            .unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        client.set_buffer_limit(None);
        client
    }
}

fn asked(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn go() -> Vec<u8> {
    asked(option::GO, b"\0\0\0\x04vol0\0\0")
}

/// Type of each reply to an option.
fn kinds(mut bytes: &[u8]) -> Vec<u32> {
    let mut kinds = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<20>() {
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        kinds.push(word(12));
        bytes = &rest[word(16) as usize..];
    }
    kinds
}

impl Rig {
    /// The greeting, then what the server says to these bytes; it may close.
    fn told(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.client.write_all(bytes).unwrap();
        self.heard()
    }

    /// Turns until the server has nothing more to do; what it said, be it closed or not.
    fn heard(&mut self) -> Vec<u8> {
        let mut heard = Vec::new();
        for _ in 0..20 {
            self.now_ns += 1_000_000_000;
            if !self.connection.is_over() {
                self.turn();
                self.flush();
            }
            let _ = self.client.read_to_end(&mut heard);
        }
        heard
    }

    fn start_tls(&mut self) {
        self.heard();
        let start = [&[0, 0, 0, 3][..], &asked(option::STARTTLS, b"")].concat();
        assert_eq!(kinds(&self.told(&start)), [option_reply::ACK]);
    }

    /// What the server says through TLS to these bytes.
    fn through(&mut self, client: &mut ClientConnection, bytes: &[u8]) -> Vec<u8> {
        client.writer().write_all(bytes).unwrap();
        let mut plain = Vec::new();
        for _ in 0..1000 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = &wire[..];
            let mut heard = Vec::new();
            while !rest.is_empty() {
                match self.client.write(rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                heard.extend(self.heard());
            }
            heard.extend(self.heard());
            if wire.is_empty() && heard.is_empty() {
                break;
            }
            let mut rest = &heard[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
                let mut room = [0; 1 << 16];
                while let Ok(n @ 1..) = client.reader().read(&mut room) {
                    plain.extend_from_slice(&room[..n]);
                }
            }
        }
        plain
    }
}

const SERVED: [u32; 2] = [option_reply::INFO, option_reply::ACK];

#[test]
fn large_requests_go_through_tls_in_both_directions() {
    let site = Site::new();
    let mut rig = site.rig(TlsPolicy::Require);
    rig.limits.bytes_max = 64 << 20;
    rig.start_tls();
    let mut client = site.client();
    assert_eq!(kinds(&rig.through(&mut client, &go())), SERVED);
    assert!(rig.connection.is_tls() && rig.connection.volume().is_some());
    let info = rig.connection.info(0, 1.0);
    assert_eq!(info.identity.as_deref(), Some("cn:backup"));
    assert_eq!(info.features[0], "tls_1.3");
    // Taken in piece by piece, as it is longer than half the receive buffer.
    const BYTES: usize = 300 << 10;
    let data: Vec<u8> = (0..BYTES as u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let header = |command: u16| {
        let mut bytes = Vec::new();
        let request = Request {
            flags: 0,
            command,
            cookie: 7,
            offset: 4096,
            length: BYTES as u64,
        };
        request.append(HeaderStyle::Simple, &mut bytes).unwrap();
        bytes
    };
    let write = [header(command::WRITE), data.clone()].concat();
    let mut answer = rig.through(&mut client, &write);
    rig.carry_out();
    answer.extend(rig.through(&mut client, &[]));
    assert_eq!(answer, simple_reply(None, 7));
    let read = rig.through(&mut client, &header(command::READ));
    assert!(read[..16] == simple_reply(None, 7) && read[16..] == data);
    client.send_close_notify();
    rig.through(&mut client, &[]);
    assert!(rig.connection.is_over(), "the client has said goodbye");
}

#[test]
fn nothing_in_the_clear_counts_behind_starttls() {
    let site = Site::new();
    for policy in [TlsPolicy::Allow, TlsPolicy::Require] {
        let start = [&[0, 0, 0, 3][..], &asked(option::STARTTLS, b"")].concat();
        let mut rig = site.rig(policy);
        rig.heard();
        let told = rig.told(&[start, go()].concat());
        assert!(told.is_empty() && rig.connection.is_over(), "injected");

        let mut rig = site.rig(policy);
        rig.start_tls();
        let told = rig.told(&go());
        assert!(rig.connection.is_over(), "no TLS");
        assert_eq!(told.first(), Some(&21), "an alert of TLS");
        assert!(rig.connection.volume().is_none());
    }
}

#[test]
fn without_tls_a_client_gets_nothing_where_it_is_required() {
    let site = Site::new();
    let mut rig = site.rig(TlsPolicy::Require);
    rig.heard();
    let all = [vec![0, 0, 0, 3], go(), asked(option::LIST, b"")].concat();
    let refused = [option_reply::ERR_TLS_REQD; 2];
    assert_eq!(kinds(&rig.told(&all)), refused);
    let mut rig = site.rig(TlsPolicy::Allow);
    rig.heard();
    assert_eq!(kinds(&rig.told(&[vec![0, 0, 0, 3], go()].concat())), SERVED);
}

#[test]
fn a_handshake_that_does_not_end_is_overdue_under_tls_too() {
    let site = Site::new();
    let mut rig = site.rig(TlsPolicy::Require);
    rig.start_tls();
    let mut hello = Vec::new();
    site.client().write_tls(&mut hello).unwrap();
    for byte in &hello[..hello.len() - 1] {
        assert!(rig.told(&[*byte]).is_empty());
    }
    assert!(rig.connection.is_overdue(u64::MAX) && !rig.connection.is_over());
    assert!(rig.connection.share.held() < 64 << 10);
}

#[test]
fn a_client_under_tls_that_reads_nothing_holds_a_bounded_amount() {
    let site = Site::new();
    let mut rig = site.rig(TlsPolicy::Require);
    rig.limits.bytes_max = 64 << 20;
    rig.start_tls();
    let mut client = site.client();
    rig.through(&mut client, &go());
    let mut requests = Vec::new();
    for _ in 0..200 {
        let request = Request {
            flags: 0,
            command: command::READ,
            cookie: 1,
            offset: 0,
            length: 256 << 10,
        };
        request.append(HeaderStyle::Simple, &mut requests).unwrap();
    }
    client.writer().write_all(&requests).unwrap();
    client.write_tls(&mut rig.client).unwrap();
    for _ in 0..200 {
        rig.turn();
        rig.flush();
    }
    let held = rig.connection.share.held();
    let most = (2 * SEND_BYTES_MAX + (1 << 20)) as u64;
    assert!(held > 1 << 20 && held < most, "{held}");
    assert!(rig.connection.unread);
}

#[test]
fn rules_know_clients_by_their_certificates() {
    let site = Site::new();
    let rule = |certificate: &str, grant| Rule {
        volumes: vec!["vol0".parse().unwrap()],
        clients: Vec::new(),
        certificates: vec![certificate.parse().unwrap()],
        grant,
    };
    let policy = option_reply::ERR_POLICY;
    let rows = [
        ("cn:backup", Grant::Read, SERVED.to_vec()),
        ("cn:other", Grant::Write, vec![policy]),
    ];
    for (certificate, grant, expected) in rows {
        let mut rig = site.rig(TlsPolicy::Allow);
        let access = Access {
            rules: vec![rule(certificate, grant)],
            ..Access::default()
        };
        let volumes = std::mem::take(&mut rig.directory).all();
        rig.directory = Directory::with_access(access);
        volumes.into_iter().for_each(|v| rig.directory.insert(v));
        rig.heard();
        let clear = rig.told(&[vec![0, 0, 0, 3], go()].concat());
        assert_eq!(kinds(&clear), [option_reply::ERR_TLS_REQD]);
        let start = rig.told(&asked(option::STARTTLS, b""));
        assert_eq!(kinds(&start), [option_reply::ACK]);
        let told = rig.through(&mut site.client(), &go());
        assert_eq!(kinds(&told), expected);
        if grant == Grant::Read {
            assert_eq!(told[31] & 2, 2, "read-only");
        }
    }
}

/// Whether the program, if it is there, fails, and says so.
fn refused(program: &str, arguments: &[&str]) -> Option<bool> {
    let ran = std::process::Command::new("timeout")
        .args(["20", program])
        .args(arguments)
        .output();
    match ran.expect("coreutils' timeout runs").status.code() {
        Some(127) => None,
        code => Some(code != Some(0) && code != Some(124)),
    }
}

fn uri(socket: &Path, certificates: &Path) -> String {
    let (socket, certificates) = (socket.display(), certificates.display());
    format!("nbds+unix:///vol0?socket={socket}&tls-certificates={certificates}")
}

#[test]
fn clients_of_others_copy_through_tls() {
    let site = Site::new();
    let service = site.service(TlsPolicy::Require, Clients::MustShow);
    with_server(COPIED, Some(service), |socket, folder| {
        copy(&uri(socket, &site.path("client")), folder);
        let creds = format!(
            "tls-creds-x509,id=t,endpoint=client,dir={}",
            site.path("client").display()
        );
        let image = format!(
            "driver=nbd,server.type=unix,server.path={},export=vol0,tls-creds=t,\
             tls-hostname=localhost",
            socket.display()
        );
        let seen = ["--object", &creds, "--image-opts", &image];
        let io = ["-c", "read 1M 64k", "-c", "write -P 5 9M 1M", "-c", "flush"];
        printed("qemu-io", &[&seen[..2], &io, &seen[2..]].concat());
        printed("qemu-img", &[&["map"][..], &seen].concat());
        let path = socket.display().to_string();
        let list = ["-L", "-k", &path, "--object", &creds, "--tls-creds", "t"];
        let named = ["--tls-hostname", "localhost"];
        printed("qemu-nbd", &[&list[..], &named].concat());
    });
}

#[test]
fn clients_of_others_are_refused_without_what_is_required() {
    let site = Site::new();
    let service = site.service(TlsPolicy::Require, Clients::MustShow);
    with_server(COPIED, Some(service), |socket, _| {
        let plain = format!("nbd+unix:///vol0?socket={}", socket.display());
        let strange = uri(socket, &site.path("stranger"));
        for uri in [plain, strange] {
            assert_ne!(refused("nbdinfo", &[&uri]), Some(false), "{uri}");
        }
    });
}

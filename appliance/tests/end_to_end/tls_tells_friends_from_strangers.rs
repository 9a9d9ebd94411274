//! Under TLS only clients with a certificate of the right authority get anything, and what its
//! names are granted; new certificates are used without a restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use taipan_tls::authority::{Authority, Wanted};

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::program::Program;
use crate::harness::{built, wait_until};

const LIMIT: Duration = Duration::from_secs(180);
const RULES: &str = r#"
[[access]]
volumes = ["vol0"]
certificates = ["cn:writer"]
grant = "write"

[[access]]
volumes = ["vol0"]
certificates = ["cn:read*"]
grant = "read"
"#;

/// A daemon's certificates, and those of several clients.
struct Site {
    rig: Rig,
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        let rig = Rig::new(&["vol0:64MiB"]);
        let (authority, stranger) = (Authority::new("ours"), Authority::new("another"));
        authority.equip(&rig.path("server"), &Wanted::server());
        for name in ["writer", "reader", "nobody"] {
            authority.equip(&rig.path(name), &Wanted::client(name));
        }
        let late = Wanted {
            expired: true,
            ..Wanted::client("writer")
        };
        authority.equip(&rig.path("late"), &late);
        stranger.equip(&rig.path("stranger"), &Wanted::client("writer"));
        // Trusts us, and shows what another authority gave it.
        authority.write(&rig.path("stranger"));
        fs::create_dir(rig.path("bare")).expect("a directory");
        authority.write(&rig.path("bare"));
        // Trusts another authority.
        authority.equip(&rig.path("deceived"), &Wanted::client("writer"));
        stranger.write(&rig.path("deceived"));
        Self { rig, authority }
    }

    fn start(&self) -> Daemon {
        let config = self.rig.path("rules.toml");
        fs::write(&config, RULES).expect("a configuration file");
        let config = format!("--config={}", config.display());
        let server = self.rig.path("server");
        let certificates = format!("--tls-certificates={}", server.display());
        self.rig.start_with(&[&config, &certificates], "")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rig.path(name)
    }
}

fn uri(daemon: &Daemon, certificates: &Path) -> String {
    let (port, certificates) = (daemon.tcp.port(), certificates.display());
    format!("nbds://localhost:{port}/vol0?tls-certificates={certificates}")
}

fn nbdinfo(uri: &str) -> Program {
    Program::new("nbdinfo", LIMIT).arg(uri)
}

/// qemu-io with the certificates in a directory.
fn qemu_io(daemon: &Daemon, certificates: &Path, command: &str) -> Program {
    let certificates = certificates.display();
    let port = daemon.tcp.port();
    Program::new("qemu-io", LIMIT)
        .arg("--object")
        .arg(format!(
            "tls-creds-x509,id=t,endpoint=client,dir={certificates}"
        ))
        .args("-c")
        .arg(command)
        .arg("--image-opts")
        .arg(format!(
            "driver=nbd,host=localhost,port={port},export=vol0,tls-creds=t"
        ))
}

#[test]
fn tls_tells_friends_from_strangers() {
    let site = Site::new();
    let daemon = site.start();
    let (writer, reader) = (site.path("writer"), site.path("reader"));
    qemu_io(&daemon, &writer, "write -P 5 0 1M").succeed();
    qemu_io(&daemon, &writer, "read -P 5 0 1M").succeed();
    let copy = site.path("copy");
    let copies = Program::new("nbdcopy", LIMIT).args("-C 4");
    copies.arg(uri(&daemon, &reader)).arg(&copy).succeed();
    assert_eq!(fs::read(&copy).expect("the copy")[..1 << 20], [5; 1 << 20]);
    let only_read = nbdinfo(&uri(&daemon, &reader)).args("--is read-only");
    only_read.succeed();
    let refused = qemu_io(&daemon, &site.path("nobody"), "read 0 512").fail();
    assert!(refused.contains("Denied by server"), "{refused}");
    for (who, logged) in [
        ("bare", "peer sent no certificates"),
        ("stranger", "peer sent no certificates"),
        ("deceived", "does it trust the certificate?"),
    ] {
        nbdinfo(&uri(&daemon, &site.path(who))).fail();
        daemon.await_log(logged, LIMIT);
    }
    nbdinfo(&uri(&daemon, &site.path("late"))).fail();
    let plain = nbdinfo(&daemon.tcp_uri("vol0")).fail();
    assert!(plain.contains("TLS"), "{plain}");
    // The unix socket is nobody's of these rules, in the clear or not.
    let local = nbdinfo(&daemon.uri("vol0")).fail();
    assert!(local.contains("TLS"), "{local}");
    let inside = format!(
        "{}&tls-certificates={}",
        daemon.uri("vol0"),
        writer.display()
    );
    nbdinfo(&inside.replacen("nbd", "nbds", 1)).succeed();
    daemon.await_log("version=\"1.3\" who=cn:writer", LIMIT);
    daemon.stop();
}

/// `taipan` on the volume over TCP.
fn taipan(daemon: &Daemon, certificates: &Path) -> Program {
    let (port, certificates) = (daemon.tcp.port(), certificates.display());
    let server = format!("nbds://localhost:{port}?tls-certificates={certificates}");
    daemon.taipan().arg("--nbd").arg(server)
}

#[test]
fn the_command_copies_through_tls() {
    let site = Site::new();
    let daemon = site.start();
    let (writer, reader) = (site.path("writer"), site.path("reader"));
    let (from, to) = (site.path("from"), site.path("to"));
    let data: Vec<u8> = (0..64 << 20).map(|n: u32| (n >> 5) as u8).collect();
    fs::write(&from, &data).expect("a file");
    let import = |who: &Path| taipan(&daemon, who).arg("import").arg(&from).arg("vol0");
    let export = |who: &Path| taipan(&daemon, who).args("export vol0 --force").arg(&to);
    import(&writer).succeed();
    export(&reader).succeed();
    assert!(fs::read(&to).expect("the copy") == data);
    let refused = import(&reader).fail();
    assert!(refused.contains("read-only"), "{refused}");
    let deceived = export(&site.path("deceived")).fail();
    assert!(deceived.contains("invalid peer certificate"), "{deceived}");
    export(&site.path("bare")).fail();
    let plain = format!("nbd://localhost:{}", daemon.tcp.port());
    let plain = daemon.taipan().arg("--nbd").arg(plain);
    let refused = plain.args("export vol0").arg(site.path("none")).fail();
    assert!(refused.contains("TLS required"), "{refused}");
    daemon.stop();
}

#[test]
fn the_bench_verifies_through_tls() {
    let site = Site::new();
    let daemon = site.start();
    let load = |who: &Path, options: &str| {
        let bench = Program::new(built("taipan-bench"), LIMIT).arg("run");
        let bench = bench.arg(uri(&daemon, who)).args(options);
        bench.args("--size 32m --progress never")
    };
    let writer = site.path("writer");
    // Replies of more bytes than both sides hold, beside requests that are as large.
    load(
        &writer,
        "--rw randrw --bs 1m --iodepth 24 --numjobs 2 --verify crc32c",
    )
    .succeed();
    load(&writer, "--rw randwrite --bs 4k --iodepth 32 --fsync 16").succeed();
    load(&site.path("reader"), "--rw randread --bs 4k --iodepth 1").succeed();
    load(&site.path("reader"), "--rw write --bs 4k").fail();
    load(&site.path("bare"), "--rw read --bs 4k").fail();
    daemon.stop();
}

#[test]
fn new_certificates_are_used_without_a_restart() {
    let site = Site::new();
    let daemon = site.start();
    let (server, writer) = (site.path("server"), site.path("writer"));
    nbdinfo(&uri(&daemon, &writer)).succeed();
    let key = server.join("server-key.pem");
    let old = fs::read(&key).expect("the key");
    fs::write(&key, "no key").expect("a file");
    daemon.hang_up();
    daemon.await_log("the new certificates cannot be used", LIMIT);
    nbdinfo(&uri(&daemon, &writer)).succeed();
    fs::write(&key, old).expect("a file");
    // All of another authority: only its clients are known soon, without any signal.
    let other = Authority::new("its successor");
    other.equip(&server, &Wanted::server());
    wait_until("the old client to be refused", LIMIT, || {
        !nbdinfo(&uri(&daemon, &writer)).run().status.success()
    });
    daemon.await_log("new certificates are in use", LIMIT);
    other.equip(&writer, &Wanted::client("writer"));
    wait_until("the successor's files", LIMIT, || {
        nbdinfo(&uri(&daemon, &writer)).run().status.success()
    });
    site.authority.equip(&writer, &Wanted::client("writer"));
    nbdinfo(&uri(&daemon, &writer)).fail();
    daemon.stop();
}

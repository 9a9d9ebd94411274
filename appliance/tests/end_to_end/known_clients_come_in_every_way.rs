//! The clients that people have, each over the unix socket, over TCP, and both under TLS where the
//! client can: what it is told is right, and what it writes comes back.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use taipan_tls::authority::{Authority, Wanted};

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::pattern;
use crate::harness::program::Program;

const LIMIT: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;
/// Of `data:` and of the image that is copied there.
const SIZE: u64 = 32 * MIB;
/// Where the image holds data: start and length.
const DATA: [(u64, u64); 2] = [(0, 3 * MIB), (20 * MIB, MIB)];

/// A daemon with certificates, and what its clients copy.
struct Site {
    rig: Rig,
    daemon: Daemon,
}

/// How a client reaches the daemon.
#[derive(Clone, Copy, Debug)]
struct Way {
    tcp: bool,
    tls: bool,
}

const WAYS: [Way; 4] = [
    Way {
        tcp: false,
        tls: false,
    },
    Way {
        tcp: true,
        tls: false,
    },
    Way {
        tcp: false,
        tls: true,
    },
    Way {
        tcp: true,
        tls: true,
    },
];

impl Site {
    fn start() -> Self {
        let volumes = ["data:32MiB", "scratch:64MiB", "disk:64MiB"];
        let rig = Rig::new(&volumes).with_flags(&["--tls=allow"]);
        let authority = Authority::new("ours");
        authority.equip(&rig.path("server"), &Wanted::server());
        authority.equip(&rig.path("client"), &Wanted::client("somebody"));
        let mut image = vec![0; SIZE as usize];
        for (start, len) in DATA {
            let part = pattern(start, 1, len as usize);
            image[start as usize..(start + len) as usize].copy_from_slice(&part);
        }
        fs::write(rig.path("image"), image).expect("an image");
        let certificates = format!("--tls-certificates={}", rig.path("server").display());
        let daemon = rig.start_with(&[&certificates], "");
        Self { rig, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rig.path(name)
    }

    /// As libnbd and nbdkit name a volume.
    fn uri(&self, way: Way, volume: &str) -> String {
        let port = self.daemon.tcp.port();
        let plain = match way.tcp {
            true => format!("nbd://localhost:{port}/{volume}?"),
            false => format!("{}&", self.daemon.uri(volume)),
        };
        match way.tls {
            true => {
                let certificates = self.path("client");
                let sealed = plain.replacen("nbd", "nbds", 1);
                format!("{sealed}tls-certificates={}", certificates.display())
            }
            false => plain[..plain.len() - 1].to_owned(),
        }
    }

    /// As QEMU names a volume in `--image-opts`, below `prefix`.
    fn options(&self, way: Way, volume: &str, prefix: &str) -> String {
        let server = match way.tcp {
            true => {
                let port = self.daemon.tcp.port();
                format!("{prefix}server.host=127.0.0.1,{prefix}server.port={port}")
            }
            false => format!("{prefix}server.path={}", self.daemon.socket().display()),
        };
        let kind = if way.tcp { "inet" } else { "unix" };
        let tls = match way.tls {
            true => format!(",{prefix}tls-creds=t,{prefix}tls-hostname=localhost"),
            false => String::new(),
        };
        format!(
            "{prefix}driver=nbd,{prefix}export={volume},{prefix}server.type={kind},{server}{tls}"
        )
    }

    /// A program of QEMU with what it needs for TLS.
    fn qemu(&self, way: Way, program: &str, command: &str) -> Program {
        let program = Program::new(program, LIMIT).args(command);
        let directory = self.path("client");
        let object = format!(
            "tls-creds-x509,id=t,endpoint=client,dir={}",
            directory.display()
        );
        match way.tls {
            true => program.arg("--object").arg(object),
            false => program,
        }
    }

    /// The file has the image's content.
    fn is_image(&self, copy: &str) {
        let (image, copy) = (self.path("image"), self.path(copy));
        Program::new("cmp", LIMIT).arg(image).arg(&copy).succeed();
        fs::remove_file(copy).expect("the copy is removed");
    }
}

fn json(printed: &str) -> Value {
    serde_json::from_str(printed).expect("JSON")
}

/// libnbd: `nbdinfo` and `nbdcopy`, of one release or the other.
fn libnbd(site: &Site, way: Way, program: fn(&str, Duration) -> Program) {
    let (data, scratch) = (site.uri(way, "data"), site.uri(way, "scratch"));
    let image = site.path("image");
    let told = program("nbdinfo", LIMIT).args("--json").arg(&data);
    let told = json(&told.succeed());
    assert_eq!(told["exports"][0]["export-size"], SIZE, "{told}");
    assert_eq!(told["TLS"], way.tls, "{told}");
    let copy = || program("nbdcopy", LIMIT).args("--flush -T4 -C4");
    copy().arg(&image).arg(&data).succeed();
    copy().arg(&data).arg(site.path("copy")).succeed();
    site.is_image("copy");
    let totals = program("nbdinfo", LIMIT).args("--map --totals --json");
    let totals = json(&totals.arg(&data).succeed());
    let data_bytes: u64 = DATA.iter().map(|(_, len)| len).sum();
    let of_type = |kind: u64| totals.as_array()?.iter().find(|t| t["type"] == kind);
    let data_told = of_type(0).map(|total| &total["size"]);
    assert_eq!(data_told, Some(&Value::from(data_bytes)), "{totals}");
    copy().arg(&data).arg(&scratch).succeed();
}

/// nbdkit's plugin between libnbd and the daemon.
fn nbdkit(site: &Site, way: Way) {
    let port = site.daemon.tcp.port();
    let place = match way.tcp {
        true => format!("hostname=localhost port={port}"),
        false => format!("socket={}", site.daemon.socket().display()),
    };
    let certificates = site.path("client");
    let tls = match way.tls {
        true => format!("tls=require tls-certificates={}", certificates.display()),
        false => "tls=off".to_owned(),
    };
    Program::new("nbdkit", LIMIT)
        .args("-U - nbd export=data shared=true")
        .args(&format!("{place} {tls}"))
        .args("--run")
        .arg("nbdcopy -T4 -C4 \"$uri\" \"$COPY\"")
        .env("COPY", site.path("copy"))
        .succeed();
    site.is_image("copy");
}

/// `qemu-img`: map, convert, compare, bench, check.
fn qemu_img(site: &Site, way: Way) {
    let qemu_img = |command: &str| site.qemu(way, "qemu-img", command);
    let options = |volume: &str| site.options(way, volume, "");
    let map = qemu_img("map --output=json --image-opts").arg(options("data"));
    let map = json(&map.succeed());
    let extents = map.as_array().expect("extents").iter();
    let range = |e: &Value| (e["start"].as_u64(), e["length"].as_u64());
    let data = extents.filter(|extent| extent["data"] == true).map(range);
    let expected = DATA.map(|(start, len)| (Some(start), Some(len)));
    assert_eq!(data.collect::<Vec<_>>(), expected);
    let image = site.path("image");
    qemu_img("convert -n --image-opts --target-image-opts -W -m 8")
        .arg(format!("driver=raw,file.filename={}", image.display()))
        .arg(options("data"))
        .succeed();
    qemu_img("convert -O raw --image-opts")
        .arg(options("data"))
        .arg(site.path("copy"))
        .succeed();
    site.is_image("copy");
    // It takes no `--object`, and so no certificates.
    let benches = match way.tls {
        true => [].as_slice(),
        false => &["", "-w --flush-interval=16"],
    };
    for writes in benches {
        let bench = qemu_img("bench -c 200 -d 16 -s 4k --image-opts").args(writes);
        bench.arg(options("scratch")).succeed();
    }
    // A raw volume has nothing to check: an image of QEMU's own on one has.
    let own = site.path("own.qcow2");
    qemu_img("convert -f raw -O qcow2")
        .arg(image)
        .arg(&own)
        .succeed();
    let copy = Program::new("nbdcopy", LIMIT).args("--flush").arg(own);
    copy.arg(site.uri(way, "disk")).succeed();
    let nested = format!("driver=qcow2,{}", site.options(way, "disk", "file."));
    let checked = qemu_img("check --image-opts").arg(nested).succeed();
    assert!(checked.contains("No errors"), "{checked}");
}

/// `qemu-io`: every kind of request.
fn qemu_io(site: &Site, way: Way) {
    let mut qemu_io = site.qemu(way, "qemu-io", "");
    for command in [
        "write -P 0x5a 0 1M",
        "write -P 0x11 1000 3000",
        "write -f -P 7 2M 4k",
        "write -z -u 64k 8k",
        "discard 128k 64k",
        "flush",
        "read -P 0x11 1000 3000",
        "read -P 0 64k 8k",
        "read -P 0 128k 64k",
        "read -P 0x5a 256k 768k",
        "read -P 7 2M 4k",
    ] {
        qemu_io = qemu_io.arg("-c").arg(command);
    }
    let options = site.options(way, "scratch", "");
    let printed = qemu_io.arg("--image-opts").arg(options).succeed();
    assert!(!printed.contains("verification failed"), "{printed}");
}

/// `qemu-nbd -L`: another parser of the handshake.
fn qemu_nbd(site: &Site, way: Way) {
    let list = site.qemu(way, "qemu-nbd", "-L");
    let list = match way.tls {
        true => list.args("--tls-creds t --tls-hostname localhost"),
        false => list,
    };
    let port = site.daemon.tcp.port();
    let listed = match way.tcp {
        true => list.args(&format!("-b 127.0.0.1 -p {port}")),
        false => list.arg("-k").arg(site.daemon.socket()),
    };
    let listed = listed.succeed();
    for text in ["exports available: 3", "'scratch'", "64-bit", "taipan:"] {
        assert!(listed.contains(text), "{text}: {listed}");
    }
}

/// fio, whose engine knows no certificates.
fn fio(site: &Site, way: Way) {
    Program::new("fio", LIMIT)
        .within(&site.path(""))
        .args("--name=way --ioengine=nbd --rw=randrw --bs=4k --iodepth=16 --size=4m --fsync=32")
        .args("--verify=crc32c --verify_fatal=1 --verify_state_save=0")
        .arg(format!("--uri={}", site.uri(way, "scratch")))
        .succeed();
}

#[test]
fn known_clients_come_in_every_way() {
    let site = Site::start();
    for way in WAYS {
        println!("{way:?}");
        libnbd(&site, way, |program, limit| Program::new(program, limit));
        libnbd(&site, way, Program::of_newer_libnbd);
        nbdkit(&site, way);
        qemu_img(&site, way);
        qemu_io(&site, way);
        qemu_nbd(&site, way);
        if !way.tls {
            fio(&site, way);
        }
    }
    site.daemon.stop();
}

//! A volume as a block device, beyond [`the_kernel_client_keeps_its_files`]: Linux's own NBD client
//! in a guest discards a terabyte at once, is attached again after a restart, and comes under TLS;
//! file systems are made on a terabyte.
//!
//! [`the_kernel_client_keeps_its_files`]: crate::the_kernel_client_keeps_its_files

use std::time::Duration;

use taipan_tls::authority::{Authority, Wanted};

use crate::harness::daemon::Rig;
use crate::harness::guest::Image;
use crate::harness::program::Program;

const STEP: Duration = Duration::from_secs(400);
/// What a discarded terabyte, or empty file systems there, may cost in memory.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// The client's certificates as a disk of the guest: an archive.
fn certificates(rig: &Rig) -> Vec<String> {
    let authority = Authority::new("ours");
    authority.equip(&rig.path("server"), &Wanted::server());
    authority.equip(&rig.path("client"), &Wanted::client("guest"));
    let archive = rig.path("certificates.tar");
    let tar = Program::new("tar", STEP).arg("-cf").arg(&archive);
    let tar = tar.arg("-C").arg(rig.path("client"));
    tar.args("ca-cert.pem client-cert.pem client-key.pem")
        .succeed();
    let file = archive.display();
    vec![
        "-blockdev".to_owned(),
        format!("driver=file,node-name=certificates,read-only=on,filename={file}"),
        "-device".to_owned(),
        "virtio-blk-pci,drive=certificates,serial=certificates".to_owned(),
    ]
}

#[test]
fn the_kernel_client_comes_in_every_way() {
    let rig = Rig::new(&["vol0:1TiB", "small:64MiB"]).with_flags(&["--tls=allow"]);
    let disk = certificates(&rig);
    let tls = format!("--tls-certificates={}", rig.path("server").display());
    let image = Image::without_tree();
    let daemon = rig.start_with(&[&tls], "");
    let port = daemon.tcp.port();
    let mut guest = image.boot("kernel_client_ways", port, &disk);

    let before = daemon.resident_bytes();
    println!("{}", guest.await_step("discarded", STEP));
    let grown = daemon.resident_bytes().saturating_sub(before);
    println!("{} KiB more resident", grown >> 10);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more resident");

    guest.await_step("at rest", STEP);
    daemon.stop();
    let daemon = rig.start_with(&[&tls, &format!("--listen=127.0.0.1:{port}")], "");
    guest.tell("restarted");
    guest.await_step("done", STEP);
    println!("{}", guest.ended());
    daemon.await_log("who=cn:guest", STEP);
    daemon.stop();
}

/// A file that is the volume, as long as `COMMANDS` run in its folder.
const WITH_A_FILE: &str = r#"
nbdfuse "$FOLDER/" "$VOLUME" & fuse=$!
trap 'umount "$FOLDER"; wait "$fuse"' EXIT
until [ -e "$FOLDER/nbd" ]; do kill -0 "$fuse" && sleep 0.05 || exit; done
cd "$FOLDER/.." && eval "$COMMANDS"
"#;

#[test]
fn file_systems_are_made_on_a_terabyte() {
    let rig = Rig::new(&["vol0:1TiB"]);
    let daemon = rig.start();
    let folder = rig.path("mounted");
    std::fs::create_dir(&folder).expect("a directory");
    let before = daemon.resident_bytes();
    for (make, check) in [
        ("mkfs.ext4 -q -F", "e2fsck -fn"),
        ("mkfs.xfs -q -f", "xfs_repair -n -f"),
    ] {
        let file = "mounted/nbd";
        let commands = format!("{make} {file} && {check} {file}");
        Program::new("sh", STEP)
            .arg("-ec")
            .arg(WITH_A_FILE)
            .env("FOLDER", &folder)
            .env("VOLUME", daemon.uri("vol0"))
            .env("COMMANDS", commands)
            .succeed();
    }
    let grown = daemon.resident_bytes().saturating_sub(before);
    println!("{} KiB more resident", grown >> 10);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more resident");
    daemon.stop();
}

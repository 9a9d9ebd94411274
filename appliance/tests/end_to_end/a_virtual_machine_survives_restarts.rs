//! A guest whose disk is the volume, through QEMU's own NBD client with `reconnect-delay`: the
//! server is killed, or told to end, and comes back under write load, and the guest sees no I/O
//! error.

use std::time::{Duration, Instant};

use crate::harness::daemon::Rig;
use crate::harness::guest::Image;

const STEP: Duration = Duration::from_secs(400);

#[test]
fn a_guest_sees_no_error_while_the_server_goes_and_comes() {
    let rig = Rig::new(&["vol0:4GiB"]);
    let image = Image::build();
    let daemon = rig.start();
    let port = daemon.tcp.port();
    // The guest's disk keeps the address, so every later daemon has to listen there too.
    let listen = format!("--listen=127.0.0.1:{port}");
    let disk = format!(
        "driver=nbd,node-name=volume,server.type=inet,server.host=127.0.0.1,server.port={port},\
         export=vol0,reconnect-delay=180,open-timeout=60,discard=unmap"
    );
    let device = "virtio-blk-pci,drive=volume,serial=volume,werror=stop,rerror=stop";
    let arguments = ["-blockdev", &disk, "-device", device].map(str::to_owned);
    let mut guest = image.boot("virtio_disk", port, &arguments);

    guest.await_step("under load", STEP);
    let mut daemon = daemon;
    for is_planned in [false, true, false] {
        std::thread::sleep(Duration::from_millis(1500));
        let ending = Instant::now();
        match is_planned {
            true => daemon.stop(),
            false => daemon.kill(),
        }
        daemon = rig.start_with(&[&listen], "");
        if is_planned {
            println!("planned restart under load: {:?}", ending.elapsed());
        }
    }
    guest.await_step("unpacked", STEP);
    let ending = Instant::now();
    daemon.stop();
    let daemon = rig.start_with(&[&listen], "");
    println!("planned restart: {:?}", ending.elapsed());
    guest.tell("go-on");
    guest.await_step("done", STEP);
    let printed = guest.ended();
    assert!(!printed.to_lowercase().contains("i/o error"), "{printed}");
    daemon.stop();
}

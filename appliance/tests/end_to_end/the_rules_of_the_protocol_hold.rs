//! One row for each rule of the protocol that servers get wrong: what a client sends, and what must
//! come back. The bytes are made and read by the probe, not by our own crate.

use taipan_tls::ClientSettings;
use taipan_tls::authority::{Authority, Wanted};

use crate::harness::daemon::{Daemon, Rig};
use crate::harness::probe::{Place, Talk, negotiate, take_turns, transmit};

/// One of the volumes may be read only.
const ACCESS: &str = r#"
[[access]]
volumes = ["ro"]
clients = ["unix", "127.0.0.1"]
grant = "read"

[[access]]
volumes = ["vol0"]
clients = ["unix", "127.0.0.1"]
grant = "write"
"#;

/// What is sent, and the reaction.
type Row = (&'static str, &'static str);
/// The same with what is negotiated first.
type Behind = (&'static str, &'static str, &'static str);

/// Client flags, which come before TLS: those that were not offered are dropped. Not fixed:
/// EXPORT_NAME only, with zeros.
const FLAGS: &[Row] = &[
    ("flags 7; LIST", "closed"),
    ("flags 0x80000003; NAME vol0", "closed"),
    ("flags 0; LIST", "closed"),
    ("flags 0; GO vol0", "closed"),
    ("flags 0; NAME vol0", "134 bytes"),
    ("flags 1; NAME vol0", "134 bytes"),
    ("flags 3; NAME vol0", "10 bytes"),
];

/// Handshake: options, and the replies to them.
const HANDSHAKE: &[Row] = &[
    // EXPORT_NAME cannot be refused but by closing.
    ("NAME none", "closed"),
    ("NAME long 4097", "closed"),
    // The acknowledgement of extended headers is all.
    ("EXT; NAME vol0", "20 bytes"),
    // Options that nobody knows, of any length, and withdrawn ones: in sync.
    (
        "12345 +0; 12345 +100000; LIST",
        "12345:UNSUP 12345:UNSUP LIST:ro LIST:vol0 LIST:ACK alive",
    ),
    (
        "PEEK; PEEK +7; LIST +1",
        "PEEK:UNSUP PEEK:UNSUP LIST:INVALID alive",
    ),
    ("raw 49484156454f5054 00003039 ffffffff", "closed"),
    ("raw 49484156454f5055 00000003 00000000", "closed"),
    // ABORT is acknowledged, even with data.
    ("ABORT", "ABORT:ACK closed"),
    ("ABORT +9", "ABORT:ACK closed"),
    // INFO and GO: what is asked for; lies and rubbish are refused, and the connection stays.
    ("INFO vol0", "INFO:INFO0 INFO:ACK alive"),
    (
        "INFO vol0 3 1 2 77",
        "INFO:INFO0 INFO:INFO1 INFO:INFO2 INFO:INFO3 INFO:ACK alive",
    ),
    (
        "INFO vol0 3; GO vol0 3",
        "INFO:INFO0 INFO:INFO3 INFO:ACK GO:INFO0 GO:INFO3 GO:ACK",
    ),
    ("GO none; INFO none", "GO:UNKNOWN INFO:UNKNOWN alive"),
    ("GO x vol0; INFO x vol0", "GO:INVALID INFO:INVALID alive"),
    ("GO; GO +3", "GO:UNKNOWN GO:INVALID alive"),
    (
        "raw 49484156454f5054 00000007 0000000b 00000004 766f6c30 0000 00",
        "GO:INVALID alive",
    ),
    (
        "raw 49484156454f5054 00000007 0000000a 00000004 766f6c30 0001",
        "GO:INVALID alive",
    ),
    // Names: 4096 bytes are one, 4097 are not, nor is NUL, nor what is not UTF-8.
    (
        "GO long 4096; GO long 4097; GO long 5000",
        "GO:UNKNOWN GO:INVALID GO:INVALID alive",
    ),
    ("GO volNUL; GO NUL", "GO:INVALID GO:INVALID alive"),
    (
        "raw 49484156454f5054 00000007 0000000a 00000004 766fff30 0000",
        "GO:INVALID alive",
    ),
    // Structured replies and extended headers: without data, once, in this order.
    ("SR +1; SR; SR", "SR:INVALID SR:ACK SR:INVALID alive"),
    (
        "SR; EXT; EXT; SR",
        "SR:ACK EXT:ACK EXT:INVALID SR:EXT_HEADER_REQD alive",
    ),
    ("EXT +4; EXT", "EXT:INVALID EXT:ACK alive"),
];

/// STARTTLS where there is no TLS.
const WITHOUT_TLS: &[Row] = &[("STARTTLS; LIST +1", "STARTTLS:UNSUP LIST:INVALID alive")];

/// In the clear where TLS is required: TLS_REQD to everything but STARTTLS and ABORT.
const BEFORE_TLS: &[Row] = &[
    (
        "LIST; PEEK; INFO vol0; GO vol0; 12345 +9",
        "LIST:TLS_REQD PEEK:TLS_REQD INFO:TLS_REQD GO:TLS_REQD 12345:TLS_REQD alive",
    ),
    (
        "SR; EXT; QUERY vol0; SET vol0 base:allocation",
        "SR:TLS_REQD EXT:TLS_REQD QUERY:TLS_REQD SET:TLS_REQD alive",
    ),
    ("GO none; GO x vol0", "GO:TLS_REQD GO:TLS_REQD alive"),
    ("NAME vol0", "closed"),
    ("NAME none", "closed"),
    ("ABORT", "ABORT:ACK closed"),
    ("STARTTLS +1; LIST", "STARTTLS:INVALID LIST:TLS_REQD alive"),
    // Who waits for no answer to STARTTLS is not the client: nothing in the clear is taken along.
    ("STARTTLS; LIST", "closed"),
    ("STARTTLS; GO vol0", "closed"),
];

/// Under TLS.
const UNDER_TLS: &[Row] = &[(
    "STARTTLS; STARTTLS +1; LIST",
    "STARTTLS:INVALID STARTTLS:INVALID LIST:ro LIST:vol0 LIST:ACK alive",
)];

/// What was negotiated in the clear before STARTTLS, options behind it, and the replies to these:
/// nothing of the former is left.
const FORGOTTEN: &[Behind] = &[
    ("SR", "SET vol0 base:allocation", "SET:INVALID alive"),
    ("SR", "SR; SR", "SR:ACK SR:INVALID alive"),
    ("EXT", "SR; EXT", "SR:ACK EXT:ACK alive"),
    ("EXT; LIST; PEEK +9", "NAME vol0", "10 bytes"),
];

/// The same with the replies to requests.
const FORGOTTEN_IN_TRANSMISSION: &[(&str, &str, &str, &str)] = &[
    (
        "SR",
        PLAIN,
        "read 0+0; write 0+512; read/df 0+1",
        ", ok, EINVAL",
    ),
    ("EXT", PLAIN, "read 0+0; write 0+512; flush", ", ok, ok"),
    ("EXT", CHUNKS, "read 0+0; flush", "none, ok"),
    (
        "SR; SET vol0 base:allocation",
        CHUNKS,
        "status 0+512",
        "EINVAL",
    ),
    (
        "EXT; SET vol0 base:allocation",
        WIDE,
        "status 0+512",
        "EINVAL",
    ),
];

/// Metadata contexts.
const CONTEXTS: &[Row] = &[
    ("SET vol0 base:allocation", "SET:INVALID alive"),
    (
        "QUERY vol0",
        "QUERY:0=base:allocation QUERY:0=qemu:allocation-depth QUERY:0=taipan:durability \
         QUERY:0=taipan:residency QUERY:0=qemu:dirty-bitmap:since-s QUERY:ACK alive",
    ),
    (
        "QUERY vol0 base: none:",
        "QUERY:0=base:allocation QUERY:ACK alive",
    ),
    (
        "QUERY vol0 qemu:dirty-bitmap:",
        "QUERY:0=qemu:dirty-bitmap:since-s QUERY:ACK alive",
    ),
    (
        "QUERY vol0 qemu:",
        "QUERY:0=qemu:allocation-depth QUERY:0=qemu:dirty-bitmap:since-s QUERY:ACK alive",
    ),
    (
        "QUERY none; QUERY vol0 nocolon",
        "QUERY:UNKNOWN QUERY:INVALID alive",
    ),
    // A wildcard selects nothing, what is unknown neither; twice is once.
    ("SR; SET vol0 base: none:such", "SR:ACK SET:ACK alive"),
    (
        "SR; SET vol0 base:allocation base:allocation",
        "SR:ACK SET:1=base:allocation SET:ACK alive",
    ),
    (
        "SR; SET vol0 qemu:dirty-bitmap:since-s",
        "SR:ACK SET:1=qemu:dirty-bitmap:since-s SET:ACK alive",
    ),
    (
        "SR; SET vol0 qemu:dirty-bitmap:since-none",
        "SR:ACK SET:ACK alive",
    ),
    ("SR; SET none base:allocation", "SR:ACK SET:UNKNOWN alive"),
];

const PLAIN: &str = "GO vol0";
const CHUNKS: &str = "SR; GO vol0";
const WIDE: &str = "EXT; GO vol0";
const MAP: &str = "SR; SET vol0 base:allocation; GO vol0";
const WIDE_MAP: &str = "EXT; SET vol0 base:allocation qemu:allocation-depth; GO vol0";
const ALL: [&str; 3] = [PLAIN, CHUNKS, WIDE];

/// Requests that are answered alike in every style: `data`, `hole` and `none` are left out of the
/// reaction.
const REQUESTS: &[Row] = &[
    // FLUSH ignores its range.
    ("flush 4096+512; flush max+0", "ok, ok"),
    // FUA is legal everywhere.
    ("write/fua 0+512; read/fua 0+512", "ok, 170*512"),
    (
        "flush/fua; trim/fua 0+512; zero/fua 0+512; cache/fua 0+512",
        "ok, ok, ok, ok",
    ),
    // Zeros read back as zeros, head and tail included; the rest stays.
    (
        "write 1M+12k =7 | zero 1048676+8100 | read 1M+12k",
        "ok | ok | 7*100 0*8100 7*4088",
    ),
    (
        "write 2M+8k =7 | zero/nohole 2M+8k | read 2M+8k",
        "ok | ok | 0*8192",
    ),
    (
        "zero/nohole 9M+8k | write 9M+8k =4 | read 9M+8k",
        "ok | ok | 4*8192",
    ),
    // FAST_ZERO that may not be fast changes nothing; ENOTSUP is for nobody else.
    (
        "write 3M+8k =7 | zero/fast 3145828+100 | read 3M+8k",
        "ok | ENOTSUP | 7*8192",
    ),
    (
        "write 4M+8k =7 | zero/fast 4M+4k | read 4M+8k",
        "ok | ok | 0*4096 7*4096",
    ),
    // Whole blocks that were trimmed are zeros; parts of blocks stay.
    (
        "write 5M+16k =7 | trim 5242900+12k | read 5M+16k",
        "ok | ok | 7*4096 0*8192 7*4096",
    ),
    // A refused write takes its payload along, whatever that looks like.
    ("write 8G+4096 =DISC; read 8G+0", "ENOSPC, "),
    ("write/one 0+100 =DISC; flush", "EINVAL, ok"),
    ("write 0+67108865", "closed"),
    // Long ones, and those without a payload that are longer.
    ("write 1G+33M =5 | read 1G+33M", "ok | 5*34603008"),
    ("trim 4G+4294966784; zero 4G+4294966784", "ok, ok"),
    ("read 0+67108865", "EINVAL"),
    // Nothing at all is no reason to disconnect.
    (
        "read 0+0; write 0+0; trim 0+0; zero 0+0; cache 0+0",
        ", ok, ok, ok, ok",
    ),
    (
        "read 8G+0; write 8G+0; trim 8G+0; zero 8G+0",
        ", ok, ok, ok",
    ),
    // Beyond the end, and with sums that overflow.
    (
        "read 8G-1+2; trim 8G-512+513; cache 8G+1",
        "EINVAL, EINVAL, EINVAL",
    ),
    ("write 8G-1+2; zero 8G-512+513", "ENOSPC, ENOSPC"),
    (
        "read max+512; write max+512; zero max+1",
        "EINVAL, ENOSPC, ENOSPC",
    ),
    // Unknown commands and flags, and flags of other commands.
    ("99 0+512; 8 0+1048576; flush", "EINVAL, EINVAL, ok"),
    (
        "read/64 0+512; read/nohole 0+512; flush/one",
        "EINVAL, EINVAL, EINVAL",
    ),
    (
        "trim/fast 0+512; zero/df 0+512; cache/one 0+1",
        "EINVAL, EINVAL, EINVAL",
    ),
    ("status 0+512; status/one 0+512", "EINVAL, EINVAL"),
    // Cookies are opaque, and may repeat.
    (
        "flush @0xffffffffffffff00 | flush @0xffffffffffffff00",
        "ok | ok",
    ),
    ("flush @5; flush @5", "ok, ok"),
    // Everything asked for before DISC is answered; DISC is not.
    (
        "write 6M+512; write/fua 7M+512; flush; disc 77+99",
        "ok, ok, ok, closed",
    ),
    ("disc", "closed"),
    // A bad magic closes without a reply.
    ("badmagic; flush", "closed"),
];

/// Of two connections, in every style: what one was answered the other sees, and may flush.
const TURNS: &[Row] = &[
    (
        "a write 80M+8k =9 | b read 80M+8k | b flush | a zero 80M+4k | b read 80M+8k",
        "ok | 9*8192 | ok | ok | 0*4096 9*4096",
    ),
    (
        "a trim 80M+8k | b write/fua 83890176+512 =6 | a read 80M+8k | a disc | b read 80M+512",
        "ok | ok | 0*4096 6*512 0*3584 | closed | 0*512",
    ),
];

/// Of one style.
const STYLES: &[Behind] = &[
    // A snapshot refuses what would change it, and has what was there.
    (
        "GO vol0@s",
        "write 0+512; trim 0+512; zero 0+512; flush",
        "EPERM, EPERM, EPERM, ok",
    ),
    ("GO vol0@s", "read 0+512; write 8G+512", "0*512, EPERM"),
    ("GO ro", "write 0+512; read 0+1", "EPERM, 0*1"),
    // DF only where it was offered; one chunk, zeros written out; else EOVERFLOW.
    (PLAIN, "read/df 0+512", "EINVAL"),
    (CHUNKS, "read/df 7G+4096", "data 0*4096"),
    (CHUNKS, "read 7G+4096", "hole 4096"),
    // Zeros within a long READ are holes; short ones are not, nor is any with DF.
    (
        CHUNKS,
        "write 64M+4k =7 | write 65704k+4k =7 | read 65532k+256k",
        "ok | ok | data 0*4096 7*4096+hole 167936+data 7*4096+hole 81920",
    ),
    (
        WIDE,
        "read 64M+128k; read/df 64M+64k; read 64M+32k",
        "data 7*4096+hole 126976, data 7*4096 0*61440, data 7*4096 0*28672",
    ),
    (
        WIDE,
        "read/df 7G+65536; read/df 7G+64M",
        "data 0*65536, EOVERFLOW",
    ),
    (CHUNKS, "read 0+0; read 8G+1", "none, EINVAL"),
    // PAYLOAD_LEN where there are no extended headers, and where it makes no sense.
    (CHUNKS, "write/payload 0+512", "EINVAL"),
    (
        WIDE,
        "write/payload 0+512; read/payload 0+0; flush",
        "ok, EINVAL, ok",
    ),
    // Lengths of 64 bits without a payload.
    (WIDE, "trim 0+8G; zero 1M+8G-1M; cache 0+8G", "ok, ok, ok"),
    (WIDE, "read 0+8G; flush", "EINVAL, ok"),
    // Block status: nothing has none, beyond the end neither; one extent if one is asked for.
    (
        MAP,
        "status 0+0; status 8G+1; status 8G-1+2",
        "EINVAL, EINVAL, EINVAL",
    ),
    (
        MAP,
        "write 0+4096 | status 0+12288",
        "ok | 1[0*4096 3*8192]",
    ),
    (
        MAP,
        "status/one 0+12288; status/one 0+1024",
        "1[0*4096], 1[0*1024]",
    ),
    (
        MAP,
        "status/df 0+512; status/one/fua 8191+1",
        "EINVAL, 1[3*1]",
    ),
    // Extents of 32 bits end on a boundary below 2^32.
    (MAP, "status 4096+0xffffffff", "1[3*4294963200]"),
    (
        WIDE_MAP,
        "status 4096+8G-4096",
        "1[3*8589930496]+2[0*8589930496]",
    ),
    // A payload names the contexts; what was not selected is refused.
    (WIDE_MAP, "status/payload 0+4; flush", "EINVAL, ok"),
    // A selection is of one export, and a failed one leaves none.
    (
        "SR; SET ro base:allocation; GO vol0",
        "status 0+512",
        "EINVAL",
    ),
    (
        "SR; SET vol0 base:allocation; SET none base:allocation; GO vol0",
        "status 0+512",
        "EINVAL",
    ),
    (
        "SR; SET vol0 base:allocation; INFO ro; QUERY ro; GO vol0",
        "status 1M+512",
        "1[3*512]",
    ),
];

/// Everything that does not hold.
struct Wrong(Vec<String>);

impl Wrong {
    fn check(&mut self, what: &str, told: &str, expected: &str) {
        if told != expected {
            self.0.push(format!(
                "{what}\n  told:     {told}\n  expected: {expected}"
            ));
        }
    }
}

/// The reaction without how content was put into chunks.
fn content_alone(told: &str) -> String {
    let hole = |part: &str| match part.strip_prefix("hole ") {
        Some(len) => format!("0*{len}"),
        None => part
            .strip_prefix("data ")
            .unwrap_or(part)
            .replace("none", ""),
    };
    let batches = told.split(" | ");
    let batch = |batch: &str| batch.split(", ").map(hole).collect::<Vec<_>>().join(", ");
    batches.map(batch).collect::<Vec<_>>().join(" | ")
}

fn check_options(place: &Place, rows: &[Row], wrong: &mut Wrong) {
    for (options, expected) in rows {
        wrong.check(options, &negotiate(place, options), expected);
    }
}

/// Everything that holds in the clear and under TLS.
fn check_all(place: &Place, wrong: &mut Wrong) {
    check_options(place, HANDSHAKE, wrong);
    check_options(place, CONTEXTS, wrong);
    let endless = negotiate(place, &["PEEK"; 65].join("; "));
    wrong.check(
        "options without end",
        &endless[endless.len() - 12..],
        "UNSUP closed",
    );
    for (requests, expected) in REQUESTS {
        for options in ALL {
            let told = content_alone(&transmit(place, options, requests));
            wrong.check(&format!("{options}: {requests}"), &told, expected);
        }
    }
    for (turns, expected) in TURNS {
        for options in ALL {
            let told = content_alone(&take_turns(place, options, turns));
            wrong.check(&format!("{options}: {turns}"), &told, expected);
        }
    }
    for (options, requests, expected) in STYLES {
        let told = transmit(place, options, requests);
        wrong.check(&format!("{options}: {requests}"), &told, expected);
    }
}

/// A daemon with the two volumes, rules for them, and a snapshot.
fn start(rig: &Rig, more: &[&str]) -> Daemon {
    let config = rig.path("rules.toml");
    std::fs::write(&config, ACCESS).expect("a configuration file");
    let config = format!("--config={}", config.display());
    let daemon = rig.start_with(&[&[config.as_str()], more].concat(), "");
    daemon.taipan().args("snapshot create vol0 s").succeed();
    daemon
}

#[test]
fn every_row_of_the_rules_holds() {
    let rig = Rig::new(&["vol0:8GiB", "ro:1MiB"]);
    let daemon = start(&rig, &[]);
    let (place, mut wrong) = (Place::unix(daemon.socket()), Wrong(Vec::new()));
    check_options(&place, FLAGS, &mut wrong);
    check_options(&place, WITHOUT_TLS, &mut wrong);
    check_all(&place, &mut wrong);
    let Wrong(wrong) = wrong;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut left = Vec::new();
    // A size is that of the moment: it grows between two lookups of one client.
    daemon.taipan().args("volume resize vol0 9GiB").succeed();
    let told = transmit(&place, "INFO vol0; GO vol0", "read 8G+512");
    assert_eq!(told, "0*512");
    // Who is connected when the server stops is not told so: a client that connects again, and
    // sends again what was not answered, must not take it for an error of its disk.
    for options in ALL {
        let mut talk = Talk::begin(&place, options);
        assert_eq!(talk.ask("write 0+512; flush"), "ok, ok");
        left.push(talk);
    }
    daemon.stop();
    for talk in left {
        assert_eq!(talk.end(), "closed");
    }
}

#[test]
fn every_row_holds_under_tls() {
    let rig = Rig::new(&["vol0:8GiB", "ro:1MiB"]);
    let authority = Authority::new("ours");
    authority.equip(&rig.path("server"), &Wanted::server());
    authority.equip(&rig.path("client"), &Wanted::client("somebody"));
    let settings = ClientSettings::load(&rig.path("client")).expect("certificates");
    let certificates = format!("--tls-certificates={}", rig.path("server").display());
    // TLS is required over TCP, and allowed over the unix socket.
    let daemon = start(&rig, &[&certificates]);
    let (tcp, unix) = (Place::tcp(daemon.tcp), Place::unix(daemon.socket()));
    let mut wrong = Wrong(Vec::new());
    check_options(&tcp, BEFORE_TLS, &mut wrong);
    let sealed = tcp.under_tls(&settings, "");
    check_options(&sealed, UNDER_TLS, &mut wrong);
    check_all(&sealed, &mut wrong);
    for (before, options, expected) in FORGOTTEN {
        let told = negotiate(&unix.under_tls(&settings, before), options);
        wrong.check(&format!("{before}, TLS: {options}"), &told, expected);
    }
    for (before, options, requests, expected) in FORGOTTEN_IN_TRANSMISSION {
        let told = transmit(&unix.under_tls(&settings, before), options, requests);
        wrong.check(
            &format!("{before}, TLS: {options}: {requests}"),
            &told,
            expected,
        );
    }
    let Wrong(wrong) = wrong;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut talk = Talk::begin(&sealed, WIDE);
    assert_eq!(talk.ask("write 0+512; flush"), "ok, ok");
    daemon.stop();
    assert_eq!(talk.end(), "closed");
}

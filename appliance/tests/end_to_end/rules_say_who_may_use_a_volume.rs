//! Rules of the configuration grant volumes by address of the client: what is not granted is
//! refused and not listed, what is granted for reading cannot be written.

use std::fs;
use std::time::Duration;

use crate::harness::daemon::Rig;
use crate::harness::program::Program;

const LIMIT: Duration = Duration::from_secs(180);
const RULES: &str = r#"
[[access]]
volumes = ["*"]
clients = ["unix"]
grant = "write"

[[access]]
volumes = ["vol*"]
clients = ["127.0.0.0/8"]
grant = "read"
"#;

fn qemu_io(uri: &str, commands: &[&str]) -> Program {
    let program = Program::new("qemu-io", LIMIT).args("-f raw");
    let with_commands = commands
        .iter()
        .fold(program, |program, command| program.arg("-c").arg(command));
    with_commands.arg(uri)
}

#[test]
fn rules_say_who_may_use_a_volume() {
    let rig = Rig::new(&["vol0:64MiB", "secret:64MiB"]);
    let config = rig.path("rules.toml");
    fs::write(&config, RULES).expect("a configuration file");
    let daemon = rig.start_with(&[&format!("--config={}", config.display())], "");
    for volume in ["vol0", "secret"] {
        qemu_io(&daemon.uri(volume), &["write -P 5 0 64k", "flush"]).succeed();
    }
    let over_tcp = daemon.tcp_uri("vol0");
    let is_read_only = Program::new("nbdinfo", LIMIT).args("--is read-only");
    is_read_only.arg(&over_tcp).succeed();
    qemu_io(&over_tcp, &["read -P 5 0 64k"]).arg("-r").succeed();
    qemu_io(&over_tcp, &["write -P 6 0 64k"]).fail();
    for volume in ["secret", "none"] {
        let refused = qemu_io(&daemon.tcp_uri(volume), &["read 0 512"]).fail();
        assert!(refused.contains("Denied by server"), "{volume}: {refused}");
        let logged = format!("volume=\"{volume}\" error=\"POLICY\"");
        daemon.await_log(&logged, LIMIT);
    }
    let listed = Program::new("qemu-nbd", LIMIT)
        .args("-L -b 127.0.0.1 -p")
        .arg(daemon.tcp.port().to_string())
        .succeed();
    assert!(
        listed.contains("vol0") && !listed.contains("secret"),
        "{listed}"
    );
    qemu_io(&daemon.uri("vol0"), &["read -P 5 0 64k"]).succeed();
    daemon.stop();
}

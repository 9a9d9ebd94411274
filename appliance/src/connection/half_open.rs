//! Whether the client of a quiet TCP connection is still there. A client that vanished without
//! closing (its host lost power, a cable was cut) leaves a connection that looks alive for minutes;
//! when it comes back, that one must be closed first, and no other (DESIGN §4.8).

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::net::{SocketAddr, getpeername, sockopt};
use taipan_engine::ring::{TcpHealth, tcp_health};

/// A connection that was heard of less long ago is believed: its client cannot have vanished and
/// come back meanwhile.
const QUIET_MS: u32 = 1000;
/// A quiet client is asked once a second.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// And has so long to answer any of that.
const ANSWER_MS: u64 = 3500;
/// Between keepalive probes otherwise, and before the first.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What is known of the client after asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// It answered, or owes no answer.
    Alive,
    /// It may still answer.
    Awaited,
    /// It had its time, and what was sent to it is unanswered.
    Lost,
}

/// The address of a TCP client; the form of IPv4 whichever way it came.
pub(super) fn peer_ip(socket: BorrowedFd<'_>) -> Option<IpAddr> {
    let address = getpeername(socket).ok().flatten()?;
    let address = SocketAddr::try_from(address).ok()?;
    Some(address.ip().to_canonical())
}

/// Makes the kernel ask a quiet client at once; false if there is no doubt about it.
pub(super) fn ask(socket: BorrowedFd<'_>) -> bool {
    let doubtful = tcp_health(socket).is_ok_and(|health| is_doubtful(&health));
    if doubtful {
        // Shorter than the silence so far: the first probe leaves now.
        set_probes(socket, PROBE_EVERY, PROBE_EVERY);
    }
    doubtful
}

/// Looks at the answers, so long after [`ask`].
pub(super) fn pulse(socket: BorrowedFd<'_>, since_ms: u64) -> Pulse {
    // What cannot be asked is left to the socket's own errors.
    let pulse = tcp_health(socket).map_or(Pulse::Alive, |health| judge(&health, since_ms));
    if pulse == Pulse::Alive {
        keep_alive(&socket);
    }
    pulse
}

/// The pace of keepalive probes on a connection about which there is no doubt.
pub(crate) fn keep_alive(socket: &impl AsFd) {
    set_probes(socket.as_fd(), KEEPALIVE, KEEPALIVE / 3);
}

fn set_probes(socket: BorrowedFd<'_>, idle: Duration, interval: Duration) {
    let results = [
        sockopt::set_tcp_keepintvl(socket, interval),
        sockopt::set_tcp_keepidle(socket, idle),
    ];
    if let Some(error) = results.into_iter().find_map(Result::err) {
        tracing::warn!(%error, "the pace of keepalive probes could not be set");
    }
}

fn is_doubtful(health: &TcpHealth) -> bool {
    health.heard_ms_ago >= QUIET_MS || is_unanswered(health)
}

fn is_unanswered(health: &TcpHealth) -> bool {
    health.retransmits > 0 || health.probes > 0
}

fn judge(health: &TcpHealth, since_ms: u64) -> Pulse {
    if u64::from(health.heard_ms_ago) < since_ms {
        Pulse::Alive
    } else if since_ms < ANSWER_MS {
        Pulse::Awaited
    } else if is_unanswered(health) {
        Pulse::Lost
    } else {
        // A client that takes no replies just now is asked by the kernel ever more rarely.
        Pulse::Alive
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    fn health(heard_ms_ago: u32, retransmits: u8, probes: u8) -> TcpHealth {
        TcpHealth {
            retransmits,
            probes,
            heard_ms_ago,
        }
    }

    #[test]
    fn only_quiet_or_unanswered_connections_are_doubted() {
        // The four connections of a copy that starts.
        assert!(!is_doubtful(&health(3, 0, 0)));
        assert!(!is_doubtful(&health(999, 0, 0)));
        assert!(is_doubtful(&health(1000, 0, 0)));
        assert!(is_doubtful(&health(10, 1, 0)));
        assert!(is_doubtful(&health(10, 0, 1)));
    }

    #[test]
    fn an_answer_of_any_kind_saves_a_connection_and_silence_alone_does_not_end_it() {
        let minutes = 200_000;
        assert_eq!(judge(&health(minutes, 0, 0), 0), Pulse::Awaited);
        assert_eq!(judge(&health(minutes, 0, 1), 3499), Pulse::Awaited);
        assert_eq!(judge(&health(minutes, 0, 3), 3500), Pulse::Lost);
        assert_eq!(judge(&health(minutes, 4, 0), 3500), Pulse::Lost);
        assert_eq!(judge(&health(20, 4, 0), 21), Pulse::Alive, "acknowledged");
        assert_eq!(judge(&health(3000, 0, 2), 3500), Pulse::Alive);
        // Nothing that was sent waits for an answer: a slow reader.
        assert_eq!(judge(&health(minutes, 0, 0), 3500), Pulse::Alive);
    }

    #[test]
    fn a_quiet_client_on_this_host_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        sockopt::set_socket_keepalive(&server, true).unwrap();
        assert_eq!(peer_ip(server.as_fd()), Some([127, 0, 0, 1].into()));
        while !ask(server.as_fd()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let asked = Instant::now();
        loop {
            let since_ms = asked.elapsed().as_millis() as u64;
            match pulse(server.as_fd(), since_ms) {
                Pulse::Alive => break,
                Pulse::Awaited => std::thread::sleep(Duration::from_millis(5)),
                Pulse::Lost => panic!("{:?}", tcp_health(server.as_fd())),
            }
        }
        let kept = sockopt::tcp_keepidle(&server).unwrap();
        assert_eq!(kept, KEEPALIVE, "the usual pace again");
        drop(client);
    }

    #[test]
    fn a_unix_socket_is_never_in_doubt() {
        let (server, _client) = UnixStream::pair().unwrap();
        assert_eq!(peer_ip(server.as_fd()), None);
        assert!(!ask(server.as_fd()));
    }
}

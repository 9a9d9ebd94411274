//! What the kernel knows of the other end of a TCP connection (`TCP_INFO` of `tcp(7)`).

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const IPPROTO_TCP: i32 = 6;
const TCP_INFO: i32 = 11;
/// Of `struct tcp_info` (`linux/tcp.h`), which only ever grows.
const RETRANSMITS_AT: usize = 2;
const PROBES_AT: usize = 3;
const LAST_DATA_RECEIVED_AT: usize = 52;
const LAST_ACK_RECEIVED_AT: usize = 56;
const READ_BYTES: usize = 60;

unsafe extern "C" {
    /// `getsockopt(2)`.
    fn getsockopt(fd: i32, level: i32, name: i32, value: *mut c_void, len: *mut u32) -> i32;
}

/// Signs of life of the other end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpHealth {
    /// Times in a row that the oldest unacknowledged bytes were sent again without an answer.
    pub retransmits: u8,
    /// Keepalive or zero-window probes without an answer.
    pub probes: u8,
    /// Milliseconds since data or an acknowledgement came.
    pub heard_ms_ago: u32,
}

/// Asks the kernel about the connection of `socket`.
///
/// # Errors
/// When it is no TCP socket.
pub fn tcp_health(socket: BorrowedFd<'_>) -> io::Result<TcpHealth> {
    let mut info = [0u8; READ_BYTES];
    let mut len = READ_BYTES as u32;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which has that many, and `len` is
    // valid for the call; the descriptor is borrowed, so it is open.
    let result = unsafe {
        getsockopt(
            socket.as_raw_fd(),
            IPPROTO_TCP,
            TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let ms_at = |at: usize| {
        let bytes = info[at..at + 4].try_into().expect("four bytes");
        u32::from_ne_bytes(bytes)
    };
    Ok(TcpHealth {
        retransmits: info[RETRANSMITS_AT],
        probes: info[PROBES_AT],
        heard_ms_ago: ms_at(LAST_DATA_RECEIVED_AT).min(ms_at(LAST_ACK_RECEIVED_AT)),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_connection_says_when_it_was_last_heard_of() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let started = Instant::now();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let health = tcp_health(server.as_fd()).unwrap();
        let passed_ms = started.elapsed().as_millis() as u32;
        assert_eq!((health.retransmits, health.probes), (0, 0));
        // The kernel counts in ticks of up to 10 ms.
        assert!(health.heard_ms_ago >= 10, "{health:?}");
        assert!(health.heard_ms_ago <= passed_ms + 20, "{health:?}");
        drop(client);
    }

    #[test]
    fn other_sockets_have_none() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(tcp_health(one.as_fd()).is_err());
    }
}

//! Whether the kernel took the CPU from this thread for another one, and how soon it may.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// How often that happened since the thread began (`ru_nivcsw` of `getrusage(2)`); 0 if the kernel
/// does not say.
pub fn involuntary_switches() -> u64 {
    // SAFETY: all fields of the structure are integers, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `rusage` to the place that it is given.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    match failed {
        0 => u64::try_from(usage.ru_nivcsw).unwrap_or(0),
        _ => 0,
    }
}

/// Lowers the priority of this thread to `nice`, and asks for slices of `slice` (0.1 to 100 ms):
/// a thread that wakes waits for the end of the running one's, which else is some milliseconds
/// (`sched_setattr(2)`; kernels before 6.12 keep to their own slices). Whatever class the thread
/// was in, it is in that of ordinary threads then.
///
/// # Errors
/// The kernel refuses: for want of the right to raise the priority or to leave the idle class, or
/// because a sandbox forbids the call.
pub fn take_short_slices(nice: i32, slice: Duration) -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: slice.as_nanos() as u64,
        sched_deadline: 0,
        sched_period: 0,
    };
    const SELF: libc::pid_t = 0;
    const NO_FLAGS: libc::c_uint = 0;
    // SAFETY: the kernel reads a `sched_attr` of the size that it names, and keeps nothing of it.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            SELF,
            &raw const attributes,
            NO_FLAGS,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_that_shares_its_cpu_is_switched_away() {
        let own = rustix::thread::sched_getaffinity(None).unwrap();
        let mut one = rustix::thread::CpuSet::new();
        let cpu = (0..rustix::thread::CpuSet::MAX_CPU).find(|&cpu| own.is_set(cpu));
        one.set(cpu.unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                std::thread::spawn(move || {
                    rustix::thread::sched_setaffinity(None, &one).unwrap();
                    let before = involuntary_switches();
                    while involuntary_switches() < before + 3 {
                        assert!(Instant::now() < deadline, "both had the CPU for themselves");
                    }
                })
            })
            .collect();
        // The first to have seen it ends; the other one may then have the CPU for itself.
        while !threads.iter().any(std::thread::JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_thread_gives_way_alone() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let slice = Duration::from_micros(300);
        let thread = std::thread::spawn(move || {
            take_short_slices(19, slice).unwrap();
            (nice(), own_slice())
        });
        let (lowered, found) = thread.join().unwrap();
        assert_eq!(lowered, 19);
        // Zero: this kernel keeps to its own.
        assert!(found == slice || found.is_zero(), "{found:?}");
        assert_eq!(nice(), before);
    }

    /// What the kernel says of this thread's slices.
    fn own_slice() -> Duration {
        // SAFETY: all fields of the structure are integers, for which zeros are valid.
        let mut found: libc::sched_attr = unsafe { std::mem::zeroed() };
        let (size, flags) = (size_of::<libc::sched_attr>() as libc::c_uint, 0);
        // SAFETY: the kernel writes at most `size` bytes to the place that it is given.
        let failed =
            unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, size, flags) };
        assert_eq!(failed, 0);
        Duration::from_nanos(found.sched_runtime)
    }
}

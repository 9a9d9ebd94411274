//! Whether the kernel took the CPU from this thread for another one.
#![allow(unsafe_code)]

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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

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
}

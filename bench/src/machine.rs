//! Facts of the machine that numbers depend on.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The machine of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    /// Frequency governor of the first CPU, where there is one.
    pub(crate) governor: Option<String>,
}

impl Machine {
    /// This machine.
    pub(crate) fn here() -> Self {
        let uname = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let governor = fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Self {
            cpu: after("/proc/cpuinfo", "model name").unwrap_or_else(|| text(uname.machine())),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory("MemTotal"),
            kernel: format!("{} {}", text(uname.sysname()), text(uname.release())),
            governor: governor.ok().map(|name| name.trim().to_owned()),
        }
    }
}

/// What stands behind `key :` in a file of the kernel.
fn after(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Bytes of memory that programs may still take.
pub(crate) fn memory_available() -> u64 {
    memory("MemAvailable")
}

fn memory(key: &str) -> u64 {
    let kib = after("/proc/meminfo", key);
    let kib = kib.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// The device below a path and its file system, as well as the kernel tells.
pub(crate) fn disk_of(path: &Path) -> String {
    let Ok(path) = path.canonicalize() else {
        return "unknown".to_owned();
    };
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else {
        return "unknown".to_owned();
    };
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, words.next()?, words.next()?))
    });
    // The longest mount point, and of equal ones the last, is the one that counts.
    let mount = mounts
        .filter(|(_, point, _)| path.starts_with(point))
        .max_by_key(|(_, point, _)| point.len());
    let Some((device, _, kind)) = mount else {
        return "unknown".to_owned();
    };
    let name = device
        .trim_start_matches("/dev/")
        .trim_end_matches(|c: char| c.is_ascii_digit());
    let name = name
        .strip_suffix('p')
        .filter(|_| name.contains("nvme"))
        .unwrap_or(name);
    let model = fs::read_to_string(format!("/sys/block/{name}/device/model"));
    match model {
        Ok(model) => format!("{kind} on {device} ({})", model.trim()),
        Err(_) => format!("{kind} on {device}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_processor_memory_and_a_kernel() {
        let machine = Machine::here();
        assert!(machine.cpus > 0 && machine.memory_bytes > 1 << 20);
        assert!((1 << 20..machine.memory_bytes).contains(&memory_available()));
        assert!(!machine.cpu.is_empty());
        assert!(machine.kernel.starts_with("Linux "), "{}", machine.kernel);
        assert!(disk_of(Path::new("/proc")).starts_with("proc on "));
        assert_eq!(disk_of(Path::new("/nowhere/at/all")), "unknown");
    }
}

//! Which CPUs there are and which part of the daemon gets which.

/// CPUs that this process may run on, ascending; CPU 0 if the system does not say.
pub(super) fn allowed() -> Vec<usize> {
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    let mut cpus: Vec<usize> = ids.into_iter().map(|core| core.id).collect();
    cpus.sort_unstable();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// The CPUs of the data cores unless they are given: one on a machine of one or two CPUs, else all
/// but one, at most 16.
pub(super) fn default_data(cpus: &[usize]) -> Vec<usize> {
    let count = (cpus.len().saturating_sub(1)).clamp(1, super::settings::DATA_CORES_MAX);
    cpus[..count].to_vec()
}

/// The CPU for the uploader: the first that is no data core's, else the last data core's.
pub(super) fn uploader_beside(data: &[usize], cpus: &[usize]) -> usize {
    let free = cpus.iter().find(|cpu| !data.contains(cpu));
    free.or_else(|| data.last()).copied().unwrap_or(0)
}

/// Reads `0-2,5`: distinct CPUs out of `cpus`, at most `most` of them.
pub(super) fn parse_list(text: &str, cpus: &[usize], most: usize) -> Result<Vec<usize>, String> {
    let mut list = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse(), last.trim().parse::<usize>()) else {
            return Err(format!(
                "{part:?} is not a CPU or a range of CPUs such as 0-2"
            ));
        };
        if first > last {
            return Err(format!("{part:?} is a range that runs backwards"));
        }
        // Looked up before listed: a huge range costs nothing.
        if let Some(missing) = (first..=last).find(|cpu| !cpus.contains(cpu)) {
            let allowed = show_list(cpus);
            return Err(format!(
                "CPU {missing} is not among those allowed: {allowed}"
            ));
        }
        for cpu in first..=last {
            if list.contains(&cpu) {
                return Err(format!("CPU {cpu} is listed twice"));
            }
            list.push(cpu);
        }
    }
    if list.len() > most {
        return Err(format!("{} data cores are more than {most}", list.len()));
    }
    Ok(list)
}

/// The reverse of [`parse_list`], with ranges.
pub(super) fn show_list(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let show = |&(first, last): &(usize, usize)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    parts.iter().map(show).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_split_leaves_one_cpu_to_the_uploader() {
        for (cpus, data, uploader) in [
            (vec![0], vec![0], 0),
            (vec![0, 1], vec![0], 1),
            (vec![2, 3, 6], vec![2, 3], 6),
            ((0..40).collect(), (0..16).collect(), 16),
        ] {
            assert_eq!(default_data(&cpus), data);
            assert_eq!(uploader_beside(&data, &cpus), uploader);
        }
    }

    #[test]
    fn lists_read_back_as_they_are_shown() {
        let cpus: Vec<usize> = (0..8).collect();
        for text in ["0", "0-2", "0-2,5", "7,0-1"] {
            assert_eq!(show_list(&parse_list(text, &cpus, 16).unwrap()), text);
        }
    }

    #[test]
    fn bad_lists_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "not a CPU"),
            ("a", "not a CPU"),
            ("3-1", "backwards"),
            ("0,0", "twice"),
            ("0-2,1", "twice"),
            ("0-4", "CPU 4 is not among"),
            ("0-18446744073709551615", "CPU 4 is not among"),
            ("0-3", "more than 3"),
        ] {
            let error = parse_list(text, &[0, 1, 2, 3], 3).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

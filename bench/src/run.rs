//! A run: its jobs beside each other, or after each other where a stone wall stands between them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cli::RunArgs;
use crate::interruption;
use crate::job_file::NamedJob;
use crate::progress::{Progress, View};
use crate::report::Report;
use crate::report_files::NewFiles;
use crate::section::{Begin, Measured, Section};
use crate::tally::{Live, Tally, process_cpu};
use crate::timeline::{HistogramLog, Timeline, histogram_log};

/// Runs `jobs` as `args` ask for.
pub(crate) fn run(args: &RunArgs, jobs: Vec<NamedJob>) -> Result<Report> {
    let mut states = BTreeSet::new();
    for state in jobs.iter().filter_map(|job| job.options.state.as_ref()) {
        ensure!(
            states.insert(state),
            "two jobs have the same --state {}",
            state.display()
        );
    }
    let files = NewFiles::claim([&args.output, &args.hist_log].into_iter().flatten())?;
    let log = args.hist_log.as_deref().map(histogram_log).transpose()?;
    let progress = Progress::new(args.progress, args.interval);
    let mut report = Report::new(args.interval);
    for group in groups(jobs) {
        let sections = match prepared(group) {
            Ok(sections) => sections,
            // What was measured before is not lost.
            Err(error) if report.has_jobs() => {
                report.broken_off(format!("{error:#}"));
                break;
            }
            Err(error) => return Err(error),
        };
        if !report.has_jobs() {
            interruption::watch(|| ())?;
        }
        one_group(args, sections, log.as_ref(), &progress, &mut report)?;
        if interruption::asked() {
            report.interrupted();
            break;
        }
    }
    files.keep();
    Ok(report)
}

fn prepared(group: Vec<NamedJob>) -> Result<Vec<Section>> {
    let one = |job: NamedJob| {
        let name = job.name.clone();
        Section::prepare(job).with_context(|| format!("job {name}"))
    };
    group.into_iter().map(one).collect()
}

/// Jobs up to the next stone wall.
fn groups(jobs: Vec<NamedJob>) -> Vec<Vec<NamedJob>> {
    let mut groups: Vec<Vec<NamedJob>> = Vec::new();
    for job in jobs {
        match groups.last_mut().filter(|_| !job.options.stonewall) {
            Some(group) => group.push(job),
            None => groups.push(vec![job]),
        }
    }
    groups
}

/// Runs jobs beside each other; the run's CPU time counts from where the last of them ramped up.
fn one_group(
    args: &RunArgs,
    mut sections: Vec<Section>,
    log: Option<&HistogramLog>,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    let opened: Vec<_> = sections.iter_mut().map(Section::take_opened).collect();
    let stop = AtomicBool::new(false);
    let timeline = |section: &Section| Timeline::new(&section.name, args.interval, log);
    let timelines: Vec<_> = sections.iter().map(timeline).collect();
    let lives = |section: &Section| (0..section.spec.jobs).map(|_| Live::default()).collect();
    let lives: Vec<Vec<Live>> = sections.iter().map(lives).collect();
    let ramp = sections
        .iter()
        .filter_map(|section| section.options.ramp_time);
    let ramp = ramp.max().unwrap_or_default();
    let begin = Begin {
        start: Instant::now(),
        stop: &stop,
    };
    let (measured, cpu) = thread::scope(|scope| {
        let threads: Vec<_> = sections
            .iter()
            .zip(opened)
            .zip(lives.iter().zip(&timelines))
            .map(|((section, opened), (lives, timeline))| {
                scope.spawn(move || {
                    if !section.measures() {
                        return Ok(Measured::default());
                    }
                    let measured = section.measure(opened, lives, timeline, begin);
                    if measured.is_err() {
                        begin.stop.store(true, Ordering::Relaxed);
                    }
                    measured
                })
            })
            .collect();
        let finished = || threads.iter().all(thread::ScopedJoinHandle::is_finished);
        let view = View {
            sections: &sections,
            lives: &lives,
            timelines: &timelines,
        };
        let cpu_before = progress.watch(&view, begin.start + ramp, finished);
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join();
        let joined: Vec<_> = threads.into_iter().map(join).collect();
        let cpu = process_cpu().saturating_sub(cpu_before);
        let joined = joined.into_iter();
        let measured = joined.map(|joined| joined.expect("a job does not panic"));
        (measured.collect::<Vec<Result<Measured>>>(), cpu)
    });
    let mut elapsed = Duration::ZERO;
    for ((section, measured), timeline) in sections.iter().zip(measured).zip(timelines) {
        let measured = outcome(section, measured, timeline);
        elapsed = elapsed.max(measured.elapsed);
        report.add(section, measured)?;
    }
    report.group_ended(elapsed, cpu);
    Ok(())
}

/// What a job has to report. What goes wrong with it, or after the load, takes no numbers away.
fn outcome(section: &Section, measured: Result<Measured>, timeline: Timeline<'_>) -> Measured {
    let (mut measured, ran) = match measured {
        Ok(measured) => (measured, true),
        Err(error) => (Measured::failed(&error), false),
    };
    let (intervals, log_error) = timeline.finish(measured.elapsed);
    measured.intervals = intervals;
    measured.errors.extend(log_error);
    if ran && let Err(error) = section.check(&mut measured) {
        measured.errors.push(format!("{error:#}"));
    }
    let answered = measured.tally.as_ref().map_or(0, Tally::requests);
    let silent = section.measures() && answered == 0 && !interruption::asked();
    if silent && measured.errors.is_empty() {
        let error = "no request was answered in the measured time";
        measured
            .errors
            .push(format!("job {}: {error}", section.name));
    }
    measured
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job_file::{Settings, parse};

    #[test]
    fn a_stone_wall_begins_a_new_group() {
        let text = "[global]\nfilename=/dev/null\n[a]\n[b]\n[c]\nstonewall\n[d]\n[e]\nstonewall\n";
        let groups = groups(parse(text, &Settings::new()).unwrap());
        let names: Vec<Vec<_>> = groups
            .iter()
            .map(|group| group.iter().map(|job| job.name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["a", "b"], vec!["c", "d"], vec!["e"]]);
    }
}

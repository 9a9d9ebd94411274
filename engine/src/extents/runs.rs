//! States of consecutive shard-local blocks, as runs.

use std::ops::Range;

use super::BlockState;

/// Blocks of one state, from the end of the run before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// One beyond the last shard-local block.
    pub end: u64,
    /// What the blocks are.
    pub state: BlockState,
}

/// States of all shard-local blocks from `start` on, as far as they are known. Ends ascend, and
/// neighbours differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    start: u64,
    runs: Vec<Run>,
}

impl Runs {
    /// Nothing yet, from the block `start` on.
    pub fn new(start: u64) -> Self {
        Self {
            start,
            runs: Vec::new(),
        }
    }

    /// The blocks covered.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end()
    }

    /// The runs, ascending.
    pub fn as_slice(&self) -> &[Run] {
        &self.runs
    }

    /// Goes on with `state` up to `end`; nothing happens if that is covered.
    pub fn push(&mut self, end: u64, state: BlockState) {
        if end <= self.end() {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if last.state == state => last.end = end,
            _ => self.runs.push(Run { end, state }),
        }
    }

    /// These runs with `over` on top: ascending ranges that do not overlap. What of them is not
    /// covered is left out.
    #[must_use]
    pub fn painted(&self, over: impl IntoIterator<Item = (Range<u64>, BlockState)>) -> Self {
        let mut out = Self::new(self.start);
        let mut under = self.runs.iter().copied().peekable();
        let mut copy_to = |out: &mut Self, to: u64| {
            while let Some(run) = under.peek() {
                out.push(run.end.min(to), run.state);
                if run.end > to {
                    return;
                }
                under.next();
            }
        };
        for (range, state) in over {
            copy_to(&mut out, range.start);
            out.push(range.end.min(self.end()), state);
        }
        copy_to(&mut out, self.end());
        out
    }

    /// These runs, in which blocks that have changed according to `marks` have changed, too; as far
    /// as both tell.
    #[must_use]
    pub fn marked(&self, marks: &Self) -> Self {
        debug_assert_eq!(self.start, marks.start);
        let mut out = Self::new(self.start);
        let mut marks = marks.runs.iter().peekable();
        for run in &self.runs {
            while let Some(mark) = marks.peek() {
                let mut state = run.state;
                state.changed = state.changed.with(mark.state.changed);
                out.push(run.end.min(mark.end), state);
                if mark.end > run.end {
                    break;
                }
                marks.next();
            }
        }
        out
    }

    /// The parts of `range` that are told, with their states.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, BlockState)> {
        let first = self.runs.partition_point(|run| run.end <= range.start);
        let mut at = range.start.max(self.start);
        let runs = self.runs[first..].iter();
        runs.map_while(move |run| {
            let part = at..run.end.min(range.end);
            at = part.end;
            (!part.is_empty()).then_some((part, run.state))
        })
    }

    /// Goes on with `next`, which begins where these end.
    pub fn append(&mut self, next: &Self) {
        debug_assert_eq!(next.start, self.end());
        next.runs
            .iter()
            .for_each(|run| self.push(run.end, run.state));
    }

    /// Keeps the first `runs` runs, at least one, and no more memory than they need.
    pub fn truncate(&mut self, runs: usize) {
        self.runs.truncate(runs.max(1));
        self.runs.shrink_to_fit();
    }

    fn end(&self) -> u64 {
        self.runs.last().map_or(self.start, |run| run.end)
    }
}

//! The ring of arena pages: where the next batch goes.

/// A run of pages of the ring, at a position that only grows (`position % pages` is the page).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageRun {
    pub(super) position: u64,
    pub(super) pages: u32,
}

/// Accounting of the ring: pages from `tail` to `head` are in use.
#[derive(Debug)]
pub(super) struct PageRing {
    pages: u64,
    head: u64,
    tail: u64,
}

impl PageRing {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            pages: pages as u64,
            head: 0,
            tail: 0,
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.head
    }

    pub(super) fn tail(&self) -> u64 {
        self.tail
    }

    pub(super) fn used(&self) -> u64 {
        self.head - self.tail
    }

    /// The page of a position.
    pub(super) fn page(&self, position: u64) -> usize {
        (position % self.pages) as usize
    }

    /// Pages lost when `need` pages in a row do not fit before the ring's end.
    fn skip(&self, need: u32) -> u64 {
        let to_end = self.pages - self.head % self.pages;
        if to_end < u64::from(need) { to_end } else { 0 }
    }

    /// Free pages that a run of `want` pages, at least `need`, would take.
    pub(super) fn wanted(&self, need: u32, want: u32) -> u64 {
        let skip = self.skip(need);
        let start = self.head + skip;
        let to_end = self.pages - start % self.pages;
        skip + u64::from(want).min(to_end)
    }

    /// Whether so many pages would be free if those before `tail` were.
    pub(super) fn has_free_after(&self, tail: u64, pages: u64) -> bool {
        self.pages - (self.head - tail) >= pages
    }

    /// The next run: as much of `want` pages as is free, at least `need`. Nothing is taken yet.
    pub(super) fn plan(&self, need: u32, want: u32) -> Option<PageRun> {
        let skip = self.skip(need);
        let free = (self.pages - self.used()).checked_sub(skip)?;
        let start = self.head + skip;
        let to_end = self.pages - start % self.pages;
        let pages = u64::from(want).min(to_end).min(free);
        (pages >= u64::from(need)).then_some(PageRun {
            position: start,
            pages: pages as u32,
        })
    }

    /// Takes the first `pages` of a planned run.
    pub(super) fn take(&mut self, run: PageRun, pages: u32) {
        assert!(
            pages <= run.pages && run.position >= self.head,
            "a run is taken as planned"
        );
        self.head = run.position + u64::from(pages);
        assert!(self.used() <= self.pages, "the ring is not overrun");
    }

    /// Returns the last `pages` of the run taken last.
    pub(super) fn give_back(&mut self, pages: u32) {
        self.head -= u64::from(pages);
        assert!(self.head >= self.tail, "no more than was taken");
    }

    /// Frees the pages before `position`.
    pub(super) fn free_before(&mut self, position: u64) {
        assert!(
            (self.tail..=self.head).contains(&position),
            "pages are freed once, in order"
        );
        self.tail = position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_does_not_wrap() {
        let mut ring = PageRing::new(10);
        let run = ring.plan(4, 8).unwrap();
        assert_eq!(
            run,
            PageRun {
                position: 0,
                pages: 8
            }
        );
        ring.take(run, 7);
        assert_eq!(
            ring.plan(3, 8),
            Some(PageRun {
                position: 7,
                pages: 3
            })
        );
        assert_eq!(
            ring.plan(4, 8),
            None,
            "only 3 pages before the end, the rest is in use"
        );
        assert_eq!((ring.wanted(4, 8), ring.wanted(2, 8)), (11, 3));
        ring.free_before(7);
        assert_eq!(
            ring.plan(4, 8),
            Some(PageRun {
                position: 10,
                pages: 7
            })
        );
        ring.take(
            PageRun {
                position: 10,
                pages: 7,
            },
            4,
        );
        assert_eq!((ring.used(), ring.page(13)), (7, 3));
        assert!(ring.has_free_after(7, 3) && !ring.has_free_after(7, 4));
        ring.give_back(1);
        assert_eq!(ring.head(), 13);
    }
}

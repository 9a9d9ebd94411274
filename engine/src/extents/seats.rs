//! Which of a volume's baselines, the earlier images that it is compared with.

/// Number of a baseline within its volume, below [`Seat::MAX`]; given to another one after it was
/// taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat(u8);

impl Seat {
    /// So many baselines of one volume at a time.
    pub const MAX: usize = u32::BITS as usize;

    /// The lowest one that is not `taken`.
    pub fn free(taken: Seats) -> Option<Self> {
        let seat = taken.0.trailing_ones() as u8;
        (usize::from(seat) < Self::MAX).then_some(Self(seat))
    }

    /// As an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of seats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seats(u32);

impl Seats {
    /// No seat.
    pub const NONE: Self = Self(0);

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `seat` is one of them.
    pub fn contains(self, seat: Seat) -> bool {
        self.0 & 1 << seat.0 != 0
    }

    /// These and those.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// All of them, ascending.
    pub fn iter(self) -> impl Iterator<Item = Seat> {
        let seats = (0..Seat::MAX as u8).map(Seat);
        seats.filter(move |seat| self.contains(*seat))
    }
}

impl From<Seat> for Seats {
    fn from(seat: Seat) -> Self {
        Self(1 << seat.0)
    }
}

impl FromIterator<Seat> for Seats {
    fn from_iter<T: IntoIterator<Item = Seat>>(seats: T) -> Self {
        let sets = seats.into_iter().map(Self::from);
        sets.fold(Self::NONE, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_seat_is_given_until_all_are_taken() {
        let mut taken = Seats::NONE;
        for index in 0..Seat::MAX {
            let seat = Seat::free(taken).expect("there is one");
            assert_eq!(seat.index(), index);
            assert!(!taken.contains(seat));
            taken = taken.with(seat.into());
        }
        assert_eq!(Seat::free(taken), None);
        assert_eq!(taken.iter().count(), Seat::MAX);
        let two: Seats = taken.iter().filter(|seat| seat.index() % 30 == 1).collect();
        assert_eq!(two.iter().map(Seat::index).collect::<Vec<_>>(), [1, 31]);
        assert_eq!(Seat::free(two).map(Seat::index), Some(0));
    }
}

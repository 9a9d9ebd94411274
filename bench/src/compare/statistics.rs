//! Medians with their spread, and the order in which targets take turns.

use serde::Serialize;

/// What several rounds found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) rounds: usize,
}

impl Spread {
    /// Of values in any order; `None` without any.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Some(Self {
            median,
            least,
            most,
            rounds: values.len(),
        })
    }
}

/// The order of `targets` targets in round `round`: another one is first in every round, and every
/// second round goes the other way, so that none always follows the same.
pub(crate) fn order(round: usize, targets: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..targets).map(|n| (n + round) % targets).collect();
    if let (1, Some(others)) = (round % 2, order.get_mut(1..)) {
        others.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_outliers_show_in_the_spread() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        let odd = spread(&[5.0, 1.0, 900.0, 2.0, 3.0]).unwrap();
        assert_eq!(
            (odd.median, odd.least, odd.most, odd.rounds),
            (3.0, 1.0, 900.0, 5)
        );
        assert_eq!(spread(&[4.0, 1.0]).unwrap().median, 2.5);
    }

    #[test]
    fn every_target_is_first_in_turn_and_none_is_left_out() {
        assert!(order(1, 0).is_empty());
        for targets in 1..6 {
            let mut firsts = vec![0; targets];
            for round in 0..targets * 2 {
                let order = order(round, targets);
                firsts[order[0]] += 1;
                let mut all = order.clone();
                all.sort_unstable();
                assert_eq!(all, (0..targets).collect::<Vec<_>>());
            }
            assert!(firsts.iter().all(|&count| count == 2), "{firsts:?}");
        }
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(1, 3), [1, 0, 2]);
        assert_eq!(order(2, 3), [2, 0, 1]);
    }
}

//! How long the parts of a start or a stop took, for the log.

use std::fmt;
use std::time::{Duration, Instant};

/// Parts that followed each other, and those that ran beside them.
#[derive(Debug)]
pub struct Stages {
    began: Instant,
    told: Vec<(&'static str, Duration)>,
}

impl Stages {
    /// The first part began at this moment.
    pub fn since(began: Instant) -> Self {
        Self {
            began,
            told: Vec::new(),
        }
    }

    /// A part has ended, and the next begins.
    pub fn ended(&mut self, part: &'static str) {
        let now = Instant::now();
        self.told.push((part, now - self.began));
        self.began = now;
    }

    /// A part that ran beside the others.
    pub fn beside(&mut self, part: &'static str, took: Duration) {
        self.told.push((part, took));
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (part, took)) in self.told.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{part}:{}", took.as_millis())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_in_milliseconds_in_their_order() {
        let mut stages = Stages::since(Instant::now());
        stages.told.push(("replay", Duration::from_micros(12_900)));
        stages.beside("regions", Duration::from_millis(3));
        assert_eq!(stages.to_string(), "replay:12,regions:3");
        stages.ended("volumes");
        assert!(
            stages
                .to_string()
                .starts_with("replay:12,regions:3,volumes:")
        );
    }
}

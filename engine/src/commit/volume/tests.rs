//! Tests of a volume's commits.

//! Tests of leaves.

//! Tests of the packer.

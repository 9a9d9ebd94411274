//! What tests and benches share with `taipan-bench`: the S3 server with scripted faults.

pub mod fake_s3;

//! How families of metrics are written: each described once, then its values with their labels.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::latency::{LatencyTotals, bound_nanos};

/// For values that are counted in nanoseconds and shown in seconds.
pub(super) const NANOS_PER_SECOND: f64 = 1e9;

/// One metric of a family: its labels and its value.
pub(super) type Row<'a, const N: usize, V> = ([(&'static str, &'a str); N], V);

/// Writes families of metrics: each described once, then its values.
pub(super) struct Families<'e> {
    encoder: DescriptorEncoder<'e>,
}

impl<'e> From<DescriptorEncoder<'e>> for Families<'e> {
    fn from(encoder: DescriptorEncoder<'e>) -> Self {
        Self { encoder }
    }
}

impl Families<'_> {
    /// A gauge without labels.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let encoder = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        encode_gauge(encoder, value)
    }

    /// A counter without labels.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let encoder = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        encode_counter(encoder, value)
    }

    /// A histogram without labels.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        totals: &LatencyTotals,
    ) -> fmt::Result {
        let encoder = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        encode_histogram(encoder, totals)
    }

    /// A gauge for each set of labels.
    pub(super) fn gauges<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl Iterator<Item = Row<'a, N, f64>>,
    ) -> fmt::Result {
        self.family((name, help, MetricType::Gauge), rows, encode_gauge)
    }

    /// A counter for each set of labels.
    pub(super) fn counters<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl Iterator<Item = Row<'a, N, f64>>,
    ) -> fmt::Result {
        self.family((name, help, MetricType::Counter), rows, encode_counter)
    }

    /// A histogram for each set of labels.
    pub(super) fn histograms<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl Iterator<Item = Row<'a, N, LatencyTotals>>,
    ) -> fmt::Result {
        let encode =
            |encoder: MetricEncoder<'_>, totals: LatencyTotals| encode_histogram(encoder, &totals);
        self.family((name, help, MetricType::Histogram), rows, encode)
    }

    fn family<'a, V, const N: usize>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        rows: impl Iterator<Item = Row<'a, N, V>>,
        encode: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            let labels = labels.as_slice();
            encode(family.encode_family(&labels)?, value)?;
        }
        Ok(())
    }
}

/// The value as a whole number if it is one, so that it is written without a fraction.
fn whole(value: f64) -> Option<u64> {
    let exact = value >= 0.0 && value <= (1_u64 << 53) as f64 && value.fract() == 0.0;
    exact.then_some(value as u64)
}

fn encode_gauge(mut encoder: MetricEncoder<'_>, value: f64) -> fmt::Result {
    match whole(value) {
        Some(number) => encoder.encode_gauge(&number),
        None => encoder.encode_gauge(&value),
    }
}

fn encode_counter(mut encoder: MetricEncoder<'_>, value: f64) -> fmt::Result {
    match whole(value) {
        Some(number) => encoder.encode_counter::<NoLabelSet, u64, f64>(&number, None),
        None => encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None),
    }
}

fn encode_histogram(mut encoder: MetricEncoder<'_>, totals: &LatencyTotals) -> fmt::Result {
    let buckets: Vec<(f64, u64)> = totals
        .buckets
        .iter()
        .enumerate()
        .map(|(index, &count)| {
            let bound = bound_nanos(index).map_or(f64::INFINITY, |n| n as f64 / NANOS_PER_SECOND);
            (bound, count)
        })
        .collect();
    let sum = totals.sum_nanos as f64 / NANOS_PER_SECOND;
    encoder.encode_histogram::<NoLabelSet>(sum, totals.count(), &buckets, None)
}

//! Every metric as numbers, for those who do not read Prometheus' format.

use prometheus::proto::{Histogram, Metric, MetricFamily, MetricType};
use std::collections::HashMap;

/// One metric under one set of labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// As Prometheus sees it: `crossgate_rows_total`.
    pub name: String,
    /// Names and values.
    pub labels: Vec<(String, String)>,
    /// As it stands.
    pub figure: Figure,
}

/// What a metric says.
#[derive(Clone, Debug, PartialEq)]
pub enum Figure {
    /// Of a counter.
    Count(f64),
    /// Of a gauge.
    Number(f64),
    /// Of a histogram.
    Spread(Spread),
}

/// How values are spread, as far as a histogram knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    /// How many values.
    pub count: u64,
    /// Of all values, in the metric's unit.
    pub sum: f64,
    /// Upper bounds, rising, with how many values are at most so large.
    pub buckets: Vec<(f64, u64)>,
}

/// Each metric of the families.
pub(super) fn series(families: &[MetricFamily]) -> Vec<Series> {
    let of_family = |family: &MetricFamily| {
        let (name, kind) = (family.name().to_owned(), family.get_field_type());
        let of_metric = move |metric: &Metric| Series {
            name: name.clone(),
            labels: labels(metric),
            figure: figure(kind, metric),
        };
        let metrics = family.get_metric().iter();
        metrics.map(of_metric).collect::<Vec<_>>()
    };
    families.iter().flat_map(of_family).collect()
}

/// What `all` have come to since they were as `before`; gauges as they are.
pub(super) fn since(before: &[Series], mut all: Vec<Series>) -> Vec<Series> {
    let before = before
        .iter()
        .map(|one| ((&one.name, &one.labels), &one.figure));
    let before: HashMap<_, _> = before.collect();
    for one in &mut all {
        let base = before.get(&(&one.name, &one.labels));
        match (&mut one.figure, base) {
            // What is less than it was has begun anew.
            (Figure::Count(now), Some(Figure::Count(then))) if then <= now => *now -= then,
            (Figure::Spread(now), Some(Figure::Spread(then))) => now.take(then),
            _ => {}
        }
    }
    all
}

fn labels(metric: &Metric) -> Vec<(String, String)> {
    let pairs = metric.get_label().iter();
    pairs
        .map(|pair| (pair.name().to_owned(), pair.value().to_owned()))
        .collect()
}

fn figure(kind: MetricType, metric: &Metric) -> Figure {
    match kind {
        MetricType::COUNTER => Figure::Count(metric.get_counter().get_value()),
        MetricType::HISTOGRAM => Figure::Spread(spread(metric.get_histogram())),
        MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => {
            Figure::Number(metric.get_gauge().get_value())
        }
    }
}

fn spread(histogram: &Histogram) -> Spread {
    let buckets = histogram.get_bucket().iter();
    Spread {
        count: histogram.get_sample_count(),
        sum: histogram.get_sample_sum(),
        buckets: buckets
            .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
            .collect(),
    }
}

// === impl Series ===

impl Series {
    /// A label's value; empty where there is none.
    pub fn label(&self, name: &str) -> &str {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map_or("", |(_, value)| value)
    }
}

// === impl Spread ===

impl Spread {
    /// The mean; 0 of nothing.
    pub fn mean(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        self.sum / self.count as f64
    }

    /// Below which a `share` of the values is, between 0 and 1: by a straight line through the bucket that holds it, as
    /// Prometheus' `histogram_quantile` estimates it; at most the last finite bound; 0 of nothing.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = share * self.count as f64;
        let (mut below, mut lower) = (0, 0.0);
        for &(upper, at_most) in &self.buckets {
            if self.count > 0 && rank <= at_most as f64 && below < at_most {
                if upper.is_infinite() {
                    return lower;
                }
                let part = (rank - below as f64) / (at_most - below) as f64;
                return lower + (upper - lower) * part;
            }
            below = at_most;
            if upper.is_finite() {
                lower = upper;
            }
        }
        // Beyond the last bound, or nothing at all.
        if self.count == 0 { 0.0 } else { lower }
    }

    /// Takes away values that were among them and sorted into the same buckets.
    fn take(&mut self, other: &Self) {
        if self.count < other.count {
            return;
        }
        self.count -= other.count;
        self.sum -= other.sum;
        for (own, others) in self.buckets.iter_mut().zip(&other.buckets) {
            own.1 = own.1.saturating_sub(others.1);
        }
    }

    /// Adds values that were sorted into the same buckets.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        for (own, others) in self.buckets.iter_mut().zip(&other.buckets) {
            own.1 += others.1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(buckets: &[(f64, u64)]) -> Spread {
        Spread {
            count: buckets.last().map_or(0, |last| last.1),
            sum: 12.0,
            buckets: buckets.to_vec(),
        }
    }

    #[test]
    fn quantiles_are_prometheus() {
        let found = spread(&[(1.0, 0), (2.0, 4), (4.0, 8), (f64::INFINITY, 10)]);
        assert_eq!(found.quantile(0.2), 1.5);
        assert_eq!(found.quantile(0.4), 2.0);
        assert_eq!(found.quantile(0.6), 3.0);
        assert_eq!(found.quantile(0.99), 4.0);
        assert_eq!(found.mean(), 1.2);
        assert_eq!(spread(&[(1.0, 0)]).quantile(0.5), 0.0);
        assert_eq!(Spread::default().mean(), 0.0);
    }

    #[test]
    fn what_came_since_is_counted() {
        let one = |name: &str, figure| Series {
            name: name.to_owned(),
            labels: Vec::new(),
            figure,
        };
        let all = |count, gauge, spread| {
            vec![
                one("count", Figure::Count(count)),
                one("gauge", Figure::Number(gauge)),
                one("spread", Figure::Spread(spread)),
            ]
        };
        let before = all(5.0, 5.0, spread(&[(1.0, 1), (2.0, 3)]));
        let now = all(7.0, 2.0, spread(&[(1.0, 1), (2.0, 4)]));
        let [count, gauge, spread] = &since(&before, now)[..] else {
            panic!("three");
        };
        assert_eq!(count.figure, Figure::Count(2.0));
        assert_eq!(gauge.figure, Figure::Number(2.0));
        let Figure::Spread(spread) = &spread.figure else {
            panic!("{spread:?}");
        };
        assert_eq!(
            (spread.count, &spread.buckets[..]),
            (1, &[(1.0, 0), (2.0, 1)][..])
        );
        // Begun anew, and new.
        let anew = since(&before, vec![one("count", Figure::Count(1.0))]);
        assert_eq!(anew[0].figure, Figure::Count(1.0));
        assert_eq!(since(&[], before.clone()), before);
    }

    #[test]
    fn spreads_add_up() {
        let mut all = Spread::default();
        for _ in 0..2 {
            all.add(&spread(&[(1.0, 1), (2.0, 3)]));
        }
        assert_eq!((all.count, all.sum), (6, 24.0));
        assert_eq!(all.buckets, [(1.0, 2), (2.0, 6)]);
    }
}

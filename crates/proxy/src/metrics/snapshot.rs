//! Everything that is counted, summed over the workers at one moment; `admin::stats` puts it into words.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_core::rbac::CounterNames;

use super::{BOUNDS, COUNTERS, GAUGES, Histogram, RPC_COUNTERS, RpcCounters, Shared, lock};

/// A metric with its samples.
#[derive(Debug)]
pub struct Family {
    pub name: String,
    pub help: &'static str,
    pub kind: Kind,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug)]
pub struct Sample {
    /// `reporter="source",source_workload="..."`; empty if the metric has no labels.
    pub labels: String,
    pub value: Value,
}

#[derive(Debug)]
pub enum Value {
    Count(u64),
    Gauge(f64),
    Histogram(Box<Distribution>),
}

/// What a histogram has gathered.
#[derive(Debug, Default)]
pub struct Distribution {
    /// How many values are in each bucket and in no lower one: up to each of [`BOUNDS`], then above all.
    pub buckets: [u64; BOUNDS.len() + 1],
    pub sum: f64,
}

impl Distribution {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many values are not above each of [`BOUNDS`].
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        BOUNDS.into_iter().zip(self.buckets.iter().scan(0, |below, count| {
            *below += count;
            Some(*below)
        }))
    }

    /// The value that this share (0 to 1) of all are not above, as if the values of a bucket lay evenly in it; `None` if there are none. Values above
    /// the last bound count as that bound.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        // Between the first and the last value, so that neither end is that of an empty bucket.
        let rank = (share * count as f64).clamp(f64::MIN_POSITIVE, count as f64);
        let mut below = 0.0;
        let mut lower = 0.0;
        for (bound, count) in BOUNDS.into_iter().zip(self.buckets) {
            let count = count as f64;
            if below + count >= rank {
                return Some(lower + (bound - lower) * ((rank - below) / count));
            }
            (below, lower) = (below + count, bound);
        }
        Some(lower)
    }

    fn add(&mut self, histogram: &Histogram) {
        for (bucket, counter) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *bucket += counter.read();
        }
        self.sum += histogram.sum.read() as f64 / 1000.0;
    }
}

impl Family {
    pub fn new(name: impl Into<String>, help: &'static str, kind: Kind) -> Family {
        Family { name: name.into(), help, kind, samples: Vec::new() }
    }

    pub fn gauge((name, help, value): (&str, &'static str, f64)) -> Family {
        let mut family = Family::new(name, help, Kind::Gauge);
        family.samples.push(Sample { labels: String::new(), value: Value::Gauge(value) });
        family
    }

    pub fn count(&mut self, labels: String, count: u64) {
        self.samples.push(Sample { labels, value: Value::Count(count) });
    }

    /// Counts by their labels, those of equal labels together: clusters may share their name in metrics (`alt_stat_name`).
    pub fn of_counts(
        (name, help, kind): (String, &'static str, Kind),
        counts: impl Iterator<Item = (String, u64)>,
    ) -> Family {
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        counts.for_each(|(labels, count)| *sums.entry(labels).or_default() += count);
        let mut family = Family::new(name, help, kind);
        sums.into_iter().for_each(|(labels, sum)| family.count(labels, sum));
        family
    }
}

/// Sums over the workers, for one combination of labels.
#[derive(Default)]
struct Sums {
    requests: u64,
    histograms: [Box<Distribution>; 3],
    opened: u64,
    closed: u64,
    received: u64,
    sent: u64,
}

/// A metric that has a value for each combination of labels.
type SumRow = (&'static str, &'static str, fn(&Sums) -> u64);

/// Istio's names.
const SUMS: [SumRow; 5] = [
    ("istio_requests_total", "Requests that ended.", |sum| sum.requests),
    ("istio_tcp_connections_opened_total", "Connections of TCP that were opened.", |sum| sum.opened),
    ("istio_tcp_connections_closed_total", "Connections of TCP that ended.", |sum| sum.closed),
    ("istio_tcp_received_bytes_total", "Bytes from the clients of TCP connections that ended.", |sum| sum.received),
    ("istio_tcp_sent_bytes_total", "Bytes to the clients of TCP connections that ended.", |sum| sum.sent),
];

/// In the order of `Sums::histograms`.
const HISTOGRAMS: [(&str, &str); 3] = [
    ("istio_request_duration_milliseconds", "Time from the head of a request to the end of its answer."),
    ("istio_request_bytes", "Bytes of the bodies of requests."),
    ("istio_response_bytes", "Bytes of the bodies of answers."),
];

/// What the workers have counted.
pub fn take(workers: &[Arc<Shared>]) -> Vec<Family> {
    let mut families = of_series(workers);
    let gauges = GAUGES.map(|row| (row, Kind::Gauge)).into_iter();
    for ((name, help, read), kind) in gauges.chain(COUNTERS.map(|row| (row, Kind::Counter))) {
        let mut family = Family::new(name, help, kind);
        family.count(String::new(), workers.iter().map(|worker| read(&worker.counters).read()).sum());
        families.push(family);
    }
    families.extend(of_rbac(workers));
    families.extend(of_rpc(workers));
    families
}

fn of_series(workers: &[Arc<Shared>]) -> Vec<Family> {
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    for worker in workers {
        for series in lock(&worker.series).iter() {
            let sum = sums.entry(series.labels.clone()).or_default();
            sum.requests += series.requests.read();
            let histograms = [&series.duration_ms, &series.request_bytes, &series.response_bytes];
            sum.histograms.iter_mut().zip(histograms).for_each(|(total, histogram)| total.add(histogram));
            sum.opened += series.opened.read();
            sum.closed += series.closed.read();
            sum.received += series.received.read();
            sum.sent += series.sent.read();
        }
    }
    let counter = |(name, help, read): SumRow| {
        let mut family = Family::new(name, help, Kind::Counter);
        let used = sums.iter().map(|(labels, sum)| (labels, read(sum))).filter(|(_, count)| *count > 0);
        used.for_each(|(labels, count)| family.count(labels.clone(), count));
        family
    };
    let mut families: Vec<Family> = SUMS.map(counter).into();
    let mut histograms = HISTOGRAMS.map(|(name, help)| Family::new(name, help, Kind::Histogram));
    for (labels, sum) in sums.into_iter().filter(|(_, sum)| sum.requests > 0) {
        for (family, distribution) in histograms.iter_mut().zip(sum.histograms) {
            family.samples.push(Sample { labels: labels.clone(), value: Value::Histogram(distribution) });
        }
    }
    families.extend(histograms);
    families
}

/// What RBAC filters decided; filters of the same names together.
fn of_rbac(workers: &[Arc<Shared>]) -> Vec<Family> {
    let mut sums: BTreeMap<String, (&'static str, u64)> = BTreeMap::new();
    for worker in workers {
        for counts in lock(&worker.rbac).iter() {
            let CounterNames { allowed, denied, shadow_allowed, shadow_denied } = &*counts.names;
            for (name, help, counter) in [
                (allowed, "Let in by RBAC rules.", &counts.allowed),
                (denied, "Refused by RBAC rules.", &counts.denied),
                (shadow_allowed, "What RBAC shadow rules would let in.", &counts.shadow_allowed),
                (shadow_denied, "What RBAC shadow rules would refuse.", &counts.shadow_denied),
            ] {
                sums.entry(name.to_string()).or_insert((help, 0)).1 += counter.read();
            }
        }
    }
    let mut families: Vec<Family> = Vec::new();
    for (text, (help, count)) in sums {
        let (name, labels) = text.split_once('{').unwrap_or((&text, ""));
        // Those of one name stand together, whatever their labels: `{` is behind all that a name is made of.
        if families.last().is_none_or(|last| last.name != name) {
            families.push(Family::new(name, help, Kind::Counter));
        }
        if let Some(family) = families.last_mut() {
            family.count(labels.trim_end_matches('}').to_owned(), count);
        }
    }
    families
}

fn of_rpc(workers: &[Arc<Shared>]) -> Vec<Family> {
    let mut families = Vec::new();
    for (index, rows) in RPC_COUNTERS.iter().enumerate() {
        let sum = |read: fn(&RpcCounters) -> u64| -> u64 {
            workers.iter().map(|worker| read(&worker.counters.rpc[index])).sum()
        };
        // Few meshes speak them; who does not has no use for dozens of zeros.
        if rows.iter().all(|(_, _, read)| sum(*read) == 0) {
            continue;
        }
        for (name, help, read) in *rows {
            let kind = if name.ends_with("_request_active") { Kind::Gauge } else { Kind::Counter };
            let mut family = Family::new(*name, help, kind);
            family.count(String::new(), sum(*read));
            families.push(family);
        }
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_where_the_buckets_say() {
        let mut distribution = Distribution::default();
        assert_eq!(distribution.quantile(0.5), None);
        // Ten values between 1 and 5, ten between 10 and 25.
        (distribution.buckets[2], distribution.buckets[4]) = (10, 10);
        let found = [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| distribution.quantile(share).unwrap());
        assert!((found[0] - 1.0).abs() < 1e-9, "{found:?}");
        assert_eq!(found[1..], [3.0, 5.0, 17.5, 25.0]);
        assert_eq!(distribution.cumulative().take(5).map(|(_, count)| count).collect::<Vec<_>>(), [0, 0, 10, 10, 20]);
    }

    #[test]
    fn what_is_above_all_bounds_counts_as_the_last() {
        let mut distribution = Distribution::default();
        distribution.buckets[BOUNDS.len()] = 1;
        assert_eq!(distribution.quantile(0.5), Some(3_600_000.0));
    }
}

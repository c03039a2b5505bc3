//! `/stats`: what is counted, in Envoy's text and JSON and in Prometheus's text format. A metric has one name in all of them, with its labels.

use std::fmt::Write as _;

use regex::Regex;
use serde_json::{Value as Json, json};

use super::answer::{Answer, JSON, PROMETHEUS};
use super::filter;
use super::question::Query;
use crate::metrics::snapshot::{Distribution, Family, Kind, Sample, Value};

/// Envoy's.
const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// What is shown.
#[derive(Debug, Default)]
struct Selection {
    filter: Option<Regex>,
    /// Only what was counted since the start. A gauge always shows something.
    used_only: bool,
    kind: Option<Kind>,
}

/// How the values of histograms are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buckets {
    Summary,
    Cumulative,
    Disjoint,
}

/// `/stats`, by its query.
///
/// # Errors
/// The answer that says what is wrong with it.
pub fn respond(families: Vec<Family>, query: &Query) -> Result<Answer, Answer> {
    let format = query.value("format")?.unwrap_or("text");
    let buckets = match query.value("histogram_buckets")? {
        None | Some("summary") => Buckets::Summary,
        Some("cumulative") => Buckets::Cumulative,
        Some("disjoint") => Buckets::Disjoint,
        Some(other) => {
            let known = "summary, cumulative, disjoint";
            return Err(Answer::refusal(format!("histogram_buckets={other}: one of {known} is needed")));
        }
    };
    let families = Selection::read(query)?.apply(families);
    match format {
        "text" => Ok(Answer::text(200, text(&families, buckets))),
        "json" => Ok(Answer::new(JSON, format!("{}\n", json(&families, buckets)))),
        "prometheus" if buckets == Buckets::Disjoint => {
            Err(Answer::refusal("histogram_buckets=disjoint: buckets of Prometheus are cumulative"))
        }
        "prometheus" => Ok(Answer::new(PROMETHEUS, prometheus(&families))),
        other => Err(Answer::refusal(format!("format={other}: one of text, json, prometheus is needed"))),
    }
}

/// `/stats/prometheus`, by its query.
///
/// # Errors
/// The answer that says what is wrong with it.
pub fn respond_prometheus(families: Vec<Family>, query: &Query) -> Result<Answer, Answer> {
    let families = if query.is_empty() { families } else { Selection::read(query)?.apply(families) };
    Ok(Answer::new(PROMETHEUS, prometheus(&families)))
}

impl Selection {
    fn read(query: &Query) -> Result<Selection, Answer> {
        let kind = match query.value("type")? {
            None | Some("All") => None,
            Some("Counters") => Some(Kind::Counter),
            Some("Gauges") => Some(Kind::Gauge),
            Some("Histograms") => Some(Kind::Histogram),
            Some(other) => {
                return Err(Answer::refusal(format!(
                    "type={other}: one of All, Counters, Gauges, Histograms is needed"
                )));
            }
        };
        Ok(Selection { filter: filter(query, "filter")?, used_only: query.flag("usedonly")?, kind })
    }

    /// What is left of *families*; the empty ones stay where nothing was selected, since Prometheus is told of all that there can be.
    fn apply(&self, mut families: Vec<Family>) -> Vec<Family> {
        families.retain(|family| self.kind.is_none_or(|kind| kind == family.kind));
        for family in &mut families {
            let Family { name, samples, .. } = family;
            samples.retain(|sample| {
                let is_used = match &sample.value {
                    Value::Count(count) => *count > 0,
                    Value::Gauge(_) => true,
                    Value::Histogram(distribution) => distribution.count() > 0,
                };
                let is_wanted = self.filter.as_ref().is_none_or(|filter| filter.is_match(&full_name(name, sample)));
                (is_used || !self.used_only) && is_wanted
            });
        }
        if self.used_only || self.filter.is_some() {
            families.retain(|family| !family.samples.is_empty());
        }
        families
    }
}

fn full_name(name: &str, sample: &Sample) -> String {
    if sample.labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", sample.labels) }
}

type Named<T> = Vec<(String, T)>;

/// Each metric by its name with labels: those that are numbers, then histograms; each sorted, as Envoy sorts them.
fn sorted(families: &[Family]) -> (Named<&Value>, Named<&Distribution>) {
    let (mut numbers, mut histograms) = (Named::new(), Named::new());
    for family in families {
        for sample in &family.samples {
            let name = full_name(&family.name, sample);
            match &sample.value {
                Value::Histogram(distribution) => histograms.push((name, &**distribution)),
                value => numbers.push((name, value)),
            }
        }
    }
    numbers.sort_by(|(left, _), (right, _)| left.cmp(right));
    histograms.sort_by(|(left, _), (right, _)| left.cmp(right));
    (numbers, histograms)
}

/// `name: value`, and of histograms `name: P0(interval,cumulative) P25(...)`. There are no intervals: values are of the whole time.
fn text(families: &[Family], buckets: Buckets) -> String {
    let (numbers, histograms) = sorted(families);
    let mut out = String::new();
    for (name, value) in numbers {
        let _ = match value {
            Value::Count(count) => writeln!(out, "{name}: {count}"),
            Value::Gauge(value) => writeln!(out, "{name}: {value}"),
            Value::Histogram(_) => Ok(()),
        };
    }
    for (name, distribution) in histograms {
        let _ = write!(out, "{name}:");
        match buckets {
            _ if distribution.count() == 0 => out.push_str(" No recorded values"),
            Buckets::Summary => {
                for percent in QUANTILES {
                    let value = distribution.quantile(percent / 100.0).unwrap_or(f64::NAN);
                    let _ = write!(out, " P{percent}(nan,{value})");
                }
            }
            Buckets::Cumulative => {
                for (bound, count) in distribution.cumulative() {
                    let _ = write!(out, " B{bound}(nan,{count})");
                }
            }
            Buckets::Disjoint => {
                for ((bound, _), count) in distribution.cumulative().zip(distribution.buckets) {
                    let _ = write!(out, " B{bound}(nan,{count})");
                }
            }
        }
        out.push('\n');
    }
    out
}

fn json(families: &[Family], buckets: Buckets) -> Json {
    let (numbers, histograms) = sorted(families);
    let number = |(name, value): (String, &Value)| {
        let value = match value {
            Value::Count(count) => json!(count),
            // Whole numbers are written as such.
            Value::Gauge(value) if value.fract() == 0.0 && value.abs() < 1e15 => json!(*value as i64),
            Value::Gauge(value) => json!(value),
            Value::Histogram(_) => Json::Null,
        };
        json!({"name": name, "value": value})
    };
    let mut stats: Vec<Json> = numbers.into_iter().map(number).collect();
    if histograms.is_empty() {
        return json!({"stats": stats});
    }
    let shown = if buckets == Buckets::Summary {
        let quantiles = |(name, distribution): (String, &Distribution)| {
            let value = |percent: f64| json!({"interval": null, "cumulative": distribution.quantile(percent / 100.0)});
            json!({"name": name, "values": QUANTILES.map(value)})
        };
        json!({"supported_quantiles": QUANTILES, "computed_quantiles": histograms.into_iter().map(quantiles).collect::<Vec<_>>()})
    } else {
        let one = |(name, distribution): (String, &Distribution)| {
            let own = distribution.cumulative().zip(distribution.buckets).map(|((bound, below), own)| {
                let count = if buckets == Buckets::Disjoint { own } else { below };
                json!({"upper_bound": bound, "interval": null, "cumulative": count})
            });
            json!({"name": name, "buckets": own.collect::<Vec<_>>()})
        };
        histograms.into_iter().map(one).collect()
    };
    stats.push(json!({"histograms": shown}));
    json!({"stats": stats})
}

/// Prometheus's text format, version 0.0.4.
fn prometheus(families: &[Family]) -> String {
    let mut out = String::new();
    for Family { name, help, kind, samples } in families {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for sample in samples {
            let labels = &sample.labels;
            let _ = match &sample.value {
                Value::Count(count) => writeln!(out, "{} {count}", full_name(name, sample)),
                Value::Gauge(value) => writeln!(out, "{} {value}", full_name(name, sample)),
                Value::Histogram(distribution) => histogram(&mut out, name, labels, distribution),
            };
        }
    }
    out
}

fn histogram(out: &mut String, name: &str, labels: &str, distribution: &Distribution) -> std::fmt::Result {
    for (bound, below) in distribution.cumulative() {
        writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}")?;
    }
    let count = distribution.count();
    writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}")?;
    writeln!(out, "{name}_sum{{{labels}}} {}", distribution.sum)?;
    writeln!(out, "{name}_count{{{labels}}} {count}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Vec<Family> {
        let mut requests = Family::new("istio_requests_total", "Requests.", Kind::Counter);
        requests.count("code=\"200\"".into(), 3);
        requests.count("code=\"404\"".into(), 0);
        let mut times = Family::new("istio_ms", "Times.", Kind::Histogram);
        let mut distribution = Distribution { sum: 8.0, ..Distribution::default() };
        distribution.buckets[2] = 2;
        times.samples.push(Sample { labels: "a=\"b\"".into(), value: Value::Histogram(distribution.into()) });
        vec![requests, times, Family::gauge(("alive", "Whether.", 1.0))]
    }

    fn ask(query: &str) -> Result<String, String> {
        let text = |answer: Answer| String::from_utf8(answer.body).unwrap();
        respond(families(), &Query::parse(query).unwrap()).map(text).map_err(text)
    }

    #[test]
    fn the_text_is_sorted_and_ends_with_histograms() {
        let quantiles = "P0(nan,1) P25(nan,2) P50(nan,3) P75(nan,4) P90(nan,4.6) P95(nan,4.8) P99(nan,4.96) \
                         P99.5(nan,4.98) P99.9(nan,4.996) P100(nan,5)";
        let expected = format!(
            "alive: 1\nistio_requests_total{{code=\"200\"}}: 3\nistio_requests_total{{code=\"404\"}}: 0\n\
             istio_ms{{a=\"b\"}}: {quantiles}\n"
        );
        assert_eq!(ask("").unwrap(), expected);
    }

    #[test]
    fn a_filter_sees_names_with_labels() {
        assert_eq!(ask("filter=^istio_req.*40").unwrap(), "istio_requests_total{code=\"404\"}: 0\n");
        assert_eq!(ask("filter=requests&usedonly").unwrap(), "istio_requests_total{code=\"200\"}: 3\n");
        assert_eq!(ask("type=Gauges").unwrap(), "alive: 1\n");
        assert!(ask("filter=(").unwrap_err().starts_with("filter=(: "));
    }

    #[test]
    fn json_has_envoys_shape() {
        let value: Json = serde_json::from_str(&ask("format=json").unwrap()).unwrap();
        let stats = value["stats"].as_array().unwrap();
        assert_eq!(stats[0], json!({"name": "alive", "value": 1}));
        let histograms = &stats.last().unwrap()["histograms"];
        assert_eq!(histograms["supported_quantiles"][8], json!(99.9));
        let computed = &histograms["computed_quantiles"][0];
        assert_eq!(computed["name"], "istio_ms{a=\"b\"}");
        assert_eq!(computed["values"][9], json!({"interval": null, "cumulative": 5.0}));
        let value: Json = serde_json::from_str(&ask("format=json&histogram_buckets=disjoint").unwrap()).unwrap();
        let bucket = &value["stats"][3]["histograms"][0]["buckets"][3];
        assert_eq!(*bucket, json!({"upper_bound": 10.0, "interval": null, "cumulative": 0}));
        assert_eq!(ask("format=json&filter=nothing").unwrap(), "{\"stats\":[]}\n");
    }

    #[test]
    fn prometheus_is_told_of_metrics_without_samples() {
        let text = ask("format=prometheus").unwrap();
        let expected = "# HELP istio_ms Times.\n# TYPE istio_ms histogram\nistio_ms_bucket{a=\"b\",le=\"0.5\"} 0\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("istio_ms_sum{a=\"b\"} 8\nistio_ms_count{a=\"b\"} 2\n"), "{text}");
        let empty = vec![Family::new("none_total", "None.", Kind::Counter)];
        let answer = respond_prometheus(empty, &Query::default()).unwrap();
        assert_eq!(answer.body, b"# HELP none_total None.\n# TYPE none_total counter\n");
    }

    #[test]
    fn what_is_not_offered_is_refused_by_name() {
        for query in ["format=html", "type=TextReadouts", "histogram_buckets=detailed", "usedonly=no", "filter="] {
            let name = query.split('=').next().unwrap();
            assert!(ask(query).unwrap_err().contains(name), "{query}");
        }
    }
}

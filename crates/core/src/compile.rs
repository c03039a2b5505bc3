//! How a resource becomes a plan: all problems at once, each with the path of its field.

use std::fmt;
use std::time::Duration;

use weft_protos::envoy::config::core::v3::ConfigSource;
use weft_protos::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use weft_protos::google::protobuf;

/// One thing in a resource that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `Cluster.outlier_detection.max_ejection_time_jitter`
    pub path: String,
    /// What is wrong with it, in words.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.path, self.reason)
    }
}

/// Everything that is wrong with one resource; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                out.write_str("; ")?;
            }
            problem.fmt(out)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Problems {
    /// A single one.
    pub fn one(path: &str, reason: &str) -> Self {
        Self(vec![Problem { path: path.to_owned(), reason: reason.to_owned() }])
    }

    /// These and more.
    #[must_use]
    pub fn and(mut self, more: Vec<Problem>) -> Self {
        self.0.extend(more);
        self
    }
}

/// Ten thousand years, the longest duration that protobuf knows.
const MOST_SECONDS: u64 = 315_576_000_000;

/// Envoy's default.
const DEFAULT_INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// What happens to a thing that weft does not implement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// It refuses the resource: the rule of every proxy.
    #[default]
    Refuse,
    /// It is collected as "not applied" and the rest is compiled: to read resources that another control plane made.
    Collect,
}

/// A compiled resource, and what was left out of it.
#[derive(Debug, Clone)]
pub struct Compiled<T> {
    /// The plan of this resource.
    pub value: T,
    /// What is accepted although nothing is done about it ([`Context::pass_over`]); under [`Strictness::Collect`] also what would be refused.
    pub not_applied: Vec<Problem>,
}

impl<T> Compiled<T> {
    /// The same about another form of the value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Compiled<U> {
        Compiled { value: change(self.value), not_applied: self.not_applied }
    }

    /// More that was left out.
    #[must_use]
    pub fn with_not_applied(mut self, more: Vec<Problem>) -> Self {
        self.not_applied.extend(more);
        self
    }
}

/// The state of one compilation: where in the resource we are, and what was wrong so far.
#[derive(Debug)]
pub struct Context {
    path: String,
    problems: Vec<Problem>,
    passed_over: Vec<Problem>,
}

impl Context {
    /// Begin at the root: the short name of the message type.
    pub fn new(root: &str) -> Self {
        Self { path: root.to_owned(), problems: Vec::new(), passed_over: Vec::new() }
    }

    /// Do `work` one field deeper.
    pub fn at<T>(&mut self, field: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push('.');
        self.path.push_str(field);
        let value = work(self);
        self.path.truncate(length);
        value
    }

    /// Do `work` on each element of a repeated field.
    pub fn each<'a, P, T>(
        &mut self,
        field: &str,
        items: &'a [P],
        mut work: impl FnMut(&mut Self, &'a P) -> T,
    ) -> Vec<T> {
        items
            .iter()
            .enumerate()
            .map(|(index, item)| self.at(&format!("{field}[{index}]"), |context| work(context, item)))
            .collect()
    }

    /// Note that the field at the present path cannot be honoured.
    pub fn refuse(&mut self, reason: impl Into<String>) {
        self.problems.push(Problem { path: self.path.clone(), reason: reason.into() });
    }

    /// Note that nothing is done about the field at the present path, and that the resource is good without it: it changes neither where
    /// a request goes nor who may send it.
    pub fn pass_over(&mut self, reason: impl Into<String>) {
        self.passed_over.push(Problem { path: self.path.clone(), reason: reason.into() });
    }

    /// Note that a field below the present path cannot be honoured.
    pub fn refuse_at(&mut self, field: &str, reason: impl Into<String>) {
        self.at(field, |context| context.refuse(reason));
    }

    /// Read a duration; absent stays absent. Negative ones are refused, and those that are no duration of protobuf's: whoever adds one
    /// to a moment can rely on there being such a moment.
    pub fn duration(&mut self, field: &str, value: Option<&protobuf::Duration>) -> Option<Duration> {
        let value = value?;
        match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
            (Ok(seconds), Ok(nanos)) if seconds <= MOST_SECONDS && nanos < 1_000_000_000 => {
                Some(Duration::new(seconds, nanos))
            }
            _ => {
                self.refuse_at(
                    field,
                    format!("{}s {}ns is not a duration of 0 s to {MOST_SECONDS} s", value.seconds, value.nanos),
                );
                None
            }
        }
    }

    /// The same, where Envoy refuses no time at all.
    pub fn positive_duration(&mut self, field: &str, value: Option<&protobuf::Duration>) -> Option<Duration> {
        let value = self.duration(field, value)?;
        if value.is_zero() {
            self.refuse_at(field, "must be more than zero");
        }
        Some(value)
    }

    /// How long a resource that comes from *source* is waited for before it counts as absent; `None`: as long as it takes.
    pub fn initial_fetch_timeout(&mut self, source: Option<&ConfigSource>) -> Option<Duration> {
        let limit = source.and_then(|source| source.initial_fetch_timeout.as_ref());
        let limit = self.duration("initial_fetch_timeout", limit).unwrap_or(DEFAULT_INITIAL_FETCH_TIMEOUT);
        (!limit.is_zero()).then_some(limit)
    }

    /// Check where a resource comes from that weft-proxy waits for as long as it takes, so that a limit to waiting cannot be honoured.
    pub fn config_source(&mut self, source: Option<&ConfigSource>) {
        let limit = source.and_then(|source| source.initial_fetch_timeout.as_ref());
        if limit.is_some_and(|limit| limit.seconds != 0 || limit.nanos != 0) {
            self.refuse_at("initial_fetch_timeout", "only 0 (no limit) is supported");
        }
    }

    /// Check where what weft-proxy follows by ADS only comes from.
    pub fn ads_source(&mut self, source: Option<&ConfigSource>) {
        if source.is_some_and(|source| !matches!(source.config_source_specifier, Some(ConfigSourceSpecifier::Ads(_)))) {
            self.refuse("only `ads: {}` is supported: one stream for everything, in order");
        }
    }

    /// End the compilation of `value`.
    ///
    /// # Errors
    /// All problems, if there was one and `strictness` refuses.
    pub fn finish<T>(self, value: T, strictness: Strictness) -> Result<Compiled<T>, Problems> {
        match strictness {
            Strictness::Refuse if !self.problems.is_empty() => Err(Problems(self.problems)),
            _ => Ok(Compiled { value, not_applied: [self.passed_over, self.problems].concat() }),
        }
    }
}

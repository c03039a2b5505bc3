//! Matchers of strings, headers, query parameters and paths, compiled once; every regular expression is built here and nowhere else.

use std::borrow::Cow;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};
use regex_automata::hybrid::dfa::{Cache, DFA, OverlappingState};
use regex_automata::nfa::thompson;
use regex_automata::util::pool::Pool;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};
use regex_syntax::ParserBuilder;
use regex_syntax::hir::Hir;
use regex_syntax::hir::literal::Extractor;
use weft_protos::envoy::config::route::v3 as route;
use weft_protos::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use weft_protos::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use weft_protos::envoy::config::route::v3::route_match::PathSpecifier;
use weft_protos::envoy::r#type::matcher::v3 as matcher;
use weft_protos::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use crate::compile::Context;
use crate::request::{RequestHead, path_only, query_parameter};

/// A regular expression that must match the whole text, as Envoy's `safe_regex` does.
#[derive(Debug, Clone)]
pub struct FullRegex {
    source: Box<str>,
    regex: Regex,
}

/// Largest compiled size of one regular expression, bytes: a few hundred alternatives, not a memory bomb.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// Largest compiled size of many together, bytes.
const REGEX_SET_SIZE_LIMIT: usize = 1 << 25;

/// Memory for the states of one automaton in each thread, which are made as texts need them; bytes.
const STATES_BYTES: usize = 1 << 21;

/// When its states had to be forgotten so often, it is given up for a text in which they come to be forgotten once more, unless they are
/// worth it.
const STATES_FORGOTTEN: usize = 3;

/// They are if so many bytes were read for each of them since they were forgotten last.
const BYTES_OF_A_STATE: usize = 10;

fn full(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}

fn parse(pattern: &str) -> Result<Hir, Box<regex_syntax::Error>> {
    ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).map_err(Box::new)
}

/// Bytes, not code points: `.` is any byte but a newline, `\d` and `\w` are ASCII as in RE2, which Envoy uses.
pub(crate) fn build_regex(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).unicode(false).size_limit(REGEX_SIZE_LIMIT).build().map_err(|error| error.to_string())
}

impl FullRegex {
    /// # Errors
    /// The pattern is not a regular expression, or too large.
    pub fn new(pattern: &str) -> Result<Self, String> {
        // By itself first: what would close the group that it is put into is no expression, and would match a part of a text.
        parse(pattern).map_err(|error| error.to_string())?;
        Ok(Self { source: pattern.into(), regex: build_regex(&full(pattern))? })
    }

    /// Whether the whole of `text` matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    /// What every text that matches begins with; empty if that differs.
    pub fn literal_prefix(&self) -> Vec<u8> {
        let literals = parse(&self.source).map(|expression| Extractor::new().extract(&expression));
        literals.ok().and_then(|literals| literals.longest_common_prefix().map(<[u8]>::to_vec)).unwrap_or_default()
    }

    pub(crate) fn compile(context: &mut Context, field: &str, matcher: &matcher::RegexMatcher) -> Option<Self> {
        Self::new(&matcher.regex).map_err(|reason| context.refuse_at(field, reason)).ok()
    }
}

type MakeStates = Box<dyn Fn() -> Cache + Send + Sync + UnwindSafe + RefUnwindSafe>;

/// Regular expressions in one automaton, which reads a text once for all of them.
pub struct FullRegexSet {
    automaton: Arc<DFA>,
    states: Pool<Cache, MakeStates>,
    length: usize,
}

impl FullRegexSet {
    /// # Errors
    /// Together they are too large.
    pub fn new<'r>(regexes: impl Iterator<Item = &'r FullRegex>) -> Result<Self, String> {
        let patterns: Vec<String> = regexes.map(|regex| full(&regex.source)).collect();
        let states = DFA::config()
            .match_kind(MatchKind::All)
            .cache_capacity(STATES_BYTES)
            .minimum_cache_clear_count(Some(STATES_FORGOTTEN))
            .minimum_bytes_per_state(Some(BYTES_OF_A_STATE));
        let automaton = DFA::builder()
            .configure(states)
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(thompson::Config::new().utf8(false).nfa_size_limit(Some(REGEX_SET_SIZE_LIMIT)))
            .build_many(&patterns)
            .map_err(|error| error.to_string())?;
        let automaton = Arc::new(automaton);
        let maker = Arc::clone(&automaton);
        Ok(Self { automaton, states: Pool::new(Box::new(move || maker.create_cache())), length: patterns.len() })
    }

    /// Call *take* with the index of each that matches the whole of `text`, or may do so: all of them where the automaton would need
    /// more states than it may have.
    pub fn for_each_match(&self, text: &[u8], mut take: impl FnMut(usize)) {
        let (mut states, mut at) = (self.states.get(), OverlappingState::start());
        let input = Input::new(text).anchored(Anchored::Yes);
        loop {
            if self.automaton.try_search_overlapping_fwd(&mut states, &input, &mut at).is_err() {
                return (0..self.length).for_each(take);
            }
            match at.get_match() {
                Some(found) => take(found.pattern().as_usize()),
                None => return,
            }
        }
    }
}

impl fmt::Debug for FullRegexSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} regular expressions", self.length)
    }
}

/// How a text is compared.
#[derive(Debug, Clone)]
pub enum StringMatch {
    /// The whole text.
    Exact { text: Box<str>, ignore_case: bool },
    /// The beginning.
    Prefix { text: Box<str>, ignore_case: bool },
    /// The end.
    Suffix { text: Box<str>, ignore_case: bool },
    /// Anywhere.
    Contains { text: Box<str>, ignore_case: bool },
    /// The whole text, as a regular expression.
    Regex(FullRegex),
}

fn equal(left: &[u8], right: &str, ignore_case: bool) -> bool {
    if ignore_case { left.eq_ignore_ascii_case(right.as_bytes()) } else { left == right.as_bytes() }
}

fn starts(text: &[u8], prefix: &str, ignore_case: bool) -> bool {
    text.get(..prefix.len()).is_some_and(|head| equal(head, prefix, ignore_case))
}

impl StringMatch {
    /// Whether `text` matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact { text: wanted, ignore_case } => equal(text, wanted, *ignore_case),
            Self::Prefix { text: wanted, ignore_case } => starts(text, wanted, *ignore_case),
            Self::Suffix { text: wanted, ignore_case } => {
                text.len() >= wanted.len() && equal(&text[text.len() - wanted.len()..], wanted, *ignore_case)
            }
            Self::Contains { text: wanted, ignore_case } => {
                wanted.is_empty() || text.windows(wanted.len()).any(|window| equal(window, wanted, *ignore_case))
            }
            Self::Regex(regex) => regex.is_match(text),
        }
    }

    pub(crate) fn compile(context: &mut Context, matcher: &matcher::StringMatcher) -> Option<Self> {
        let ignore_case = matcher.ignore_case;
        Some(match &matcher.match_pattern {
            Some(MatchPattern::Exact(text)) => Self::Exact { text: text.as_str().into(), ignore_case },
            Some(MatchPattern::Prefix(text)) => Self::Prefix { text: text.as_str().into(), ignore_case },
            Some(MatchPattern::Suffix(text)) => Self::Suffix { text: text.as_str().into(), ignore_case },
            Some(MatchPattern::Contains(text)) => Self::Contains { text: text.as_str().into(), ignore_case },
            // Envoy: ignore_case has no effect on safe_regex.
            Some(MatchPattern::SafeRegex(regex)) => Self::Regex(FullRegex::compile(context, "safe_regex", regex)?),
            Some(MatchPattern::Custom(_)) => {
                context.refuse_at("custom", "custom matchers are not supported");
                return None;
            }
            None => {
                context.refuse("no pattern");
                return None;
            }
        })
    }

    pub(crate) fn exact(text: &str) -> Self {
        Self::Exact { text: text.into(), ignore_case: false }
    }
}

impl fmt::Display for StringMatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, text, ignore_case) = match self {
            Self::Exact { text, ignore_case } => ("equal to", text, *ignore_case),
            Self::Prefix { text, ignore_case } => ("beginning with", text, *ignore_case),
            Self::Suffix { text, ignore_case } => ("ending with", text, *ignore_case),
            Self::Contains { text, ignore_case } => ("containing", text, *ignore_case),
            Self::Regex(regex) => ("matching the regex", &regex.source, false),
        };
        write!(out, "{verb} `{text}`{}", if ignore_case { " in any case" } else { "" })
    }
}

/// What a header must be.
#[derive(Debug, Clone)]
pub enum HeaderCondition {
    /// Its value matches.
    Value(StringMatch),
    /// It is there (`true`) or not there (`false`).
    Present(bool),
    /// Its value is a decimal integer from `start` to below `end`.
    Range { start: i64, end: i64 },
}

/// One header matcher.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// Lower-case; may be a pseudo-header such as `:method`.
    pub name: Box<str>,
    /// What is wanted.
    pub condition: HeaderCondition,
    /// The result is turned round.
    pub invert: bool,
    /// An absent header counts as an empty one. Otherwise an absent header never matches, inverted or not, except by `Present`.
    pub missing_is_empty: bool,
}

impl HeaderMatch {
    /// Whether the request's header matches.
    pub fn is_match<R: RequestHead + ?Sized>(&self, request: &R) -> bool {
        self.is_value_match(request.field(&self.name))
    }

    /// The same of the header's value, if there is one.
    pub(crate) fn is_value_match(&self, value: Option<Cow<'_, [u8]>>) -> bool {
        if let HeaderCondition::Present(wanted) = self.condition {
            return ((value.is_some() || self.missing_is_empty) == wanted) != self.invert;
        }
        let value = match &value {
            Some(value) => value.as_ref(),
            None if self.missing_is_empty => &[],
            None => return false,
        };
        let holds = match &self.condition {
            HeaderCondition::Value(matcher) => matcher.is_match(value),
            HeaderCondition::Range { start, end } => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.trim().parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
            HeaderCondition::Present(_) => true,
        };
        holds != self.invert
    }

    pub(crate) fn compile(context: &mut Context, matcher: &route::HeaderMatcher) -> Option<Self> {
        if matcher.name.is_empty() {
            context.refuse_at("name", "a header matcher needs a name");
            return None;
        }
        let condition = match &matcher.header_match_specifier {
            None => HeaderCondition::Present(true),
            Some(HeaderMatchSpecifier::PresentMatch(wanted)) => HeaderCondition::Present(*wanted),
            Some(HeaderMatchSpecifier::ExactMatch(text)) => HeaderCondition::Value(StringMatch::exact(text)),
            Some(HeaderMatchSpecifier::PrefixMatch(text)) => {
                HeaderCondition::Value(StringMatch::Prefix { text: text.as_str().into(), ignore_case: false })
            }
            Some(HeaderMatchSpecifier::SuffixMatch(text)) => {
                HeaderCondition::Value(StringMatch::Suffix { text: text.as_str().into(), ignore_case: false })
            }
            Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
                HeaderCondition::Value(StringMatch::Contains { text: text.as_str().into(), ignore_case: false })
            }
            Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => {
                HeaderCondition::Value(StringMatch::Regex(FullRegex::compile(context, "safe_regex_match", regex)?))
            }
            Some(HeaderMatchSpecifier::RangeMatch(range)) => {
                HeaderCondition::Range { start: range.start, end: range.end }
            }
            Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
                HeaderCondition::Value(context.at("string_match", |context| StringMatch::compile(context, matcher))?)
            }
        };
        Some(Self {
            name: matcher.name.to_ascii_lowercase().into(),
            condition,
            invert: matcher.invert_match,
            missing_is_empty: matcher.treat_missing_header_as_empty,
        })
    }
}

impl fmt::Display for HeaderMatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "header {}{} ", self.name, if self.invert { " not" } else { "" })?;
        match &self.condition {
            HeaderCondition::Value(matcher) => matcher.fmt(out),
            HeaderCondition::Present(true) => out.write_str("present"),
            HeaderCondition::Present(false) => out.write_str("absent"),
            HeaderCondition::Range { start, end } => write!(out, "from {start} to below {end}"),
        }
    }
}

/// One query parameter matcher. The first value of the name counts.
#[derive(Debug, Clone)]
pub struct QueryMatch {
    /// As it stands in the URL.
    pub name: Box<str>,
    /// Present is enough if absent.
    pub value: Option<StringMatch>,
}

impl QueryMatch {
    /// Whether the path's query matches.
    pub fn is_match(&self, path: &[u8]) -> bool {
        match (query_parameter(path, self.name.as_bytes()), &self.value) {
            (Some(value), Some(matcher)) => matcher.is_match(value),
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        }
    }

    pub(crate) fn compile(context: &mut Context, parameter: &route::QueryParameterMatcher) -> Option<Self> {
        let value = match &parameter.query_parameter_match_specifier {
            None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => None,
            Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
                // Envoy reads this as "present", whatever the author meant.
                context.refuse_at("present_match", "false is not a condition");
                return None;
            }
            Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
                Some(context.at("string_match", |context| StringMatch::compile(context, matcher))?)
            }
        };
        Some(Self { name: parameter.name.as_str().into(), value })
    }
}

impl fmt::Display for QueryMatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            None => write!(out, "query parameter {} present", self.name),
            Some(matcher) => write!(out, "query parameter {} {matcher}", self.name),
        }
    }
}

/// How the path (without query) is compared.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// Begins with the text: `/a` matches `/ab`.
    Prefix { text: Box<str>, ignore_case: bool },
    /// Begins with whole segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    SegmentPrefix { text: Box<str>, ignore_case: bool },
    /// Is the text.
    Exact { text: Box<str>, ignore_case: bool },
    /// The whole of it matches.
    Regex(FullRegex),
    /// There is none: the request is a CONNECT (RFC 9110 9.3.6). No other matcher takes such a request.
    Connect,
}

impl PathMatch {
    /// Whether `path` (with or without query) matches.
    pub fn is_match(&self, path: &[u8]) -> bool {
        let path = path_only(path);
        if path.is_empty() {
            return matches!(self, Self::Connect);
        }
        match self {
            Self::Connect => false,
            Self::Prefix { text, ignore_case } => starts(path, text, *ignore_case),
            Self::SegmentPrefix { text, ignore_case } => {
                starts(path, text, *ignore_case) && path.get(text.len()).is_none_or(|&next| next == b'/')
            }
            Self::Exact { text, ignore_case } => equal(path, text, *ignore_case),
            Self::Regex(regex) => regex.is_match(path),
        }
    }

    /// How much of a matching path `prefix_rewrite` replaces: the prefix, or all of it. Bytes.
    pub fn rewritten_length(&self, path: &[u8]) -> usize {
        match self {
            Self::Prefix { text, .. } | Self::SegmentPrefix { text, .. } => text.len(),
            Self::Exact { .. } | Self::Regex(_) | Self::Connect => path_only(path).len(),
        }
    }

    pub(crate) fn compile(context: &mut Context, matcher: &route::RouteMatch) -> Option<Self> {
        let ignore_case = matcher.case_sensitive.as_ref().is_some_and(|sensitive| !sensitive.value);
        Some(match &matcher.path_specifier {
            Some(PathSpecifier::Prefix(text)) => Self::Prefix { text: text.as_str().into(), ignore_case },
            Some(PathSpecifier::Path(text)) => Self::Exact { text: text.as_str().into(), ignore_case },
            Some(PathSpecifier::PathSeparatedPrefix(text)) => {
                if text.ends_with('/') || !text.starts_with('/') || text.contains(['?', '#']) {
                    context.refuse_at(
                        "path_separated_prefix",
                        format!("`{text}` must begin with `/`, not end with it, and have no query"),
                    );
                    return None;
                }
                Self::SegmentPrefix { text: text.as_str().into(), ignore_case }
            }
            Some(PathSpecifier::SafeRegex(regex)) => Self::Regex(FullRegex::compile(context, "safe_regex", regex)?),
            Some(PathSpecifier::ConnectMatcher(_)) => Self::Connect,
            Some(PathSpecifier::PathMatchPolicy(_)) => {
                context.refuse_at("path_match_policy", "path match extensions are not supported");
                return None;
            }
            None => {
                context.refuse("a route needs a path matcher");
                return None;
            }
        })
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, text, ignore_case) = match self {
            Self::Prefix { text, ignore_case } => ("begins with", text, *ignore_case),
            Self::SegmentPrefix { text, ignore_case } => ("begins with the segments", text, *ignore_case),
            Self::Exact { text, ignore_case } => ("is", text, *ignore_case),
            Self::Regex(regex) => ("matches the regex", &regex.source, false),
            Self::Connect => return out.write_str("method CONNECT, which has no path"),
        };
        write!(out, "path {verb} `{text}`{}", if ignore_case { " in any case" } else { "" })
    }
}

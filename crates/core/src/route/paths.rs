//! Which routes of a long list can match a path at all, so that a request pays for few of them and not for all.
//!
//! The first route that matches wins, whatever it matches by, so candidates are handed out in the order of the list: the lowest of
//! those that the path's own text, one of its prefixes, the combined regular expressions, or nothing but a try can tell.

use std::collections::HashMap;
use std::sync::Arc;

use crate::matching::{FullRegexSet, PathMatch};
use crate::request::path_only;

use super::Route;

/// Shorter lists are compared from one end to the other: a comparison costs less than looking up would.
const FEW: usize = 32;

/// As many regular expressions are one automaton: so many that begin alike share its memory for states, so that a path costs a lookup for
/// each of its bytes. Of thousands each state would stand for all, and none would be there twice. So a worker has at most 4 KiB of states for
/// each expression, whatever paths clients choose.
const REGEXES_TOGETHER: usize = 512;

/// Positions in the list, ascending.
type Positions = Vec<u32>;

/// By length of the text: there are few lengths, however many texts.
type ByPrefix<T> = Vec<(usize, HashMap<Box<[u8]>, T>)>;

/// An index of the routes of one virtual host.
#[derive(Debug)]
pub struct Paths {
    exact: HashMap<Box<[u8]>, Positions>,
    prefixes: ByPrefix<Positions>,
    /// By the text that all matches of the expression begin with, which may be none.
    regexes: ByPrefix<Regexes>,
    /// Texts in any case, and what takes a CONNECT.
    others: Positions,
}

/// Regular expressions whose matches begin alike.
#[derive(Debug, Default)]
struct Regexes {
    positions: Positions,
    /// For each part of the positions in their order, `None` where it cannot be one automaton; no parts if there are few.
    together: Vec<Option<FullRegexSet>>,
}

impl Paths {
    /// `None` if the list is short.
    pub fn of(routes: &[Arc<Route>]) -> Option<Paths> {
        if routes.len() < FEW {
            return None;
        }
        let mut paths = Paths { exact: HashMap::new(), prefixes: Vec::new(), regexes: Vec::new(), others: Vec::new() };
        for (position, route) in routes.iter().enumerate() {
            let position = u32::try_from(position).ok()?;
            match &route.conditions.path {
                PathMatch::Exact { text, ignore_case: false } => {
                    paths.exact.entry(text.as_bytes().into()).or_default().push(position);
                }
                PathMatch::Prefix { text, ignore_case: false }
                | PathMatch::SegmentPrefix { text, ignore_case: false } => {
                    entry(&mut paths.prefixes, text.as_bytes()).push(position);
                }
                PathMatch::Regex(regex) => entry(&mut paths.regexes, &regex.literal_prefix()).positions.push(position),
                PathMatch::Exact { .. }
                | PathMatch::Prefix { .. }
                | PathMatch::SegmentPrefix { .. }
                | PathMatch::Connect => paths.others.push(position),
            }
        }
        for alike in paths.regexes.iter_mut().flat_map(|(_, by_prefix)| by_prefix.values_mut()) {
            alike.combine(routes);
        }
        Some(paths)
    }

    /// The routes that may match *path* (with or without query), in their order.
    pub fn candidates<'p>(&'p self, path: &'p [u8]) -> Candidates<'p> {
        Candidates { paths: self, path: path_only(path), matched: None, from: 0 }
    }
}

impl Regexes {
    fn combine(&mut self, routes: &[Arc<Route>]) {
        if self.positions.len() < FEW {
            return;
        }
        let sets = self.positions.chunks(REGEXES_TOGETHER).map(|chunk| {
            // Each was built alone; together they may be too large, or one may know what no automaton of this kind does (`(?u:\b)`).
            FullRegexSet::new(chunk.iter().filter_map(|&position| match &routes[position as usize].conditions.path {
                PathMatch::Regex(regex) => Some(regex),
                _ => None,
            }))
            .ok()
        });
        self.together = sets.collect();
    }
}

/// The entry of *text*, made if there is none.
fn entry<'e, T: Default>(by_prefix: &'e mut ByPrefix<T>, text: &[u8]) -> &'e mut T {
    let at = match by_prefix.binary_search_by_key(&text.len(), |(length, _)| *length) {
        Ok(at) => at,
        Err(at) => {
            by_prefix.insert(at, (text.len(), HashMap::new()));
            at
        }
    };
    by_prefix[at].1.entry(text.into()).or_default()
}

/// The entries of all texts that *path* begins with.
fn beginning<'e, T>(by_prefix: &'e ByPrefix<T>, path: &'e [u8]) -> impl Iterator<Item = &'e T> {
    by_prefix
        .iter()
        .take_while(|(length, _)| *length <= path.len())
        .filter_map(|(length, texts)| texts.get(&path[..*length]))
}

/// Positions of routes that may match a path, ascending. See [`Paths::candidates`].
#[derive(Debug)]
pub struct Candidates<'p> {
    paths: &'p Paths,
    path: &'p [u8],
    /// What the combined expressions say, once somebody had to ask them; ascending.
    matched: Option<Positions>,
    from: u32,
}

impl Candidates<'_> {
    fn first(&self, positions: &[u32]) -> Option<u32> {
        let at = positions.partition_point(|&position| position < self.from);
        positions.get(at).copied()
    }

    /// The first match of the combined expressions, if it comes before *other*.
    fn matched(&mut self, other: Option<u32>) -> Option<u32> {
        if self.matched.is_none() {
            let combined = || beginning(&self.paths.regexes, self.path).filter(|alike| !alike.together.is_empty());
            let comes_before = |alike: &Regexes| {
                self.first(&alike.positions).is_some_and(|first| other.is_none_or(|other| first < other))
            };
            if !combined().any(comes_before) {
                return None;
            }
            let mut matched = Positions::new();
            for alike in combined() {
                for (set, positions) in alike.together.iter().zip(alike.positions.chunks(REGEXES_TOGETHER)) {
                    match set {
                        Some(set) => set.for_each_match(self.path, |index| matched.push(positions[index])),
                        None => matched.extend(positions),
                    }
                }
            }
            // An expression may be named twice: where it may match, and then where it does.
            matched.sort_unstable();
            matched.dedup();
            self.matched = Some(matched);
        }
        self.first(self.matched.as_deref()?)
    }
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let paths = self.paths;
        let exact = paths.exact.get(self.path).and_then(|positions| self.first(positions));
        let prefix = beginning(&paths.prefixes, self.path).filter_map(|positions| self.first(positions)).min();
        let alone = beginning(&paths.regexes, self.path)
            .filter(|alike| alike.together.is_empty())
            .filter_map(|alike| self.first(&alike.positions))
            .min();
        let first = [exact, prefix, alone, self.first(&paths.others)].into_iter().flatten().min();
        let position = [first, self.matched(first)].into_iter().flatten().min()?;
        self.from = position + 1;
        Some(position as usize)
    }
}

//! Which routes of a long list can match a path at all, so that a request pays for few of them and not for all.
//!
//! The first route that matches wins, whatever it matches by, so candidates are handed out in the order of the list: the lowest of
//! those that the path's own text, one of its prefixes, or nothing but a try can tell.

use std::collections::HashMap;
use std::sync::Arc;

use crate::matching::PathMatch;
use crate::request::path_only;

use super::Route;

/// Shorter lists are compared from one end to the other: a comparison costs less than looking up would.
const FEW: usize = 32;

/// Positions in the list, ascending.
type Positions = Vec<u32>;

/// Routes by the text that they match by.
type ByText = HashMap<Box<[u8]>, Positions>;

/// An index of the routes of one virtual host.
#[derive(Debug)]
pub struct Paths {
    exact: ByText,
    /// By length of the prefix: there are few lengths, however many prefixes.
    prefixes: Vec<(usize, ByText)>,
    /// Regular expressions, texts in any case, and what takes a CONNECT.
    others: Positions,
}

impl Paths {
    /// `None` if the list is short.
    pub fn of(routes: &[Arc<Route>]) -> Option<Paths> {
        if routes.len() < FEW {
            return None;
        }
        let mut paths = Paths { exact: HashMap::new(), prefixes: Vec::new(), others: Vec::new() };
        for (position, route) in routes.iter().enumerate() {
            let position = u32::try_from(position).ok()?;
            match &route.conditions.path {
                PathMatch::Exact { text, ignore_case: false } => {
                    paths.exact.entry(text.as_bytes().into()).or_default().push(position);
                }
                PathMatch::Prefix { text, ignore_case: false }
                | PathMatch::SegmentPrefix { text, ignore_case: false } => {
                    let at = match paths.prefixes.binary_search_by_key(&text.len(), |(length, _)| *length) {
                        Ok(at) => at,
                        Err(at) => {
                            paths.prefixes.insert(at, (text.len(), HashMap::new()));
                            at
                        }
                    };
                    paths.prefixes[at].1.entry(text.as_bytes().into()).or_default().push(position);
                }
                PathMatch::Exact { .. }
                | PathMatch::Prefix { .. }
                | PathMatch::SegmentPrefix { .. }
                | PathMatch::Regex(_)
                | PathMatch::Connect => paths.others.push(position),
            }
        }
        Some(paths)
    }

    /// The first position at or after *from* whose route may match *path* (with or without query).
    pub fn next(&self, path: &[u8], from: usize) -> Option<usize> {
        let path = path_only(path);
        let first = |positions: &Positions| {
            let at = positions.partition_point(|&position| (position as usize) < from);
            positions.get(at).copied()
        };
        let exact = self.exact.get(path).and_then(first);
        let prefix = self
            .prefixes
            .iter()
            .take_while(|(length, _)| *length <= path.len())
            .filter_map(|(length, texts)| texts.get(&path[..*length]).and_then(first))
            .min();
        [exact, prefix, first(&self.others)].into_iter().flatten().min().map(|position| position as usize)
    }
}

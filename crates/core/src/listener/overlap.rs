//! Filter chains of one listener that are for the same connections: Envoy refuses them, because the later one would never be chosen.

use std::collections::HashMap;

use super::{ChainMatch, FilterChain, SourceType, Transport};
use crate::compile::Context;

/// The conditions of which a chain has at most one value, and one of its server names (empty: none is asked for). Chains that differ in it
/// have nothing in common, so only few are compared with each other where there are thousands.
type Bucket<'c> = (Option<u16>, Option<Transport>, Option<SourceType>, &'c str);

/// Refuse each chain that has all conditions of an earlier one, by any combination of their values; and lists that say something twice.
pub(super) fn refuse(context: &mut Context, chains: &[Option<FilterChain>]) {
    let mut known: HashMap<Bucket, Vec<usize>> = HashMap::new();
    let conditions = |index: usize| chains[index].as_ref().map(|chain| &chain.conditions);
    for (index, own) in (0..chains.len()).filter_map(|index| Some((index, conditions(index)?))) {
        let at = format!("filter_chains[{index}].filter_chain_match");
        if let Some(field) = said_twice(own) {
            context.refuse_at(&format!("{at}.{field}"), "says the same twice");
        }
        let mut earlier = None;
        for name in names(own) {
            let bucket = (own.destination_port, own.transport_protocol, own.source_type, name);
            let others = known.entry(bucket).or_default();
            let is_same = |other: &&usize| **other != index && conditions(**other).is_some_and(|it| overlap(own, it));
            earlier = earlier.or_else(|| others.iter().find(is_same).copied());
            others.push(index);
        }
        if let Some(earlier) = earlier {
            context
                .refuse_at(&at, format!("filter_chains[{earlier}] is for the same connections, so this one never is"));
        }
    }
}

fn names(conditions: &ChainMatch) -> impl Iterator<Item = &str> {
    let none = conditions.server_names.is_empty().then_some("");
    none.into_iter().chain(conditions.server_names.iter().map(|name| &**name))
}

/// Whether the conditions that are lists, other than names, have a combination in common.
fn overlap(one: &ChainMatch, other: &ChainMatch) -> bool {
    share(&one.prefix_ranges, &other.prefix_ranges)
        && share(&one.application_protocols, &other.application_protocols)
        && share(&one.direct_source_prefix_ranges, &other.direct_source_prefix_ranges)
        && share(&one.source_prefix_ranges, &other.source_prefix_ranges)
        && share(&one.source_ports, &other.source_ports)
}

/// Nothing at all is a value of its own: what is asked for comes before it.
fn share<T: PartialEq>(one: &[T], other: &[T]) -> bool {
    one.is_empty() && other.is_empty() || one.iter().any(|value| other.contains(value))
}

/// The first list that has a value twice.
fn said_twice(conditions: &ChainMatch) -> Option<&'static str> {
    fn twice<T: PartialEq>(values: &[T]) -> bool {
        values.iter().enumerate().any(|(index, value)| values[..index].contains(value))
    }
    [
        ("prefix_ranges", twice(&conditions.prefix_ranges)),
        ("server_names", twice(&conditions.server_names)),
        ("application_protocols", twice(&conditions.application_protocols)),
        ("direct_source_prefix_ranges", twice(&conditions.direct_source_prefix_ranges)),
        ("source_prefix_ranges", twice(&conditions.source_prefix_ranges)),
        ("source_ports", twice(&conditions.source_ports)),
    ]
    .into_iter()
    .find_map(|(field, is_twice)| is_twice.then_some(field))
}

//! Which virtual host an authority belongs to: hash look-ups in Envoy's order.

use std::collections::HashMap;
use std::sync::Arc;

use super::VirtualHost;
use crate::compile::Context;

/// Index into the table's virtual hosts.
type Index = u32;

/// The domains of all virtual hosts of a table.
#[derive(Debug, Default)]
pub(super) struct Domains {
    exact: HashMap<Box<[u8]>, Index>,
    /// `*.example.com` is kept as `.example.com`.
    suffixes: ByLength,
    /// `example.*` is kept as `example.`.
    prefixes: ByLength,
    any: Option<Index>,
    ignore_port: bool,
}

/// Affixes with their distinct lengths, longest first, so that a look-up costs one hash for each length in use.
#[derive(Debug, Default)]
struct ByLength {
    lengths: Vec<usize>,
    entries: HashMap<Box<[u8]>, Index>,
}

impl ByLength {
    fn insert(&mut self, affix: &[u8], index: Index) -> bool {
        if let Err(place) = self.lengths.binary_search_by(|length| affix.len().cmp(length)) {
            self.lengths.insert(place, affix.len());
        }
        insert(&mut self.entries, affix, index)
    }

    fn find(&self, host: &[u8], cut: impl Fn(&[u8], usize) -> &[u8]) -> Option<Index> {
        // A wildcard stands for at least one character.
        self.lengths
            .iter()
            .filter(|length| **length < host.len())
            .find_map(|length| self.entries.get(cut(host, *length)).copied())
    }
}

fn insert(entries: &mut HashMap<Box<[u8]>, Index>, key: &[u8], index: Index) -> bool {
    entries.insert(key.to_ascii_lowercase().into(), index).is_none()
}

/// Names of hosts have at most 253 characters; with a port it is 259. Longer ones go over the heap.
const INLINE: usize = 264;

impl Domains {
    pub(super) fn compile(context: &mut Context, hosts: &[Arc<VirtualHost>], ignore_port: bool) -> Self {
        let mut domains = Self { ignore_port, ..Self::default() };
        for (index, host) in hosts.iter().enumerate() {
            // A resource of four thousand million virtual hosts does not fit a message.
            let index_in_table = index as Index;
            for (number, domain) in host.domains.iter().enumerate() {
                if !domains.insert(domain, index_in_table) {
                    context.refuse_at(
                        &format!("virtual_hosts[{index}].domains[{number}]"),
                        format!("`{domain}` stands in more than one virtual host"),
                    );
                }
            }
        }
        domains
    }

    /// Whether *domain* stands in a virtual host as it is.
    pub(super) fn names(&self, domain: &str) -> bool {
        let lower = domain.to_ascii_lowercase();
        match lower.as_bytes() {
            b"*" => self.any.is_some(),
            [b'*', suffix @ ..] => self.suffixes.entries.contains_key(suffix),
            [prefix @ .., b'*'] => self.prefixes.entries.contains_key(prefix),
            exact => self.exact.contains_key(exact),
        }
    }

    pub(super) fn ignores_port(&self) -> bool {
        self.ignore_port
    }

    fn insert(&mut self, domain: &str, index: Index) -> bool {
        match domain.as_bytes() {
            b"*" => self.any.replace(index).is_none(),
            [b'*', suffix @ ..] => self.suffixes.insert(suffix, index),
            [prefix @ .., b'*'] => self.prefixes.insert(prefix, index),
            exact => insert(&mut self.exact, exact, index),
        }
    }

    /// Exact, then the longest suffix wildcard, then the longest prefix wildcard, then `*`.
    pub(super) fn find(&self, authority: &[u8]) -> Option<Index> {
        if authority.is_empty() {
            return self.any;
        }
        let host = if self.ignore_port { without_port(authority) } else { authority };
        let mut buffer = [0; INLINE];
        match buffer.get_mut(..host.len()) {
            Some(lower) => {
                lower.copy_from_slice(host);
                lower.make_ascii_lowercase();
                self.find_lower(lower)
            }
            None => self.find_lower(&host.to_ascii_lowercase()),
        }
        .or(self.any)
    }

    fn find_lower(&self, host: &[u8]) -> Option<Index> {
        self.exact
            .get(host)
            .copied()
            .or_else(|| self.suffixes.find(host, |host, length| &host[host.len() - length..]))
            .or_else(|| self.prefixes.find(host, |host, length| &host[..length]))
    }
}

/// The authority without `:port`; brackets of IPv6 stay.
pub(crate) fn without_port(authority: &[u8]) -> &[u8] {
    let Some(colon) = authority.iter().rposition(|&byte| byte == b':') else { return authority };
    let port = &authority[colon + 1..];
    // `[::1]` has colons and no port.
    let inside_brackets = authority.first() == Some(&b'[') && authority[colon - 1] != b']';
    if inside_brackets || port.is_empty() || !port.iter().all(u8::is_ascii_digit) {
        authority
    } else {
        &authority[..colon]
    }
}

//! New paths and locations.

use super::domains::without_port;
use super::{PathRewrite, Redirect};
use crate::matching::PathMatch;
use crate::request::{RequestHead, path_only};

impl PathRewrite {
    /// The new path with the old query; `matched` is the route's matcher, `path` what it matched.
    pub fn apply(&self, matched: &PathMatch, path: &[u8]) -> Vec<u8> {
        let plain = path_only(path);
        let mut rewritten = match self {
            Self::Prefix(prefix) => {
                let rest = plain.get(matched.rewritten_length(path)..).unwrap_or_default();
                [prefix.as_bytes(), rest].concat()
            }
            Self::Regex { pattern, substitution } => pattern.replace_all(plain, &**substitution).into_owned(),
        };
        rewritten.extend_from_slice(&path[plain.len()..]);
        rewritten
    }
}

impl Redirect {
    /// The `location` for a request: scheme, host, port and path, each the request's own unless the redirect names another.
    pub fn location<R: RequestHead + ?Sized>(&self, matched: &PathMatch, request: &R) -> Vec<u8> {
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme().as_str());
        let mut location = [scheme, "://"].concat().into_bytes();
        match &self.host {
            Some(host) => location.extend_from_slice(host.as_bytes()),
            None => location.extend_from_slice(self.kept_host(request, scheme)),
        }
        if let Some(port) = self.port {
            location.extend_from_slice(format!(":{port}").as_bytes());
        }
        location.extend_from_slice(&self.new_path(matched, request.path()));
        location
    }

    /// The request's host; without its port if another one is named, or if it is the old scheme's default and the scheme changes.
    fn kept_host<'r, R: RequestHead + ?Sized>(&self, request: &'r R, scheme: &str) -> &'r [u8] {
        let authority = request.authority();
        let bare = without_port(authority);
        let port = &authority[bare.len()..];
        let old = request.scheme();
        let is_of_old = || scheme != old.as_str() && port == format!(":{}", old.default_port()).as_bytes();
        if self.port.is_some() || is_of_old() { bare } else { authority }
    }

    fn new_path(&self, matched: &PathMatch, path: &[u8]) -> Vec<u8> {
        let query_start = path.iter().position(|&byte| byte == b'?').unwrap_or(path.len());
        match (&self.path, &self.path_rewrite) {
            // A query of the new path wins over the request's and is not stripped.
            (Some(new), _) if new.contains('?') || self.strip_query => new.as_bytes().to_vec(),
            (Some(new), _) => [new.as_bytes(), &path[query_start..]].concat(),
            (None, rewrite) => {
                let path = if self.strip_query { &path[..query_start] } else { path };
                rewrite.as_ref().map_or_else(|| path.to_vec(), |rewrite| rewrite.apply(matched, path))
            }
        }
    }
}

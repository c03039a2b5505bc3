//! What is held, as `/config_dump` shows it.

use std::sync::Arc;

use weft_core::compile::Problem;
use weft_protos::type_url;

use super::{Holdings, Name, Stored};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Active,
    Warming,
    Refused,
}

/// One version of a resource. Of one name there may be one in each state.
#[derive(Clone, Copy)]
pub struct Shown<'h> {
    pub type_url: &'h str,
    pub name: &'h str,
    /// The cluster whose server sent it, if it is not of the control plane or the bootstrap.
    pub source: Option<&'h str>,
    pub version: &'h str,
    pub state: State,
    /// It came by the bootstrap.
    pub is_static: bool,
    /// Serialised; empty of secrets and of what was refused, whose bytes are not kept.
    pub body: &'h [u8],
    /// What of it is accepted although nothing is done about it.
    pub not_applied: &'h [Problem],
    /// Why it is not active; empty if it is.
    pub reason: &'h str,
}

impl<T> Stored<T> {
    fn shown<'h>(&'h self, type_url: &'h str, name: &'h str) -> Shown<'h> {
        let Stored { version, body, not_applied, .. } = self;
        let state = State::Active;
        Shown { type_url, name, source: None, version, state, is_static: false, body, not_applied, reason: "" }
    }
}

impl Holdings {
    /// All of it, by type.
    pub fn shown(&self) -> Vec<Shown<'_>> {
        let mut rows = Vec::new();
        for (name, newest) in &self.clusters {
            let at_work = self.clusters_at_work.get(name).map(|it| &*it.stored);
            self.show_warmed(type_url::CLUSTER, name, newest, at_work, &mut rows);
        }
        for (name, newest) in &self.listeners {
            let at_work = self.listeners_at_work.get(name).map(|it| &*it.stored);
            self.show_warmed(type_url::LISTENER, name, newest, at_work, &mut rows);
        }
        rows.extend(self.assignments.iter().map(|(name, it)| it.shown(type_url::CLUSTER_LOAD_ASSIGNMENT, name)));
        rows.extend(self.routes.iter().map(|(name, it)| it.shown(type_url::ROUTE_CONFIGURATION, name)));
        let nothing = |type_url, name, version| Shown {
            type_url,
            name,
            source: None,
            version,
            state: State::Active,
            is_static: false,
            body: &[],
            not_applied: &[],
            reason: "",
        };
        rows.extend(self.virtual_hosts.iter().map(|(name, held)| Shown {
            body: &held.body,
            not_applied: &held.not_applied,
            ..nothing(type_url::VIRTUAL_HOST, name, &held.version)
        }));
        rows.extend(self.secret_marks.iter().map(|(secret, mark)| Shown {
            source: secret.cluster.as_deref(),
            ..nothing(type_url::SECRET, &*secret.name, &mark.version)
        }));
        for row in &mut rows {
            row.is_static = self.is_fixed(row.type_url, row.name);
        }
        rows.extend(self.refused.iter().map(|((type_url, name, source), (version, reason))| Shown {
            source: source.as_deref(),
            state: State::Refused,
            reason,
            ..nothing(type_url, name, version)
        }));
        rows
    }

    /// The newest version of what has to be warm before it works, and beside it the one that is at work still.
    fn show_warmed<'h, T>(
        &'h self,
        type_url: &'static str,
        name: &'h Name,
        newest: &'h Stored<T>,
        at_work: Option<&'h Stored<T>>,
        rows: &mut Vec<Shown<'h>>,
    ) {
        let newest = newest.shown(type_url, name);
        match self.obstacles.get(&(type_url, Arc::clone(name))) {
            None => rows.push(newest),
            Some(obstacle) => {
                rows.extend(at_work.map(|it| it.shown(type_url, name)));
                rows.push(Shown { state: State::Warming, reason: obstacle.reason(), ..newest });
            }
        }
    }
}

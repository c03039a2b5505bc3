//! Sessions with upstreams, to be resumed by their next connection: those of one cluster's TLS context, so of one server name, one set
//! of roots and one certificate of ours. Whatever of that changes makes a new context, and the sessions of the old one go with it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// At most so many sessions of TLS 1.3 (`max_session_keys`), and one of TLS 1.2. Shared by all workers; the lock is held for a move.
pub struct Sessions {
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The newest last.
    tickets: VecDeque<Tls13ClientSessionValue>,
    of_version_12: Option<Tls12ClientSessionValue>,
    /// What the server chose last, so that it need not ask for another share of a key.
    group: Option<NamedGroup>,
}

impl Sessions {
    /// *most*: not 0.
    pub fn new(most: usize) -> Sessions {
        Sessions { most, kept: Mutex::default() }
    }

    /// Begin the next connections with full handshakes.
    pub fn forget(&self) {
        let mut kept = self.kept();
        kept.tickets.clear();
        kept.of_version_12 = None;
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // A poisoned lock holds sessions that are whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, _name: ServerName<'static>, group: NamedGroup) {
        self.kept().group = Some(group);
    }

    fn kx_hint(&self, _name: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept().group
    }

    fn set_tls12_session(&self, _name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.kept().of_version_12 = Some(session);
    }

    fn tls12_session(&self, _name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept().of_version_12.clone()
    }

    fn remove_tls12_session(&self, _name: &ServerName<'static>) {
        self.kept().of_version_12 = None;
    }

    fn insert_tls13_ticket(&self, _name: ServerName<'static>, session: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        while kept.tickets.len() >= self.most {
            kept.tickets.pop_front();
        }
        kept.tickets.push_back(session);
    }

    fn take_tls13_ticket(&self, _name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().tickets.pop_back()
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Sessions")
    }
}

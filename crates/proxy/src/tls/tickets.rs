//! Session tickets for clients: sealed sessions of rustls that only we can open, and only for as long as whoever shook hands would
//! still be let in.
//!
//! rustls takes a session that we open for proof of its client's certificate and verifies nothing anew. So [`Tickets`] opens none whose
//!
//! 1. key is not of the present or the previous generation (or of those configured),
//! 2. validation context differs in anything from the present one: its digest goes into the key,
//! 3. full handshake, in which the client proved that it holds its key, is longer ago than the session timeout,
//! 4. client certificate the verifier would refuse now: expired, revoked, under no root, without an accepted name.
//!
//! A ticket that stays closed costs the client a full handshake and nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use rustls::server::ProducesTickets;
use rustls::{HandshakeKind, ServerConnection};
use rustls_pki_types::UnixTime;
use tokio::time::Instant;
use weft_core::tls::{OWN_TICKET_KEY_LIFE, TICKET_KEY_BYTES};

use super::server_session::Session;
use super::verify::PeerVerifier;

/// How long a session can be resumed if nobody says it; BoringSSL's default, and so Envoy's.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(2 * 60 * 60);
const NAME_BYTES: usize = 16;
const SALT_BYTES: usize = 32;
/// A ticket holds the client's certificates. Longer ones are not worth their bytes in each hello, and who inspects hellos may read no more
/// than 16 KiB of one (Envoy).
const MAX_SESSION_BYTES: usize = 8 * 1024;

/// What seals tickets, and the name by which it is found again.
pub struct Key {
    name: [u8; NAME_BYTES],
    secret: [u8; TICKET_KEY_BYTES - NAME_BYTES],
}

impl Key {
    /// A key as Envoy is given them; `None` if it is not as long as they are.
    pub fn read(bytes: &[u8]) -> Option<Key> {
        let (name, secret) = bytes.split_first_chunk()?;
        Some(Key { name: *name, secret: secret.try_into().ok()? })
    }

    /// `None` if the system has no randomness, and then there are no tickets.
    fn random() -> Option<Key> {
        let mut bytes = [0; TICKET_KEY_BYTES];
        aws_lc_rs::rand::fill(&mut bytes).ok()?;
        Key::read(&bytes)
    }

    /// The key of one ticket. No nonce can come twice where each has a key of its own, however long a configured one is in use.
    fn of_ticket(&self, salt: &[u8], binding: &[u8]) -> Option<LessSafeKey> {
        let derived = Salt::new(HKDF_SHA256, salt).extract(&self.secret);
        let info = [&b"weft session ticket"[..], binding];
        Some(LessSafeKey::new(UnboundKey::from(derived.expand(&info, &AES_256_GCM).ok()?)))
    }

    fn seal(&self, binding: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let mut salt = [0; SALT_BYTES];
        aws_lc_rs::rand::fill(&mut salt).ok()?;
        let key = self.of_ticket(&salt, binding)?;
        let mut sealed = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        key.seal_in_place_append_tag(nonce, Aad::from(self.name), &mut sealed).ok()?;
        Some([&self.name[..], &salt, &sealed].concat())
    }

    fn open(&self, binding: &[u8], ticket: &[u8]) -> Option<Vec<u8>> {
        let (salt, sealed) = ticket.strip_prefix(&self.name)?.split_at_checked(SALT_BYTES)?;
        let key = self.of_ticket(salt, binding)?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let length = key.open_in_place(nonce, Aad::from(self.name), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

/// The proxy's own keys: one for all workers and listeners, made anew every [`OWN_TICKET_KEY_LIFE`], and the one before it. They are
/// never written down, so no other process opens what this one sealed.
#[derive(Default)]
pub struct KeyRing(Mutex<Option<Generation>>);

struct Generation {
    since: Instant,
    current: Arc<Key>,
    previous: Option<Arc<Key>>,
}

impl KeyRing {
    /// The present key and the previous one.
    fn keys(&self, now: Instant) -> Option<(Arc<Key>, Option<Arc<Key>>)> {
        // A poisoned lock holds a generation that is whole: it is replaced in one assignment.
        let mut generation = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = generation.as_ref().map(|generation| now.saturating_duration_since(generation.since));
        if age.is_none_or(|age| age >= OWN_TICKET_KEY_LIFE) {
            let previous = generation
                .take()
                // Nobody asked for so long that even the newest ticket is too old.
                .filter(|_| age.is_some_and(|age| age < 2 * OWN_TICKET_KEY_LIFE))
                .map(|generation| generation.current);
            *generation = Some(Generation { since: now, current: Arc::new(Key::random()?), previous });
        }
        generation.as_ref().map(|generation| (Arc::clone(&generation.current), generation.previous.clone()))
    }
}

/// Which keys a listener's tickets are sealed with.
pub enum Keys {
    Own(Arc<KeyRing>),
    /// The first seals, all open.
    Configured(Arc<[Key]>),
}

/// The tickets of one TLS context.
pub struct Tickets {
    keys: Keys,
    /// Digest of all that decides about a client.
    binding: [u8; 32],
    lifetime: Duration,
    /// Absent: nobody is asked for a certificate.
    verifier: Option<Arc<PeerVerifier>>,
}

impl Tickets {
    pub fn new(
        keys: Keys,
        binding: [u8; 32],
        lifetime: Option<Duration>,
        verifier: Option<Arc<PeerVerifier>>,
    ) -> Tickets {
        Tickets { keys, binding, lifetime: lifetime.unwrap_or(DEFAULT_LIFETIME), verifier }
    }

    fn seal(&self, plain: &[u8], now: Instant) -> Option<Vec<u8>> {
        // Without a date it could not be resumed: see `date`.
        Session::read(plain)?.authenticated_at?;
        if plain.len() > MAX_SESSION_BYTES {
            return None;
        }
        match &self.keys {
            Keys::Own(ring) => ring.keys(now)?.0.seal(&self.binding, plain),
            Keys::Configured(keys) => keys.first()?.seal(&self.binding, plain),
        }
    }

    fn open(&self, ticket: &[u8], now: Instant, wall: UnixTime) -> Option<Vec<u8>> {
        let plain = match &self.keys {
            Keys::Own(ring) => {
                let (current, previous) = ring.keys(now)?;
                [Some(current), previous].iter().flatten().find_map(|key| key.open(&self.binding, ticket))
            }
            Keys::Configured(keys) => keys.iter().find_map(|key| key.open(&self.binding, ticket)),
        }?;
        let session = Session::read(&plain)?;
        // A clock that was set back makes sessions of the future, of which nobody knows how old they are.
        let age = wall.as_secs().checked_sub(session.authenticated_at?)?;
        if age > self.lifetime.as_secs() {
            return None;
        }
        let is_welcome = match &self.verifier {
            Some(verifier) => verifier.would_accept_client(&session.chain, wall),
            None => session.chain.is_empty(),
        };
        is_welcome.then_some(plain)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, Instant::now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, Instant::now(), UnixTime::now())
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Tickets")
    }
}

/// Write into a session when its client proved who it is, right after its hello was read: a session that is resumed hands on the date of
/// the full handshake that it comes from, or tickets could be exchanged for newer ones for ever (RFC 8446 4.6.1).
///
/// After a HelloRetryRequest it is not known yet whether a session is resumed, so there is no date and no ticket.
pub fn date(connection: &mut ServerConnection) {
    let date = match connection.handshake_kind() {
        Some(HandshakeKind::Full) => UnixTime::now().as_secs().to_be_bytes(),
        Some(HandshakeKind::Resumed) => match connection.received_resumption_data().map(TryInto::try_into) {
            Some(Ok(date)) => date,
            _ => return,
        },
        _ => return,
    };
    connection.set_resumption_data(&date);
}

#[cfg(test)]
mod tests {
    use super::super::server_session::tests::session;
    use super::*;

    fn wall(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn tickets(keys: Keys, binding: u8) -> Tickets {
        Tickets::new(keys, [binding; 32], None, None)
    }

    fn configured(keys: &[u8]) -> Keys {
        Keys::Configured(keys.iter().map(|&byte| Key::read(&[byte; TICKET_KEY_BYTES]).unwrap()).collect())
    }

    #[test]
    fn a_ticket_lives_through_one_change_of_keys_and_not_through_two() {
        let tickets = tickets(Keys::Own(Arc::default()), 0);
        let start = Instant::now();
        let plain = session(&[], 1000);
        let ticket = tickets.seal(&plain, start).unwrap();
        let opened = |after: Duration| tickets.open(&ticket, start + after, wall(1000));
        assert_eq!(opened(Duration::ZERO).as_ref(), Some(&plain));
        assert_eq!(opened(OWN_TICKET_KEY_LIFE).as_ref(), Some(&plain));
        let newer = tickets.seal(&plain, start + OWN_TICKET_KEY_LIFE).unwrap();
        assert_ne!(newer[..NAME_BYTES], ticket[..NAME_BYTES]);
        assert_eq!(opened(2 * OWN_TICKET_KEY_LIFE), None);
        assert!(tickets.open(&newer, start + 2 * OWN_TICKET_KEY_LIFE, wall(1000)).is_some());
    }

    #[test]
    fn after_a_long_silence_no_old_key_is_left() {
        let tickets = tickets(Keys::Own(Arc::default()), 0);
        let start = Instant::now();
        let ticket = tickets.seal(&session(&[], 1000), start).unwrap();
        assert_eq!(tickets.open(&ticket, start + 2 * OWN_TICKET_KEY_LIFE, wall(1000)), None);
    }

    #[test]
    fn of_configured_keys_the_first_seals_and_all_open() {
        let now = Instant::now();
        let ticket = tickets(configured(&[1]), 0).seal(&session(&[], 1000), now).unwrap();
        assert_eq!(ticket[..NAME_BYTES], [1; NAME_BYTES]);
        for (keys, opens) in [(&[1u8][..], true), (&[2, 1], true), (&[3, 2], false), (&[], false)] {
            assert_eq!(tickets(configured(keys), 0).open(&ticket, now, wall(1000)).is_some(), opens, "{keys:?}");
        }
        assert_eq!(tickets(configured(&[]), 0).seal(&session(&[], 1000), now), None);
    }

    #[test]
    fn a_ticket_is_of_no_use_where_trust_is_another() {
        let now = Instant::now();
        let ticket = tickets(configured(&[1]), 1).seal(&session(&[], 1000), now).unwrap();
        assert!(tickets(configured(&[1]), 1).open(&ticket, now, wall(1000)).is_some());
        assert_eq!(tickets(configured(&[1]), 2).open(&ticket, now, wall(1000)), None);
    }

    #[test]
    fn a_ticket_ends_with_its_session_however_often_it_was_renewed() {
        let now = Instant::now();
        let tickets = tickets(configured(&[1]), 0);
        let ticket = tickets.seal(&session(&[], 1000), now).unwrap();
        let last = 1000 + DEFAULT_LIFETIME.as_secs();
        for (seconds, opens) in [(999, false), (1000, true), (last, true), (last + 1, false)] {
            assert_eq!(tickets.open(&ticket, now, wall(seconds)).is_some(), opens, "{seconds}");
        }
    }

    #[test]
    fn a_session_with_certificates_is_not_for_a_listener_that_looks_at_none() {
        let now = Instant::now();
        let tickets = tickets(configured(&[1]), 0);
        let ticket = tickets.seal(&session(&[b"leaf", b"above"], 1000), now).unwrap();
        assert_eq!(tickets.open(&ticket, now, wall(1000)), None);
    }

    #[test]
    fn what_is_no_ticket_of_ours_stays_closed() {
        let now = Instant::now();
        let tickets = tickets(configured(&[1]), 0);
        let ticket = tickets.seal(&session(&[], 1000), now).unwrap();
        for index in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[index] ^= 1;
            assert_eq!(tickets.open(&changed, now, wall(1000)), None, "{index}");
            assert_eq!(tickets.open(&ticket[..index], now, wall(1000)), None, "{index}");
        }
    }

    #[test]
    fn too_long_a_session_gets_no_ticket() {
        let now = Instant::now();
        let chain = vec![0; MAX_SESSION_BYTES];
        assert_eq!(tickets(configured(&[1]), 0).seal(&session(&[&chain], 1000), now), None);
    }
}

//! What is in a session ticket once it has been opened: a session of a TLS server, as rustls writes it.

use rustls_pki_types::CertificateDer;

use crate::codec::tls_fields::Fields;

/// What we have to know of a session as rustls writes it (`ServerSessionValue`). If it comes to write it otherwise, nothing is read and
/// nothing resumed; a test would tell.
pub struct Session<'a> {
    pub chain: Vec<CertificateDer<'a>>,
    /// Seconds since 1970; see `tickets::date`.
    pub authenticated_at: Option<u64>,
}

impl<'a> Session<'a> {
    /// Read one to its end, or not at all.
    pub fn read(plain: &'a [u8]) -> Option<Session<'a>> {
        let mut fields = Fields(plain);
        if fields.flag()? {
            let _server_name = fields.vector::<1>()?;
        }
        let _version = fields.take(2)?;
        let _cipher_suite = fields.take(2)?;
        let _master_secret = fields.vector::<1>()?;
        let _extended_master_secret = fields.flag()?;
        let mut chain = Vec::new();
        if fields.flag()? {
            let mut certificates = Fields(fields.vector::<3>()?);
            while !certificates.0.is_empty() {
                chain.push(CertificateDer::from(certificates.vector::<3>()?));
            }
        }
        if fields.flag()? {
            let _alpn = fields.vector::<1>()?;
        }
        let application_data = fields.vector::<2>()?;
        let _created = fields.take(8)?;
        let _age_offset = fields.take(4)?;
        let authenticated_at = application_data.try_into().ok().map(u64::from_be_bytes);
        fields.0.is_empty().then_some(Session { chain, authenticated_at })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A session as rustls writes it, of a client that showed these certificates.
    pub fn session(chain: &[&[u8]], authenticated_at: u64) -> Vec<u8> {
        let mut plain = vec![1, 2, b'u', b'p', 3, 4, 0x13, 1, 2, 7, 7, 0];
        plain.push(u8::from(!chain.is_empty()));
        if !chain.is_empty() {
            let length = |count: usize| (count as u32).to_be_bytes()[1..].to_vec();
            let certificates: Vec<u8> = chain.iter().flat_map(|it| [length(it.len()), it.to_vec()].concat()).collect();
            plain.extend(length(certificates.len()));
            plain.extend(certificates);
        }
        plain.extend([1, 2, b'h', b'2', 0, 8]);
        plain.extend(authenticated_at.to_be_bytes());
        plain.extend([0; 12]);
        plain
    }

    #[test]
    fn sessions_are_read_to_the_end_or_not_at_all() {
        let plain = session(&[b"leaf", b"above"], 1000);
        let read = Session::read(&plain).unwrap();
        assert_eq!(read.authenticated_at, Some(1000));
        assert_eq!(read.chain.iter().map(|it| &it[..]).collect::<Vec<_>>(), [&b"leaf"[..], b"above"]);
        for length in 0..plain.len() {
            assert!(Session::read(&plain[..length]).is_none(), "{length}");
        }
        assert!(Session::read(&[&plain[..], b"x"].concat()).is_none());
    }
}

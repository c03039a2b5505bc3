//! What the decision may ask about a request: its head, as bytes, whatever protocol it came in.

use std::borrow::Cow;

/// Whether *byte* may stand in a token, as methods and names of fields are (RFC 9110 5.6.2).
pub fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// How a resource is reached (RFC 9110 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    /// Of a connection that is *secure*, or not.
    pub fn of(secure: bool) -> Scheme {
        if secure { Scheme::Https } else { Scheme::Http }
    }

    /// Of a request, as Envoy finds it: what it says of its *own* (`:scheme`, the absolute form), else what proxies before this one have *told*
    /// (each `x-forwarded-proto` that is believed), if that is one thing, else how its *connection* is made.
    pub fn of_request<'v>(own: Option<Scheme>, told: impl IntoIterator<Item = &'v [u8]>, connection: Scheme) -> Scheme {
        let told = || {
            let mut told = told.into_iter();
            told.next().filter(|_| told.next().is_none()).and_then(Scheme::parse)
        };
        own.or_else(told).unwrap_or(connection)
    }

    /// By its name, in any case (RFC 3986 3.1); other schemes are none that a request of HTTP is for.
    pub fn parse(name: &[u8]) -> Option<Scheme> {
        [Scheme::Http, Scheme::Https].into_iter().find(|scheme| name.eq_ignore_ascii_case(scheme.as_str().as_bytes()))
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The port that an authority without one means (RFC 9110 4.2.1, 4.2.2).
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// The head of a request. Implemented by the proxy on its own buffers and by the engine on a question.
pub trait RequestHead {
    /// `GET`
    fn method(&self) -> &[u8];
    /// What its client wants it over.
    fn scheme(&self) -> Scheme;
    /// `:authority`, or `Host` of HTTP/1.1, with port if there was one. Empty if absent.
    fn authority(&self) -> &[u8];
    /// Path with query, as it will be matched (after normalisation): `/reviews/0?x=1`.
    fn path(&self) -> &[u8];
    /// The value of an ordinary header; several fields of one name are joined with `,` (RFC 9110 5.2).
    ///
    /// `name` is lower-case and never begins with a colon; comparison must ignore case.
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>>;

    /// The value of a header or pseudo-header, by the name that a matcher uses.
    fn field(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match name {
            ":method" => Some(Cow::Borrowed(self.method())),
            ":scheme" => Some(Cow::Borrowed(self.scheme().as_str().as_bytes())),
            ":path" => Some(Cow::Borrowed(self.path())),
            // Envoy keeps Host as :authority; a matcher may use either name.
            ":authority" | "host" => Some(Cow::Borrowed(self.authority())).filter(|value| !value.is_empty()),
            _ => self.header(name),
        }
    }
}

/// A head whose fields can be looked at one by one.
pub trait RequestFields: RequestHead {
    /// The value of each field of that name, in order; `name` as for [`RequestHead::header`].
    fn each_header<'h>(&'h self, name: &str, look: &mut dyn FnMut(&'h [u8]));
}

/// The path without query and fragment: what path matchers and rewrites see.
pub fn path_only(path: &[u8]) -> &[u8] {
    let end = path.iter().position(|&byte| byte == b'?' || byte == b'#').unwrap_or(path.len());
    &path[..end]
}

/// The first value of a query parameter, as it stands in the URL (not decoded, as in Envoy). `?a` has the empty value.
pub fn query_parameter<'a>(path: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let start = path.iter().position(|&byte| byte == b'?')? + 1;
    let query = &path[start..];
    let query = &query[..query.iter().position(|&byte| byte == b'#').unwrap_or(query.len())];
    query.split(|&byte| byte == b'&').find_map(|pair| match pair.iter().position(|&byte| byte == b'=') {
        Some(equals) if &pair[..equals] == name => Some(&pair[equals + 1..]),
        None if pair == name => Some(&pair[pair.len()..]),
        _ => None,
    })
}

/// A request held in plain strings: for questions and tests.
#[derive(Debug, Clone, Default)]
pub struct OwnedRequest {
    /// See [`RequestHead::method`].
    pub method: String,
    /// See [`RequestHead::scheme`].
    pub scheme: Scheme,
    /// See [`RequestHead::authority`].
    pub authority: String,
    /// See [`RequestHead::path`].
    pub path: String,
    /// Name and value; names in any case.
    pub headers: Vec<(String, String)>,
}

impl RequestHead for OwnedRequest {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn scheme(&self) -> Scheme {
        self.scheme
    }
    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut values = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let first = values.next()?;
        let mut joined = Cow::Borrowed(first.as_bytes());
        for value in values {
            let all = joined.to_mut();
            all.push(b',');
            all.extend_from_slice(value.as_bytes());
        }
        Some(joined)
    }
}

impl RequestFields for OwnedRequest {
    fn each_header<'h>(&'h self, name: &str, look: &mut dyn FnMut(&'h [u8])) {
        let fields = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        fields.for_each(|(_, value)| look(value.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requests_scheme_is_its_own_then_the_one_that_is_told_then_its_connections() {
        type Case = (Option<Scheme>, &'static [&'static [u8]], Scheme, Scheme);
        let cases: [Case; 7] = [
            (Some(Scheme::Http), &[b"https"], Scheme::Https, Scheme::Http),
            (Some(Scheme::Https), &[b"http"], Scheme::Http, Scheme::Https),
            (None, &[b"HTTPS"], Scheme::Http, Scheme::Https),
            (None, &[b"http"], Scheme::Https, Scheme::Http),
            (None, &[b"https", b"https"], Scheme::Http, Scheme::Http),
            (None, &[b"gopher"], Scheme::Https, Scheme::Https),
            (None, &[], Scheme::Https, Scheme::Https),
        ];
        for (own, told, connection, expected) in cases {
            assert_eq!(Scheme::of_request(own, told.iter().copied(), connection), expected, "{own:?} {told:?}");
        }
    }
}

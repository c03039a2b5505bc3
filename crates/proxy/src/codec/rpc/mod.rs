//! What the proxy asks about an RPC protocol: [`Codec`]. Write one, and the protocol has routing, limits, retries, metrics, records
//! and draining, which are in `crate::rpc` once for all and know no protocol.
//!
//! A codec is bytes in, answers out: no I/O, no clock, no state. It is asked about *whole messages*, so the only thing that it does on a part
//! of one is to say how long it will be. What it is asked, in the order of a call's life:
//!
//! ```text
//! caller's bytes --frame--> a message --inspect--> Call    --call-->  service, method, headers: a route can be chosen
//!                                                                     no route, no endpoint, too late: refuse
//!                                                  Ping    --pong-->  answered here, never passed on; `ping` asks those who are silent
//!                                                  Answer, Pong       from a caller: nobody asked, dropped
//!
//! connection to an endpoint: [set_id]  the caller's id is put aside
//! endpoint's bytes --frame--> a message --inspect--> Answer           [set_id] to the caller, with its own id again
//!                                                    GoAway           no more calls on this connection
//!                                                    Ping, Pong, Call as above; a call from an endpoint has nobody to go to
//! ```
//!
//! Whether calls share a connection is the protocol's nature, so the codec says it ([`Sharing`]):
//!
//! - in Dubbo and Bolt every message has an id, answers come in any order, and clients keep one connection to each server: calls of all callers
//!   share one connection of each worker to each endpoint, under ids of our own. A connection for each call under way would be a
//!   thousand of them where an application had one;
//! - a Thrift server reads a connection's next request when it has answered the last. One slow call would hold up everybody's, so
//!   a connection is lent to one call at a time, and message ids pass unchanged.
//!
//! What passes is passed byte for byte but for the id: headers of tracing and everything that the proxy does not know arrive as they were sent.

use std::borrow::Cow;
use std::time::Duration;

pub mod dubbo;
pub mod hessian2;
pub mod thrift;

/// What a codec remembers of one message. Beyond these a list is no longer than its message and yet many times larger: an entry of two bytes
/// is two slices here.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Headers: attachments of Dubbo.
    pub headers: usize,
    /// Arguments.
    pub parameters: usize,
    /// A name of a service or a method, which comes again in refusals and records.
    pub name_bytes: usize,
}

impl Limits {
    pub const DEFAULT: Limits = Limits {
        // Envoy has no limit but the message's.
        headers: 1024,
        // A method of Java has no more (JVM specification 4.3.3), and no longer name (4.4.7).
        parameters: 255,
        name_bytes: 65_535,
    };
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::DEFAULT
    }
}

/// A protocol of calls.
pub trait Codec: Send + Sync {
    /// Whether calls share a connection to an endpoint.
    fn sharing(&self) -> Sharing;

    /// How long the message is that *bytes* begin with. Called again whenever more has come, so it should look at the first bytes only.
    ///
    /// # Errors
    /// These bytes are not the protocol, or the message is longer than it may be. The connection is closed: nobody can know where the next
    /// message would begin.
    fn frame(&self, bytes: &[u8]) -> Result<Frame, Malformed>;

    /// What a whole *message* is, and for an answer how the call went.
    ///
    /// # Errors
    /// It breaks the protocol. The connection is closed.
    fn inspect(&self, message: &[u8]) -> Result<Message, Malformed>;

    /// What is called, of a message that [`Codec::inspect`] found to be a call.
    ///
    /// # Errors
    /// Not even service and method can be read; the caller is told so. What comes behind them may be beyond us: that is
    /// [`Call::rest`] without a value, and no error.
    fn call<'m>(&self, message: &'m [u8]) -> Result<Call<'m>, Malformed>;

    /// Append an answer of the proxy itself to the call that *message* is: an error in the protocol's own terms, with *text* for people.
    fn refuse(&self, message: &[u8], refusal: Refusal, text: &str, out: &mut Vec<u8>);

    /// Append a message that tells a silent connection's other end that we are there, if the protocol has one.
    fn ping(&self, _id: u64, _out: &mut Vec<u8>) {}

    /// Append the answer to a ping; not asked where [`Codec::inspect`] never finds any.
    fn pong(&self, _ping: &[u8], _out: &mut Vec<u8>) {}

    /// Append a message after which its receiver begins no more calls on the connection. False: the protocol has none.
    fn go_away(&self, _out: &mut Vec<u8>) -> bool {
        false
    }
}

/// See [`Codec::sharing`].
#[derive(Clone, Copy)]
pub enum Sharing {
    /// Many calls at once; *set_id* writes another id into a whole message, in its place.
    Many { set_id: fn(message: &mut [u8], id: u64) },
    /// One call at a time.
    One,
}

/// What the first bytes of a message say about its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// All of it, from its first byte.
    Length(usize),
    /// They are too few to say.
    More,
}

/// Why bytes are not the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("not the beginning of a message")]
    Begin,
    #[error("a message of {0} bytes")]
    TooLong(u64),
    #[error("a message of a kind that is not known: {0}")]
    Kind(u8),
    #[error("serialised in a way that is not known: {0}")]
    Serialization(u8),
    #[error("a message whose content ends early or makes no sense")]
    Content,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A call. *answered*: the caller waits for an answer.
    Call {
        id: u64,
        answered: bool,
    },
    Answer {
        id: u64,
        status: Status,
    },
    /// Is the other end alive? *answered*: it wants to hear that we are.
    Ping {
        answered: bool,
    },
    Pong,
    /// The sender takes no more calls on this connection; those that it has will be answered.
    GoAway,
}

/// How a call went, as its answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Success,
    /// The method was carried out and failed by its own rules: the server is well.
    Exception,
    /// The server could not carry it out.
    Error(Failure),
}

/// What kind of trouble a server has, as far as metrics and outlier detection tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The call made no sense to it.
    BadRequest,
    /// It has no such service or method.
    NotFound,
    /// It has too much to do.
    Overloaded,
    Timeout,
    Internal,
}

/// Why the proxy answers a call by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No route takes it.
    NoRoute,
    /// It cannot be read as far as its routes need.
    BadRequest,
    /// No endpoint answers: none there, none reachable, or it went away.
    Unavailable,
    /// A limit of ours.
    Overloaded,
    /// The caller's time is over.
    Timeout,
}

/// What is called. Borrows from the message where it can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call<'m> {
    /// Empty where the protocol or the caller has none.
    pub service: Cow<'m, [u8]>,
    pub version: Option<Cow<'m, [u8]>>,
    pub method: Cow<'m, [u8]>,
    /// `None`: it could not be read.
    pub rest: Option<Rest<'m>>,
}

/// Names and values.
pub type Headers<'m> = Vec<(Cow<'m, [u8]>, Cow<'m, [u8]>)>;

/// What stands behind the names of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest<'m> {
    pub group: Option<Cow<'m, [u8]>>,
    /// Names as they were sent.
    pub headers: Headers<'m>,
    /// Arguments; `None` for one that is no text.
    pub parameters: Vec<Option<Cow<'m, [u8]>>>,
    /// How long the caller waits for an answer, if it tells.
    pub timeout: Option<Duration>,
}

impl Call<'_> {
    /// The value of a header, by its name in any case. Of several with one name the last that was sent, as in a map.
    pub fn header(&self, name: &[u8]) -> Option<&[u8]> {
        let headers = &self.rest.as_ref()?.headers;
        headers.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }
}

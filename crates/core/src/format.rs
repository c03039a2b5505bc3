//! Envoy's substitution format: `%REQ(:METHOD)% %RESPONSE_CODE%`, for access records and header values.

use crate::compile::Context;
use crate::rbac;
use crate::time_format::TimeFormat;

/// One value that a format can ask for. The commands listed here are those that weft honours; another one refuses the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `%START_TIME%`, `%START_TIME(format)%`; RFC 3339 with milliseconds without a format.
    StartTime(Option<TimeFormat>),
    /// `%REQ(NAME?OTHER):LENGTH%`: a request header, or the other if absent; at most so many bytes.
    RequestHeader { name: Box<str>, otherwise: Option<Box<str>>, length: Option<usize> },
    /// `%RESP(NAME?OTHER):LENGTH%`
    ResponseHeader { name: Box<str>, otherwise: Option<Box<str>>, length: Option<usize> },
    /// `%TRAILER(NAME?OTHER):LENGTH%`
    ResponseTrailer { name: Box<str>, otherwise: Option<Box<str>>, length: Option<usize> },
    /// `%PROTOCOL%`: `HTTP/1.1`
    Protocol,
    /// `%RESPONSE_CODE%`
    ResponseCode,
    /// `%GRPC_STATUS%`, `%GRPC_STATUS(CAMEL_STRING)%`, ...: of a call of gRPC, also where only the HTTP status tells it.
    GrpcStatus(GrpcFormat),
    /// `%RESPONSE_FLAGS%`
    ResponseFlags,
    /// `%RESPONSE_CODE_DETAILS%`
    ResponseCodeDetails,
    /// `%CONNECTION_TERMINATION_DETAILS%`
    ConnectionTerminationDetails,
    /// `%ROUTE_NAME%`
    RouteName,
    /// `%UPSTREAM_CLUSTER%`
    UpstreamCluster,
    /// `%UPSTREAM_HOST%`
    UpstreamHost,
    /// `%UPSTREAM_LOCAL_ADDRESS%`
    UpstreamLocalAddress,
    /// `%UPSTREAM_REQUEST_ATTEMPT_COUNT%`
    UpstreamRequestAttemptCount,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`
    UpstreamTransportFailureReason,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`
    DownstreamTransportFailureReason,
    /// `%DURATION%`, milliseconds
    Duration,
    /// `%REQUEST_DURATION%`, milliseconds
    RequestDuration,
    /// `%RESPONSE_DURATION%`, milliseconds
    ResponseDuration,
    /// `%BYTES_RECEIVED%`
    BytesReceived,
    /// `%BYTES_SENT%`
    BytesSent,
    /// `%DOWNSTREAM_REMOTE_ADDRESS%`
    DownstreamRemoteAddress,
    /// `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`
    DownstreamRemoteAddressWithoutPort,
    /// `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`
    DownstreamDirectRemoteAddress,
    /// `%DOWNSTREAM_LOCAL_ADDRESS%`
    DownstreamLocalAddress,
    /// `%REQUESTED_SERVER_NAME%`
    RequestedServerName,
    /// `%DOWNSTREAM_PEER_URI_SAN%`
    DownstreamPeerUriSan,
    /// `%DOWNSTREAM_LOCAL_URI_SAN%`
    DownstreamLocalUriSan,
    /// `%FILTER_CHAIN_NAME%`
    FilterChainName,
    /// `%HOSTNAME%`
    Hostname,
    /// `%DYNAMIC_METADATA(NAMESPACE:KEY):LENGTH%`: of what shadow rules of RBAC tell, which is all there is.
    DynamicMetadata { namespace: Box<str>, key: Box<str>, length: Option<usize> },
}

/// How a status of gRPC is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcFormat {
    /// `Unavailable`
    Camel,
    /// `UNAVAILABLE`
    Snake,
    /// `14`
    Number,
}

/// Names of the statuses, by number. Envoy's in camel case have one L in the second, gRPC's two.
const GRPC_STATUSES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

impl GrpcFormat {
    /// *status* in this way; `None`: as its number, also where it has no name.
    pub fn name(self, status: u32) -> Option<&'static str> {
        let (camel, snake) = GRPC_STATUSES.get(status as usize)?;
        match self {
            GrpcFormat::Camel => Some(camel),
            GrpcFormat::Snake => Some(snake),
            GrpcFormat::Number => None,
        }
    }
}

/// A piece of a format: text that stands as it is, or a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it is.
    Text(Box<str>),
    /// Asked for at run time.
    Value(Command),
}

/// A parsed format string.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Format(pub Vec<Piece>);

/// Supplies the values of one request or connection.
pub trait Variables {
    /// Append the value to `out`. Return false if there is none (a record then shows `-`, JSON `null`).
    fn write(&self, command: &Command, out: &mut Vec<u8>) -> bool;
}

/// No values: for formats that are plain text.
impl Variables for () {
    fn write(&self, _: &Command, _: &mut Vec<u8>) -> bool {
        false
    }
}

impl Format {
    /// Parse `text`.
    ///
    /// # Errors
    /// An unknown command, or a `%` without its partner.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(percent) = rest.find('%') {
            literal.push_str(&rest[..percent]);
            let after = &rest[percent + 1..];
            if let Some(next) = after.strip_prefix('%') {
                literal.push('%');
                rest = next;
                continue;
            }
            let end = command_end(after).ok_or_else(|| format!("`%` without its partner in `{text}`"))?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal).into()));
            }
            pieces.push(Piece::Value(command(&after[..end])?));
            rest = &after[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal.into()));
        }
        Ok(Self(pieces))
    }

    /// The text, if the format asks for no value.
    pub fn literal(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Append the whole to `out`; an absent value becomes `missing`.
    pub fn write(&self, variables: &(impl Variables + ?Sized), missing: &str, out: &mut Vec<u8>) {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Value(command) => {
                    if !variables.write(command, out) {
                        out.extend_from_slice(missing.as_bytes());
                    }
                }
            }
        }
    }

    pub(crate) fn compile(context: &mut Context, text: &str) -> Self {
        Self::parse(text).unwrap_or_else(|reason| {
            context.refuse(reason);
            Self::default()
        })
    }
}

/// A command may hold `%` between its parentheses (`%START_TIME(%s)%`).
fn command_end(text: &str) -> Option<usize> {
    let mut inside = false;
    text.bytes().position(|byte| {
        match byte {
            b'(' => inside = true,
            b')' => inside = false,
            _ => {}
        }
        byte == b'%' && !inside
    })
}

fn command(text: &str) -> Result<Command, String> {
    let unknown = || format!("weft-proxy does not know the command `%{text}%`");
    let (name, argument, length) = match text.split_once('(') {
        None => (text, None, None),
        Some((name, rest)) => {
            let (argument, tail) = rest.rsplit_once(')').ok_or_else(unknown)?;
            let length = match tail.strip_prefix(':') {
                Some(digits) => Some(digits.parse().map_err(|_| unknown())?),
                None if tail.is_empty() => None,
                None => return Err(unknown()),
            };
            (name, Some(argument), length)
        }
    };
    if let Some(argument) = argument {
        let (header, otherwise) = match argument.split_once('?') {
            Some((header, otherwise)) => (header, Some(otherwise.to_ascii_lowercase().into())),
            None => (argument, None),
        };
        let header = || header.to_ascii_lowercase().into();
        return match name {
            "START_TIME" if length.is_none() => {
                let format = (!argument.is_empty()).then(|| TimeFormat::parse(argument)).transpose()?;
                Ok(Command::StartTime(format))
            }
            "REQ" => Ok(Command::RequestHeader { name: header(), otherwise, length }),
            "RESP" => Ok(Command::ResponseHeader { name: header(), otherwise, length }),
            "DYNAMIC_METADATA" => match argument.split_once(':') {
                // Nobody else makes any, and a key within a value that is text leads nowhere.
                Some((namespace @ (rbac::HTTP_FILTER | rbac::NETWORK_FILTER), key)) if !key.contains(':') => {
                    Ok(Command::DynamicMetadata { namespace: namespace.into(), key: key.into(), length })
                }
                _ => Err(unknown()),
            },
            "GRPC_STATUS" if length.is_none() => match argument {
                "CAMEL_STRING" => Ok(Command::GrpcStatus(GrpcFormat::Camel)),
                "SNAKE_STRING" => Ok(Command::GrpcStatus(GrpcFormat::Snake)),
                "NUMBER" => Ok(Command::GrpcStatus(GrpcFormat::Number)),
                _ => Err(unknown()),
            },
            "TRAILER" => Ok(Command::ResponseTrailer { name: header(), otherwise, length }),
            _ => Err(unknown()),
        };
    }
    Ok(match name {
        "START_TIME" => Command::StartTime(None),
        "PROTOCOL" => Command::Protocol,
        "RESPONSE_CODE" => Command::ResponseCode,
        "GRPC_STATUS" => Command::GrpcStatus(GrpcFormat::Camel),
        "GRPC_STATUS_NUMBER" => Command::GrpcStatus(GrpcFormat::Number),
        "RESPONSE_FLAGS" => Command::ResponseFlags,
        "RESPONSE_CODE_DETAILS" => Command::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => Command::ConnectionTerminationDetails,
        "ROUTE_NAME" => Command::RouteName,
        "UPSTREAM_CLUSTER" => Command::UpstreamCluster,
        "UPSTREAM_HOST" => Command::UpstreamHost,
        "UPSTREAM_LOCAL_ADDRESS" => Command::UpstreamLocalAddress,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Command::UpstreamRequestAttemptCount,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Command::UpstreamTransportFailureReason,
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => Command::DownstreamTransportFailureReason,
        "DURATION" => Command::Duration,
        "REQUEST_DURATION" => Command::RequestDuration,
        "RESPONSE_DURATION" => Command::ResponseDuration,
        "BYTES_RECEIVED" => Command::BytesReceived,
        "BYTES_SENT" => Command::BytesSent,
        "DOWNSTREAM_REMOTE_ADDRESS" => Command::DownstreamRemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Command::DownstreamRemoteAddressWithoutPort,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Command::DownstreamDirectRemoteAddress,
        "DOWNSTREAM_LOCAL_ADDRESS" => Command::DownstreamLocalAddress,
        "REQUESTED_SERVER_NAME" => Command::RequestedServerName,
        "DOWNSTREAM_PEER_URI_SAN" => Command::DownstreamPeerUriSan,
        "DOWNSTREAM_LOCAL_URI_SAN" => Command::DownstreamLocalUriSan,
        "FILTER_CHAIN_NAME" => Command::FilterChainName,
        "HOSTNAME" => Command::Hostname,
        _ => return Err(unknown()),
    })
}

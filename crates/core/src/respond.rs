//! Every answer that the proxy gives by itself: status, response flag, details, body; one ordered table.
//!
//! The proxy names a [`Cause`]; [`LocalReply::new`] looks it up. Status, details and body are Envoy's, so that records of both data planes
//! read alike and Istio's documentation applies.

use std::borrow::Cow;
use std::fmt;

macro_rules! flags {
    ($($name:ident $code:literal $words:literal;)*) => {
        /// Envoy's response flags. [`ResponseFlag::code`] is what records show, [`ResponseFlag::explanation`] says it in words.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum ResponseFlag { $(#[doc = $words] $name,)* }

        impl ResponseFlag {
            /// All flags, in the order in which a record lists them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The short code of access records.
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// One sentence for people.
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$name => $words,)* }
            }
        }
    };
}

flags! {
    FailedLocalHealthCheck "LH" "The local service failed its health check.";
    NoHealthyUpstream "UH" "The cluster had no healthy endpoint to send the request to.";
    UpstreamRequestTimeout "UT" "The upstream did not answer within the route's timeout or the timeout of one try.";
    LocalReset "LR" "This proxy reset the stream to the upstream.";
    UpstreamRemoteReset "UR" "The upstream reset the stream.";
    UpstreamConnectionFailure "UF" "No connection to the upstream could be made: refused, unreachable, timed out, or TLS failed.";
    UpstreamConnectionTermination "UC" "The upstream closed the connection before its answer was complete.";
    UpstreamOverflow "UO" "A circuit breaker of the cluster was open: too many connections, requests or retries at once.";
    NoRouteFound "NR" "No route matched the request, or no filter chain matched the connection.";
    DelayInjected "DI" "A fault rule delayed the request on purpose.";
    FaultInjected "FI" "A fault rule answered instead of the upstream, on purpose.";
    RateLimited "RL" "A rate limit was exceeded.";
    UnauthorizedExternalService "UAEX" "The external authorisation service denied the request.";
    RateLimitServiceError "RLSE" "The rate limit service failed, and the configuration says to refuse then.";
    DownstreamConnectionTermination "DC" "The connection to the client ended before the answer was complete.";
    UpstreamRetryLimitExceeded "URX" "The request was retried as often as allowed, and the last try failed too.";
    StreamIdleTimeout "SI" "Nothing moved on the stream for longer than its idle timeout.";
    InvalidEnvoyHeaders "IH" "A header that steers the proxy had an invalid value.";
    DownstreamProtocolError "DPE" "The client broke the HTTP protocol.";
    UpstreamMaxStreamDuration "UMSDR" "The request to the upstream lasted longer than the route allows.";
    ResponseFromCache "RFCF" "The answer came from a cache.";
    NoFilterConfiguration "NFCF" "The configuration of a filter had not arrived yet.";
    DurationTimeout "DT" "The connection or request lasted longer than allowed.";
    UpstreamProtocolError "UPE" "The upstream broke the HTTP protocol.";
    NoClusterFound "NC" "The route names a cluster that this proxy does not have.";
    OverloadManager "OM" "The proxy shed load because it was short of memory or other resources.";
    DnsResolutionFailed "DF" "The upstream's name could not be resolved.";
    DropOverload "DO" "The control plane asked to drop a share of the requests to this cluster.";
    DownstreamRemoteReset "DR" "The client reset the stream.";
}

impl ResponseFlag {
    /// Its field in `envoy.data.accesslog.v3.ResponseFlags`; that message lacks one.
    pub fn field(self) -> Option<u32> {
        match self {
            Self::DropOverload => None,
            Self::DownstreamRemoteReset => Some(28),
            // The order of the enum is that of the message.
            flag => Some(flag as u32 + 1),
        }
    }
}

/// A set of response flags: a request may earn several (`UF,URX`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u64);

impl Flags {
    /// No flag: the record shows `-`.
    pub const NONE: Self = Self(0);

    /// Add one.
    pub fn insert(&mut self, flag: ResponseFlag) {
        self.0 |= 1 << flag as u8;
    }

    /// Whether it is there.
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.0 & (1 << flag as u8) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are there, in the order of [`ResponseFlag::ALL`].
    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        ResponseFlag::ALL.iter().copied().filter(move |flag| self.contains(*flag))
    }
}

impl From<ResponseFlag> for Flags {
    fn from(flag: ResponseFlag) -> Self {
        let mut flags = Self::NONE;
        flags.insert(flag);
        flags
    }
}

impl fmt::Display for Flags {
    /// As in an access record: `UF,URX`, or `-` for none.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return out.write_str("-");
        }
        for (index, flag) in self.iter().enumerate() {
            if index > 0 {
                out.write_str(",")?;
            }
            out.write_str(flag.code())?;
        }
        Ok(())
    }
}

/// Why the proxy answers by itself, or ends what it cannot finish. The order is that of a request's life; [`TABLE`] has one row for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    // While the request is read.
    /// The bytes are not HTTP.
    MalformedRequest,
    /// The head is larger than allowed.
    HeadersTooLarge,
    /// HTTP/1.0 where it is not accepted.
    LowVersion,
    /// HTTP/1.1 without `Host`.
    MissingHost,
    /// The connection is not from a process of a user that may call here.
    CallerRefused,
    /// The credential of the program beside this proxy is missing, or another's.
    CredentialRequired,
    /// The request names a host for which this address does not stand.
    ForeignHost,
    /// The request comes from a page of another site.
    ForeignOrigin,
    /// Its client says that TLS protects it, and nothing does.
    SecureInPlainText,
    /// The path cannot be normalised, or has escaped slashes that are refused.
    BadPath,
    /// The path has escaped slashes and the client is sent to the unescaped one.
    EscapedSlashes,
    /// The head took longer than `request_headers_timeout`.
    RequestHeadersTimeout,
    /// The request took longer than `request_timeout`.
    RequestTimeout,
    /// An upgrade that is not allowed.
    UpgradeRefused,
    /// The proxy is short of resources.
    Overload,
    // While the request is routed.
    /// The virtual host is loaded on demand, and the control plane cannot be asked for it, or is silent.
    VirtualHostNotLoaded,
    /// No virtual host or route.
    RouteNotFound,
    /// No RBAC policy lets the request in, or one refuses it.
    AccessDenied,
    /// A browser asks what a page of another site may do.
    CorsPreflight,
    /// A redirect of the configuration.
    Redirect,
    /// An answer of the configuration.
    DirectResponse,
    /// An abort of the fault filter.
    FaultAbort,
    /// The route's cluster does not exist.
    ClusterNotFound,
    // While an endpoint is chosen and connected.
    /// The name of a host outside of the mesh has no address.
    NameUnresolved,
    /// No endpoint.
    NoHealthyUpstream,
    /// A circuit breaker is open.
    Overflow,
    /// The peer refused the connection, or TLS failed.
    RemoteConnectionFailure,
    /// The connection could not be tried (no route, no local address).
    LocalConnectionFailure,
    /// The connection took longer than `connect_timeout`.
    ConnectTimeout,
    // While the answer is awaited.
    /// The connection ended before response headers.
    ConnectionTermination,
    /// The upstream reset the stream.
    RemoteReset,
    /// The upstream refused the stream.
    RemoteRefusedStream,
    /// This proxy reset the stream.
    LocalReset,
    /// The upstream's bytes are not HTTP.
    UpstreamProtocolError,
    /// One try took too long.
    PerTryTimeout,
    /// The route's timeout passed.
    ResponseTimeout,
    /// `max_stream_duration` of the route or of the connection manager passed.
    MaxStreamDuration,
    /// Nothing moved.
    StreamIdleTimeout,
    // After response headers: no answer can be given any more, only the record tells.
    /// The connection ended within the response.
    TerminationAfterResponse,
    /// The upstream reset the stream within the response.
    ResetAfterResponse,
    /// The upstream's bytes stopped being HTTP within the response.
    ProtocolErrorAfterResponse,
    /// The route's timeout passed within the response.
    TimeoutAfterResponse,
    /// The client went away.
    DownstreamGone,
    /// The client reset the stream.
    DownstreamReset,
    /// The client broke the protocol of the connection, and it was ended with all that was under way on it.
    DownstreamCodecError,
    /// This proxy ends, and waits no longer.
    CutOff,
    // Without a request.
    /// No filter chain matched the connection.
    FilterChainNotFound,
    /// The configuration says this connection goes nowhere (a TCP proxy whose cluster does not exist).
    TcpClusterNotFound,
    /// The process had as many connections as it may have.
    GlobalConnectionLimit,
    /// The filter chain had as many connections as it may have.
    ConnectionLimit,
    /// A connection lasted longer than allowed.
    ConnectionDuration,
    /// HTTP, where only bytes of the program beside this proxy are carried: a web page may have sent it.
    HttpAmongBytes,
}

/// One row of [`TABLE`].
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// For this.
    pub cause: Cause,
    /// Status; 0: nothing can be answered any more, the stream or connection is ended.
    pub status: u16,
    /// Flag for the record.
    pub flag: Option<ResponseFlag>,
    /// `response_code_details`
    pub details: &'static str,
    /// Text for the client.
    pub body: &'static str,
}

const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";

/// Status, flag, details and body of each cause. The comment of a row says why that status.
pub const TABLE: &[Row] = {
    use Cause::*;
    use ResponseFlag as F;
    const fn row(
        cause: Cause,
        status: u16,
        flag: Option<ResponseFlag>,
        details: &'static str,
        body: &'static str,
    ) -> Row {
        Row { cause, status, flag, details, body }
    }
    &[
        // RFC 9112 2.2: a server that cannot parse a request answers 400.
        row(MalformedRequest, 400, Some(F::DownstreamProtocolError), "http1.codec_error", "Bad Request"),
        // RFC 6585 5.
        row(
            HeadersTooLarge,
            431,
            Some(F::DownstreamProtocolError),
            "http1.headers_too_large",
            "Request Header Fields Too Large",
        ),
        // RFC 9110 15.5.22: the client should come back with HTTP/1.1.
        row(LowVersion, 426, Some(F::DownstreamProtocolError), "low_version", "Upgrade Required"),
        // RFC 9112 3.2: 400 for a request without Host.
        row(MissingHost, 400, Some(F::DownstreamProtocolError), "missing_host_header", ""),
        // These four say what is wrong: whoever reads them is on this machine, and the program's author is the likeliest.
        row(
            CallerRefused,
            403,
            None,
            "caller_uid_refused",
            "This address is the door of one program of a weft mesh, and this process runs as another user.",
        ),
        // RFC 9110 15.5.8.
        row(
            CredentialRequired,
            407,
            None,
            "caller_credential_required",
            "This proxy serves one program of a weft mesh. That program finds user and password in its HTTP_PROXY.",
        ),
        row(
            ForeignHost,
            403,
            None,
            "caller_foreign_host",
            "This address stands for one service of a weft mesh, and the request's Host is not that service.",
        ),
        row(
            ForeignOrigin,
            403,
            None,
            "caller_foreign_origin",
            "This address serves one program of a weft mesh, and the request says that a page of another site made it.",
        ),
        // `https` would be believed by what routes by it, or redirects to it. Envoy's answer.
        row(
            SecureInPlainText,
            403,
            Some(F::DownstreamProtocolError),
            "http1.https_url_on_plaintext_connection",
            "Forbidden",
        ),
        // A path that means two things to two parsers is nobody's.
        row(BadPath, 400, None, "path_normalization_failed", ""),
        // 307 keeps the method.
        row(EscapedSlashes, 307, None, "path_normalization_failed", ""),
        // The client was slow: 408, RFC 9110 15.5.9.
        row(RequestHeadersTimeout, 408, None, "request_header_timeout", "request header timeout"),
        row(RequestTimeout, 408, None, "request_overall_timeout", "request timeout"),
        // Understood, but not allowed here.
        row(UpgradeRefused, 403, None, "upgrade_failed", ""),
        // Another try elsewhere may succeed.
        row(Overload, 503, Some(F::OverloadManager), "overload", "envoy overloaded"),
        // Somebody may serve this, and another try later may find out: 503.
        row(
            VirtualHostNotLoaded,
            503,
            Some(F::NoRouteFound),
            "virtual_host_not_loaded",
            "the routes of this host have not been loaded",
        ),
        // Nobody serves this: 404.
        row(RouteNotFound, 404, Some(F::NoRouteFound), "route_not_found", ""),
        // The policy's name follows the details: see `rbac::Verdict`.
        row(AccessDenied, 403, None, "rbac_access_denied_matched_policy", "RBAC: access denied"),
        row(CorsPreflight, 200, None, "cors_response", ""),
        // The next three carry the configuration's own status.
        row(Redirect, 301, None, "direct_response", ""),
        row(DirectResponse, 200, None, "direct_response", ""),
        row(FaultAbort, 503, Some(F::FaultInjected), "fault_filter_abort", "fault filter abort"),
        // The route exists and its destination does not: our side's fault, so 503 (or cluster_not_found_response_code).
        row(ClusterNotFound, 503, Some(F::NoClusterFound), "cluster_not_found", ""),
        // Unavailable for now; trying again may help: 503 for all that fails before the answer begins.
        row(NameUnresolved, 503, Some(F::DnsResolutionFailed), "dns_resolution_failure", "DNS resolution failure"),
        row(NoHealthyUpstream, 503, Some(F::NoHealthyUpstream), "no_healthy_upstream", "no healthy upstream"),
        row(Overflow, 503, Some(F::UpstreamOverflow), "overflow", "overflow"),
        row(
            RemoteConnectionFailure,
            503,
            Some(F::UpstreamConnectionFailure),
            "remote_connection_failure",
            "remote connection failure",
        ),
        row(
            LocalConnectionFailure,
            503,
            Some(F::UpstreamConnectionFailure),
            "local_connection_failure",
            "local connection failure",
        ),
        row(ConnectTimeout, 503, Some(F::UpstreamConnectionFailure), "connection_timeout", "connection timeout"),
        row(
            ConnectionTermination,
            503,
            Some(F::UpstreamConnectionTermination),
            "connection_termination",
            "connection termination",
        ),
        row(RemoteReset, 503, Some(F::UpstreamRemoteReset), "remote_reset", "remote reset"),
        row(
            RemoteRefusedStream,
            503,
            Some(F::UpstreamRemoteReset),
            "remote_refused_stream_reset",
            "remote refused stream reset",
        ),
        row(LocalReset, 503, Some(F::LocalReset), "local_reset", "local reset"),
        // An invalid response from upstream: 502, RFC 9110 15.6.3.
        row(UpstreamProtocolError, 502, Some(F::UpstreamProtocolError), "protocol_error", "protocol error"),
        // The upstream was slow: 504, RFC 9110 15.6.5.
        row(
            PerTryTimeout,
            504,
            Some(F::UpstreamRequestTimeout),
            "upstream_per_try_timeout",
            "upstream request timeout",
        ),
        row(ResponseTimeout, 504, Some(F::UpstreamRequestTimeout), "response_timeout", "upstream request timeout"),
        // As for an idle stream: 408 until the request was complete. Envoy sets no flag; its UMSDR is the limit of a cluster.
        row(MaxStreamDuration, 408, None, "max_duration_timeout", "downstream duration timeout"),
        // 408 if the request was not complete (the client's fault); the caller turns it to 504 if it was.
        row(StreamIdleTimeout, 408, Some(F::StreamIdleTimeout), "stream_idle_timeout", "stream timeout"),
        // Headers are out: end the stream so that the client sees an incomplete response (RFC 9112 8), never a well-formed end.
        row(
            TerminationAfterResponse,
            0,
            Some(F::UpstreamConnectionTermination),
            "upstream_reset_after_response_started{connection_termination}",
            "",
        ),
        row(
            ResetAfterResponse,
            0,
            Some(F::UpstreamRemoteReset),
            "upstream_reset_after_response_started{remote_reset}",
            "",
        ),
        row(
            ProtocolErrorAfterResponse,
            0,
            Some(F::UpstreamProtocolError),
            "upstream_reset_after_response_started{protocol_error}",
            "",
        ),
        row(TimeoutAfterResponse, 0, Some(F::UpstreamRequestTimeout), "upstream_response_timeout", ""),
        // Nobody is there to read an answer.
        row(DownstreamGone, 0, Some(F::DownstreamConnectionTermination), "downstream_remote_disconnect", ""),
        row(DownstreamReset, 0, Some(F::DownstreamRemoteReset), "http2.remote_reset", ""),
        row(DownstreamCodecError, 0, Some(F::DownstreamProtocolError), "codec_error", ""),
        // Envoy's words for a connection that it closes itself; the reason is ours.
        row(CutOff, 0, Some(F::DownstreamConnectionTermination), "downstream_local_disconnect(cut_off)", ""),
        // Connections without HTTP are closed.
        row(FilterChainNotFound, 0, Some(F::NoRouteFound), "filter_chain_not_found", ""),
        row(TcpClusterNotFound, 0, Some(F::NoClusterFound), "cluster_not_found", ""),
        row(GlobalConnectionLimit, 0, Some(F::OverloadManager), "downstream_global_cx_overflow", ""),
        row(ConnectionLimit, 0, None, "connection_limit", ""),
        row(ConnectionDuration, 0, Some(F::DurationTimeout), "max_duration_timeout", ""),
        row(HttpAmongBytes, 0, None, "caller_http_on_tcp", ""),
    ]
};

impl Cause {
    /// The row of this cause.
    pub fn row(self) -> &'static Row {
        // The table has the order of the enum (a test holds it to that).
        &TABLE[self as usize]
    }

    /// Whether it ends a try, or the attempt to make one; what ends a request whatever becomes of its try does not.
    pub fn is_of_a_try(self) -> bool {
        matches!(self, Self::NoHealthyUpstream | Self::PerTryTimeout | Self::ResponseTimeout) || self.is_early_reset()
    }

    /// Whether details and body are those of an upstream that was reset before its answer began.
    fn is_early_reset(self) -> bool {
        matches!(
            self,
            Self::Overflow
                | Self::RemoteConnectionFailure
                | Self::LocalConnectionFailure
                | Self::ConnectTimeout
                | Self::ConnectionTermination
                | Self::RemoteReset
                | Self::RemoteRefusedStream
                | Self::LocalReset
                | Self::UpstreamProtocolError
        )
    }
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReply {
    /// Why.
    pub cause: Cause,
    /// HTTP status; 0: the stream or connection is ended without an answer.
    pub status: u16,
    /// For the record; the configuration's own answers (redirect, direct response) have none.
    pub flag: Option<ResponseFlag>,
    /// `response_code_details`, without white space.
    pub details: Cow<'static, str>,
    /// `text/plain` for the client; may be empty.
    pub body: Cow<'static, str>,
}

impl LocalReply {
    /// The answer for a cause, as it stands in the table.
    ///
    /// `transport_failure` is what TLS or the kernel said about a connection that failed; it goes into details and body as in Envoy.
    /// `retried` says that this was not the first try.
    pub fn new(cause: Cause, transport_failure: Option<&str>, retried: bool) -> Self {
        let row = cause.row();
        let (details, body) = if cause.is_early_reset() {
            let mut details = format!("upstream_reset_before_response_started{{{}", row.details);
            let mut body = RESET.to_owned();
            if retried {
                body = body.replace("reset reason", "retried and the latest reset reason");
            }
            body.push_str(row.body);
            if let Some(reason) = transport_failure.filter(|reason| !reason.is_empty()) {
                details.push('|');
                details.extend(reason.chars().map(|character| if character.is_whitespace() { '_' } else { character }));
                body.push_str(", transport failure reason: ");
                body.push_str(reason);
            }
            details.push('}');
            (Cow::Owned(details), Cow::Owned(body))
        } else {
            (Cow::Borrowed(row.details), Cow::Borrowed(row.body))
        };
        Self { cause, status: row.status, flag: row.flag, details, body }
    }

    /// The same with another status: the configuration's, or 504 for a stream that went idle after the request was complete.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The gRPC status for a caller of gRPC.
    pub fn grpc_status(&self) -> u8 {
        match self.cause {
            // DEADLINE_EXCEEDED: the limit is mostly the caller's own `grpc-timeout`.
            Cause::MaxStreamDuration => 4,
            _ => grpc_status(self.status),
        }
    }
}

impl From<Cause> for LocalReply {
    fn from(cause: Cause) -> Self {
        Self::new(cause, None, false)
    }
}

/// The gRPC status that says what an HTTP *status* says, for answers of the proxy itself to callers of gRPC; Envoy's table.
pub fn grpc_status(status: u16) -> u8 {
    match status {
        400 => 13,                   // INTERNAL
        401 => 16,                   // UNAUTHENTICATED
        403 => 7,                    // PERMISSION_DENIED
        404 => 12,                   // UNIMPLEMENTED
        429 | 502 | 503 | 504 => 14, // UNAVAILABLE
        _ => 2,                      // UNKNOWN
    }
}

/// The HTTP status that says what a *status* of gRPC says, to who counts failures by statuses of HTTP; Envoy's table, which is that of
/// `google.rpc.Code`. Of one that there is not, too.
pub fn http_status(status: u32) -> u16 {
    match status {
        0 => 200,          // OK
        1 => 499,          // CANCELLED
        3 | 9 | 11 => 400, // INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE
        4 => 504,          // DEADLINE_EXCEEDED
        5 => 404,          // NOT_FOUND
        6 | 10 => 409,     // ALREADY_EXISTS, ABORTED
        7 => 403,          // PERMISSION_DENIED
        8 => 429,          // RESOURCE_EXHAUSTED
        12 => 501,         // UNIMPLEMENTED
        14 => 503,         // UNAVAILABLE
        16 => 401,         // UNAUTHENTICATED
        _ => 500,          // UNKNOWN, INTERNAL, DATA_LOSS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_one_row_for_each_cause_in_order() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.cause as usize, index, "{:?}", row.cause);
        }
        assert_eq!(TABLE.len(), Cause::HttpAmongBytes as usize + 1);
    }
}

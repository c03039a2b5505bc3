"""
`gateway.networking.k8s.io`: GatewayClass, Gateway, HTTPRoute and ReferenceGrant, whole, as frozen pydantic models.

One class for each type of the API, with its name; one attribute for each field. Unlike Istio's kinds these are no
protobuf messages, so a field has one spelling only. Defaults are those of the CRD's schema. What must hold between
values is `weft.api.rules`, what weft honours is `weft.api.honoured`, who is attached to what `weft.api.attachment`.

Source: the CRDs of sigs.k8s.io/gateway-api, experimental channel of 2026-08 (it holds the standard one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from weft.api.kinds import GATEWAY_API
from weft.api.networking import Message, json_name
from weft.api.values import Int32, duration_text, parse_duration

_GEP_2257 = re.compile(r"(?:[0-9]{1,5}(?:h|m|s|ms)){1,4}\Z")


def _gateway_duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    parsed = parse_duration(value) if isinstance(value, str) and _GEP_2257.match(value) else None
    if parsed is None:
        what = "a duration such as 10s, 300ms or 1h30m (whole numbers of h, m, s, ms)"
        raise PydanticCustomError("wanted", "{what}", {"what": what})
    return parsed


GatewayDuration = Annotated[
    timedelta, PlainValidator(_gateway_duration), PlainSerializer(duration_text, return_type=str, when_used="json")
]
"""GEP-2257: Go's durations without fractions; zero has a meaning of its own."""

PortNumber = Annotated[Int32, Field(ge=1, le=65535)]


class Type(Message):
    """What all types have in common: as `Message`, by their names in YAML only."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=json_name,
        validate_by_name=False,
        validate_by_alias=True,
    )


# GatewayClass


class ParametersReference(Type):
    """Settings of an implementation; weft has none."""

    group: str
    kind: str
    name: str
    namespace: str = ""


class LocalParametersReference(Type):
    """The same, of the object's own namespace."""

    group: str
    kind: str
    name: str


class GatewayClass(Type):
    """Which controller implements the Gateways that name this class."""

    controller_name: str
    description: str = ""
    parameters_ref: ParametersReference | None = None


# Gateway


class LabelSelectorRequirement(Type):
    """One requirement of a selector."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class LabelSelector(Type):
    """Kubernetes' selector: all of both must hold; empty selects everything."""

    match_labels: Mapping[str, str] = Field(default_factory=dict)
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()


class RouteNamespaces(Type):
    """From which namespaces routes may attach. `selector` counts with `Selector` only."""

    from_: Literal["All", "Selector", "Same"] = "Same"
    selector: LabelSelector | None = None


class RouteGroupKind(Type):
    """A kind of route."""

    group: str = GATEWAY_API
    kind: str


class AllowedRoutes(Type):
    """Which routes may attach. No `kinds`: those that the listener's protocol implies."""

    namespaces: RouteNamespaces = RouteNamespaces()
    kinds: tuple[RouteGroupKind, ...] = ()


class SecretObjectReference(Type):
    """A certificate."""

    group: str = ""
    kind: str = "Secret"
    name: str
    namespace: str = ""


class ListenerTLSConfig(Type):
    """TLS at the listener."""

    mode: Literal["Terminate", "Passthrough"] = "Terminate"
    certificate_refs: tuple[SecretObjectReference, ...] = ()
    options: Mapping[str, str] = Field(default_factory=dict)


class Listener(Type):
    """One port, protocol and hostname. No `hostname`: every name."""

    name: str
    hostname: str = ""
    port: PortNumber
    protocol: str
    tls: ListenerTLSConfig | None = None
    allowed_routes: AllowedRoutes = AllowedRoutes()


class GatewaySpecAddress(Type):
    """Where the Gateway is to be; `Hostname` names the gateway of the mesh that implements it."""

    type: str = "IPAddress"
    value: str = ""


class ListenerNamespaces(Type):
    """From which namespaces ListenerSets may attach."""

    from_: Literal["All", "Selector", "Same", "None"] = "None"
    selector: LabelSelector | None = None


class AllowedListeners(Type):
    """Which ListenerSets may attach."""

    namespaces: ListenerNamespaces = ListenerNamespaces()


class GatewayInfrastructure(Type):
    """For the workload that a controller creates."""

    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
    parameters_ref: LocalParametersReference | None = None


class ObjectReference(Type):
    """Any object."""

    group: str
    kind: str
    name: str
    namespace: str = ""


class FrontendTLSValidation(Type):
    """How clients' certificates are checked."""

    ca_certificate_refs: tuple[ObjectReference, ...]
    mode: Literal["AllowValidOnly", "AllowInsecureFallback"] = "AllowValidOnly"


class TLSConfig(Type):
    """TLS towards clients."""

    validation: FrontendTLSValidation | None = None


class TLSPortConfig(Type):
    """The same for one port."""

    port: PortNumber
    tls: TLSConfig


class FrontendTLSConfig(Type):
    """TLS towards clients, for all ports and for single ones."""

    default: TLSConfig
    per_port: tuple[TLSPortConfig, ...] = ()


class GatewayBackendTLS(Type):
    """The certificate that is shown to backends."""

    client_certificate_ref: SecretObjectReference | None = None


class GatewayTLSConfig(Type):
    """TLS of the whole Gateway."""

    backend: GatewayBackendTLS | None = None
    frontend: FrontendTLSConfig | None = None


class Gateway(Type):
    """A border of the mesh: its listeners."""

    gateway_class_name: str
    listeners: tuple[Listener, ...]
    addresses: tuple[GatewaySpecAddress, ...] = ()
    infrastructure: GatewayInfrastructure | None = None
    allowed_listeners: AllowedListeners | None = None
    default_scope: Literal["All", "None"] = "None"
    tls: GatewayTLSConfig | None = None


# HTTPRoute


class ParentReference(Type):
    """What a route attaches to: a Gateway, one of its listeners, or a Service of the mesh. No namespace: its own."""

    group: str = GATEWAY_API
    kind: str = "Gateway"
    namespace: str = ""
    name: str
    section_name: str = ""
    port: PortNumber | None = None


class HTTPPathMatch(Type):
    """`PathPrefix` goes by elements: `/foo` is a prefix of `/foo/bar`, not of `/foobar`."""

    type: Literal["Exact", "PathPrefix", "RegularExpression"] = "PathPrefix"
    value: str = "/"


class HTTPValueMatch(Type):
    """A header or query parameter; of two entries with one name the first counts."""

    type: Literal["Exact", "RegularExpression"] = "Exact"
    name: str
    value: str


Method = Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]


class HTTPRouteMatch(Type):
    """One alternative of a rule: all conditions given must hold."""

    path: HTTPPathMatch = HTTPPathMatch()
    headers: tuple[HTTPValueMatch, ...] = ()
    query_params: tuple[HTTPValueMatch, ...] = ()
    method: Method | None = None


class HTTPHeader(Type):
    """A header and its value, as it is: nothing in it is replaced."""

    name: str
    value: str


class HTTPHeaderFilter(Type):
    """Edits of headers."""

    set: tuple[HTTPHeader, ...] = ()
    add: tuple[HTTPHeader, ...] = ()
    remove: tuple[str, ...] = ()


class BackendObjectReference(Type):
    """A service and its port. No namespace: the route's own."""

    group: str = ""
    kind: str = "Service"
    name: str
    namespace: str = ""
    port: PortNumber | None = None


class Fraction(Type):
    """A share as a fraction."""

    numerator: Annotated[Int32, Field(ge=0)]
    denominator: Annotated[Int32, Field(ge=1)] = 100


class HTTPRequestMirrorFilter(Type):
    """A copy of each request, or of a share; at most one of `percent` and `fraction`."""

    backend_ref: BackendObjectReference
    percent: Annotated[Int32, Field(ge=0, le=100)] | None = None
    fraction: Fraction | None = None


class HTTPPathModifier(Type):
    """A new path: the whole, or what stands for the matched prefix."""

    type: Literal["ReplaceFullPath", "ReplacePrefixMatch"]
    replace_full_path: str | None = None
    replace_prefix_match: str | None = None


class HTTPRequestRedirectFilter(Type):
    """Answer with a redirect; what is absent is the request's own."""

    scheme: Literal["http", "https"] | None = None
    hostname: str = ""
    path: HTTPPathModifier | None = None
    port: PortNumber | None = None
    status_code: Literal[301, 302, 303, 307, 308] = 302


class HTTPURLRewriteFilter(Type):
    """Another host or path towards the backend."""

    hostname: str = ""
    path: HTTPPathModifier | None = None


CORSMethod = Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"]


class HTTPCORSFilter(Type):
    """Cross-origin resource sharing. `max_age` is in seconds."""

    allow_origins: tuple[str, ...] = ()
    allow_credentials: bool | None = None
    allow_methods: tuple[CORSMethod, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age: Annotated[Int32, Field(ge=1)] = 5


class GRPCAuthConfig(Type):
    """External authorisation over gRPC."""

    allowed_headers: tuple[str, ...] = ()


class HTTPAuthConfig(Type):
    """External authorisation over HTTP."""

    path: str = ""
    allowed_headers: tuple[str, ...] = ()
    allowed_response_headers: tuple[str, ...] = ()


class ForwardBodyConfig(Type):
    """How much of the body goes to the authoriser."""

    max_size: Annotated[Int32, Field(ge=0)] = 0


class HTTPExternalAuthFilter(Type):
    """Ask an authoriser."""

    protocol: Literal["HTTP", "GRPC"]
    backend_ref: BackendObjectReference
    grpc: GRPCAuthConfig | None = None
    http: HTTPAuthConfig | None = None
    forward_body: ForwardBodyConfig | None = None


class LocalObjectReference(Type):
    """An object of the route's own namespace."""

    group: str
    kind: str
    name: str


FilterType = Literal[
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
    "ExtensionRef",
    "CORS",
    "ExternalAuth",
]


class HTTPRouteFilter(Type):
    """One filter: `type`, and the field of that name."""

    type: FilterType
    request_header_modifier: HTTPHeaderFilter | None = None
    response_header_modifier: HTTPHeaderFilter | None = None
    request_mirror: HTTPRequestMirrorFilter | None = None
    request_redirect: HTTPRequestRedirectFilter | None = None
    url_rewrite: HTTPURLRewriteFilter | None = None
    cors: HTTPCORSFilter | None = None
    external_auth: HTTPExternalAuthFilter | None = None
    extension_ref: LocalObjectReference | None = None


class HTTPBackendRef(BackendObjectReference):
    """One destination of a rule; `weight` is relative to the sum of the rule's."""

    weight: Annotated[Int32, Field(ge=0, le=1_000_000)] = 1
    filters: tuple[HTTPRouteFilter, ...] = ()


class HTTPRouteTimeouts(Type):
    """`request` is for the whole, `backend_request` for each try; zero is none."""

    request: GatewayDuration | None = None
    backend_request: GatewayDuration | None = None


class HTTPRouteRetry(Type):
    """Try again on these codes, and where the connection failed."""

    codes: tuple[Annotated[Int32, Field(ge=400, le=599)], ...] = ()
    attempts: Annotated[Int32, Field(ge=1)] | None = None
    backoff: GatewayDuration | None = None


class CookieConfig(Type):
    """The cookie of a session."""

    name: str = ""
    lifetime_type: Literal["Permanent", "Session"] = "Session"
    path: str = "/"


class HeaderConfig(Type):
    """The header of a session."""

    name: str


class SessionPersistence(Type):
    """Requests of one session go to one endpoint."""

    type: Literal["Cookie", "Header"] = "Cookie"
    absolute_timeout: GatewayDuration | None = None
    cookie: CookieConfig | None = None
    header: HeaderConfig | None = None


EVERYTHING = HTTPRouteMatch()
"""What a rule without `matches` matches."""


class HTTPRouteRule(Type):
    """One rule; which of all rules decides is a matter of precedence, not of order."""

    name: str = ""
    matches: tuple[HTTPRouteMatch, ...] = ()
    filters: tuple[HTTPRouteFilter, ...] = ()
    backend_refs: tuple[HTTPBackendRef, ...] = ()
    timeouts: HTTPRouteTimeouts | None = None
    retry: HTTPRouteRetry | None = None
    session_persistence: SessionPersistence | None = None

    def filter(self, kind: str) -> Any:
        """Return the configuration of the filter of *kind* (`URLRewrite`), None if there is none."""
        return filter_of(self.filters, kind)


class HTTPRoute(Type):
    """Rules for requests that come in by `parent_refs`, for `hostnames`; none are all that the parent has."""

    parent_refs: tuple[ParentReference, ...] = ()
    hostnames: tuple[str, ...] = ()
    rules: tuple[HTTPRouteRule, ...] = (HTTPRouteRule(),)
    use_default_gateways: Literal["All", "None"] = "None"


FILTER_FIELDS: Mapping[str, str] = {
    "RequestHeaderModifier": "request_header_modifier",
    "ResponseHeaderModifier": "response_header_modifier",
    "RequestMirror": "request_mirror",
    "RequestRedirect": "request_redirect",
    "URLRewrite": "url_rewrite",
    "CORS": "cors",
    "ExternalAuth": "external_auth",
    "ExtensionRef": "extension_ref",
}
"""By a filter's `type`: the attribute that configures it."""


def filter_of(filters: tuple[HTTPRouteFilter, ...], kind: str) -> Any:
    """Return the configuration of the first filter of *kind*, None if there is none."""
    return next((getattr(item, FILTER_FIELDS[kind]) for item in filters if item.type == kind), None)


# ReferenceGrant


class ReferenceGrantFrom(Type):
    """Whose references are allowed."""

    group: str
    kind: str
    namespace: str


class ReferenceGrantTo(Type):
    """What they may refer to; no `name`: everything of the kind."""

    group: str
    kind: str
    name: str = ""


class ReferenceGrant(Type):
    """References from other namespaces into this one are allowed from any of `from_` to any of `to`."""

    from_: tuple[ReferenceGrantFrom, ...]
    to: tuple[ReferenceGrantTo, ...]

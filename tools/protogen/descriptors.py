"""
Write the FileDescriptorSet of every protobuf file that weft speaks, read from the `xds-protos` package; and weft's own.

Called by `make gen`, before `weft-protogen` turns the set into Rust. The roots below are the files whose messages
cross a boundary of weft; everything that they import comes along. No protoc and no .proto source is needed.
"""

import importlib
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool

from weft.translate import extensions

ROOTS = (
    "envoy/service/discovery/v3/discovery.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto",
    "envoy/extensions/request_id/uuid/v3/uuid.proto",
    "envoy/extensions/http/header_formatters/preserve_case/v3/preserve_case.proto",
    "envoy/config/overload/v3/overload.proto",
    "envoy/extensions/resource_monitors/fixed_heap/v3/fixed_heap.proto",
    "envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/filters/network/dubbo_proxy/v3/dubbo_proxy.proto",
    "envoy/extensions/filters/network/dubbo_proxy/router/v3/router.proto",
    "envoy/extensions/filters/network/thrift_proxy/v3/thrift_proxy.proto",
    "envoy/extensions/filters/network/thrift_proxy/router/v3/router.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto",
    "envoy/extensions/filters/network/connection_limit/v3/connection_limit.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto",
    "envoy/extensions/filters/http/on_demand/v3/on_demand.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/grpc_stats/v3/config.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/access_loggers/grpc/v3/als.proto",
    "envoy/service/accesslog/v3/als.proto",
    "envoy/extensions/network/dns_resolver/cares/v3/cares_dns_resolver.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
)

OWN = extensions.FILE
"""Weft's own messages; their definition is in `weft.translate.extensions`."""


def descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """Return the roots and all that they import, each file after its imports."""
    done: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    pool = descriptor_pool.Default()

    def visit(name: str) -> None:
        if name in done:
            return
        file = descriptor_pb2.FileDescriptorProto()
        pool.FindFileByName(name).CopyToProto(file)
        for dependency in file.dependency:
            visit(dependency)
        done[name] = file

    for root in ROOTS:
        importlib.import_module(root.removesuffix(".proto").replace("/", ".") + "_pb2")
        visit(root)
    visit(OWN)
    return descriptor_pb2.FileDescriptorSet(file=done.values())


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(descriptor_set().SerializeToString(deterministic=True))

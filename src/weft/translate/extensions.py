"""
The messages of weft's own xDS extensions, for what no message of Envoy's says: who may call a local address.

They are sent to weft-proxy only; Envoy refuses a listener that holds one, which is right, for it could not check.
The descriptors below are their definition: translation packs them, and `tools/protogen` makes the Rust messages of
`crates/protos` from the same file.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILE = "weft/extensions/filters/v1/filters.proto"
PACKAGE = "weft.extensions.filters.v1"

CALLER_UID = "weft.filters.listener.caller_uid"
LOCAL_CALLER = "weft.filters.http.local_caller"


def _file() -> descriptor_pb2.FileDescriptorProto:
    """Return the definition; fields are numbered from 1 in their order."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=FILE, package=PACKAGE, syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for number, (field_name, kind, label, type_name) in enumerate(fields, 1):
            described = made.field.add(name=field_name, number=number, type=kind, label=label)
            if type_name:
                described.type_name = type_name

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    # A listener filter: only processes of these users may connect. The kernel is asked for each connection.
    # What a TCP proxy would carry may not begin with a request of HTTP, either: a page in a browser of that user can send it.
    message("CallerUid", ("uids", field.TYPE_UINT32, many, ""))
    # Where a CONNECT to `authority` (host:port, lower case) leads: to the listener of that name.
    message("Tunnel", ("authority", field.TYPE_STRING, one, ""), ("listener", field.TYPE_STRING, one, ""))
    # An HTTP filter: what a request must show to be taken for one of the program beside this proxy.
    message(
        "LocalCaller",
        # Hosts (with or without port, lower case) that a request may name in Host and Origin; not for a forward proxy.
        ("authorities", field.TYPE_STRING, many, ""),
        # SHA-256 in hexadecimal of `user:password` in Proxy-Authorization (Basic).
        ("credential_sha256", field.TYPE_STRING, one, ""),
        # Requests come as to an HTTP proxy, for any host, and must carry the credential. A host that no virtual host
        # names is resolved; that address is then the original destination.
        ("forward_proxy", field.TYPE_BOOL, one, ""),
        ("tunnels", field.TYPE_MESSAGE, many, f".{PACKAGE}.Tunnel"),
    )
    return file


def _messages() -> dict[str, Any]:
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(_file().SerializeToString(deterministic=True))
    file = pool.FindFileByName(FILE)
    return {
        name: message_factory.GetMessageClass(descriptor) for name, descriptor in file.message_types_by_name.items()
    }


_MESSAGES = _messages()
CallerUid, LocalCaller = _MESSAGES["CallerUid"], _MESSAGES["LocalCaller"]

"""
Publishing to the proxies: views, versions, who has acknowledged what.

The streams themselves (subscriptions, order, framing, ACKs) are `weft._native.StreamCore`, in Rust threads of its own.
This package decides what each stream sees and remembers what became of it. It is used by the control plane, on one
asyncio loop; nothing here blocks, and nothing but `Publisher` touches the core.

A *view* is the whole set of resources of one proxy, named by its xDS node id. A resource is
`(type_url, name, serialised message)`, the shape that `weft._native.Engine` takes too:

    publisher = Publisher(paths.xds_socket, admit=admit, observe=observe)  # listens; needs a running loop
    affected = publisher.publish({node_id: resources, ...}, revision)      # frozenset of the node ids that change
    receipt = await publisher.wait(revision, timeout=5.0)                  # Receipt: affected = acknowledged + silent
    receipt = publisher.receipt(revision)                                  #   + refused; the same, now
    publisher.oldest                                                       # the first revision of which it knows
    behind = await publisher.wait_for_all(timeout=5.0)                     # node ids that have not answered everything
    publisher.proxies()                                                    # {node_id: ProxyStatus}
    publisher.resources(node_id)                                           # (PublishedResource, ...) or None
    publisher.withdraw(node_id)                                            # the workload is gone
    publisher.close()

- `publish` takes the views that may have changed; a view that is not named stays as it is. A resource's version is a
  hash of its bytes: a view whose contents are equal to the last ones is not sent, its proxy is not *affected*, and a
  restart of the control plane changes nothing for the proxies.
- A proxy need not be connected: it is *silent* until it comes and has acknowledged. Once it has acknowledged a later
  revision, it has acknowledged the earlier ones.
- `admit(node_id, pid) -> str`: whose process may have this view; a text is the reason for a refusal, "" admits. A
  stream that is refused gets nothing.
- `observe(event)`: is called on the loop with each `Connected`, `Rejected`, `Disconnected`, `Synced`, `Refused`
  (weft.xds.status), for `GET /v1/events`.
- Receipts outlive the process in a `Journal`, refusals outlive what was refused: a receipt says for as long as it is
  kept who refused its revision, and which later one superseded it.
- `ProxyStatus`: connected, published (last revision that changed this proxy), acknowledged (last revision of which it
  has everything, or None), synced, refused (a tuple of `RefusedResource(type_url, name, version, message)`).
"""

from weft.xds.journal import Journal
from weft.xds.publisher import Publisher
from weft.xds.status import (
    Connected,
    Disconnected,
    Event,
    ProxyStatus,
    PublishedResource,
    Receipt,
    Refusal,
    Refused,
    RefusedResource,
    Rejected,
    Synced,
)

__all__ = [
    "Connected",
    "Disconnected",
    "Event",
    "Journal",
    "ProxyStatus",
    "PublishedResource",
    "Publisher",
    "Receipt",
    "Refusal",
    "Refused",
    "RefusedResource",
    "Rejected",
    "Synced",
]

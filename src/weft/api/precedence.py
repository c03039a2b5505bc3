"""
Which DestinationRules are in force for a host, of all that speak of it.

Pure questions about objects, asked by translation (what a proxy gets) and by `weft.api.references` (what people are
warned about), so that both answer alike. Source: Istio's "Cross namespace configuration sharing" (the order of
namespaces) and "Multiple destination rules for one host" (which are merged).
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.model import ROOT_NAMESPACE, ConfigObject

Rule = tuple[str, ConfigObject]
"""The host as the rule's namespace means it, and the DestinationRule."""


def in_force(rules: Sequence[Rule], client_namespace: str, service_namespace: str) -> list[ConfigObject]:
    """
    Return the rules that hold together at a client of *client_namespace*, oldest first.

    The first of three namespaces that has a rule decides: the client's, the service's, the root. There the rule for
    the most specific host hides the others; those for the same host are merged, wildcards too.

    Args:
        rules: Those that speak of the host and are for this client, the most specific host first, then the oldest.
        client_namespace: Where the program is that calls.
        service_namespace: Where the service is that it calls.
    """
    own = [(host, item) for host, item in rules if not _for_everybody(item)]
    for namespace, candidates in ((client_namespace, own), (service_namespace, rules), (ROOT_NAMESPACE, rules)):
        found = [(host, item) for host, item in candidates if item.key.namespace == namespace]
        if found:
            return [item for host, item in found if host == found[0][0]]
    return []


def exported(item: ConfigObject, namespace: str) -> bool:
    """Whether `exportTo` of *item* lets *namespace* see it; nothing said lets everybody."""
    export = item.spec.export_to
    if not export or "*" in export:
        return True
    return namespace in export or ("." in export and namespace == item.key.namespace)


def _for_everybody(item: ConfigObject) -> bool:
    """Whether *item* is one of the root's rules that others see: a default there too, to gateways in the root, say."""
    export = item.spec.export_to
    return item.key.namespace == ROOT_NAMESPACE and not (export and set(export) <= {".", ROOT_NAMESPACE})

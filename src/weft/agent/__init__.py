"""
Beside a workload: namespaces, interception, DNS, keys, and the life of a proxy and its program; and `weft up` above them.

Agents are forked and many, so modules here import late and little.
"""

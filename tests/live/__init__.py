"""A whole mesh on loopback, without namespaces: control plane, agents' parts, both data planes, programs, load."""

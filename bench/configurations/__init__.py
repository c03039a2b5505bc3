"""
The configurations of the peers, one module for each language: xDS (weft-proxy and Envoy alike), HAProxy's, nginx's.

Each is a pure function of a `bench.role.Role`. What a run used is kept in bench/out/configurations.
"""

"""
What weft costs beside its peers: `make bench`, or `python -m bench --help`.

Every figure is CPU microseconds per request of the proxy process (user + system, all threads; the kernel's TCP work
is charged to the process that makes the call), because that repeats on shared machines where throughput does not.
Peers alternate within one run and each run checks the status and content of every answer; compare inside one run only.
"""

"""
The names of the data planes: what stands beside a program. All layers speak of them, so this imports nothing.

How each is run is `weft.agent.data_planes`, what each can do `weft.translate.capabilities`.
"""

from __future__ import annotations

WEFT_PROXY, ENVOY = "weft-proxy", "envoy"

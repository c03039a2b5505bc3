"""
The control plane: one asyncio loop that takes in what people apply and what agents report, and tells the proxies.

Open `change.py` second: its `_turn_once` is the straight line of a change. `agents.py` serves the agents' streams, `api.py`
the HTTP API, `main.py` puts them together and runs them.
"""

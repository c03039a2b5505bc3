"""
One directory a policy, all alike: `apply.py` writes the policy into a message, `docs.md` says what it does.

The specs are the models of `weft.api.networking`. An `apply` gets values and a message; it reads nothing else.
"""

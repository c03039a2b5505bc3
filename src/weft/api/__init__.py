"""
What users write: Istio's kinds, the Gateway API's and `weft.yaml`, read strictly, with the place of every mistake.

`parse` takes texts and returns typed objects and all problems at once; it does no I/O. `weft.api.files.read_documents`
is the one place here that opens files. Depends on `weft.model` only.
"""

from weft.api.kinds import KINDS, KNOWN, Kind
from weft.api.parse import ParseResult, parse

__all__ = ["KINDS", "KNOWN", "Kind", "ParseResult", "parse"]

"""
Questions about the mesh, answered by the proxy's own decision code on the resources that the proxy really has.

About a request that somebody thinks of: `why.py` asks, `decision.py` is the shape of the answer, `render.py` says it to
a person. About one that has been: `happened.py` joins what proxies told of it, `words.py` says what went wrong, `tell.py`
says it all, with what `programs.py` knows of those that run now. No I/O: the caller brings what the control plane knows.
"""

from weft.insight.decision import Considered, Decision, Endpoint, Share
from weft.insight.happened import Hop, Verdict, happened, verdict
from weft.insight.programs import Program, programs
from weft.insight.render import render
from weft.insight.tell import tell
from weft.insight.tell import to_json as tree_to_json
from weft.insight.why import Explanation, InboundSide, Question, Resource, explain
from weft.insight.words import Finding

__all__ = [
    "Considered",
    "Decision",
    "Endpoint",
    "Explanation",
    "Finding",
    "Hop",
    "InboundSide",
    "Program",
    "Question",
    "Resource",
    "Share",
    "Verdict",
    "explain",
    "happened",
    "programs",
    "render",
    "tell",
    "tree_to_json",
    "verdict",
]

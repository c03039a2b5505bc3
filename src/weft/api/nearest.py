"""Which known word a mistyped one was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """
    Return the word of *known* that is closest to *word*, None if none is close enough to be meant.

    Close enough is one edit in three characters; what differs in letter case or in `_` and `-` alone always is.
    """
    best: tuple[int, str] | None = None
    folded = _fold(word)
    for candidate in known:
        if _fold(candidate) == folded:
            return candidate
        edits = distance(folded, _fold(candidate))
        if edits <= max(1, min(len(word), len(candidate)) // 3) and (best is None or edits < best[0]):
            best = (edits, candidate)
    return best[1] if best else None


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """Return a sentence that names the nearest word or lists all: the remedy of an unknown name."""
    known = list(known)
    if (meant := nearest(word, known)) is not None:
        return f"Did you mean `{meant}`?"
    if not known:
        return otherwise
    return f"Known here: {', '.join(sorted(known))}."


def _fold(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "")


def distance(left: str, right: str) -> int:
    """Return how many insertions, deletions, replacements and swaps of neighbours turn *left* into *right*."""
    before: list[int] = []
    previous = list(range(len(right) + 1))
    for row, character in enumerate(left, start=1):
        current = [row]
        for column, other in enumerate(right, start=1):
            cost = min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (character != other))
            swapped = row > 1 and column > 1 and character == right[column - 2] and left[row - 2] == other
            current.append(min(cost, before[column - 2] + 1) if swapped else cost)
        before, previous = previous, current
    return previous[-1]

"""
Whether a text is a regular expression of RE2: the syntax that Istio, Envoy and weft-proxy have in common.

RE2 has no look-around, no references back and no possessive repetition, and that is why it cannot be made slow by a
request. Source: github.com/google/re2/wiki/Syntax; Go's regexp/syntax where that page is silent.

weft-proxy's engine (Rust's `regex`, on bytes) reads a few rare things of RE2 otherwise or not at all; those are refused
too, as not honoured yet, so that no expression means two things.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

MAX_LENGTH = 1024
"""As Istio; the compiled program is larger than the text, so this bounds it too."""

MAX_REPEAT = 1000
"""RE2's limit of `{n,m}`, and of nested ones multiplied."""


@dataclass(frozen=True, slots=True)
class Fault:
    """
    What is wrong.

    Attributes:
        offset: At which character, from 0.
        remedy: What to write in its place.
        unsupported: RE2 takes it, but weft-proxy does not.
    """

    offset: int
    message: str
    remedy: str = ""
    unsupported: bool = False


def fault(pattern: str) -> Fault | None:
    """Return the first thing in *pattern* that is not taken, None if all is."""
    if len(pattern) > MAX_LENGTH:
        return Fault(MAX_LENGTH, f"is longer than {MAX_LENGTH} characters.")
    parser = _Parser(pattern)
    try:
        parser.whole()
    except _FaultError as exc:
        return exc.fault
    return parser.unsupported


def capturing_groups(pattern: str) -> int:
    """Return how many groups *pattern* captures, named ones too; of one at *fault*, how many there are before that."""
    parser = _Parser(pattern)
    with suppress(_FaultError):
        parser.whole()
    return parser.groups


class _FaultError(Exception):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.message)


_POSIX = {
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
    "word", "xdigit",
}  # fmt: skip
_ESCAPED_CLASSES = frozenset("dDsSwW")
_ESCAPED_CHARACTERS = frozenset("afnrtv")
_ASSERTIONS = frozenset("AzbB")
_COUNT = re.compile(r"\{(\d+)(,(\d*))?\}")
_FLAGS = re.compile(r"([imsU]+)?(-[imsU]+)?([:)])")
_NAME = re.compile(r"P?<([A-Za-z_][A-Za-z0-9_]*)>")


class _Parser:
    """Recursive descent over the pattern; raises at the first fault, builds nothing."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.names: set[str] = set()
        self.groups = 0
        self.unsupported: Fault | None = None

    def whole(self) -> None:
        self._alternation(0)
        if self.at < len(self.pattern):
            self._refuse("a `)` closes nothing.", "Write `\\)` for the character itself.")

    def _peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def _refuse(self, message: str, remedy: str = "", *, at: int | None = None) -> None:
        raise _FaultError(Fault(self.at if at is None else at, message, remedy))

    def _not_yet(self, message: str, remedy: str = "", *, at: int) -> None:
        if self.unsupported is None:
            self.unsupported = Fault(at, message, remedy, unsupported=True)

    def _alternation(self, depth: int) -> int:
        """Return the largest repetition inside, multiplied through nested ones."""
        if depth > 100:
            self._refuse("groups are nested too deep.")
        largest = 1
        repeatable: int | None = None  # what the last atom's repetition multiplies; None where none can be repeated
        while self.at < len(self.pattern) and not self._peek(")"):
            character = self.pattern[self.at]
            if character == "|":
                self.at += 1
                repeatable = None
                continue
            count = self._repetition()
            if count is not None:
                if repeatable is None:
                    self._refuse(f"`{character}` has nothing to repeat.", f"Write `\\{character}` for the character.")
                    return largest
                product = count * repeatable
                if product > MAX_REPEAT:
                    self._refuse(f"repeats more than {MAX_REPEAT} times.")
                largest = max(largest, product)
                self.at += self._repetition_length()
                if self._peek("+") and self._repetition() is not None:
                    self._refuse("RE2 has no possessive repetition.", "Leave the second `+` out.")
                if self._repetition() is not None:
                    self._refuse("a repetition is itself repeated.", "Put what is repeated in `(?:...)`.")
                repeatable = None
                continue
            repeatable = self._atom(depth)
            largest = max(largest, repeatable)
        return largest

    def _repetition(self) -> int | None:
        """Return how often the repetition that begins here repeats at most, None if none begins."""
        if self.pattern[self.at : self.at + 1] in ("*", "+", "?"):
            return 1
        match = _COUNT.match(self.pattern, self.at)
        if match is None:
            return None
        least, most = int(match[1]), int(match[3]) if match[3] else int(match[1])
        if max(least, most) > MAX_REPEAT or least > most:
            self._refuse(f"`{match[0]}` is no count from 0 to {MAX_REPEAT} in order.")
        return max(least, most, 1)

    def _repetition_length(self) -> int:
        match = _COUNT.match(self.pattern, self.at)
        length = len(match[0]) if match else 1
        return length + self.pattern.startswith("?", self.at + length)

    def _atom(self, depth: int) -> int:
        character = self.pattern[self.at]
        if character == "(":
            return self._group(depth)
        if character == "[":
            self._class()
        elif character == "\\":
            self._escape(in_class=False)
        else:
            if character == "{":
                self._not_yet("a `{` that counts nothing stands.", "Write `\\{` for the character itself.", at=self.at)
            self.at += 1
        return 1

    def _group(self, depth: int) -> int:
        start = self.at
        self.at += 1
        if self._peek("?"):
            self.at += 1
            for opening, what in (
                ("=", "look-ahead"),
                ("!", "look-ahead"),
                ("<=", "look-behind"),
                ("<!", "look-behind"),
            ):
                if self._peek(opening):
                    self._refuse(f"RE2 has no {what} `(?{opening}`.", "Match what you want instead.", at=start)
            if self._peek(">"):
                self._refuse("RE2 has no atomic group `(?>`.", "Write `(?:`.", at=start)
            if self._peek("P=") or self._peek("("):
                self._refuse("RE2 has no reference back.", "Match what you want instead.", at=start)
            if (named := _NAME.match(self.pattern, self.at)) is not None:
                if named[1] in self.names:
                    self._refuse(f"the group name `{named[1]}` is used twice.", "Give them two names.", at=start)
                self.names.add(named[1])
                self.groups += 1
                self.at = named.end()
            elif (flags := _FLAGS.match(self.pattern, self.at)) is not None and flags[0] != ")":
                self.at = flags.end()
                if flags[3] == ")":
                    return 1
            else:
                self._refuse("`(?` begins no group that RE2 knows.", "Write `(?:` to group.", at=start)
        else:
            self.groups += 1
        largest = self._alternation(depth + 1)
        if not self._peek(")"):
            self._refuse("a `(` is never closed.", "Write `\\(` for the character itself.", at=start)
        self.at += 1
        return largest

    def _escape(self, *, in_class: bool) -> str | None:
        """Pass one escape; return the character that it stands for, None if it stands for several or for none."""
        start = self.at
        self.at += 1
        if self.at >= len(self.pattern):
            self._refuse("a `\\` stands at the end.", "Write `\\\\` for the character itself.", at=start)
        letter = self.pattern[self.at]
        self.at += 1
        if letter in _ESCAPED_CLASSES:
            return None
        if letter in _ESCAPED_CHARACTERS:
            return {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}[letter]
        if letter == "x":
            match = re.compile(r"[0-9A-Fa-f]{2}|\{[0-9A-Fa-f]{1,6}\}").match(self.pattern, self.at)
            if match is None or int(match[0].strip("{}"), 16) > 0x10FFFF:
                self._refuse("`\\x` wants two hexadecimal digits.", "Write `\\x7F` or `\\x{10FFFF}`.", at=start)
                return None
            self.at = match.end()
            code = int(match[0].strip("{}"), 16)
            if code > 0x7F:
                self._not_yet("a character beyond ASCII is meant by its number.", "Write it as it is.", at=start)
            return chr(code)
        if letter in "pP":
            match = re.compile(r"[A-Z]|\{\^?[A-Za-z_]+\}").match(self.pattern, self.at)
            if match is None:
                self._refuse(f"`\\{letter}` wants a Unicode class.", "Write `\\pL` or `\\p{Greek}`.", at=start)
                return None
            self.at = match.end()
            self._not_yet("a Unicode class stands.", "List the characters, `[a-z]`, say.", at=start)
            return None
        if letter in _ASSERTIONS and not in_class:
            return None
        if letter == "Q" and not in_class:
            self._not_yet("`\\Q` quotes a text.", "Put a `\\` before each sign instead.", at=start)
            end = self.pattern.find("\\E", self.at)
            self.at = len(self.pattern) if end < 0 else end + 2
            return None
        if letter in "01234567":
            digits = re.compile(r"[0-7]{0,2}").match(self.pattern, self.at)
            more = len(digits[0]) if digits else 0
            if letter != "0" and not more:
                self._refuse(f"RE2 has no reference back `\\{letter}`.", "Match what you want instead.", at=start)
            self.at += more
            self._not_yet("a character is meant by its octal number.", "Write `\\x7F`.", at=start)
            return chr(int(self.pattern[start + 1 : self.at], 8))
        if letter in "<>":
            self._not_yet(f"`\\{letter}` stands.", f"Write `{letter}`.", at=start)
        if not letter.isascii() or letter.isalnum():
            self._refuse(f"RE2 has no escape `\\{letter}`.", f"Write `{letter}` for the character.", at=start)
        return letter

    def _class(self) -> None:
        start = self.at
        self.at += 1
        if self._peek("^"):
            self.at += 1
        first = True
        while first or not self._peek("]"):
            first = False
            if self.at >= len(self.pattern):
                self._refuse("a `[` is never closed.", "Write `\\[` for the character itself.", at=start)
            low_at = self.at
            low = self._class_member()
            if self._peek("--"):
                self._not_yet("`--` stands in a class.", "Write `\\-` for the character.", at=self.at)
            if self._peek("-") and not self._peek("-]") and low is not None:
                self.at += 1
                if self.at >= len(self.pattern):
                    self._refuse("a `[` is never closed.", "Write `\\[` for the character itself.", at=start)
                high = self._class_member()
                if high is None or high < low:
                    text = self.pattern[low_at : self.at]
                    self._refuse(f"`{text}` is no range in order.", at=low_at)
        self.at += 1

    def _class_member(self) -> str | None:
        if self._peek("[:"):
            end = self.pattern.find(":]", self.at)
            if end > 0:
                name = self.pattern[self.at + 2 : end].removeprefix("^")
                if name not in _POSIX:
                    self._refuse(f"`[:{name}:]` is no class.", f"Known: {', '.join(sorted(_POSIX))}.")
                self.at = end + 2
                return None
        if self._peek("\\"):
            return self._escape(in_class=True)
        if self._peek("["):
            self._not_yet("a `[` stands in a class.", "Write `\\[`.", at=self.at)
        for pair in ("&&", "--", "~~"):
            if self._peek(pair):
                self._not_yet(f"`{pair}` stands in a class.", f"Write `\\{pair[0]}` for the character.", at=self.at)
        if not self.pattern[self.at].isascii():
            self._not_yet("a character beyond ASCII stands in a class.", "Write `(?:é|ü)`, say.", at=self.at)
        self.at += 1
        return self.pattern[self.at - 1]

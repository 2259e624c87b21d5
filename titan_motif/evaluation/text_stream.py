"""Tokens to text while they come: whole characters alone, and nothing of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer

_UNFINISHED = "\ufffd"
"""What a decoder makes of bytes that are no character, or not yet one."""


class TextStream:
    """The text of one continuation, handed out as soon as no later token can change it.

    Args:
        stops: the text ends before the first of these
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.text = ""
        """All that was handed out."""
        self.is_stopped = False
        self._tokens: list[int] = []
        self._begin = self._end = 0  # tokens that give context, and that are decoded for good
        self._taken = 0  # characters of the tokens after those, already taken
        self._held = ""  # may be the beginning of a stop string

    def push(self, token: int) -> str:
        """Take a token and return the text that is certain now; none after a stop string."""
        if self.is_stopped:
            return ""
        self._tokens.append(token)
        return self._hand_out(self._new_characters())

    def finish(self) -> str:
        """Return what was held back in case more came; an unfinished character is dropped."""
        rest, self._held = self._held, ""
        self.text += rest
        return rest

    def _new_characters(self) -> str:
        # A decoder may treat the first token as a text's beginning: decode with some before it.
        context = self._decode(self._tokens[self._begin : self._end])
        text = self._decode(self._tokens[self._begin :])[len(context) :]
        whole = text.removesuffix(_UNFINISHED)
        new = whole[self._taken :]
        self._taken = max(self._taken, len(whole))
        if whole == text:
            self._begin, self._end, self._taken = self._end, len(self._tokens), 0
        return new

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _hand_out(self, new: str) -> str:
        text = self._held + new
        places = [place for place in map(text.find, self.stops) if place >= 0]
        if places:
            self.is_stopped, self._held = True, ""
            certain = text[: min(places)]
        else:
            num_held = max((_overlap(text, stop) for stop in self.stops), default=0)
            certain, self._held = text[: len(text) - num_held], text[len(text) - num_held :]
        self.text += certain
        return certain


def _overlap(text: str, stop: str) -> int:
    """Return how many last characters of the text are the first ones of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

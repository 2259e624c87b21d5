"""Conversations as the tokens that a model was trained on: the tokenizer's chat template."""

from collections.abc import Sequence
from pathlib import Path

from titan_motif.components.sft.conversations import Conversation, Message
from titan_motif.components.sft.template import ChatTemplate, load_template

_MARK = "titan motif"
"""Content that no template has by itself."""


class ChatPrompts:
    """Makes prompts of conversations.

    Raises: ValueError, one line, if a tokenizer's folder has no template that can be used
    """

    def __init__(self, tokenizer_folder: Path) -> None:
        self.template: ChatTemplate = load_template(tokenizer_folder)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return a conversation's tokens, with the beginning of the assistant's turn at its end.

        Special tokens are tokens wherever they stand, in what was typed too.

        Raises: ValueError, one line, for what is no text, or what the template refuses
        """
        for message in messages:
            check_text(str(message["content"]))
        text = self.template.prompt(Conversation(list(messages)))
        return self.template.text_tokens(text)

    def end_of_turn(self) -> int | None:
        """Return the special token that ends the assistant's turn, None if the template has none.

        It is the first one that the template puts after what the assistant has said.
        """
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        text, _ = self.template.render(Conversation(said))
        _, _, after = text.rpartition(_MARK)
        added = self.template.tokenizer.get_added_tokens_decoder()
        found = self.template.text_tokens(after)
        return next((token for token in found if token in added and added[token].special), None)


def check_text(text: str, name: str = "the text") -> None:
    """Raise ValueError, one line, for a text that no tokenizer takes: it has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has {text[error.start]!r} at character {error.start + 1}, half of a surrogate "
            "pair or a byte that is not UTF-8; whole characters are needed"
        ) from None

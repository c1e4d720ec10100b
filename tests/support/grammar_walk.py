"""Texts that the engine's grammar lets through, drawn at random: what a model could answer at the most."""

import random
from typing import Any

import llguidance

from magbatch.spec import engine_schema

_BYTES = llguidance.LLTokenizer("byte")
MAX_BYTES = 600
PLAIN = range(0x20, 0x7F)


class Grammar:
    """The grammar of an answer's schema, as the engine has it.

    Args:
        schema: The schema.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            engine_schema(schema), defaults={"whitespace_flexible": False}
        )
        self._matcher = llguidance.LLMatcher(_BYTES, grammar)
        assert not self._matcher.is_error(), self._matcher.get_error()

    def accepts(self, text: str) -> bool:
        data = text.encode()
        self._matcher.reset()
        return self._matcher.try_consume_tokens(list(data)) == len(data) and self._matcher.is_accepting()

    def draw(self, chance: random.Random) -> str | None:
        """A text; None if the walk did not come to an end."""
        self._matcher.reset()
        data = bytearray()
        while len(data) < MAX_BYTES:
            if self._matcher.is_accepting() and (self._matcher.is_stopped() or chance.random() < 0.5):
                return data.decode()
            mask = self._matcher.compute_bitmask()
            allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
            plain = [byte for byte in allowed if byte in PLAIN]
            ends = [byte for byte in allowed if chr(byte) in '"}],']
            kinds = [kind for kind in (ends, plain, plain, plain, allowed) if kind]
            data.append(chance.choice(chance.choice(kinds)))
            assert self._matcher.consume_token(data[-1])
        return None

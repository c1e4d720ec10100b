"""A scripted engine: real tokens in, real tokens out, no model.

The fake serves tests of everything around an engine, and scale runs. It answers with the end of the prompt's own text,
so that an answer shows its row. A script changes its behaviour for prompts that contain a text:

    engine_args:
      token_s: 0.001
      script:
        - {contains: "POISON", do: die}
        - {contains: "LONG", tokens: 4000}
        - {contains: "STUCK", do: hang}
"""

import asyncio
import ctypes
import itertools
import os
import time

from pydantic import ValidationError

from magbatch.capture import STDERR, captured
from magbatch.engines.base import UNCONSTRAINED, EngineConfig, EngineLoad, OnTokens, RequestShape
from magbatch.errors import EngineDeadError, EngineStartError, RequestRejectedError
from magbatch.model.tokenizer import Tokenizer
from magbatch.rows import Completion, Generation, Prompt
from magbatch.spec.fake_args import FakeArgs, Rule
from magbatch.spec.mistakes import field_mistakes

CHUNK_TOKENS = 64  # the chunk size of the real engine
ECHO_TOKENS = 48  # tokens of the prompt's end that make the answer: enough to tell rows apart


class FakeEngine:
    """An engine that follows a script.

    Args:
        config: Configuration of a real engine, with `FakeArgs` as its arguments.
        tokenizer: Mistral's tokenizer of the model.

    Raises:
        EngineStartError: The arguments are wrong, or `start_error` is set.
    """

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer) -> None:
        try:
            self._args = FakeArgs.model_validate(config.args)
        except ValidationError as error:
            wrong = field_mistakes(error, FakeArgs, lambda _: None)
            raise EngineStartError(f"fake engine: {'; '.join(wrong)}") from error
        with captured(STDERR, replay=True):
            if self._args.start_says:
                os.write(STDERR, f"{self._args.start_says}\n".encode())
            time.sleep(self._args.start_s)
        if self._args.start_error:
            raise EngineStartError(self._args.start_error)
        self._samples = config.sampling.n
        self._tokenizer = tokenizer
        self._slots = asyncio.Semaphore(self._args.max_num_seqs)
        self._dead = False
        self._running = self._queued = 0
        self._thawed = asyncio.Event()
        self._thawed.set()

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        """Generate as the script says; see `Engine.generate`."""
        if self._dead:
            raise EngineDeadError("the scripted engine is dead")
        began = time.monotonic()
        self._note(prompt.row_id)
        async with _Slot(self):
            rule = self._rule(prompt)
            if rule.do == "reject":
                raise RequestRejectedError("the script rejects this prompt")
            if rule.do == "die":
                self._dead = True
                raise EngineDeadError("the script ends the engine")
            if rule.do == "block":
                ctypes.PyDLL(None).pause()  # holds Python's lock, as a backtracking regular expression does
            if rule.do == "stall":
                await asyncio.Event().wait()
            if rule.do == "freeze":
                self._thawed.clear()
            tokens, reason = self._tokens(prompt, rule, max_tokens, form)
            samples = form.samples or self._samples
            completion = await self._play(tokens, reason, on_tokens, samples, hangs=rule.do == "hang")
        return Generation([completion] * samples, 0, time.monotonic() - began)

    async def _play(
        self, tokens: list[int], reason: str, on_tokens: OnTokens | None, samples: int, *, hangs: bool
    ) -> Completion:
        """Give the tokens chunk by chunk; all samples are equal."""
        given = 0
        while given < len(tokens):
            size = CHUNK_TOKENS if given else 1
            await asyncio.sleep(len(tokens[given : given + size]) * self._args.token_s)
            await self._thawed.wait()
            if self._dead:
                raise EngineDeadError("the scripted engine is dead")
            chunk = tokens[given : given + size]
            given += len(chunk)
            if on_tokens is not None:
                kept = [on_tokens(sample, chunk) for sample in range(samples)]
                if not all(kept):
                    return Completion(tokens[:given], "repetition")
            if hangs:
                await asyncio.Event().wait()
        return Completion(tokens, reason)

    def load(self) -> EngineLoad:
        """The load at the moment; see `Engine.load`. The cache counts as full as the slots are."""
        return EngineLoad(self._running, self._queued, self._running / self._args.max_num_seqs)

    def shutdown(self) -> None:
        """End the engine; see `Engine.shutdown`."""
        self._dead = True

    def _note(self, row_id: str) -> None:
        if self._args.journal:
            # One unbuffered write keeps the lines of several processes whole.
            with open(self._args.journal, "ab", buffering=0) as file:
                file.write(f"{row_id} {os.getpid()}\n".encode())

    def _rule(self, prompt: Prompt) -> Rule:
        if self._args.script:
            text = self._tokenizer.decode(prompt.token_ids)
            for rule in self._args.script:
                if rule.contains in text:
                    return rule
        return Rule(contains="")

    def _tokens(self, prompt: Prompt, rule: Rule, max_tokens: int, form: RequestShape) -> tuple[list[int], str]:
        """The token ids of an answer, and its finish reason."""
        opening, closing = self._tokenizer.think_open, self._tokenizer.think_close
        last = prompt.token_ids[-1] if prompt.token_ids else None
        if rule.answer is not None and last != opening:
            said = rule.answer if isinstance(rule.answer, list) else [rule.answer]
            again = form.schema is not None and last == self._tokenizer.turn_close  # asked again after a wrong answer
            text = said[-1] if again else said[0]
            tokens = [*self._tokenizer.encode_text(text), self._tokenizer.end]
            return (tokens, "stop") if len(tokens) <= max_tokens else (tokens[:max_tokens], "length")
        answering = last == closing or form.schema is not None
        echo = [token for token in prompt.token_ids[-ECHO_TOKENS:] if token not in (opening, closing)]
        tokens = echo
        if opening is not None and closing is not None and last == opening:
            tokens = [*itertools.islice(itertools.cycle(echo), rule.tokens or self._args.tokens), closing]
            tokens += echo if form.stop is None else []
        elif opening is not None and closing is not None and rule.do != "no_think" and not answering:
            reasoning = itertools.islice(itertools.cycle(echo), rule.tokens or self._args.tokens)
            tokens = [opening, *reasoning, closing, *echo]
        if rule.do == "never_close":
            return [token for token in tokens if token != closing][:max_tokens], "length"
        return (tokens, "stop") if len(tokens) <= max_tokens else (tokens[:max_tokens], "length")


class _Slot:
    """An engine slot while a row is in it."""

    __slots__ = ("_engine",)

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def __aenter__(self) -> None:
        engine = self._engine
        engine._queued += 1
        try:
            await engine._slots.acquire()
        finally:
            engine._queued -= 1
        engine._running += 1

    async def __aexit__(self, *_: object) -> None:
        self._engine._running -= 1
        self._engine._slots.release()

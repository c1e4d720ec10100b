"""Chat -> token ids: exactly the ids that Mistral's own tokenizer gives for the chat, with image tokens expanded.

The number of images always equals the number of image ends. An engine would accept a prompt with missing images
without an error (measured, vLLM 0.32).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from pydantic import ValidationError

from magbatch.counts import counted
from magbatch.errors import ErrorCode, ModelError, RowError, SpecError
from magbatch.model.tokenizer import Tokenizer, blank
from magbatch.pipeline.splitting import CHARACTERS_PER_TOKEN, pieces_to_count
from magbatch.rows import Image, TokenIds, as_ids
from magbatch.spec import JobSpec
from magbatch.spec.template import fixed_texts

# Tokens that may differ at a seam if a text is counted in pieces instead of as a whole.
CUT_TOKENS = 16
# A text is counted in pieces first if it has more characters than this multiple of the likely limit.
LONG_TEXT = 4
# Texts that a tokenizer might treat specially: blanks, control tokens as text, other scripts.
PROBES = (
    "What?",
    " \n two  lines\n\n\t",
    "</s>[INST]a[/INST] [THINK]b[/THINK][IMG]",
    "größe 日本 🦙 e\u0301\u200d",
    "0123456789" * 9,
)
_BLANK_RUN = re.compile(r"(?<!\s)\s{1000000}\s*\S?")  # a longer run than tiktoken can split
_THINK_TEXT = re.compile(r"\[THINK\](.*?)\[/THINK\]", re.DOTALL)


class ChatEncoder:
    """Encoder of chats, with a job's system prompt and reasoning effort.

    Args:
        spec: Spec of the job: its system prompt, reasoning effort and limits decide.
        checkpoint: Directory with the model's files, for SYSTEM_PROMPT.txt.
        tokenizer: Mistral's tokenizer of the model.
        max_model_len: Tokens that the engine can hold for one row, answer included.

    Attributes:
        tokenizer: Mistral's tokenizer of the model.
        limit: Tokens that a prompt may have at most.
        limit_name: Name of the setting that bounds it, for messages.

    Raises:
        ModelError: The model's files do not give the system prompt or the effort that the spec asks for.
        SpecError: The text that all prompts share leaves no room for a row.
    """

    def __init__(self, spec: JobSpec, checkpoint: Path, tokenizer: Tokenizer, max_model_len: int) -> None:
        self.tokenizer = tokenizer
        self._system = system_message(spec.prompt.system, checkpoint)
        self._effort = _effort(spec, tokenizer)
        self._frame = self._learn_frame()
        self.limit = min(spec.limits.max_prompt_tokens, max_model_len - 1)
        self.limit_name = (
            "limits.max_prompt_tokens"
            if self.limit == spec.limits.max_prompt_tokens
            else "max_model_len, less one for the answer"
        )
        if not spec.input.columns.messages:  # a chat may bring its own system prompt
            self._check_room(spec, max_model_len)

    def encode(self, messages: list[dict[str, Any]], images: list[Image]) -> tuple[TokenIds, list[Image]]:
        """Encode a chat.

        Args:
            messages: Chat messages, as in `RenderedRow`.
            images: Decoded images that the messages refer to by position.

        Returns:
            Token ids of the prompt, and its images in the order in which the chat shows them.

        Raises:
            RowError: `invalid_messages`, or `prompt_too_long` for a text that is many times too long.
        """
        texts = [part["text"] for message in messages for part in message["content"] if "text" in part]
        if self.surely_exceed(texts, self.limit):
            for run in filter(None, map(_BLANK_RUN.search, texts)):
                self.count(run[0])  # raises if it cannot be split: the user must fix that first
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has more than {self.limit} tokens ({self.limit_name}): "
                f"its text has {sum(map(len, texts)):,} characters",
            )
        text = _lone_text(messages) if self._frame is not None and not images else None
        if self._frame is not None and text is not None:
            head, tail = self._frame
            return head + self.tokenizer.encode_text(text) + tail, []
        return self._encode_whole(messages, images)

    def check_length(self, tokens: int) -> None:
        """Raise RowError (`prompt_too_long`) if a prompt of so many tokens is over the limit."""
        if tokens > self.limit:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG, f"the prompt has {tokens} tokens, above {self.limit} ({self.limit_name})"
            )

    def count(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.tokenizer.encode_text(text))

    def surely_exceed(self, texts: Sequence[str], most: int) -> bool:
        """Whether texts certainly have more than `most` tokens; False leaves it open.

        A text takes 10 to 35 times its size while it is encoded. So a very long text is counted piece by piece until
        the limit is passed. A few tokens at the end of a piece may differ from those of the whole text.
        """
        if sum(map(len, texts)) <= LONG_TEXT * CHARACTERS_PER_TOKEN * most:
            return False
        for text in texts:
            for piece in pieces_to_count(text):
                most -= max(0, self.count(piece) - CUT_TOKENS)
                if most < 0:
                    return True
        return False

    def _learn_frame(self) -> tuple[TokenIds, TokenIds] | None:
        """The ids before and after the text of a chat with one question; None if this tokenizer has no such frame.

        Most chats are one question, and encoding its text alone takes half the time of encoding the chat. A frame is
        used only if all probes agree: the same ids before and after, and the text's own ids between them.
        """
        frame: tuple[TokenIds, TokenIds] | None = None
        for probe in PROBES:
            try:
                whole, _ = self._encode_whole(_question(probe), [])
            except RowError:
                return None
            body = self.tokenizer.encode_text(probe)
            if frame is None:
                starts = [at for at in range(len(whole)) if whole[at : at + len(body)] == body]
                if not starts:
                    return None
                frame = whole[: starts[-1]], whole[starts[-1] + len(body) :]
            if whole != frame[0] + body + frame[1]:
                return None
        return frame

    def _check_room(self, spec: JobSpec, max_model_len: int) -> None:
        """Raise SpecError if the text that all prompts share leaves no room for any row."""
        try:
            whole, _ = self._encode_whole(_question(PROBES[0]), [])
        except RowError:  # the probe is refused; rows may be fine
            return
        chat = len(whole) - self.count(PROBES[0])
        texts = fixed_texts(spec.prompt.template) if spec.prompt.template is not None else []
        # The last token of a fixed text may merge with the first token of the row's text behind it.
        fixed = sum(max(0, self.count(text) - 1) for text in texts)
        if chat + fixed <= self.limit:
            return
        taken = f"the system prompt and the chat around a question take {chat} tokens"
        taken += f", and the fixed text of prompt.template {fixed}" if fixed else ""
        if self.limit == spec.limits.max_prompt_tokens:
            raise SpecError(f"limits.max_prompt_tokens: {self.limit} is too few for any row: {taken}")
        raise SpecError(
            f"model.engine_args.max_model_len: {max_model_len} is too few for any row: {taken}, and an answer 1 or more"
        )

    def _encode_whole(self, messages: list[dict[str, Any]], images: list[Image]) -> tuple[TokenIds, list[Image]]:
        """Encode a chat with Mistral's own tokenizer, without the shortcut for a single question."""
        try:
            chat: list[Any] = [_message(message, images) for message in messages]
            if self._system is not None and not any(isinstance(message, SystemMessage) for message in chat):
                chat.insert(0, self._system)
            token_ids = as_ids(self.tokenizer.encode(ChatCompletionRequest(messages=chat, **self._effort)))
        except (MistralCommonException, ValidationError) as error:
            raise RowError(ErrorCode.INVALID_MESSAGES, f"the tokenizer refuses this chat: {error}") from error
        shown = [images[part["image"]] for message in messages for part in message["content"] if "image" in part]
        ends = token_ids.count(self.tokenizer.image_end) if self.tokenizer.image_end is not None else 0
        if not ends == len(shown) == len(images):
            raise RowError(
                ErrorCode.INVALID_MESSAGES,
                f"{counted(len(images), 'image')}, but {counted(ends, 'image end')} in the prompt",
            )
        return token_ids, shown


def system_message(system: str, checkpoint: Path) -> SystemMessage | None:
    """The system message that a spec asks for.

    Args:
        system: `model`, `none`, or the text; an empty text counts as `none`. Text in `[THINK]…[/THINK]` becomes a
            think chunk, as in Magistral's own prompt. That is safe: the job's owner writes specs, documents do not.
        checkpoint: Directory with the model's files.

    Raises:
        ModelError: `model` is asked for, but the checkpoint has no SYSTEM_PROMPT.txt.
    """
    if system == "none":
        return None
    if system == "model":
        file = checkpoint / "SYSTEM_PROMPT.txt"
        if not file.is_file():
            raise ModelError(
                f"prompt.system: model, but {checkpoint} has no SYSTEM_PROMPT.txt; set it to `none` or to the text"
            )
        system = file.read_text(encoding="utf-8")
    chunks: list[TextChunk | ThinkChunk] = []
    for position, text in enumerate(_THINK_TEXT.split(system)):
        if position % 2:
            chunks.append(ThinkChunk(thinking=text, closed=True))
        elif text:
            chunks.append(TextChunk(text=text))
    if not chunks:
        return None
    return SystemMessage(content=system if chunks == [TextChunk(text=system)] else chunks)


def before_the_question(messages: list[dict[str, Any]], chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A copy of a chat with more texts and images at the start of its last user message."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    asked = messages[last] | {"content": [*chunks, *messages[last]["content"]]}
    return [*messages[:last], asked, *messages[last + 1 :]]


def _effort(spec: JobSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    """Arguments of a chat request that set the reasoning effort.

    Raises:
        ModelError: The tokenizer cannot express the effort that the spec asks for.
    """
    effort = spec.reasoning.effort
    if effort is not None and tokenizer.takes_effort:
        return {"reasoning_effort": effort}
    if effort == "high":
        raise ModelError(
            f"reasoning.effort: high, but this model's tokenizer (v{tokenizer.version}) takes no effort setting; "
            "remove the setting, and the model reasons as it was trained to"
        )
    if effort == "none" and tokenizer.think_open is None:
        raise ModelError("reasoning.effort: none, but this model's tokenizer has no [THINK]; remove the setting")
    return {}


def _question(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": text}]}]


def _lone_text(messages: list[dict[str, Any]]) -> str | None:
    """The text of a chat that is one question in one piece; None for any other chat."""
    if len(messages) != 1 or messages[0]["role"] != "user" or len(messages[0]["content"]) != 1:
        return None
    text = messages[0]["content"][0].get("text")
    return text if isinstance(text, str) and text else None


def _message(message: dict[str, Any], images: list[Image]) -> SystemMessage | UserMessage | AssistantMessage:
    parts = message["content"]
    if message["role"] == "user":
        chunks = [_chunk(part, images) for part in parts]
        return UserMessage(content=chunks)
    if any("image" in part for part in parts):
        raise RowError(ErrorCode.INVALID_MESSAGES, f"a {message['role']} message cannot hold an image")
    text = "".join(part["text"] for part in parts)
    return SystemMessage(content=text) if message["role"] == "system" else AssistantMessage(content=text)


def _chunk(part: dict[str, Any], images: list[Image]) -> TextChunk | ImageChunk:
    if "text" in part:
        return TextChunk(text=part["text"])
    return ImageChunk(image=blank(images[part["image"]]))

"""Messages and images -> the token ids that the engine takes.

The ids that leave here are those that Mistral's own tokenizer gives for the chat, image tokens
expanded; the count of images always equals the count of image ends, since an engine accepts a
prompt with missing images silently (measured, vLLM 0.32).
"""

import re
from pathlib import Path
from typing import Any

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from PIL import Image as Pillow
from pydantic import ValidationError

from magbatch.errors import ErrorCode, ModelError, RowError
from magbatch.rows import Image, Prompt, RenderedRow
from magbatch.spec import JobSpec
from magbatch.tokenizer import Tokenizer

_THINK_PART = re.compile(r"\[THINK\](.*?)\[/THINK\]", re.DOTALL)


def system_message(system: str, checkpoint: Path) -> SystemMessage | None:
    """The system message that a spec asks for.

    Args:
        system: `model`, `none`, or the text; an empty text is none. A `[THINK]…[/THINK]` part of it
            becomes a think part, as in Magistral's own prompt: specs are written by the job's owner,
            not by documents.
        checkpoint: The model's directory.

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
    for position, part in enumerate(_THINK_PART.split(system)):
        if position % 2:
            chunks.append(ThinkChunk(thinking=part, closed=True))
        elif part:
            chunks.append(TextChunk(text=part))
    if not chunks:
        return None
    return SystemMessage(content=system if chunks == [TextChunk(text=system)] else chunks)


class Prompter:
    """Builds prompts by a job's spec.

    Args:
        spec: The job.
        checkpoint: The model's directory.
        tokenizer: The model's tokenizer.
        max_model_len: Tokens that the engine can hold for one row, answer included.

    Raises:
        ModelError: The model's files do not give the system prompt or the effort that the spec asks for.
    """

    def __init__(self, spec: JobSpec, checkpoint: Path, tokenizer: Tokenizer, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._system = system_message(spec.prompt.system, checkpoint)
        self._effort: dict[str, Any] = {}
        if spec.reasoning.effort is not None and tokenizer.takes_effort:
            self._effort = {"reasoning_effort": spec.reasoning.effort}
        elif spec.reasoning.effort == "high":
            raise ModelError(
                f"reasoning.effort: high, but this model's tokenizer (v{tokenizer.version}) takes no effort setting; "
                "leave it out: it thinks as it was trained to"
            )
        elif spec.reasoning.effort == "none" and tokenizer.think_open is None:
            raise ModelError("reasoning.effort: none, but this model's tokenizer has no [THINK]: leave it out")
        self._limit = min(spec.limits.max_prompt_tokens, max_model_len - 1)
        self._limit_name = (
            "limits.max_prompt_tokens"
            if self._limit == spec.limits.max_prompt_tokens
            else "max_model_len, less one for the answer"
        )

    def __call__(self, row: RenderedRow) -> Prompt:
        """Encode one row.

        Raises:
            RowError: `invalid_messages` or `prompt_too_long`.
        """
        try:
            messages: list[Any] = [_message(message, row.images) for message in row.messages]
            if self._system is not None and not any(isinstance(message, SystemMessage) for message in messages):
                messages.insert(0, self._system)
            token_ids = self._tokenizer.encode(ChatCompletionRequest(messages=messages, **self._effort))
        except (MistralCommonException, ValidationError) as error:
            raise RowError(ErrorCode.INVALID_MESSAGES, f"the tokenizer refuses this chat: {error}") from error
        if len(token_ids) > self._limit:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has {len(token_ids)} tokens, above {self._limit} ({self._limit_name})",
            )
        ends = token_ids.count(self._tokenizer.image_end) if self._tokenizer.image_end is not None else 0
        if ends != len(row.images):
            raise RowError(
                ErrorCode.INVALID_MESSAGES, f"{len(row.images)} images, but {ends} places for images in the prompt"
            )
        return Prompt(row.row_id, token_ids, row.images)


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
    image = images[part["image"]]
    return ImageChunk(image=Pillow.frombuffer("RGB", (image.width, image.height), image.rgb, "raw", "RGB", 0, 1))

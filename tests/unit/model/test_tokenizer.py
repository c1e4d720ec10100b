"""Chats to ids and back, with control tokens by name and images by their size alone."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk, TextChunk
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from PIL import Image as Pillow

from magbatch.errors import ModelError
from magbatch.model.tokenizer import Tokenizer


def request(*chunks: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[UserMessage(content=list(chunks))])


@pytest.fixture
def tekken(checkpoint: Path) -> dict[str, Any]:
    """The content of the tiny model's tekken.json, to be changed."""
    data: dict[str, Any] = json.loads((checkpoint / "tekken.json").read_text())
    return data


def changed(folder: Path, tekken: dict[str, Any]) -> Tokenizer:
    (folder / "tekken.json").write_text(json.dumps(tekken))
    return Tokenizer(folder)


def test_control_tokens_are_found_by_name(tmp_path: Path, tekken: dict[str, Any]) -> None:
    """Also where they have other ids than Magistral's."""
    ranks = {token["token_str"]: token for token in tekken["special_tokens"]}
    for one, other in (("[THINK]", "<SPECIAL_20>"), ("[/THINK]", "<SPECIAL_21>"), ("[IMG_END]", "<SPECIAL_22>")):
        ranks[one]["token_str"], ranks[other]["token_str"] = other, one
    tokenizer = changed(tmp_path, tekken)
    assert (tokenizer.think_open, tokenizer.think_close, tokenizer.image_end) == (20, 21, 22)
    image = ImageChunk(image=Pillow.new("RGB", (28, 28)))
    assert tokenizer.encode(request(image)).count(22) == 1


def test_magistrals_ids_of_the_tiny_model(tokenizer: Tokenizer) -> None:
    assert (tokenizer.think_open, tokenizer.think_close, tokenizer.image_end) == (34, 35, 13)


def test_a_model_without_thinking_or_vision_says_so(tmp_path: Path, tekken: dict[str, Any]) -> None:
    for token in tekken["special_tokens"]:
        if "THINK" in token["token_str"]:
            token["token_str"] = f"<SPECIAL_{token['rank']}>"
    del tekken["image"]
    tokenizer = changed(tmp_path, tekken)
    assert (tokenizer.think_open, tokenizer.think_close, tokenizer.image_end) == (None, None, None)
    assert "Hello" in tokenizer.decode(tokenizer.encode(request(TextChunk(text="Hello"))))


def test_images_are_expanded_as_by_mistrals_own_encoder(checkpoint: Path, tokenizer: Tokenizer) -> None:
    mistral = MistralTokenizer.from_file(str(checkpoint / "tekken.json"))
    rng = np.random.default_rng(1)
    for _ in range(30):
        width, height = (int(side) for side in rng.integers(1, 1000, 2))
        chat = request(TextChunk(text="Look:"), ImageChunk(image=Pillow.new("L", (width, height))))
        assert tokenizer.encode(chat) == list(mistral.encode_chat_completion(chat).tokens), (width, height)


def test_an_image_is_never_fetched_by_the_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pillow.new("RGB", (28, 28)).save(path)
    with pytest.raises(TypeError, match="decoded, never as URLs"):
        tokenizer.encode(request(ImageURLChunk(image_url=path.as_uri())))


@pytest.mark.parametrize(
    "text", ["", "What is 478 + 96?", "ünïcode ✓ 数字 🙂", "tab\tnew\r\nline", "[THINK]a</s>", "\0\x7f"]
)
def test_text_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(request(TextChunk(text=text)))) == text


def test_control_tokens_have_no_text_but_are_shown_to_a_person(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(request(TextChunk(text="Hello [/INST]")))
    assert tokenizer.decode(ids) == "Hello [/INST]"
    assert tokenizer.show(ids) == "<s>[INST]Hello [/INST][/INST]"
    assert tokenizer.decode([34, 35, 2, 10, 12, 13]) == ""


def test_bytes_that_are_no_text_are_shown_as_such(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([36 + 0xFF, 36 + ord("a")]) == "\ufffda"


def test_any_text_is_encoded_as_mistral_common_does(checkpoint: Path, tokenizer: Tokenizer) -> None:
    """The texts hold control tokens as text, blanks, characters of several parts, and halves of such characters."""
    theirs = MistralTokenizer.from_file(str(checkpoint / "tekken.json")).instruct_tokenizer.tokenizer
    rng = random.Random(1)
    odd = [*"ab7 \n\t.'é数🙂\u0301\u200d\ud83e\udd99\0", "</s>", "[THINK]", "<|endoftext|>", "  \n", "don't"]
    for size in range(300):
        drawn = [rng.choice(odd) if rng.random() < 0.8 else chr(rng.randrange(0x110000)) for _ in range(size % 60)]
        text = "".join(drawn)
        ids = tokenizer.encode_text(text)
        assert ids.tolist() == theirs.encode(text, bos=False, eos=False), repr(text)
        assert ids.itemsize == 4
    for long in ("word\n" * 30_000, " " * 150_000 + "x", "é数🙂\ud83e." * 30_000):  # another way
        assert tokenizer.encode_text(long).tolist() == theirs.encode(long, bos=False, eos=False)


@pytest.mark.parametrize("control", [True, False])
def test_any_ids_are_decoded_as_mistral_common_does(checkpoint: Path, tokenizer: Tokenizer, control: bool) -> None:
    """Nearly none of the ids are valid UTF-8; some have control tokens among them."""
    theirs = MistralTokenizer.from_file(str(checkpoint / "tekken.json")).instruct_tokenizer.tokenizer
    least = 0 if control else theirs.num_special_tokens
    rng = random.Random(least)
    for size in range(40):
        ids = [rng.randrange(least, theirs.n_words) for _ in range(size)] + [theirs.eos_id] * (size % 3)
        assert tokenizer.decode(ids) == theirs.decode(ids, special_token_policy=SpecialTokenPolicy.IGNORE)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "7", "{}", '{"config": {}}', '{"vocab": [], "config": null}'])
def test_what_is_no_tokenizer_is_a_model_error_with_the_file(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tekken.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        Tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/tekken.json: not a tokenizer that can be read: ")

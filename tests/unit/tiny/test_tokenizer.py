"""The tokenizer file: read by mistral_common, small, and deaf to control tokens typed by users."""

from pathlib import Path

import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import SpecialTokenPolicy, Tekkenizer
from PIL import Image

from magbatch.tiny.batches import Encoder, grid_of, normalised
from magbatch.tiny.checkpoint import VOCAB_SIZE, ensure
from magbatch.tiny.tasks import KINDS, work
from magbatch.tiny.wording import SYSTEM_PROMPT, pieces


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGBATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ensure()


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> MistralTokenizer:
    return MistralTokenizer.from_file(str(directory / "tekken.json"))


@pytest.fixture(scope="module")
def tekken(tokenizer: MistralTokenizer) -> Tekkenizer:
    inner = tokenizer.instruct_tokenizer.tokenizer
    assert isinstance(inner, Tekkenizer)
    return inner


def system_message() -> SystemMessage:
    before, _, rest = SYSTEM_PROMPT.partition("[THINK]")
    thinking, _, after = rest.partition("[/THINK]")
    return SystemMessage(
        content=[TextChunk(text=before), ThinkChunk(thinking=thinking, closed=True), TextChunk(text=after)]
    )


def test_control_tokens_have_magistrals_ids(tekken: Tekkenizer):
    ids = {"<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[IMG]": 10, "<pad>": 11, "[IMG_BREAK]": 12, "[IMG_END]": 13}
    ids |= {"[SYSTEM_PROMPT]": 17, "[/SYSTEM_PROMPT]": 18, "[THINK]": 34, "[/THINK]": 35}
    assert {name: tekken.get_special_token(name) for name in ids} == ids
    assert tekken.n_words == VOCAB_SIZE < 700


@pytest.mark.parametrize("text", ["", "478 + 96", "naïve Ünïcode ✓ 数字", "tab\tnew\r\nline", "\x00\x7f", "[INST]"])
def test_any_text_survives(tekken: Tekkenizer, text: str):
    assert tekken.decode(tekken.encode(text, bos=False, eos=False)) == text


def test_digits_are_single_tokens(tekken: Tekkenizer):
    assert len(tekken.encode("0123456789", bos=False, eos=False)) == 10


def test_each_word_of_the_tasks_is_one_token(tekken: Tekkenizer):
    split = [piece for piece in pieces() if len(tekken.encode(piece, bos=False, eos=False)) != 1]
    assert split == []


@pytest.mark.parametrize("kind", ["arithmetic", "receipt"])
def test_what_the_tasks_write_is_words_and_figures(tekken: Tekkenizer, kind: str):
    """Nothing but single letters is spelled out: a word that is forgotten in `wording` would be."""
    for index in range(300):
        worked = work("train", 9, index, kind)
        text = f"{worked.question}\n{worked.reasoning}\n{worked.expected}"
        pieces = [tekken.decode([token]) for token in tekken.encode(text, bos=False, eos=False)]
        joined = "".join(piece if len(piece) == 1 and piece.isalpha() else " " for piece in pieces)
        assert all(len(word) == 1 or word in "items" for word in joined.split()), (joined.split(), text)


@pytest.mark.parametrize(
    "typed", ["[THINK]", "[/THINK]", "[INST]", "[/INST]", "</s>", "<s>", "[IMG]", "[SYSTEM_PROMPT]"]
)
def test_control_tokens_typed_by_a_user_are_text(tokenizer: MistralTokenizer, typed: str):
    request = ChatCompletionRequest(messages=[UserMessage(content=f"What is {typed}?")])
    tokens = tokenizer.encode_chat_completion(request).tokens
    assert [token for token in tokens if token < 36] == [1, 3, 4]


def test_an_open_think_part_of_the_assistant_ends_the_prompt(tokenizer: MistralTokenizer):
    prefix = AssistantMessage(content=[ThinkChunk(thinking="", closed=False)], prefix=True)
    request = ChatCompletionRequest(messages=[UserMessage(content="What is 1 + 2?"), prefix])
    assert tokenizer.encode_chat_completion(request).tokens[-2:] == [4, 34]


@pytest.mark.parametrize("with_system", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training_prompts_are_those_of_mistral_common(
    directory: Path, tokenizer: MistralTokenizer, kind: str, with_system: bool
):
    encoder = Encoder(directory / "tekken.json")
    for index in range(5):
        worked = work("heldout", 0, index, kind)
        content: list[ImageChunk | TextChunk] = [TextChunk(text=worked.question)]
        if worked.receipt is not None:
            content.insert(0, ImageChunk(image=worked.receipt.image))
        messages = [system_message()] if with_system else []
        encoded = tokenizer.encode_chat_completion(
            ChatCompletionRequest(messages=[*messages, UserMessage(content=content)])
        )
        grid = grid_of(worked.receipt) if worked.receipt else None
        system = SYSTEM_PROMPT if with_system else None
        assert encoder.prompt(worked.question, system=system, grid=grid) == encoded.tokens
        if worked.receipt is not None:
            assert (normalised([worked.receipt])[0].numpy() == encoded.images[0]).all()


def test_large_images_are_scaled_down(tokenizer: MistralTokenizer):
    image = Image.new("RGB", (3000, 100), "white")
    request = ChatCompletionRequest(messages=[UserMessage(content=[ImageChunk(image=image), TextChunk(text="Total?")])])
    encoded = tokenizer.encode_chat_completion(request)
    assert encoded.images[0].shape == (3, 28, 448)
    assert encoded.tokens.count(10) == 16


def test_completions_decode_to_trace_and_answer(directory: Path):
    encoder = Encoder(directory / "tekken.json")
    worked = work("heldout", 0, 0, "arithmetic")
    text = encoder.tekken.decode(encoder.completion(worked), special_token_policy=SpecialTokenPolicy.KEEP)
    assert text == f"[THINK]{worked.reasoning}[/THINK]{worked.expected}</s>"

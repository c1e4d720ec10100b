"""Pages are measured before they are encoded: never below what they take, and close to it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from magbatch.errors import ErrorCode, RowError
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.chat import ChatEncoder
from magbatch.pipeline.page_chat import PAGE_TOKENS, PageChat
from magbatch.rows import Image, Page, RenderedRow
from magbatch.spec import JobSpec

ASKED = [{"role": "user", "content": [{"text": "What?"}]}]


@pytest.fixture
def pages(make_spec: Callable[..., JobSpec], checkpoint: Path, tokenizer: Tokenizer) -> PageChat:
    spec = make_spec(prompt={"system": "none"}, limits={"max_prompt_tokens": 400})
    return PageChat(ChatEncoder(spec, checkpoint, tokenizer, 9000))


def test_a_page_takes_no_more_than_its_measure(pages: PageChat) -> None:
    picture = Image.of(56, 28, bytes(56 * 28 * 3))
    shown = [Page(1, "word " * 30), Page(2, None, picture), Page(3, None, None, blank=True)]
    with_pages, images = pages.encode(RenderedRow("r", ASKED, [], shown, 3), shown)
    without, _ = pages.encode(RenderedRow("r", ASKED, [], [], 3), [])
    taken, measured = len(with_pages) - len(without), sum(pages.tokens(page, most=1000) for page in shown)
    assert images == [picture]
    assert measured - 3 * PAGE_TOKENS <= taken <= measured


def test_a_text_is_cut_to_its_room(pages: PageChat, tokenizer: Tokenizer) -> None:
    assert pages.cut("short", 64) == "short"
    cut = pages.cut("word " * 500, 64)
    assert cut != "word " * 500
    assert len(tokenizer.encode_text(cut)) <= 64


def test_a_question_without_room_for_pages_is_refused(pages: PageChat) -> None:
    assert pages.room(ASKED, [], "") > 300
    with pytest.raises(RowError) as caught:
        pages.room([{"role": "user", "content": [{"text": "word " * 350}]}], [], "")
    assert caught.value.code is ErrorCode.PROMPT_TOO_LONG

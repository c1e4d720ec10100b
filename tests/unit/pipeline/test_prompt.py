"""Pages become one prompt, its beginning, or several: always within the limits, and nothing of a document is lost."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magbatch.errors import ErrorCode, RowError
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.prompt import Prompter
from magbatch.rows import Image, Page, PageGroup, PageGroupAnswer, RenderedRow
from magbatch.spec import JobSpec

LIMIT = 400
ASKED = [{"role": "user", "content": [{"text": "What?"}]}]
Make = Callable[..., Prompter]


@pytest.fixture
def make(make_spec: Callable[..., JobSpec], checkpoint: Path, tokenizer: Tokenizer) -> Make:
    def act(overflow: str = "error", limit: int = LIMIT, **limits: Any) -> Prompter:
        source = {"path": "/in", "columns": {"prompt": "q", "document": "d"}, "document": {"overflow": overflow}}
        limits = {"max_prompt_tokens": limit} | limits
        return Prompter(make_spec(input=source, prompt={"system": "none"}, limits=limits), checkpoint, tokenizer, 9000)

    return act


def picture(shade: int = 0, cells: int = 1) -> Image:
    return Image.of(28 * cells, 28, bytes([shade]) * (28 * 28 * 3 * cells))


def row(*pages: Page, total: int | None = None, images: list[Image] | None = None) -> RenderedRow:
    messages = ASKED
    if images:
        content = [*({"image": index} for index in range(len(images))), {"text": "What?"}]
        messages = [{"role": "user", "content": content}]
    return RenderedRow("r", messages, images or [], list(pages), total or len(pages))


def refusal(act: Callable[[], object]) -> RowError:
    with pytest.raises(RowError) as caught:
        act()
    return caught.value


# One prompt.


def test_one_page_is_shown_before_the_question_without_more_words(make: Make, tokenizer: Tokenizer) -> None:
    prompt = make()(row(Page(1, None, picture())))
    alone = make()(RenderedRow("r", [{"role": "user", "content": [{"image": 0}, {"text": "What?"}]}], [picture()]))
    assert prompt.token_ids == alone.token_ids
    assert prompt.images == [picture()]
    assert (prompt.total_pages, prompt.page_groups, prompt.reads_page_groups) == (1, [PageGroup(1, 1)], False)
    assert "Total: 5\n\nWhat?" in tokenizer.show(make()(row(Page(1, "Total: 5", picture()))).token_ids)


def test_pages_are_numbered_and_their_text_stands_beside_them(make: Make, tokenizer: Tokenizer) -> None:
    prompt = make()(row(Page(1, "one", picture(1)), Page(2, None, picture(2)), Page(3, "three")))
    text = re.sub(r"(\[IMG\]|\[IMG_BREAK\])*\[IMG_END\]", "<picture>", tokenizer.show(prompt.token_ids))
    assert text == ("<s>[INST]Page 1 of 3:\n<picture>one\n\nPage 2 of 3:\n<picture>Page 3 of 3:\nthree\n\nWhat?[/INST]")
    assert prompt.images == [picture(1), picture(2)]
    assert prompt.page_groups == [PageGroup(1, 3)]


def test_a_blank_page_says_so(make: Make, tokenizer: Tokenizer) -> None:
    shown = tokenizer.show(make()(row(Page(1, None, picture(), blank=True), Page(2, "two"))).token_ids)
    assert "[IMG_END](This page shows nothing.)\n\nPage 2 of 2:\ntwo" in shown


def test_what_looks_like_a_control_token_on_a_page_is_text(make: Make, tokenizer: Tokenizer) -> None:
    prompt = make()(row(Page(1, "[/INST][THINK]</s>[IMG_END]")))
    assert tokenizer.think_open not in prompt.token_ids
    assert prompt.token_ids.count(tokenizer.turn_close) == 1
    assert prompt.token_ids.count(tokenizer.image_end) == 0


def test_images_reach_the_engine_in_the_order_of_their_places(make: Make) -> None:
    """A row's own images are numbered before the pages that are shown before them."""
    own, shown = picture(7, cells=2), picture(9)
    assert make()(row(Page(1, None, shown), images=[own])).images == [shown, own]
    messages = [
        {"role": "user", "content": [{"image": 1}, {"text": "first"}]},
        {"role": "assistant", "content": [{"text": "yes"}]},
        {"role": "user", "content": [{"image": 0}, {"text": "second"}]},
    ]
    assert make()(RenderedRow("r", messages, [own, shown])).images == [shown, own]


def test_a_document_that_does_not_fit_is_refused(make: Make) -> None:
    error = refusal(lambda: make()(row(Page(1, "word " * 3000))))
    assert error.code is ErrorCode.PROMPT_TOO_LONG
    assert f"more than {LIMIT} tokens (limits.max_prompt_tokens)" in error.message
    pages = [Page(number, None, picture()) for number in range(1, 6)]
    error = refusal(lambda: make(max_images=4)(row(*pages)))
    assert error.code is ErrorCode.TOO_MANY_IMAGES
    assert "limits.max_images = 4" in error.message


def test_the_limit_is_exact(make: Make) -> None:
    document = row(Page(1, "word " * 40), Page(2, "more " * 10))
    tokens = len(make()(document).token_ids)
    assert len(make(limit=tokens)(document).token_ids) == tokens
    assert refusal(lambda: make(limit=tokens - 1)(document)).code is ErrorCode.PROMPT_TOO_LONG


# The beginning.


def test_pages_after_the_limit_are_left_out(make: Make, tokenizer: Tokenizer) -> None:
    pages = [Page(number, f"text {number} " * 20) for number in range(1, 9)]
    prompt = make("truncate")(row(*pages, total=12))
    (part,) = prompt.page_groups
    assert part.first_page == 1
    assert 1 <= part.last_page < 8
    assert len(prompt.token_ids) <= LIMIT
    assert prompt.total_pages == 12
    text = tokenizer.show(prompt.token_ids)
    assert f"text {part.last_page} " in text
    assert f"text {part.last_page + 1} " not in text
    shown = [Page(number, None, picture()) for number in range(1, 6)]
    assert make("truncate", max_images=3)(row(*shown)).page_groups == [PageGroup(1, 3)]


def test_of_a_first_page_that_is_too_long_its_beginning_is_shown(make: Make, tokenizer: Tokenizer) -> None:
    prompt = make("truncate")(row(Page(1, " ".join(map(str, range(5000)))), Page(2, "more")))
    assert prompt.page_groups == [PageGroup(1, 1)]
    assert LIMIT * 0.7 < len(prompt.token_ids) <= LIMIT
    assert "0 1 2 3 4 5 6 7" in tokenizer.show(prompt.token_ids)


def test_a_text_is_cut_where_the_room_ends_however_long_its_tokens_are(make: Make, tokenizer: Tokenizer) -> None:
    """A word of the tiny model's own is one token: more characters than are guessed for one."""
    word = max((tokenizer.decode([number]) for number in range(300, 400)), key=len)
    assert len(tokenizer.encode_text(word)) == 1
    assert len(word) > 5
    prompt = make("truncate")(row(Page(1, word * 2000)))
    assert LIMIT * 0.8 < len(prompt.token_ids) <= LIMIT


def test_a_very_long_page_is_cut_as_a_long_one(make: Make) -> None:
    short, long = (make("truncate")(row(Page(1, "word " * times))) for times in (900, 1_000_000))
    assert long.token_ids == short.token_ids
    assert long.truncated


def test_a_picture_that_alone_does_not_fit_is_refused(make: Make) -> None:
    big = Image.of(28 * 40, 28 * 40, bytes(28 * 40 * 28 * 40 * 3))
    for overflow in ("truncate", "map_reduce"):
        assert refusal(lambda overflow=overflow: make(overflow, limit=250)(row(Page(1, None, big)))).code is (
            ErrorCode.PROMPT_TOO_LONG
        )


def test_a_question_that_leaves_no_room_is_refused(make: Make) -> None:
    asked = [{"role": "user", "content": [{"text": "word " * 350}]}]
    document = RenderedRow("r", asked, [], [Page(1, "x " * 400)], 1)
    for overflow in ("truncate", "map_reduce"):
        error = refusal(lambda overflow=overflow: make(overflow)(document))
        assert error.code is ErrorCode.PROMPT_TOO_LONG


@pytest.mark.parametrize(
    ("pages", "total", "cut"),
    [
        ([Page(1, "one"), Page(2, "two")], 2, False),
        ([Page(1, "one"), Page(2, "two")], 3, True),
        ([Page(1, "one"), Page(2, "word " * 900)], 2, True),
        ([Page(1, "word " * 900)], 1, True),
        ([Page(1, "word " * 900, picture())], 1, True),
    ],
    ids=["whole", "pages that were not rendered", "pages that do not fit", "text", "text next to a picture"],
)
def test_what_is_left_out_is_told(make: Make, pages: list[Page], total: int, cut: bool) -> None:
    assert make("truncate")(row(*pages, total=total)).truncated is cut


def test_a_document_that_is_read_in_parts_is_whole(make: Make) -> None:
    prompt = make("map_reduce")(row(Page(1, "word " * 900), Page(2, "two")))
    assert prompt.reads_page_groups
    assert not prompt.truncated
    assert make("map_reduce")(row(Page(1, "word " * 900), total=2)).truncated


# In parts.


def test_a_document_that_fits_is_asked_at_once(make: Make) -> None:
    prompt = make("map_reduce")(row(Page(1, "one"), Page(2, "two")))
    assert not prompt.reads_page_groups
    assert prompt.requests == 1


def test_pages_are_read_in_groups_that_fit(make: Make, tokenizer: Tokenizer) -> None:
    pages = [Page(number, f"text {number}", picture(number)) for number in range(1, 8)]
    prompt = make("map_reduce", max_images=3)(row(*pages))
    assert [(part.first_page, part.last_page) for part in prompt.page_groups] == [(1, 3), (4, 6), (7, 7)]
    assert [part.images for part in prompt.page_groups] == [
        [picture(n) for n in group] for group in ((1, 2, 3), (4, 5, 6), (7,))
    ]
    assert prompt.reads_page_groups
    assert prompt.requests == 3
    assert not prompt.token_ids
    text = tokenizer.show(prompt.page_groups[1].token_ids)
    assert "These are pages 4 to 6 of 7 of one document" in text
    assert text.endswith("What?[/INST]")
    assert prompt.size_bytes > 7 * picture().size_bytes


def test_a_rows_own_images_are_in_every_part(make: Make) -> None:
    own = picture(99, cells=2)
    prompt = make("map_reduce", max_images=3)(row(*[Page(n, None, picture(n)) for n in range(1, 5)], images=[own]))
    groups = prompt.page_groups
    assert [group.images for group in groups] == [[picture(1), picture(2), own], [picture(3), picture(4), own]]
    (last,) = make("map_reduce", max_images=3).combine(
        prompt, [PageGroupAnswer(1, 2, answer="a"), PageGroupAnswer(3, 4, answer="b")]
    )
    assert last.images == [own]


WORDS = st.builds(str.__mul__, st.text("ab é数\n", max_size=20), st.integers(1, 60))
PAGES = st.lists(st.tuples(st.none() | WORDS, st.booleans()), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PAGES, st.integers(280, 900), st.integers(1, 4))
def test_nothing_of_a_document_is_lost_or_shown_twice(
    make: Make, tokenizer: Tokenizer, pages: list[tuple[str | None, bool]], limit: int, most_images: int
) -> None:
    shown = [
        Page(number, text, picture(number) if image else None) for number, (text, image) in enumerate(pages, start=1)
    ]
    prompter = make("map_reduce", limit=limit, max_images=most_images)
    prompt = prompter(row(*shown))
    asked = (
        prompt.page_groups if prompt.reads_page_groups else [PageGroup(1, len(shown), prompt.token_ids, prompt.images)]
    )
    assert all(len(part.token_ids) <= limit and len(part.images) <= most_images for part in asked)
    assert [image for part in asked for image in part.images] == [page.image for page in shown if page.image]
    assert (asked[0].first_page, asked[-1].last_page) == (1, len(shown))
    assert all(one.last_page in (two.first_page, two.first_page - 1) for one, two in itertools.pairwise(asked))
    letters = re.sub(r"[^abé数]", "", "".join(text or "" for text, _ in pages))
    said = "".join(tokenizer.decode(part.token_ids) for part in asked)
    said = re.sub(r"Page \d+ of \d+:|These are pages.*?open\.|What\?", "", said)
    assert re.sub(r"[^abé数]", "", said) == letters


def test_more_parts_than_pages_may_be_are_refused(make: Make) -> None:
    error = refusal(lambda: make("map_reduce", max_pages=3)(row(Page(1, "word " * 4000))))
    assert error.code is ErrorCode.TOO_MANY_PAGES
    assert "limits.max_pages = 3" in error.message

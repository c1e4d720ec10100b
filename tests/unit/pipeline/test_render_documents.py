"""A row's document: where it may come from, what of it is shown, and which of its pages."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.document_files import encoded, noise, pages_pdf, scan_pdf, text_pdf, tiff, two_halves

from magbatch.documents.images import ImageGrid
from magbatch.errors import ErrorCode, RowError
from magbatch.pipeline.render import Renderer
from magbatch.rows import InputRow, RenderedRow
from magbatch.spec import JobSpec
from magbatch.storage import open_store

GRID = ImageGrid(448, 28)
PDF = text_pdf("Total: 12.30", "Page two")
Render = Callable[..., RenderedRow]


@pytest.fixture
def render(make_spec: Callable[..., JobSpec]) -> Render:
    """Render one row whose document is in the column `file`."""

    def act(
        document: Any,
        folder: str = "",
        grid: ImageGrid | None = GRID,
        limits: Any = None,
        how: Any = None,
        columns: Any = None,
        **values: Any,
    ) -> RenderedRow:
        named = {"prompt": "question", "document": "file"} | (columns or {})
        source = {"path": folder or "/in", "columns": named, "document": how or {}}
        spec = make_spec(input=source, limits=limits or {})
        return Renderer(spec, grid)(InputRow("r", {"question": "What?", "file": document} | values, folder))

    return act


def refusal(act: Callable[[], object]) -> RowError:
    with pytest.raises(RowError) as caught:
        act()
    return caught.value


def shown(row: RenderedRow) -> list[tuple[int, str | None, bool]]:
    return [(page.number, page.text, page.image is not None) for page in row.pages]


@pytest.mark.parametrize(
    ("mode", "pages"),
    [
        ("both", [(1, "Total: 12.30", True), (2, "Page two", True)]),
        ("images", [(1, None, True), (2, None, True)]),
        ("text", [(1, "Total: 12.30", False), (2, "Page two", False)]),
    ],
)
def test_what_is_shown_of_a_page_is_up_to_the_spec(render: Render, mode: str, pages: list[Any]) -> None:
    row = render(PDF, how={"mode": mode})
    assert shown(row) == pages
    assert row.total_pages == 2
    assert row.messages == [{"role": "user", "content": [{"text": "What?"}]}]


@pytest.mark.parametrize(
    "value",
    [
        PDF,
        {"bytes": PDF, "path": None},
        {"bytes": None, "path": "sub/ä b.pdf"},
        "sub/ä b.pdf",
        ["sub/ä b.pdf"],
        "data:application/pdf;base64," + base64.b64encode(PDF).decode(),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_document_may_be_given_in_many_ways(render: Render, root: str, value: Any) -> None:
    open_store(root).write("in/sub/ä b.pdf", PDF)
    assert shown(render(value, folder=f"{root}/in"))[1] == (2, "Page two", True)


def test_several_files_are_one_document(render: Render) -> None:
    row = render([PDF, encoded(two_halves()), tiff(noise(28, 28), noise(56, 28)), b"text"])
    assert row.total_pages == 6
    assert [(number, image) for number, _, image in shown(row)] == [
        (1, True), (2, True), (3, True), (4, True), (5, True), (6, False),
    ]  # fmt: skip
    assert shown(row)[5][1] == "text"


def test_a_column_of_text_holds_paths_or_the_documents_themselves(render: Render, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("what the file says")
    assert shown(render("a.txt", folder=str(tmp_path))) == [(1, "what the file says", False)]
    assert shown(render("a.txt\fb", how={"strings": "text"})) == [(1, "a.txt", False), (2, "b", False)]
    assert shown(render(b"bytes are files", how={"strings": "text"})) == [(1, "bytes are files", False)]


def test_images_beside_a_document_stay_where_they_are(render: Render) -> None:
    row = render(PDF, columns={"images": ["logo"]}, logo=encoded(two_halves()))
    assert len(row.images) == 1
    assert row.messages[0]["content"] == [{"image": 0}, {"text": "What?"}]
    assert len(row.pages) == 2


@pytest.mark.parametrize(
    ("value", "code", "part"),
    [
        (None, ErrorCode.MISSING_VALUE, "column 'file' is null"),
        ("", ErrorCode.MISSING_VALUE, "column 'file' is empty"),
        ([], ErrorCode.MISSING_VALUE, "column 'file' is empty"),
        ([PDF, None], ErrorCode.MISSING_VALUE, "document 1 is null"),
        (b"\x00\x01", ErrorCode.DOCUMENT_UNREADABLE, "column 'file': neither a PDF"),
        ([PDF, b""], ErrorCode.DOCUMENT_EMPTY, "column 'file', document 1: it has no bytes"),
        ("none.pdf", ErrorCode.DOCUMENT_UNFETCHABLE, "none.pdf: no such file"),
        ("http://127.0.0.1:1/a.pdf", ErrorCode.URL_REFUSED, "private network"),
        (7, ErrorCode.DOCUMENT_UNREADABLE, "a document is bytes, a path or a URL, not int"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_document_that_cannot_be_had_says_why(render: Render, value: Any, code: ErrorCode, part: str) -> None:
    error = refusal(lambda: render(value, folder="/in"))
    assert error.code is code
    assert part in error.message


def test_a_file_over_the_limit_of_bytes_is_refused(render: Render) -> None:
    error = refusal(lambda: render(PDF, limits={"max_document_bytes": 100}))
    assert error.code is ErrorCode.DOCUMENT_TOO_LARGE
    assert "limits.max_document_bytes = 100" in error.message


def test_a_scan_without_text_in_a_job_for_text_is_empty(render: Render) -> None:
    """Asking about nothing would be answered, and paid for."""
    error = refusal(lambda: render(scan_pdf(noise(56, 56)), how={"mode": "text"}))
    assert error.code is ErrorCode.DOCUMENT_EMPTY
    assert "input.document.mode: text" in error.message


def test_a_document_that_shows_nothing_is_empty_and_a_page_among_others_is_blank(render: Render) -> None:
    """A font that is missing on this machine would be asked about as a white page."""
    blank = pages_pdf([b"", b""])
    for mode in ("both", "images"):
        error = refusal(lambda mode=mode: render(blank, how={"mode": mode}))
        assert error.code is ErrorCode.DOCUMENT_EMPTY
        assert "no page shows anything" in error.message
        assert [page.blank for page in render([blank, PDF], how={"mode": mode}).pages] == [True, True, False, False]


def test_a_model_without_vision_reads_text(render: Render) -> None:
    assert refusal(lambda: render(PDF, grid=None)).code is ErrorCode.IMAGES_UNSUPPORTED
    assert shown(render(PDF, grid=None, how={"mode": "text"}))[0] == (1, "Total: 12.30", False)
    assert shown(render(b"text", grid=None)) == [(1, "text", False)]


MANY = text_pdf(*[f"page {number}" for number in range(1, 8)])


@pytest.mark.parametrize(
    ("overflow", "limits", "images", "pages"),
    [
        ("truncate", {"max_images": 3}, 0, 3),
        ("truncate", {"max_images": 3}, 1, 2),
        ("truncate", {"max_pages": 5}, 0, 5),
        ("map_reduce", {"max_images": 3}, 0, 7),
        ("map_reduce", {"max_pages": 7}, 0, 7),
        ("error", {"max_images": 7}, 0, 7),
    ],
)
def test_no_more_pages_are_rendered_than_can_be_shown(
    render: Render, overflow: str, limits: Any, images: int, pages: int
) -> None:
    extra = {"columns": {"images": ["logo"]}, "logo": encoded(two_halves())} if images else {}
    row = render(MANY, limits=limits, how={"overflow": overflow}, **extra)
    assert len(row.pages) == pages
    assert row.total_pages == 7


@pytest.mark.parametrize(
    ("overflow", "limits", "part"),
    [
        ("error", {"max_images": 6}, "it has 7 pages, above limits.max_images = 6"),
        ("error", {"max_pages": 6, "max_images": 20}, "it has 7 pages, above limits.max_pages = 6"),
        ("map_reduce", {"max_pages": 6}, "it has 7 pages, above limits.max_pages = 6"),
    ],
)
def test_more_pages_than_the_limit_are_an_error_of_the_row(
    render: Render, overflow: str, limits: Any, part: str
) -> None:
    error = refusal(lambda: render(MANY, limits=limits, how={"overflow": overflow}))
    assert error.code is ErrorCode.TOO_MANY_PAGES
    assert part in error.message


def test_the_limit_is_for_all_files_of_a_row_together(render: Render) -> None:
    error = refusal(lambda: render([PDF, PDF], limits={"max_images": 3}))
    assert error.code is ErrorCode.TOO_MANY_PAGES
    assert "document 1" in error.message
    row = render([PDF, PDF, b"text"], limits={"max_images": 3}, how={"overflow": "truncate"})
    assert [page.number for page in row.pages] == [1, 2, 3], "the first pages, and none after a gap"
    assert row.total_pages == 5


def test_pages_without_pictures_do_not_count_as_images(render: Render) -> None:
    text = "\f".join("abcd").encode()
    for overflow in ("error", "truncate"):
        row = render([text, encoded(two_halves())], limits={"max_images": 3}, how={"overflow": overflow})
        assert [page.image is not None for page in row.pages] == [False] * 4 + [True]


def test_a_document_needs_a_user_message(make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec(input={"path": "/in", "columns": {"messages": "chat", "document": "file"}})
    row = InputRow("r", {"chat": [{"role": "system", "content": "x"}], "file": PDF})
    assert refusal(lambda: Renderer(spec, GRID)(row)).code is ErrorCode.INVALID_MESSAGES


# Lists that are longer than what may be shown: a file that is not there tells whether it was asked for.

MISSING = "not there.pdf"


def test_files_of_a_list_are_not_fetched_once_its_pages_are_full(render: Render, tmp_path: Path) -> None:
    row = render([PDF, PDF, *[MISSING] * 3000], str(tmp_path), limits={"max_pages": 3}, how={"overflow": "truncate"})
    assert [page.number for page in row.pages] == [1, 2, 3]
    assert row.total_pages == 4 + 3000  # of what was not opened one page each, which is the least
    row = render([PDF, MISSING], str(tmp_path), limits={"max_pages": 2}, how={"overflow": "truncate"})
    assert (len(row.pages), row.total_pages) == (2, 3)


def test_pictures_fill_the_limit_of_a_list_too(render: Render, tmp_path: Path) -> None:
    picture = encoded(two_halves())
    row = render(
        [picture, picture, picture, MISSING], str(tmp_path), limits={"max_images": 2}, how={"overflow": "truncate"}
    )
    assert (len(row.pages), row.total_pages) == (2, 4)


@pytest.mark.parametrize("overflow", ["error", "map_reduce"])
def test_a_list_that_cannot_fit_is_refused_before_it_is_fetched(render: Render, tmp_path: Path, overflow: str) -> None:
    error = refusal(lambda: render([MISSING] * 3000, str(tmp_path), how={"overflow": overflow}))
    assert error.code is ErrorCode.TOO_MANY_PAGES
    assert "'file' has 3,000 files, above limits.max_pages = 200" in error.message
    many = [PDF, PDF, MISSING]
    error = refusal(lambda: render(many, str(tmp_path), limits={"max_pages": 4}, how={"overflow": overflow}))
    assert error.code is ErrorCode.TOO_MANY_PAGES
    assert "'file' has 4 pages and 1 more file, above limits.max_pages = 4" in error.message


def test_images_above_the_limit_are_refused_before_any_is_fetched(render: Render, tmp_path: Path) -> None:
    columns = {"images": ["scans"]}
    error = refusal(lambda: render(PDF, str(tmp_path), columns=columns, scans=[MISSING] * 11))
    assert error.code is ErrorCode.TOO_MANY_IMAGES

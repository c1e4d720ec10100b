"""Input row -> messages, decoded images and the pages of its document.

Every picture comes out decoded, upright, in RGB and at the size in which the model sees it; otherwise the row raises
`RowError`. Sizes are checked before anything is decoded. All of this runs on CPUs, never in the engine's process.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from magbatch.counts import counted
from magbatch.documents.decoder import Decoders
from magbatch.documents.fetch import DOCUMENT, IMAGE, Fetcher, RowFetcher
from magbatch.documents.images import ImageGrid
from magbatch.documents.pages import Want, text_pages
from magbatch.documents.renderer import Renderers
from magbatch.errors import ErrorCode, RowError
from magbatch.rows import Image, InputRow, Page, RenderedRow
from magbatch.spec import JobSpec
from magbatch.spec.template import Template

MOST_TOKENS = 2**31 - 1  # above any context: a larger value in a column would overflow an engine's counter
RENDERERS = 2  # processes for documents, and again for images; the reader itself is idle while they work
NO_VISION = "the model has no vision encoder"


class Renderer:
    """Renders the rows of a job.

    Args:
        spec: Spec of the job: its input columns, prompt and limits.
        grid: Image sizes of the model; None for a model without vision.
    """

    def __init__(self, spec: JobSpec, grid: ImageGrid | None) -> None:
        self._columns = spec.input.columns
        self._document = spec.input.document
        self._limits = spec.limits
        self._fetcher = Fetcher(spec.input)
        self._documents = Renderers(RENDERERS, spec.limits.document_timeout_s, spec.limits.document_memory_mb)
        self._template = Template(spec.prompt.template) if spec.prompt.template is not None else None
        self._grid = grid
        limits = spec.limits
        self._decode = (
            Decoders(RENDERERS, grid, limits.max_image_pixels, limits.max_image_bytes, limits.image_timeout_s)
            if grid is not None
            else None
        )

    def __call__(self, row: InputRow) -> RenderedRow:
        """Render a row.

        Raises:
            RowError: A value is missing or wrong, a file cannot be fetched or decoded, or a limit is exceeded.
            StorageError: The storage of an image or document that the row names is away.
            ClusterError: This node cannot decode images or documents.
        """
        images: list[Image] = []
        fetch = self._fetcher.for_row()

        def check(count: int) -> None:
            if count > self._limits.max_images:
                raise RowError(
                    ErrorCode.TOO_MANY_IMAGES, f"more than limits.max_images = {self._limits.max_images} images"
                )

        def add(source: Any, origin: str) -> dict[str, int]:
            check(len(images) + 1)
            images.append(self._image(fetch, source, row.folder, origin))
            return {"image": len(images) - 1}

        attached = [source for name in self._columns.images for source in _sources_in(row.values, name, "image")]
        check(len(attached))  # before any image is fetched
        if self._columns.messages:
            messages = _messages(_required(row.values, self._columns.messages), add)
            users = [message for message in messages if message["role"] == "user"]
            if attached and not users:
                raise RowError(ErrorCode.INVALID_MESSAGES, "the row has images but no user message to hold them")
            if attached:
                users[-1]["content"] = [add(*source) for source in attached] + users[-1]["content"]
        else:
            text = {"text": self.question(row.values)}
            messages = [{"role": "user", "content": [*(add(*source) for source in attached), text]}]
        if self._columns.document is None:
            return RenderedRow(row.row_id, messages, images)
        if not any(message["role"] == "user" for message in messages):
            raise RowError(ErrorCode.INVALID_MESSAGES, "the row has a document but no user message to hold it")
        pages, total = self._pages(fetch, row, self._columns.document, len(images))
        return RenderedRow(row.row_id, messages, images, pages, total)

    def question(self, values: dict[str, Any]) -> str:
        """The text of the question.

        Args:
            values: Column name to value.

        Raises:
            RowError: A value is missing, or the template fails.
        """
        if self._template is None:
            return str(_required(values, self._columns.prompt or ""))
        if self._columns.prompt:
            _required(values, self._columns.prompt)
        return self._template(values)

    def _image(self, fetch: RowFetcher, source: Any, folder: str, origin: str) -> Image:
        if self._decode is None:
            raise RowError(ErrorCode.IMAGES_UNSUPPORTED, f"the row has an image, but {NO_VISION}")
        data = fetch(source, folder, self._limits.max_image_bytes, origin, IMAGE)
        return self._decode(data, origin)

    def _pages(self, fetch: RowFetcher, row: InputRow, column: str, images: int) -> tuple[list[Page], int]:
        """Render the document of a row; several files follow each other.

        Args:
            fetch: Loads files that the row names.
            row: Row with the document's files in a column.
            column: Name of the column with the document.
            images: Number of images that the row has in addition to the document.

        Returns:
            The pages that may be shown, and the number of pages of the document.
        """
        _required(row.values, column)
        pages: list[Page] = []
        total = 0
        sources, most = _sources_in(row.values, column, "document"), self._limits.max_pages
        cut = self._document.overflow == "truncate"
        if len(sources) > most and not cut:  # before any file is fetched: each has at least a page
            raise self._too_many(column, counted(len(sources), "file"))
        for number, (source, origin) in enumerate(sources):
            if len(pages) < total or len(pages) == most:  # the rest is not fetched
                if not cut:
                    raise self._too_many(
                        column, f"{counted(total, 'page')} and {counted(len(sources) - number, 'more file')}"
                    )
                total += len(sources) - number  # each file has at least a page
                break
            pictures = images + sum(page.image is not None for page in pages)
            want = self._want(len(pages), pictures)
            count, found = self._file(fetch, source, row.folder, origin, want)
            pages += [replace(page, number=total + page.number) for page in found]
            total += count
        if not total:
            raise RowError(ErrorCode.MISSING_VALUE, f"column {column!r} is empty in this row")
        if all(page.blank for page in pages):
            raise RowError(
                ErrorCode.DOCUMENT_EMPTY,
                f"column {column!r}: no page shows anything; a font that is not embedded may be missing",
            )
        if not any(page.image is not None or (page.text or "").strip() for page in pages):
            raise RowError(
                ErrorCode.DOCUMENT_EMPTY,
                f"column {column!r}: no page has text, and input.document.mode: {self._document.mode} shows text only; "
                "set it to `both` or `images` to show the pages",
            )
        return pages, total

    def _too_many(self, column: str, what: str) -> RowError:
        return RowError(
            ErrorCode.TOO_MANY_PAGES,
            f"column {column!r} has {what}, above limits.max_pages = {self._limits.max_pages}; "
            "see input.document.overflow for what to do with long documents",
        )

    def _file(self, fetch: RowFetcher, source: Any, folder: str, origin: str, want: Want) -> tuple[int, list[Page]]:
        """The number of pages of one file, and its wanted pages."""
        as_text = isinstance(source, str) and self._document.strings == "text"
        limit = self._limits.max_document_bytes
        data = b"" if as_text else fetch(source, folder, limit, origin, DOCUMENT)
        try:
            if not as_text:
                return self._documents(data, want)
            total, pages = text_pages(source, want)
            return total, list(pages)
        except RowError as error:
            raise RowError(error.code, f"{origin}: {error.message}") from error

    def _want(self, taken: int, images: int) -> Want:
        """The pages that are wanted of a document's next file.

        Args:
            taken: Number of pages taken from the files before it.
            images: Number of pictures so far, of the row and of these pages.
        """
        pictures, limits = self._document.mode != "text", self._limits
        shown = limits.max_images - images
        few = self._document.overflow != "map_reduce" and shown < limits.max_pages - taken
        return Want(
            grid=self._grid if pictures else None,
            text=self._document.mode != "images",
            most=max(0, limits.max_pages - taken),
            most_images=max(0, shown if few else limits.max_pages - taken),
            cut=self._document.overflow == "truncate",
            limit_names=(
                f"limits.max_pages = {limits.max_pages}",
                f"limits.max_images = {limits.max_images}" if few else f"limits.max_pages = {limits.max_pages}",
            ),
            max_pixels=limits.max_image_pixels,
            no_images=NO_VISION if pictures and self._grid is None else None,
        )


def _required(values: Mapping[str, Any], name: str) -> Any:
    value = values.get(name)
    if value is None or value == "":
        raise RowError(
            ErrorCode.MISSING_VALUE, f"column {name!r} is {'null' if value is None else 'empty'} in this row"
        )
    return value


def max_tokens(values: Mapping[str, Any], name: str) -> int | None:
    """The row's own limit of tokens; None if its column is null.

    Args:
        values: Column name to value.
        name: Name of the column with the limit.

    Raises:
        RowError: `missing_value`: the limit is below 1.
    """
    value: int | None = values.get(name)
    if value is not None and value < 1:
        raise RowError(ErrorCode.MISSING_VALUE, f"column {name!r} is {value} in this row; it must be 1 or more")
    return None if value is None else min(value, MOST_TOKENS)


def _sources_in(values: dict[str, Any], name: str, noun: str) -> list[tuple[Any, str]]:
    """The images or documents in a column, each with its origin for messages; empty if the column is null."""
    value = values.get(name)
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    found = []
    for position, item in enumerate(items):
        origin = f"column {name!r}" + (f", {noun} {position}" if isinstance(value, list) else "")
        if isinstance(item, dict):  # Hugging Face's image feature
            if not {"bytes", "path"} & item.keys():
                fields = ", ".join(map(repr, item)) or "no field"
                raise RowError(
                    ErrorCode.MISSING_VALUE, f"{origin}: a struct needs the field `bytes` or `path`; it has {fields}"
                )
            item = item.get("bytes") or item.get("path")
        if item is None:
            raise RowError(ErrorCode.MISSING_VALUE, f"{origin} is null in this row")
        found.append((item, origin))
    return found


def _messages(value: Any, add: Callable[[Any, str], dict[str, int]]) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise RowError(ErrorCode.INVALID_MESSAGES, "messages must be a list of {role, content} with at least one entry")
    messages = []
    for position, message in enumerate(value):
        where = f"message {position}"
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise RowError(ErrorCode.INVALID_MESSAGES, f"{where}: role must be system, user or assistant")
        content = message.get("content")
        if isinstance(content, str):
            parts: list[dict[str, Any]] = [{"text": content}]
        elif isinstance(content, list):
            parts = [_part(part, f"{where}, part {index}", add) for index, part in enumerate(content)]
        else:
            raise RowError(
                ErrorCode.INVALID_MESSAGES, f"{where}: content is {type(content).__name__}, not text or parts"
            )
        messages.append({"role": message["role"], "content": parts})
    return messages


def _part(part: Any, where: str, add: Callable[[Any, str], dict[str, int]]) -> dict[str, Any]:
    """A text or an image of a message. In a struct column, each has all fields: `type` decides, else the set field."""
    if not isinstance(part, dict):
        raise RowError(
            ErrorCode.INVALID_MESSAGES, f"{where}: is {type(part).__name__}, not a struct with text or an image"
        )
    kind, text = str(part.get("type") or ""), part.get("text")
    is_text, is_image = kind.endswith("text"), "image" in kind
    source = _image_in(part.get("image_url")) or _image_in(part.get("image"))
    if kind and not is_text and not is_image:
        raise RowError(ErrorCode.INVALID_MESSAGES, f"{where}: type is {kind!r}, not `text`, `image_url` or `image`")
    if not kind and text and source:
        raise RowError(ErrorCode.INVALID_MESSAGES, f"{where}: has a text and an image; `type` says which it is")
    if source and not is_text:
        return dict(add(source, where))
    if isinstance(text, str) and not is_image:
        return {"text": text}
    raise RowError(ErrorCode.INVALID_MESSAGES, f"{where}: needs `text`, `image_url` or `image`")


def _image_in(value: Any) -> Any:
    return value.get("url") or value.get("bytes") or value.get("path") if isinstance(value, dict) else value

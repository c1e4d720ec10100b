"""Fixtures for documents. All tests share a renderer, since a process takes half a second to start."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.web_site import two_sites

from magbatch.documents.images import ImageGrid
from magbatch.documents.pages import Want
from magbatch.documents.renderer import Renderers
from magbatch.rows import Page

GRID = ImageGrid(1540, 28)
WANT = Want(GRID, True, 200, 200, False, ("limits.max_pages = 200", "limits.max_pages = 200"), 50_000_000)
Read = Callable[..., tuple[int, list[Page]]]


@pytest.fixture(scope="session")
def renderer() -> Iterator[Renderers]:
    box = Renderers(1, 60, 1024)
    yield box
    box.close()


@pytest.fixture
def read(renderer: Renderers) -> Read:
    """Read the pages of a file as a job does; keyword arguments replace fields of `Want`."""
    from dataclasses import replace

    def act(data: bytes, **otherwise: Any) -> tuple[int, list[Page]]:
        return renderer(data, replace(WANT, **otherwise))

    return act


@pytest.fixture(scope="session")
def sites() -> Iterator[tuple[str, str]]:
    """URLs of two hosts with the same pages; each test decides which host counts as public."""
    with two_sites() as urls:
        yield urls

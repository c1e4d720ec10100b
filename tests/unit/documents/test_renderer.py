"""A document harms nothing but itself: time and memory are bounded, and who dies is replaced."""

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PIL import Image as Pillow
from support.document_files import pages_pdf, pdf_of, stream, text_pdf, tiff

from magbatch.documents.images import ImageGrid
from magbatch.documents.pages import Want
from magbatch.documents.renderer import Renderers
from magbatch.errors import ClusterError, ErrorCode, RowError

LIMITS = ("limits.max_pages = 200", "limits.max_pages = 200")
WANT = Want(ImageGrid(1540, 28), True, 200, 200, False, LIMITS, 50_000_000)
GOOD = text_pdf("still here")


def endless() -> bytes:
    """A page of forms within forms: ten billion of them to draw, in 2 kB."""
    forms = [
        stream(
            b"/F Do " * 10,
            b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /F %d 0 R >> >>" % (6 + level),
        )
        for level in range(10)
    ]
    page = (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << /XObject << /F 5 0 R >> >> >>"
    )
    pages = b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>"
    last = stream(b"0 0 5 5 re f", b"/Type /XObject /Subtype /Form /BBox [0 0 9 9]")
    return pdf_of([b"<< /Type /Catalog /Pages 2 0 R >>", pages, page, stream(b"/F Do"), *forms, last])


def flate_bomb() -> bytes:
    """A page's content of 640 MB, in 640 kB."""
    squeeze = zlib.compressobj(9)
    first, again = (squeeze.compress(bytes(1 << 24)) + squeeze.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    content = first + 39 * again + squeeze.flush()
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>"
    pages = b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>"
    return pdf_of([b"<< /Type /Catalog /Pages 2 0 R >>", pages, page, stream(content, b"/Filter /FlateDecode")])


def refusal(sandbox: Callable[[bytes, Want], object], data: bytes, want: Want = WANT) -> RowError:
    with pytest.raises(RowError) as caught:
        sandbox(data, want)
    return caught.value


def command(process: psutil.Process) -> list[str]:
    """Command line of a process; empty if it has ended."""
    with suppress(psutil.NoSuchProcess):  # a zombie too
        return process.cmdline()
    return []


def pids(memory_mb: int) -> list[int]:
    """Ids of the renderers with this memory limit."""
    return [child.pid for child in psutil.Process().children() if str(memory_mb) in command(child)]


@pytest.fixture
def small() -> Iterator[Renderers]:
    box = Renderers(1, 2, 300)
    yield box
    box.close()


def test_a_document_without_an_end_is_given_up_in_time() -> None:
    box = Renderers(1, 1, 4096)  # the time is up before the memory
    began = time.monotonic()
    try:
        error = refusal(box, endless())
        assert box(GOOD, WANT)[1][0].text == "still here"
    finally:
        box.close()
    assert error.code is ErrorCode.DOCUMENT_TIMEOUT
    assert "limits.document_timeout_s = 1" in error.message
    assert time.monotonic() - began < 60, "the kernel's alarm, not patience"


def test_a_bomb_is_given_up_within_its_memory() -> None:
    box = Renderers(1, 60, 300)
    peak = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.02):
            with suppress(psutil.NoSuchProcess):
                peak = max(peak, *(psutil.Process(pid).memory_info().rss for pid in pids(300)), 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        error = refusal(box, flate_bomb())
        assert error.code in (ErrorCode.DOCUMENT_UNREADABLE, ErrorCode.DOCUMENT_TOO_LARGE)
        assert "limits.document_memory_mb" in error.message
        assert box(GOOD, WANT)[1][0].text == "still here"
    finally:
        stop.set()
        watcher.join()
        box.close()
    assert 20 << 20 < peak < 600 << 20  # what the process itself takes, and 300 MB


def test_an_image_above_the_memory_is_too_large() -> None:
    """Python raises the error itself, and the process goes on."""
    box, blank = Renderers(1, 60, 256), Pillow.new("RGB", (10_000, 9_000))
    try:
        error = refusal(box, tiff(blank, compression="tiff_lzw"), replace(WANT, max_pixels=10**9))
        assert error.code in (ErrorCode.DOCUMENT_TOO_LARGE, ErrorCode.DOCUMENT_UNREADABLE)
        assert box(GOOD, WANT)[0] == 1
    finally:
        box.close()


def test_a_renderer_that_is_killed_accuses_no_document(small: Renderers) -> None:
    """Neither while it is idle, nor in the middle of a document."""
    assert small(GOOD, WANT)[0] == 1
    (first,) = pids(300)
    os.kill(first, signal.SIGKILL)
    assert small(GOOD, WANT)[0] == 1
    assert pids(300) != [first]

    box = Renderers(1, 60, 1025)
    many = text_pdf(*["page"] * 40)
    found: list[int] = []
    worker = threading.Thread(target=lambda: found.append(len(box(many, WANT)[1])))
    try:
        box(GOOD, WANT)
        (victim,) = pids(1025)
        process = psutil.Process(victim)
        used = process.cpu_times().user
        worker.start()
        while process.cpu_times().user < used + 0.03:  # some of the 40 pages
            time.sleep(0.001)
        os.kill(victim, signal.SIGKILL)
        worker.join()
        assert pids(1025) != [victim], "it was done before it was killed"
    finally:
        box.close()
    assert found == [40]


def test_many_threads_share_one_renderer(small: Renderers) -> None:
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(small(text_pdf(name), WANT)[1][0].text))  # type: ignore[misc]
        for name in "abcdefgh"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == list("abcdefgh")
    assert len(pids(300)) == 1


def test_several_renderers_work_at_once_and_one_that_is_stuck_holds_up_no_other() -> None:
    boxes = Renderers(2, 2, 4096)
    found: list[str | None] = []
    said: list[ErrorCode] = []
    ended: list[str] = []

    def stuck() -> None:
        said.append(refusal(boxes, endless()).code)
        ended.append("stuck")

    def good() -> None:
        found.extend(boxes(text_pdf(name), WANT)[1][0].text for name in "abc")
        ended.append("good")

    threads = [threading.Thread(target=stuck), threading.Thread(target=good)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, said) == (["a", "b", "c"], [ErrorCode.DOCUMENT_TIMEOUT])
    assert ended == ["good", "stuck"]
    # The process that was given up has been replaced, and no third was started.
    names = [str(number) for number in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        pages = pool.map(lambda name: boxes(text_pdf(name), WANT)[1], names)
        assert [page.text for (page,) in pages] == names
    assert len(pids(4096)) <= 2


def test_a_renderer_ends_with_who_started_it() -> None:
    """Also where that one has no time to say so."""
    script = (
        "import psutil, time\n"
        "from magbatch.documents.renderer import Renderers\n"
        "from magbatch.documents.pages import Want\n"
        "box = Renderers(1, 60, 512)\n"
        "box(b'text', Want(None, True, 9, 9, False, ('', ''), 9))\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        renderer = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    renderer.wait(30)


def test_a_place_where_no_renderer_starts_stops_the_job_not_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ClusterError):
        Renderers(1, 60, 512)(GOOD, WANT)


def test_a_node_without_room_for_a_process_is_no_fault_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", full)
    with pytest.raises(ClusterError, match="cannot be started"):
        Renderers(1, 60, 512)(GOOD, WANT)


def test_what_lies_in_the_working_directory_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    box = Renderers(1, 60, 512)
    try:
        assert box(GOOD, WANT)[0] == 1
    finally:
        box.close()


def test_pages_of_nothing_are_pages() -> None:
    box = Renderers(1, 60, 512)
    try:
        (page,) = box(pages_pdf([b""]), WANT)[1]
    finally:
        box.close()
    assert page.text is None
    assert page.image is not None
    assert set(page.image.rgb) == {255}

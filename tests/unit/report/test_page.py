"""The page says what became of a job, needs no other file, and runs nothing."""

import functools
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from shutil import which

import pytest
from PIL import Image

from magbatch.counts import shown_time
from magbatch.ledger import layout
from magbatch.replica.losses import Loss
from magbatch.report.history import Point
from magbatch.report.page import quantile, render, report_files
from magbatch.report.report import Report, Run, SlotUsage
from magbatch.report.runs import PastRun
from magbatch.report.usage import JobUsage
from magbatch.report.wrong import WrongAnswer
from magbatch.totals import Totals

CHROMIUM = which("chromium-headless-shell") or which("chromium")
TOTALS = Totals(
    answered=9000, failed=37, records=9000, prompt_tokens=10**6, reasoning_tokens=5 * 10**6, answer_tokens=10**5,
    by_code={"prompt_too_long": 30, "engine_rejected": 7}, by_status={"complete": 8900, "truncated": 100},
    by_latency={"5.0": 8000, "+Inf": 1000}, by_reasoning={"256": 5000, "8192": 4000}, by_answer={"16": 9000},
)  # fmt: skip
REPORT = Report(
    job="invoices", output="s3://acme/<out>&more", planned=9037, totals=TOTALS, duplicate_ids=3,
    run=Run(3600, 3000, 9037, 5 * 10**6, 1),
    settings={"name": "invoices", "prompt": {"system": "</pre><script>alert(1)</script>"}},
    spent=JobUsage(7200, lost=21, losses=[Loss(1e9, 4, "a (10.0.0.1)", "its engine died: <i>x</i>", "/logs/w-1.err")]),
    history=[Point(1e9 + 60 * minute, 150 * minute, 9000 * minute, 2) for minute in range(61)],
    replicas=[SlotUsage(number, 4500, 2_500_000, 3600, 30, 1) for number in range(2)],
    slowest=[{"row_id": "abc-1", "id": "<b>7</b>", "latency_s": 99.5, "reasoning_tokens": 8000, "answer_tokens": 9}],
    cost=12.5,
    currency="EUR",
    began=1e9, ended=1e9 + 3700.4,
    wrong=[WrongAnswer("abc-3", "<b>8</b>", 0, "<script>12</script>", None)],
    runs=[PastRun(1e9, 1e9 + 90_061, "interrupted", 1200, "a"), PastRun(1.1e9, 1.2e9, "complete", 9, "b")],
    letters=[{"code": "prompt_too_long", "row_id": "abc-2", "message": "a prompt of <i>50,000</i> tokens"}],
)  # fmt: skip


# Fewer pictures to draw, which is most of the time of a page.
BRIEF = replace(REPORT, history=[], replicas=[])


@functools.cache
def full() -> str:
    """The page of `REPORT`."""
    return render(REPORT).decode()


class Page(HTMLParser):
    """Tags, links, pictures and text that a browser would find."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.text = ""
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [str(values["id"])] if values.get("id") else []
        self.links += [str(values[name]) for name in ("src", "href", "xlink:href") if values.get(name)]
        if tag == "figure":
            self.pictures.append(str(values["id"]))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(report: Report) -> Page:
    return Page(render(report).decode())


def test_it_tells_what_became_of_the_job() -> None:
    found = Page(full())
    for text in ("9,000", "9,037", "37", "12.50 EUR", "2.00", "engine", "abc-1", "99.50", "truncated", "s3://acme"):
        assert text in found.text
    assert found.pictures == ["speed", "rows", "reasoning", "answer", "latency", "failures", "replicas"]
    assert found.tags.count("svg") == 7
    assert "prompt_too_long" in full()


def test_it_has_dates_percentiles_and_messages() -> None:
    found = Page(full())
    dates = f"began: {shown_time(1e9)}; complete: {shown_time(1e9 + 3700.4)}; duration: 1:01:40"
    assert dates in found.text
    assert "a prompt of <i>50,000</i> tokens" in found.text, "a message is text"
    assert re.search(r"latency of a row \(s\)\s*3\.91\s*99\.5\s*99\.5", found.text) is not None
    assert "dates" not in page(replace(BRIEF, began=None, ended=None)).ids


@pytest.mark.parametrize(
    ("share", "counts", "most", "is_about"),
    [
        (0.5, {"10": 100}, None, 5.0),
        (0.5, {"10": 50, "20": 50}, None, 10.0),
        (0.9, {"10": 50, "20": 50}, None, 18.0),
        (0.99, {"10": 50, "20": 50}, 12.0, 11.96),
        (0.99, {"10": 50, "+Inf": 50}, None, 20.0),
        (0.99, {"10": 50, "+Inf": 50}, 120.0, 118.0),
        (0.5, {"20": 4}, None, 15.0),
    ],
)
def test_a_percentile_is_estimated_within_its_bounds(
    share: float, counts: dict[str, int], most: float | None, is_about: float
) -> None:
    assert quantile(share, counts, (10, 20), most) == pytest.approx(is_about)


def test_it_needs_nothing_beside_it_and_runs_nothing() -> None:
    found = Page(full())
    assert not [link for link in found.links if not link.startswith("#")]
    assert "script" not in found.tags
    assert "<b>7</b>" in found.text, "a row's own id is text"
    assert "</pre><script>alert(1)</script>" in found.text
    html = full()
    assert not re.search(r"url\((?!#)", html)


def test_no_two_parts_of_its_pictures_share_a_name() -> None:
    names = re.findall(r'<clipPath id="([^"]+)"', full())
    assert len(names) == len(set(names)) > 3


def test_no_picture_can_fail_a_job_that_is_complete(caplog: pytest.LogCaptureFixture) -> None:
    files = report_files(replace(REPORT, slowest=[REPORT.slowest[0] | {"latency_s": None}]))
    assert list(files) == [layout.REPORT]
    assert "could not be drawn" in caplog.text
    assert b"abc-1" in report_files(replace(REPORT, slowest=[REPORT.slowest[0] | {"id": "\ud800"}]))[layout.PAGE]


@pytest.mark.parametrize(
    "report",
    [
        replace(REPORT, planned=0, totals=Totals(), run=Run(), history=[], replicas=[], slowest=[], cost=None),
        replace(REPORT, totals=Totals(failed=9037, by_code={"file_unreadable": 9037}), slowest=[], replicas=[]),
        replace(REPORT, history=[Point(1e9, 5, 5, 1), Point(1e9, 5, 5, 1)]),
    ],
    ids=["no rows", "dead letters alone", "no time passed"],
)
def test_there_is_a_page_for_every_job(report: Report) -> None:
    assert report.job in page(report).text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: chromium-headless-shell)")
def test_a_browser_shows_it_with_its_pictures(tmp_path: Path) -> None:
    def shot(report: Report, name: str) -> Image.Image:
        html, picture = tmp_path / f"{name}.html", tmp_path / f"{name}.png"
        html.write_bytes(render(report))
        subprocess.run(
            [str(CHROMIUM), "--no-sandbox", "--hide-scrollbars", f"--screenshot={picture}", "--window-size=1000,2400",
             html.as_uri()],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        return Image.open(picture).convert("RGB")

    def blue(image: Image.Image) -> int:
        """Pixels of the colour that the pictures' bars and lines have, and nothing else."""
        counted = image.getcolors(image.width * image.height)
        assert counted is not None
        return sum(count for count, colour in counted if colour == (0x25, 0x63, 0xA8))

    full = shot(REPORT, "full")
    assert full.size == (1000, 2400)
    assert blue(full) > 20_000
    assert blue(shot(replace(REPORT, totals=Totals(), history=[], replicas=[]), "empty")) < blue(full) / 10


def test_the_page_lists_replaced_replicas() -> None:
    page = Page(full())
    assert "losses" in page.ids
    assert "The table shows the last 1 of 21." in page.text
    assert "its engine died: <i>x</i>" in page.text
    assert "/logs/w-1.err" in page.text
    assert "losses" not in Page(render(replace(BRIEF, spent=JobUsage())).decode()).ids


def test_the_page_shows_wrong_answers_as_text() -> None:
    graded = replace(BRIEF, totals=replace(TOTALS, graded=50, right=30))
    page = Page(render(graded).decode())
    assert "wrong" in page.ids
    assert "20 of 50 graded answers differ from the expected one; the table shows the first 1." in page.text
    assert "<script>12</script>" in page.text
    assert "(none)" in page.text
    assert "wrong" not in Page(render(replace(BRIEF, wrong=[])).decode()).ids


def test_the_page_lists_the_runs_with_their_wall_time() -> None:
    page = Page(full())
    assert "runs" in page.ids
    for text in (shown_time(1e9), shown_time(1e9 + 90_061), "1 day, 1:01:01", "interrupted", "1,200"):
        assert text in page.text

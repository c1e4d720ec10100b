"""The tree holds every error there is, and every upstream exception has its place in it."""

import ast
import builtins
import inspect
import io
import re
from collections.abc import Callable
from pathlib import Path

import botocore.exceptions
import httpx
import huggingface_hub.errors
import jinja2
import mistral_common.exceptions
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest
import yaml
from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from support.parsed import parsed

from magbatch import errors
from magbatch.documents.images import ImageGrid, decode
from magbatch.engines import EngineConfig, start
from magbatch.errors import ErrorCode, JobError, MagbatchError, ResumableError, RowError, Step
from magbatch.ledger.ledger import Ledger
from magbatch.model.checkpoint import locate
from magbatch.model.facts import facts
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.prompt import Prompter
from magbatch.pipeline.read import ShardReader
from magbatch.pipeline.render import Renderer
from magbatch.plan.plan import Plan
from magbatch.rows import DeadLetter, InputRow, RenderedRow, Segment, Shard
from magbatch.spec import JobSpec, ModelSpec, SamplingSpec, load, parse
from magbatch.spec.template import template_columns
from magbatch.storage import open_store
from magbatch.storage.inputs import stat_input
from magbatch.storage.search import find_input

CODES = {
    *("file_unreadable", "file_schema", "file_changed", "row_unreadable", "missing_value", "template_error"),
    *(
        "invalid_messages",
        "image_unreadable",
        "image_too_large",
        "image_unfetchable",
        "image_timeout",
        "too_many_images",
    ),
    *(
        "images_unsupported",
        "prompt_too_long",
        "engine_rejected",
        "engine_killer",
        "reader_killer",
        "row_timeout",
        "internal",
    ),
    *("answer_invalid", "url_refused", "document_unreadable", "document_encrypted", "document_empty"),
    *("document_too_large", "document_timeout", "document_unfetchable", "too_many_pages"),
}
PACKAGE = Path(errors.__file__).parent
GRID = ImageGrid(448, 28)


def tree() -> list[type[Exception]]:
    found = [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, Exception)]
    assert len(found) > 10
    return found


def test_the_closed_lists_are_part_of_the_contract() -> None:
    assert {code.value for code in ErrorCode} == CODES
    assert [step.value for step in Step] == ["read", "render", "prompt", "generate", "parse", "check", "write"]


def test_there_is_one_tree_and_it_stands_in_one_file() -> None:
    assert all(issubclass(error, MagbatchError) for error in tree())
    assert all(error.__module__ == "magbatch.errors" for error in tree())


def test_no_other_module_adds_to_the_tree() -> None:
    """The exceptions are private: each is raised and caught within its own module."""
    builtin = {name for name, item in vars(builtins).items() if inspect.isclass(item) and issubclass(item, Exception)}
    outside = builtin | {error.__name__ for error in tree()}
    strays = {
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef) and path.name != "errors.py"
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in outside
    }
    assert strays == {"answers/columns.py: _TooManyError", "sandbox/box.py: _GoneError"}
    for private in ("_TooManyError", "_GoneError"):
        assert sum(private in path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")) == 1


def test_every_error_stands_in_the_drawing_at_the_top() -> None:
    assert not {error.__name__ for error in tree()} - set(re.findall(r"\w+", errors.__doc__ or ""))


def test_errors_that_go_on_where_they_stopped_exit_with_3_a_defect_with_4_and_the_others_of_a_job_with_2() -> None:
    codes = {error.__name__: error.exit_code for error in tree() if issubclass(error, JobError)}
    resumable = {error.__name__ for error in tree() if issubclass(error, ResumableError)}
    of_storage = {"RefusedError", "NoBucketError", "AwsSettingsError", "ThrottledError", "FullDiskError"}
    others = {"ResumableError", "StorageError", "LeaseError", "ClusterError", "InterruptedJobError"}
    assert resumable == of_storage | others
    expected = {name: 3 if name in resumable else 2 for name in codes}
    assert codes == expected | {"DefectError": 4, "TooManyFailedError": 1}


def test_a_storage_error_tells_a_wrong_path_from_a_store_that_is_away() -> None:
    away, wrong = errors.StorageError("503", passing=True), errors.StorageError("no access")
    mistake = errors.StorageError("no such host", passing=True, mistake=True)
    gone, full = errors.NoBucketError("gone", passing=True), errors.FullDiskError("full", passing=True)
    assert [error.lasting for error in (away, wrong, mistake, gone, full)] == [False, True, True, False, False]
    assert [error.wrong_at_first for error in (away, wrong, mistake, gone, full)] == [False, True, True, True, False]
    assert [error.refused for error in (away, gone, errors.RefusedError("403"))] == [False, True, True]
    assert (gone.missing_root, gone.full, full.missing_root, full.full) == (True, False, False, True)


def test_a_row_error_carries_its_code_and_its_message() -> None:
    error = RowError(ErrorCode.MISSING_VALUE, "column 'q' is null")
    assert (error.code, error.message, str(error)) == (
        ErrorCode.MISSING_VALUE,
        "column 'q' is null",
        "column 'q' is null",
    )
    assert not isinstance(error, JobError)
    assert RowError(ErrorCode.INTERNAL, "two\n  lines\r\n").message == "two lines"


@pytest.mark.parametrize("make", [RowError, lambda code, text: DeadLetter("r", Step.READ, code, text)])
def test_a_message_is_one_short_line_of_text(make: Callable[[ErrorCode, str], RowError | DeadLetter]) -> None:
    def said(text: str) -> str:
        return make(ErrorCode.INTERNAL, text).message

    value = "iVBORw0KGgo" * 30_000
    assert said("x" * 2000) == "x" * 2000
    for long in (f"column 'image': {value}: File name too long", f"column 'image': {value}"):
        assert len(said(long)) <= 2000
        assert said(long).startswith("column 'image': iVBOR")
        assert said(said(long)) == said(long)
    assert said(f"{value}: File name too long").endswith(": File name too long")
    image = "cannot identify image file <_io.BytesIO object at 0x7f1c2a3b4c5d>"
    assert said(image) == "cannot identify image file <_io.BytesIO>"
    assert said("a\ud800 b\x1b]52;c;YQ==\x07 \u2028 c") == "a? b ]52;c;YQ== c"


# Each upstream library's exceptions, as they really come out of it.


def spec(**sections: object) -> JobSpec:
    whole = {
        "name": "test",
        "model": {"source": "builtin:tiny"},
        "input": {
            "path": "/nowhere",
            "columns": {"prompt": "q", "images": ["image"]},
            "fetch_private": True,
            "fetch_from": ["/proc"],
        },
        "output": {"path": "/out"},
    }
    return parse(yaml.safe_dump(whole | sections))


def render(**values: object) -> object:
    return Renderer(spec(), GRID)(InputRow("r", {"q": "?"} | values))


def template(text: str) -> object:
    return Renderer(spec(prompt={"template": text}), GRID)(InputRow("r", {"q": "?"}))


def cut_png() -> bytes:
    sink = io.BytesIO()
    Pillow.radial_gradient("L").save(sink, "PNG")
    return sink.getvalue()[:-200]


def prompt(*messages: dict[str, object]) -> object:
    from magbatch.tiny.checkpoint import ensure

    return Prompter(spec(), ensure(), Tokenizer(ensure()), 8192)(RenderedRow("r", list(messages)))


ROW_ERRORS: dict[str, tuple[Callable[[], object], type[BaseException], ErrorCode]] = {
    "mistral_common": (
        lambda: prompt({"role": "assistant", "content": [{"text": "I was not asked."}]}),
        mistral_common.exceptions.MistralCommonException,
        ErrorCode.INVALID_MESSAGES,
    ),
    "pydantic": (
        lambda: prompt({"role": "user", "content": [{"text": ["no", "text"]}]}),
        pydantic.ValidationError,
        ErrorCode.INVALID_MESSAGES,
    ),
    "jinja2, undefined": (lambda: template("{{ nothing }}"), jinja2.UndefinedError, ErrorCode.TEMPLATE_ERROR),
    "jinja2, sandbox": (
        lambda: template("{{ q.__class__.__mro__ }}"),
        jinja2.exceptions.SecurityError,
        ErrorCode.TEMPLATE_ERROR,
    ),
    "jinja2, what it runs": (lambda: template("{{ q < 1 }}"), TypeError, ErrorCode.TEMPLATE_ERROR),
    "pillow, no image": (
        lambda: decode(b"no image", 10**6, GRID, "x"),
        UnidentifiedImageError,
        ErrorCode.IMAGE_UNREADABLE,
    ),
    "pillow, cut off": (lambda: decode(cut_png(), 10**6, GRID, "x"), OSError, ErrorCode.IMAGE_UNREADABLE),
    "httpx, refused": (lambda: render(image="http://127.0.0.1:1/x"), httpx.ConnectError, ErrorCode.IMAGE_UNFETCHABLE),
    "httpx, no URL": (lambda: render(image="http://[::1"), httpx.InvalidURL, ErrorCode.IMAGE_UNFETCHABLE),
    "idna": (lambda: render(image="http://a..b/"), UnicodeError, ErrorCode.IMAGE_UNFETCHABLE),
    "base64": (lambda: render(image="data:image/png;base64,ÄÖ"), ValueError, ErrorCode.IMAGE_UNREADABLE),
    "os, gone": (lambda: render(image="/nowhere/x.png"), FileNotFoundError, ErrorCode.IMAGE_UNFETCHABLE),
    "os, a folder": (lambda: render(image="/proc"), errors.UnfetchableError, ErrorCode.IMAGE_UNFETCHABLE),
    "os, no read": (lambda: render(image="/proc/self/mem"), errors.UnfetchableError, ErrorCode.IMAGE_UNFETCHABLE),
    "outside": (lambda: render(image="/etc/passwd"), errors.OutOfReachError, ErrorCode.URL_REFUSED),
    "os, null byte": (lambda: render(image="a\0b"), ValueError, ErrorCode.IMAGE_UNFETCHABLE),
}


@pytest.mark.parametrize("case", ROW_ERRORS)
def test_upstream_exceptions_of_one_row_become_a_row_error(case: str) -> None:
    act, upstream, code = ROW_ERRORS[case]
    with pytest.raises(RowError) as caught:
        act()
    assert caught.value.code is code
    assert isinstance(caught.value.__cause__, upstream)


def test_pyarrows_exceptions_about_a_damaged_row_become_a_row_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"q": ["one", "two"]}), path, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    begin = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    data[begin : begin + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises((pa.ArrowException, OSError)):
        pq.read_table(path)
    now = stat_input(str(path))
    shard = Shard(0, (Segment(str(path), "key", now.size, now.tag, 0, 2),))
    read = ShardReader(pa.schema([("q", pa.string())]))(shard)
    assert [error.code for _, error in read.failed] == [ErrorCode.ROW_UNREADABLE] * 2


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path.parent


def engine(**arguments: object) -> object:
    from magbatch.tiny.checkpoint import ensure

    return start("fake", EngineConfig(ensure(), arguments, SamplingSpec(), 0), Tokenizer(ensure()))


JOB_ERRORS: dict[str, tuple[Callable[[Path], object], type[BaseException], type[JobError]]] = {
    "yaml": (lambda _: parse("a: [1"), yaml.YAMLError, errors.SpecError),
    "yaml, a date that is none": (lambda _: parse("name: 2026-13-45"), ValueError, errors.SpecError),
    "pydantic": (lambda _: parse("name: x"), pydantic.ValidationError, errors.SpecError),
    "os, the spec": (lambda path: load(str(path / "none.yaml")), OSError, errors.SpecError),
    "jinja2": (lambda _: template_columns("{% if %}"), jinja2.TemplateSyntaxError, errors.SpecError),
    "jinja2, filter": (lambda _: template_columns("{{ a | b }}"), jinja2.TemplateAssertionError, errors.SpecError),
    "os, the disk": (
        lambda path: open_store(str(write(path / "a", "") / "a")).write("x", b""),
        OSError,
        errors.StorageError,
    ),
    "mistral_common, json": (lambda path: Tokenizer(write(path / "tekken.json", "{")), ValueError, errors.ModelError),
    "mistral_common, shape": (
        lambda path: Tokenizer(write(path / "tekken.json", "[]")),
        Exception,
        errors.ModelError,
    ),
    "mistral_common, none": (lambda path: Tokenizer(path), Exception, errors.ModelError),
    "json": (lambda path: facts(write(path / "params.json", "{")), ValueError, errors.ModelError),
    "json, shape": (lambda path: facts(write(path / "params.json", "[]")), AttributeError, errors.ModelError),
    "huggingface_hub": (
        lambda _: locate(ModelSpec(source="no/such/name/of/a/model"), weights=False).path,
        huggingface_hub.errors.HFValidationError,
        errors.ModelError,
    ),
    "pydantic, engine": (lambda _: engine(tokenz=1), pydantic.ValidationError, errors.EngineStartError),
    "pyarrow, plan": (lambda _: Plan.from_bytes(b"PAR1"), pa.ArrowException, errors.OutputError),
}


@pytest.mark.parametrize("case", JOB_ERRORS)
def test_upstream_exceptions_of_a_job_become_a_job_error(case: str, tmp_path: Path) -> None:
    act, upstream, expected = JOB_ERRORS[case]
    with pytest.raises(JobError) as caught:
        act(tmp_path)
    assert type(caught.value) is expected
    assert isinstance(caught.value.__cause__, upstream)


def test_what_s3_answers_becomes_a_storage_error_but_for_what_is_not_there(s3: str) -> None:
    store = open_store(s3)
    with pytest.raises(FileNotFoundError) as gone:
        store.read("none")
    assert isinstance(gone.value.__cause__, botocore.exceptions.ClientError)
    with pytest.raises(errors.StorageError, match="no such bucket"):
        open_store("s3://no-such-bucket").read("x")
    with pytest.raises(errors.StorageError) as never_sent:
        open_store("s3://Not a bucket").read("x")
    assert isinstance(never_sent.value.__cause__, botocore.exceptions.BotoCoreError)
    with pytest.raises(errors.StorageError) as refused:
        open_store("s3://no-such-bucket").write("x", b"")
    assert "no such bucket" in str(refused.value)
    with pytest.raises(errors.OutputError, match="no such bucket"):
        Ledger("s3://no-such-bucket/out").open_job()
    with pytest.raises(errors.StorageError, match="no such bucket"):
        Ledger("s3://no-such-bucket/out", patience_s=0.1).open_job()
    with pytest.raises(errors.InputError, match="no such bucket"):
        find_input("s3://no-such-bucket/a/")

"""A user's pydantic model gives a schema or one message, whatever its module does."""

from pathlib import Path

import pytest

from magbatch.errors import SpecError
from magbatch.spec import parse
from magbatch.spec.user_model import model_schema

JOB = "name: t\nmodel: {source: a/b}\ninput: {path: /in, columns: {prompt: q}}\noutput: {path: /out}\n"
MODEL = "import pydantic\nclass Answer(pydantic.BaseModel):\n    total: int\n"


@pytest.fixture(autouse=True)
def _folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os\nos._exit(0)", "the module own ended the process that imports it with exit code 0"),
        ("import os\nos._exit(7)", "the module own ended the process that imports it with exit code 7"),
        ("import os\nos.abort()", "the module own ended the process that imports it by SIGABRT"),
        ("raise OSError('no disk')", "the import of own fails: OSError: no disk"),
        ("raise KeyboardInterrupt", "the import of own fails: KeyboardInterrupt"),
        ("Answer = 3", "own:Answer is neither a .json or .yaml file nor a pydantic model"),
        (
            f"{MODEL}    @classmethod\n    def model_json_schema(cls):\n        raise SystemExit(0)",
            "the JSON Schema of own:Answer cannot be made: SystemExit: 0",
        ),
        (f"{MODEL}    model_config = {{'json_schema_extra': {{'a': {{1}}}}}}", "own:Answer cannot be made: TypeError"),
    ],
)
def test_a_module_without_a_usable_model_is_a_mistake_in_the_spec(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "own.py").write_text(f"{text}\n")
    with pytest.raises(SpecError, match=said):
        parse(f"{JOB}answer: {{schema: 'own:Answer'}}", new=True)


def test_an_import_that_never_returns_is_ended(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import time\ntime.sleep(3600)\n")
    with pytest.raises(ValueError, match=r"the import of own did not return within 0\.5 s"):
        model_schema("own:Answer", 0.5)


def test_prints_and_threads_of_a_module_do_no_harm(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = "import threading, time\nprint('hello')\nthreading.Thread(target=time.sleep, args=(3600,)).start()\n"
    (tmp_path / "own.py").write_text(MODEL + more)
    assert set(model_schema("own:Answer")["properties"]) == {"total"}
    said = capfd.readouterr()
    assert said.out == ""
    assert "hello" in said.err

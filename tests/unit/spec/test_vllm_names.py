"""vLLM's engine arguments are read from the installed source. These tests fail if a version moves them."""

import ast
import sys
from pathlib import Path

import pytest

from magbatch.engines import engine_args
from magbatch.model.facts import ModelFacts
from magbatch.spec import parse
from magbatch.spec.engine_args import value_mistake
from magbatch.spec.job import FREE_FIELDS
from magbatch.spec.vllm_names import CPU_BLOCK, LISTS, Kind, VllmSource, _fields, _find, installed

JOB = "name: t\nmodel: {source: a/b}\ninput: {path: /in, columns: {prompt: q}}\noutput: {path: /out}\n"


@pytest.fixture(scope="module")
def vllm() -> VllmSource:
    found = installed()
    assert found is not None
    return found


def test_the_source_is_found_and_not_imported(vllm: VllmSource) -> None:
    assert vllm.version.startswith("0.")
    assert len(vllm.names()) > 200
    assert "vllm" not in sys.modules


def test_every_argument_that_magbatch_sets_or_knows_is_one_of_vllms(vllm: VllmSource) -> None:
    schema = "answer: {schema: {type: object, properties: {a: {type: string}}}}\nsampling: {seed: 1}\n"
    for more in ("", "replicas: {gpus: 0}\n"):
        args = engine_args(parse(JOB + schema + more), ModelFacts(40_000, 1540, 28), {"mm_processor_cache_gb": 0})
        assert args.to_dict().keys() <= vllm.names()
    known = {path.removeprefix("model.engine_args.") for path in FREE_FIELDS if path.startswith("model.engine_args.")}
    assert known <= vllm.names()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("max_num_seqs", Kind(frozenset({"int", "null"}))),
        ("enforce_eager", Kind(frozenset({"bool"}))),
        ("quantization", Kind(frozenset({"str", "null"}))),
        ("limit_mm_per_prompt", Kind(frozenset({"dict"}))),
        ("cudagraph_capture_sizes", Kind(frozenset({"list", "null"}))),
        ("performance_mode", Kind(choices=("balanced", "interactivity", "throughput"))),
        ("optimization_level", Kind(anything=True)),  # an enumeration, which takes names and numbers
    ],
)
def test_allowed_values_are_read_from_annotations(vllm: VllmSource, name: str, kind: Kind) -> None:
    assert vllm.argument(name).kind == kind


def test_choices_fields_and_limits_are_read_through_imports(vllm: VllmSource) -> None:
    assert {"auto", "bfloat16", "float32"} <= set(vllm.argument("dtype").kind.choices)
    assert {"auto", "fp8"} <= set(vllm.argument("kv_cache_dtype").kind.choices)
    assert {"backend", "disable_any_whitespace"} <= (vllm.argument("structured_outputs_config").kind.fields or set())
    assert vllm.argument("gpu_memory_utilization").bounds == {"gt": 0, "le": 1}


@pytest.mark.parametrize("path", LISTS)
def test_listed_names_are_read(vllm: VllmSource, path: str) -> None:
    one = {"quantization": "fp8", "load_format": "mistral", "tokenizer_mode": "mistral", "config_format": "mistral"}
    assert one.get(path, "FLASH_ATTN") in vllm.listed(path)


def test_vllms_own_defaults_are_accepted(vllm: VllmSource) -> None:
    looked_at = 0
    for name in vllm.names():
        kind = vllm.argument(name).kind
        for field in (kind.fields or ()) if kind.owner else ():
            assert kind.owner is not None
            found = _find(vllm.root, *kind.owner)
            assert found is not None
            default = _fields(vllm.root, found)[field][2]
            if isinstance(default, ast.Constant):
                looked_at += 1
                assert value_mistake(vllm.field(kind.owner, field), default.value) is None, (name, field)
    assert looked_at > 100


def test_the_blocks_of_the_attention_on_cpus(vllm: VllmSource) -> None:
    source = (vllm.root / "v1" / "attention" / "backends" / "cpu_attn.py").read_text()
    assert f"return [MultipleOf({CPU_BLOCK})]" in source


def test_every_argument_has_a_kind(vllm: VllmSource) -> None:
    told = [name for name in vllm.names() if not vllm.argument(name).kind.anything]
    assert len(told) > 0.9 * len(vllm.names())


def test_a_vllm_with_moved_arguments_has_no_names(tmp_path: Path) -> None:
    assert VllmSource(tmp_path).names() == frozenset()
    assert VllmSource(tmp_path).version == ""


def test_a_missing_vllm_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as Python marks a package that is not to be found
    assert installed() is None


def test_nothing_of_the_reader_runs_what_it_reads(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    fields = "    a: 'int | None' = None\n    _b: int = 1\n    c: Odd = 2\n"
    source = f"raise SystemExit\n@dataclass\nclass AsyncEngineArgs:\n{fields}"
    (tmp_path / "engine" / "arg_utils.py").write_text(source)
    found = VllmSource(tmp_path)
    assert found.names() == {"a", "c"}
    assert found.argument("a").kind == Kind(frozenset({"int", "null"}))
    assert found.argument("c").kind == Kind(anything=True)

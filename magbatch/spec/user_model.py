"""The JSON Schema of a user's pydantic model, made in a process of its own.

Importing the user's module may end its process or never return. The process runs this file as a script, which imports
only the standard library, pydantic and the user's module.
"""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

IMPORT_S = 60.0  # seconds; a module may import large packages from a slow disk


def model_schema(source: str, limit_s: float = IMPORT_S) -> dict[str, Any]:
    """JSON Schema of a pydantic model.

    Args:
        source: `package.module:Model`.
        limit_s: Time limit for the import and the schema, in seconds.

    Raises:
        ValueError: The module does not import, or the model has no JSON Schema.
    """
    module = source.partition(":")[0]
    code, data = _run(source, module, limit_s)
    if code or not data:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise ValueError(f"the module {module} ended the process that imports it {how}; let it only define models")
    found: dict[str, Any] = json.loads(data)
    if "wrong" in found:
        raise ValueError(found["wrong"])
    return dict(found["schema"])


def _run(source: str, module: str, limit_s: float) -> tuple[int, bytes]:
    """Run this file as a script; return its exit code and its result as JSON."""
    with tempfile.TemporaryFile() as answer:
        told = answer.fileno()
        command = [sys.executable, "-P", __file__, source, str(told), str(int(limit_s) + 1)]
        packages = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        try:
            process = subprocess.Popen(
                command,
                stdout=2,  # the module's own prints go to stderr
                stdin=subprocess.DEVNULL,
                pass_fds=[told],
                env=os.environ | {"PYTHONPATH": packages},
            )
        except OSError as error:  # out of processes, memory or descriptors
            raise ValueError(f"no process can be started to import {module}: {error}") from error
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"the import of {module} did not return within {limit_s:g} s; let the module define models and start "
                "no work"
            ) from error
        finally:
            process.kill()
            process.wait()
        answer.seek(0)
        return code, answer.read()


def _answer(source: str) -> dict[str, Any]:
    """Result of the process: `{"schema": …}`, or `{"wrong": message}`."""
    from pydantic import BaseModel
    from pydantic.errors import PydanticInvalidForJsonSchema

    module, _, name = source.partition(":")
    try:
        model = functools.reduce(getattr, name.split("."), importlib.import_module(module)) if name else None
    except BaseException as error:  # noqa: BLE001 - a user's module may raise anything
        return {"wrong": _why_no_model(module, name, error)}
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {"wrong": f"{source} is neither a .json or .yaml file nor a pydantic model as package.module:Model"}
    try:
        schema = model.model_json_schema()
        return {"schema": json.loads(json.dumps(schema))}  # a model may add values that JSON does not have
    except PydanticInvalidForJsonSchema as error:
        return {"wrong": f"{source} has no JSON Schema: {error}"}
    except BaseException as error:  # noqa: BLE001 - the model's own code
        return {"wrong": f"the JSON Schema of {source} cannot be made: {_said(error)}"}


def _why_no_model(module: str, name: str, error: BaseException) -> str:
    """Reason why a module gives no model."""
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return f"there is no module {error.name}; put the folder that holds it on PYTHONPATH"
    if isinstance(error, AttributeError) and module in sys.modules:
        return f"the module {module} has no {name}"
    return f"the import of {module} fails: {_said(error)}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _main(source: str, told: str, limit_s: str) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(limit_s))  # ends this process even if the command is gone
    answer = json.dumps(_answer(source)).encode()
    with open(int(told), "wb") as file:
        file.write(answer)


if __name__ == "__main__":
    _main(*sys.argv[1:])
    sys.stderr.flush()
    os._exit(0)  # does not wait for threads of the user's module

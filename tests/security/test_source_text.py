"""What no module does: execute what it reads, unpickle, unpack archives, or start a shell."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

EXECUTES = {
    "eval", "exec", "compile", "__import__",
    "runpy.run_path", "runpy.run_module", "importlib.import_module", "import_module",
    "pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "marshal.loads",
    "shelve.open", "joblib.load", "torch.load", "torch.jit.load", "torch.export.load",
    "yaml.load", "yaml.unsafe_load", "shutil.unpack_archive",
}  # fmt: skip
"""Calls that may run what a file or a name holds."""

SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}

ALLOWED = {
    # The user's own function, which is announced.
    ("optimizer/artifacts/task_metric.py", "runpy.run_path"),
    # This program's own code.
    ("optimizer/__init__.py", "import_module"),
    ("optimizer/artifacts/bare_timing.py", "runpy.run_path"),
    ("optimizer/cli/__init__.py", "import_module"),
    ("optimizer/export/bundle/rebuild_script.py", "importlib.import_module"),
    # What was built here; of a bundle, it counts as code.
    ("optimizer/configuration/runtimes/pytorch_session.py", "torch.export.load"),
    # Bounded, and only values of YAML's core.
    ("optimizer/files/untrusted_yaml.py", "yaml.load"),
}


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Every node of the program's syntax trees, with its module."""
    return [
        (path.relative_to(ROOT).as_posix(), node)
        for folder in ("optimizer", "model_repository_templates")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call | ast.Constant)
    ]


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield every call: its module, its name as it is written, and itself."""
    for module, node in nodes():
        if isinstance(node, ast.Call):
            yield module, ast.unparse(node.func), node


def test_no_module_executes_what_it_reads() -> None:
    executing = {(module, name) for module, name, _ in calls() if name in EXECUTES}
    assert executing == ALLOWED


def test_no_module_unpacks_an_archive() -> None:
    unpacking = [
        module for module, name, _ in calls() if name.endswith((".extractall", ".extract"))
    ]
    assert unpacking == []


def test_no_module_starts_a_shell() -> None:
    starting = [
        (module, name)
        for module, name, call in calls()
        if name in SHELLS or any(keyword.arg == "shell" for keyword in call.keywords)
    ]
    assert starting == []


def test_no_module_listens_on_every_address() -> None:
    texts = {
        (module, node.value)
        for module, node in nodes()
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::")
    }
    assert texts == set()


def test_no_text_of_a_file_becomes_a_regular_expression() -> None:
    """A stranger's pattern could take for ever; `pattern` of inputs is parsed, not matched."""
    functions = {"compile", "match", "fullmatch", "search", "sub", "findall", "finditer", "split"}
    of_names = {
        (module, ast.unparse(call.args[0]))
        for module, name, call in calls()
        if name.startswith("re.")
        and name.removeprefix("re.") in functions
        and not _is_written_there(call.args[0])
    }
    assert of_names == set()


def _is_written_there(pattern: ast.AST) -> bool:
    """Return whether a pattern consists of literals, constants and what `re.escape` has made."""
    match pattern:
        case ast.Constant():
            return True
        case ast.Name(name):
            return name.isupper() or name == "listed"
        case ast.BinOp(left, _, right):
            return _is_written_there(left) and _is_written_there(right)
        case ast.FormattedValue(value):
            return _is_written_there(value)
        case ast.JoinedStr(values):
            return all(map(_is_written_there, values))
    return False


def test_the_rules_of_ruff_about_security_are_on() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert {rule for rule in lint["ignore"] if rule.startswith("S")} - {"SIM"} == {
        "S101",
        "S311",
        "S603",
    }

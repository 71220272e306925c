"""What holds for the whole tree: errors, imports, commands, text."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from deploy import cli
from schemas import errors

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "ingest", "features", "inference", "retrain", "deploy")
# Each costs seconds or starts threads when imported: only the modules named in pyproject's
# import contract may load them, and what those are used by only inside functions.
HEAVY = ("tensorflow", "keras", "apache_beam")
MAY_LOAD_HEAVY = {
    *("features.batch_pipeline", "features.harness", "features.pipeline", "features.source"),
    "features.tfrecord",
    *(
        "inference.graphs",
        "inference.grpc",
        "inference.protos",
        "inference.remote",
        "inference.reply_bytes",
        "inference.savedmodel",
        "retrain.network",
        "retrain.train",
        "retrain.export",
        "retrain.litert",
        "retrain.derived",
    ),
    *("deploy.demo.audit", "deploy.demo.compare"),  # ask the models again, at the demo's end
}


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def modules() -> list[str]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def test_every_error_is_in_its_drawing_under_its_parent() -> None:
    drawn: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    drawing = inspect.getdoc(errors) or ""
    for indent, name in re.findall(r"^( *)[*+-] (\w+)", drawing, re.MULTILINE):
        while above and above[-1][0] >= len(indent):
            above.pop()
        drawn[name] = above[-1][1] if above else None
        above.append((len(indent), name))
    defined = {
        name: cls.__base__.__name__ if cls is not errors.MillstreamError else None
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, Exception)
    }
    assert drawn == defined


# Not told to any caller: a simulated death must not be caught, a fault becomes an HTTP answer, a
# redirection is followed.
OUTSIDE_THE_TREE = {"Crash", "RegistryFault", "Redirected"}


def test_no_module_outside_the_tree_of_errors_defines_an_error() -> None:
    pattern = re.compile(
        r"^class ([A-Z]\w+)\((?:\w+\.)?(?:Exception|\w*Error|Retryable|Rejected)\)"
    )
    found = [
        f"{path.relative_to(ROOT)}: {match.group(1)}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "errors.py" or package != "schemas"
        for line in path.read_text().splitlines()
        if (match := pattern.match(line)) and match.group(1) not in OUTSIDE_THE_TREE
    ]
    assert found == []


def test_pure_modules_load_neither_tensorflow_nor_beam() -> None:
    """One process imports module after module and says which one brought something heavy."""
    pure = [name for name in modules() if not _may_load_heavy(name)]
    program = (
        "import importlib, sys\n"
        f"for name in {pure!r}:\n"
        "    importlib.import_module(name)\n"
        f"    found = [h for h in {HEAVY!r} if h in sys.modules]\n"
        "    if found:\n"
        "        sys.exit(f'{name} loads {found}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _may_load_heavy(name: str) -> bool:
    return any(name == allowed or name.startswith(allowed + ".") for allowed in MAY_LOAD_HEAVY)


def test_help_loads_no_client_and_no_framework() -> None:
    program = (
        "import sys; from deploy import cli; code = cli.run(['--help'])\n"
        "heavy = {'tensorflow', 'keras', 'apache_beam', 'polars', 'confluent_kafka', 'redis',"
        " 'pyarrow', 'scipy', 'fastavro', 'opentelemetry', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def commands() -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Every command by its full name."""

    def walk(name: str, node: object) -> Iterator[tuple[str, typer.core.TyperCommand]]:
        if isinstance(node, typer.core.TyperGroup):
            for child_name, child in node.commands.items():
                yield from walk(f"{name} {child_name}", child)
        else:
            assert isinstance(node, typer.core.TyperCommand)
            yield name, node

    yield from walk("millstream", typer.main.get_command(cli.build()))


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=str)
def test_every_command_has_help_with_an_example_of_itself(
    name: str, command: typer.core.TyperCommand
) -> None:
    text = command.help or ""
    assert "Example" in text
    assert name in text


def test_no_tracked_file_names_a_package_registry() -> None:
    # Put together here, so that this file does not name one either.
    hosts = [
        ".".join(parts)
        for parts in (
            ("pypi", "org"),
            ("files", "pythonhosted", "org"),
            ("repo", "maven", "apache", "org"),
            ("repo1", "maven", "org"),
            ("registry", "npmjs", "org"),
            ("proxy", "golang", "org"),
        )
    ]
    found = [
        f"{path.relative_to(ROOT)} names {host}"
        for path in tracked_files()
        if path.is_file()
        for host in hosts
        if host.encode() in path.read_bytes()
    ]
    assert found == []


def test_every_locked_package_has_a_hash() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    heads = [i for i, line in enumerate(lines) if re.match(r"^[A-Za-z0-9]", line)]
    assert heads
    assert [lines[i] for i in heads if "--hash=sha256:" not in lines[i + 1]] == []


def test_no_module_is_named_for_nothing() -> None:
    empty = {"utils", "util", "helpers", "common", "base", "manager", "impl", "misc"}
    assert [name for name in modules() if empty & set(name.split("."))] == []


def test_modules_keep_to_400_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if (lines := len(path.read_text().splitlines())) > 400
    ]
    assert long == []


def test_everything_imported_is_declared() -> None:
    """A package that is only there because another one needs it may go with the next lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = {
        re.split(r"[<>=\[! ]", entry, maxsplit=1)[0].lower().replace("-", "_")
        for entry in project["project"]["dependencies"]
    }
    distribution = {
        "google": "protobuf",
        "grpc": "grpcio",
        "grpc_health": "grpcio_health_checking",
        "grpc_reflection": "grpcio_reflection",
        "faiss": "faiss_cpu",
        "jwt": "pyjwt",
        "tensorflow_serving": "tensorflow_serving_api",
        "opentelemetry": "opentelemetry_sdk",
        "keras": "tensorflow",
    }  # import name -> what is declared
    ours = {*PACKAGES, *sys.stdlib_module_names, "tests", "__future__"}
    pattern = re.compile(r"^\s*(?:from|import) ([a-zA-Z_]\w*)", re.MULTILINE)
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in pattern.findall(_code(path))
        if name not in ours and distribution.get(name, name).lower() not in declared
    }
    assert missing == set()


def _code(path: Path) -> str:
    """A module's text without its docstrings and other long strings."""
    return re.sub(r'("""|\'\'\').*?\1', "", path.read_text(), flags=re.DOTALL)

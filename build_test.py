"""BUILD files agree with the sources: every file has a target, and imports are deps."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent
# Folders that hold code, beside the root.
FOLDERS = ("benchmarks", "examples", "extreme_tensoring_tf", "faults", "testdata")
FOLDERS += ("trainer",)
NO_TARGET = ("setup.py",)
# Module -> distribution, where more differs than "_" and "-".
DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "tensorflow": "tensorflow-cpu"}
# Imported where it is installed: other backends, and what we compare with.
OPTIONAL = {"adam_mini", "apollo_torch", "bitsandbytes", "came_pytorch", "flax"}
OPTIONAL |= {"galore_torch", "jax", "keras_hub", "optax", "torch", "torchao"}
OPTIONAL |= {"transformers"}
RULES = ("py_library", "py_binary", "py_test")


def sources():
    """Returns {folder relative to the root: its files}; empty files need no target."""
    files = list(ROOT.glob("*.py"))
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*.py")
    found = {}
    for file in sorted(files):
        if file.stat().st_size and file.name not in NO_TARGET:
            found.setdefault(file.relative_to(ROOT).parent, []).append(file)
    return found


def label(file):
    """Returns the label of the target that holds a file."""
    folder = file.relative_to(ROOT).parent
    name = folder.name if file.stem == "__init__" else file.stem
    return f"{_package(folder)}:{name}"


def _package(folder):
    return "//" if folder == pathlib.Path() else f"//{folder}"


def imported(file):
    """Returns the labels and distributions that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    found = {_dependency(name.split(".")) for name in names}
    return {d for d in found if d and d != label(file)}


def _dependency(parts):
    if parts[0] in sys.stdlib_module_names or parts[0] in OPTIONAL:
        return None
    while parts:
        path = ROOT.joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return label(file) if file.stat().st_size else None
        top = parts.pop()
    return DISTRIBUTIONS.get(top, top.replace("_", "-"))


def targets(folder):
    """Returns {name: (rule, sources, deps)} of the BUILD file of a folder."""
    found = {}
    for node in ast.parse((ROOT / folder / "BUILD").read_text("utf-8")).body:
        call = node.value
        assert isinstance(call, ast.Call), f"line {node.lineno}: only calls are read"
        given = {k.arg: k.value for k in call.keywords}
        if call.func.id in RULES:
            name = ast.literal_eval(given["name"])
            deps = [_dep(d, folder) for d in getattr(given.get("deps"), "elts", ())]
            assert len(deps) == len(set(deps)), f"{name}: a dep is named twice"
            found[name] = call.func.id, ast.literal_eval(given["srcs"]), set(deps)
    return found


def _dep(node, folder):
    if isinstance(node, ast.Call):
        return ast.literal_eval(node.args[0])  # requirement("numpy")
    text = ast.literal_eval(node)
    return _package(folder) + text if text.startswith(":") else text


def expected(file):
    """Returns rule and deps of a file's target.

    What the registry imports by name is no import of it: programs depend on it.
    """
    deps = imported(file)
    if file.stem.endswith("_test"):
        return "py_test", deps | {"//:conftest", "pytest"}
    if '__name__ == "__main__"' not in file.read_text("utf-8"):
        return "py_library", deps
    trains = any(dep.startswith("//trainer") for dep in deps)
    return "py_binary", deps | ({"//trainer:registered"} if trains else set())


@pytest.mark.parametrize("folder", sources(), ids=str)
def test_build_file(folder):
    found = targets(folder)
    found.pop("registered", None)
    right = {}
    for file in sources()[folder]:
        rule, deps = expected(file)
        right[label(file).partition(":")[2]] = rule, [file.name], deps
    assert found == right


def test_what_the_registry_imports_by_name():
    from trainer import registry

    modules = {module for table in registry.ALL for module in table._modules}
    files = {ROOT.joinpath(*m.split(".")).with_suffix(".py") for m in modules}
    assert targets(pathlib.Path("trainer"))["registered"][2] == {*map(label, files)}


def test_the_wheel_holds_no_tests(tmp_path):
    """Neither tests nor what only they use are installed; the types are declared."""
    pytest.importorskip("setuptools")
    import subprocess

    command = [sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={tmp_path}"]
    command += ["build", f"--build-base={tmp_path}", f"--build-lib={tmp_path}/lib"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = {p.relative_to(tmp_path / "lib") for p in (tmp_path / "lib").rglob("*.*")}
    names = {str(p) for p in built}
    assert {"extreme_tensoring_tf/py.typed", "trainer/py.typed"} <= names
    assert {"trainer/bin/console.py", "trainer/optim/catalog.py"} <= names
    assert {p.parts[0] for p in built} == {"extreme_tensoring_tf", "trainer"}
    assert not [n for n in names if "_test.py" in n or "testing" in n]

"""BUILD files: a target for every source file, whose deps are the file's imports.

    python -m bazel.build_files    writes them all

They are written and never edited: `build_files_test.py` compares them with what this
module would write. What the imports do not tell is in the tables below.
"""

import ast
import pathlib
import sys
import textwrap

ROOT = pathlib.Path(__file__).parents[1]
# Folders that hold code, beside the root.
FOLDERS = (
    "bazel",
    "benchmarks",
    "examples",
    "extreme_tensoring_tf",
    "faults",
    "testdata",
    "trainer",
)
NO_TARGET = ("setup.py",)
# Module -> distribution, where more differs than "_" and "-".
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "tensorflow": "tensorflow-cpu",
    "yaml": "pyyaml",
}
# Imported where it is installed: other backends, and what we compare with.
OPTIONAL = {"adam_mini", "apollo_torch", "bitsandbytes", "came_pytorch", "flax"}
OPTIONAL |= {"galore_torch", "jax", "keras_hub", "onnxruntime", "optax", "torch"}
OPTIONAL |= {"torchao", "transformers"}
# Label -> the files that it reads.
DATA = {
    "//:conftest": ["//testdata:corpus"],
    "//examples:clusters_test": ["kubernetes.yaml", "slurm.sh"],
    "//examples:notebook_test": ["language_model.ipynb"],
}
# Label -> deps that it imports by name: what a schedule or an optimizer is called.
BY_NAME = {"//extreme_tensoring_tf:memory_test": {"//trainer:registered"}}
# What only tests may depend on: folders and labels.
TEST_ONLY = {"//:conftest", "//extreme_tensoring_tf:conftest", "//testdata"}
# Folder -> what its BUILD file has besides the targets of sources.
HEADS = {
    "": """\
# Bazel targets: one a source file, with its own dependencies, in the BUILD file of its
# folder. `python -m bazel.build_files` writes them.
""",
}
DECLARED = {
    "": """\
licenses(["notice"])  # Apache 2.0

exports_files([
    "LICENSE",
    "pyproject.toml",
])

""",
    "bazel": """\
exports_files(["pytest_main.py"])

""",
    "testdata": """\
filegroup(
    name = "corpus",
    srcs = glob(["**"]),
)

""",
}


def sources(root=ROOT):
    """Returns {folder relative to the root: its files}; empty files need no target."""
    files = list(root.glob("*.py"))
    for folder in FOLDERS:
        files += (root / folder).rglob("*.py")
    found = {}
    for file in sorted(files):
        if file.stat().st_size and file.name not in NO_TARGET:
            found.setdefault(file.relative_to(root).parent, []).append(file)
    return found


def label(file, root=ROOT):
    """Returns the label of the target that holds a file."""
    folder = file.relative_to(root).parent
    name = folder.name if file.stem == "__init__" else file.stem
    return f"{_package(folder)}:{name}"


def _package(folder):
    return "//" if folder == pathlib.Path() else f"//{folder.as_posix()}"


def imported(file, root=ROOT):
    """Returns the labels and distributions that a file imports, anywhere in it.

    Of programs in its strings, which tests run in a process of their own, the labels.

    Raises:
        ValueError: an import is relative.
    """
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{file}:{node.lineno}: name the package of an import")
    programs = [n for node in nodes for n in _program(node)]
    found = _dependencies(nodes, root)
    found |= {d for d in _dependencies(programs, root) if ":" in d}
    return found - {label(file, root)}


def _program(node):
    """Returns the nodes of the program that a string is; none where it is none."""
    text = node.value if isinstance(node, ast.Constant) else None
    if not isinstance(text, str) or "import " not in text:
        return []
    try:
        return list(ast.walk(ast.parse(textwrap.dedent(text))))
    except SyntaxError:
        return []


def _dependencies(nodes, root):
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {_dependency(name.split("."), root) for name in names} - {None}


def _dependency(parts, root):
    if parts[0] in sys.stdlib_module_names or parts[0] in OPTIONAL:
        return None
    top = parts[0]
    while parts:
        path = root.joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return label(file, root) if file.stat().st_size else None
        parts = parts[:-1]
    return DISTRIBUTIONS.get(top, top.replace("_", "-"))


def target(file, root=ROOT):
    """Returns the rule of a file's target and its deps.

    What the registry imports by name is no import of it: programs depend on it. A test
    depends on the `conftest.py` of its folder and of those above it.
    """
    deps = imported(file, root)
    if file.stem.endswith("_test"):
        folders = [f for f in file.parents if f.is_relative_to(root)]
        fixtures = [f / "conftest.py" for f in folders]
        labels = {label(f, root) for f in fixtures if f.is_file()}
        labels |= BY_NAME.get(label(file, root), set())
        return "pytest_test", deps | labels | {"pytest"}
    if '__name__ == "__main__"' not in file.read_text("utf-8"):
        return "py_library", deps
    trains = any(dep.startswith("//trainer") for dep in deps)
    return "py_binary", deps | ({"//trainer:registered"} if trains else set())


def build_file(folder, root=ROOT):
    """Returns the text of the BUILD file of a folder, as buildifier formats it."""
    name = "" if folder == pathlib.Path() else folder.as_posix()
    targets = [_target_text(file, root) for file in sources(root)[folder]]
    if name == "trainer":
        targets.append(_registered(root))
    body = "\n".join(targets)
    rules = {text.partition("(")[0].splitlines()[-1] for text in targets}
    loads = {
        "@pip//:requirements.bzl": ["requirement"] if "requirement(" in body else [],
        "@rules_python//python:defs.bzl": sorted(rules - {"pytest_test"}),
        "//bazel:pytest.bzl": sorted(rules & {"pytest_test"}),
    }
    return (
        HEADS.get(name, "")
        + "".join(
            _call("load", [file, *names]) for file, names in loads.items() if names
        )
        + '\npackage(default_visibility = ["//visibility:public"])\n\n'
        + DECLARED.get(name, "")
        + body
    )


def _target_text(file, root):
    rule, deps = target(file, root)
    own = label(file, root)
    package, _, name = own.partition(":")
    deps = [":" + d.removeprefix(package + ":") if _in(d, package) else d for d in deps]
    fields = [
        ("name", f'"{name}"'),
        ("testonly", "True" if rule != "pytest_test" and _test_only(own) else ""),
        ("srcs", _list([f'"{file.name}"'])),
        ("data", _list([f'"{item}"' for item in DATA.get(own, ())])),
        ("deps", _list(_deps(deps))),
    ]
    lines = "".join(f"    {field} = {value},\n" for field, value in fields if value)
    return f"{rule}(\n{lines})\n"


def _in(dep, package):
    return dep.startswith(package + ":")


def _test_only(own):
    return bool({own, own.partition(":")[0]} & TEST_ONLY)


def _registered(root):
    from trainer import registry

    modules = {module for table in registry.ALL for module in table._modules}
    files = [root.joinpath(*m.split(".")).with_suffix(".py") for m in modules]
    deps = [label(file, root).replace("//trainer:", ":") for file in files]
    return (
        "# What the registry imports by name when a name is asked for.\n"
        "py_library(\n"
        '    name = "registered",\n'
        "    srcs = [],\n"
        f"    deps = {_list(_deps(deps))},\n"
        ")\n"
    )


def _deps(deps):
    """Returns the items of a list of deps, in buildifier's order."""
    labels = sorted((d for d in deps if ":" in d), key=lambda d: d.split(":"))
    packages = sorted(d for d in deps if ":" not in d)
    return [f'"{_short(d)}"' for d in labels] + [
        f'requirement("{p}")' for p in packages
    ]


def _short(dep):
    """Returns //a/b for //a/b:b."""
    package, _, name = dep.partition(":")
    return package if package.rpartition("/")[2] == name else dep


def _list(items):
    if len(items) < 2:
        return f"[{items[0]}]" if items else ""
    return "[\n" + "".join(f"        {item},\n" for item in items) + "    ]"


def _call(function, arguments):
    quoted = ", ".join(f'"{argument}"' for argument in arguments)
    return f"{function}({quoted})\n"


def main():
    """Writes the BUILD file of every folder that has sources."""
    for folder in sources():
        (ROOT / folder / "BUILD").write_text(build_file(folder), "utf-8")


if __name__ == "__main__":
    main()

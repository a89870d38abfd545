"""Every code block of README and docs runs, and prints what the page says it prints."""

import contextlib
import doctest
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys
import unittest

import keras
import pytest

pytest.importorskip("sybil")
import sybil
from sybil.parsers import markdown

import conftest
from benchmarks import __main__ as benchmarks

ROOT = pathlib.Path(__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Their commands take hours or a GPU: they are checked, not run.
MEASUREMENTS = [ROOT / "docs" / "results.md", ROOT / "docs" / "benchmarks.md"]
# What a reader has in the folder where the commands are given: the checkout.
CHECKOUT = ("examples", "testdata")
OUTPUT = doctest.OutputChecker()


def run_python(example):
    """Executes a block in the names of its page."""
    source = "\n" * example.line + example.parsed
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, example.path, "exec"), example.namespace)
    example.namespace["printed"] = printed.getvalue()


def run_shell(example):
    """Executes a block in the page's folder; the programs are those of this Python."""
    path = os.pathsep.join(
        [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    )
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example.parsed],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return f"status {done.returncode}:\n{done.stdout}\n{done.stderr}"
    example.namespace["printed"] = done.stdout


def compare(example):
    """Compares a block `text` with what the block before it printed; ... is anything.

    Where that block was skipped, so is this one.
    """
    printed = example.namespace["printed"]
    if printed is None:
        raise unittest.SkipTest("of a block that was skipped")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not OUTPUT.check_output(example.parsed, printed, flags):
        return f"expected:\n{example.parsed}\nprinted:\n{printed}"


def parse(page):
    """Returns a page with its blocks, each of which can be evaluated."""
    parsers = [
        markdown.CodeBlockParser("python", run_python),
        markdown.CodeBlockParser("sh", run_shell),
        markdown.CodeBlockParser("text", compare),
        markdown.SkipParser(),
    ]
    return sybil.Sybil(parsers).parse(page)


def blocks(pages):
    """Returns the pages that hold blocks, as parameters of a test."""
    return [
        pytest.param(page, id=page.name) for page in pages if [*parse(page).examples()]
    ]


def evaluate(page, folder, slow):
    """Evaluates all blocks of a page in order, in a folder; says what was skipped."""
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    document = parse(page)
    document.namespace.update(
        SLOW=slow,
        BACKEND=keras.backend.backend(),
        installed=lambda name: importlib.util.find_spec(name) is not None,
    )
    for example in document.examples():
        try:
            example.evaluate()
        except unittest.SkipTest as reason:
            example.namespace["printed"] = None
            print(f"{page.name}:{example.line}: skipped: {reason}")


RUN = blocks(page for page in PAGES if page not in MEASUREMENTS)
# Most of a minute each. Whoever edits one runs `make test-all`.
LONG = ("distributed.md", "experiments.md", "extending.md", "memory.md")


def run(page, folder, slow=False):
    """Evaluates a page as its reader does, in a new process."""
    command = [sys.executable, "-m", "docs_test", str(page)]
    command += ["slow"] if slow else []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(*p.values, id=p.id, marks=[pytest.mark.slow] * (p.id in LONG))
        for p in RUN
    ],
)
def test_every_block_runs(page, tmp_path):
    run(page, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in RUN if "if(not SLOW" in p.values[0].read_text("utf-8")]
)
def test_every_slow_block_runs(page, tmp_path):
    run(page, tmp_path, slow=True)


@pytest.mark.parametrize("page", blocks(MEASUREMENTS))
def test_commands_of_measurements_are_known(page):
    """Programs and flags exist: those of `python -m` in blocks and before tables."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    commands = re.findall(r"python -m ((?:benchmarks|trainer)[\w.]*)(.*)", text)
    assert commands
    used = {}
    for module, rest in commands:
        names = re.findall(r"--(\w+)", rest.partition("`")[0])
        used.setdefault(module, set()).update(names)
    for module, names in used.items():
        command = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        known = set(re.findall(r"--(?:\[no\])?(\w+)", done.stdout))
        assert done.returncode == 0 and names <= known, (module, names - known)


def test_every_registered_optimizer_is_mentioned():
    """One that no page and no program names is dead."""
    from trainer import registry

    programs = (ROOT / "trainer").rglob("*.py")
    of_catalog = ("catalog.py", "catalog_test.py")
    paths = [*PAGES, *(path for path in programs if path.name not in of_catalog)]
    words = set(re.findall(r"\w+", " ".join(p.read_text("utf-8") for p in paths)))
    assert set(registry.optimizers.names()) <= words


@pytest.mark.parametrize("name", benchmarks.COMMANDS)
def test_tables_of_benchmarks_are_of_their_commands(name):
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert f"<!-- {name} -->\n`python {benchmarks.COMMANDS[name]}`: " in page


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, which was built without a warning."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir"]
    done = subprocess.run(
        [*command, str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    # mkdocs.yml makes links and anchors that lead nowhere warnings.
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_public_name_is_in_the_reference(site):
    import extreme_tensoring_tf

    reference = (site / "api_optimizer.html").read_text("utf-8")
    for name in extreme_tensoring_tf.__all__:
        module = getattr(extreme_tensoring_tf, name).__module__
        assert f'id="{module}.{name}"' in reference


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_pages_outside_the_site(name, site):
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", (ROOT / name).read_text())
    assert links
    for path, anchor in links:
        assert (ROOT / path).exists(), path
        if path and anchor:
            page = (site / path).name.replace(".md", ".html")
            assert f'id="{anchor}"' in (site / page).read_text("utf-8"), (path, anchor)


if __name__ == "__main__":
    conftest.pytest_configure()  # several devices
    evaluate(pathlib.Path(sys.argv[1]), pathlib.Path.cwd(), "slow" in sys.argv[2:])

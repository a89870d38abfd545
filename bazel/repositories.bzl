"""The repositories of the workspace. None of them needs a network.

Rules of Python, C++, Java and protocol buffers are built into Bazel 4, which asks for
repositories that wrap them; the wrappers are written here. Python and its packages are
those of the virtual environment that `make` fills.
"""

_RULES = {
    "rules_cc": (
        "cc",
        ["cc_binary", "cc_import", "cc_library", "cc_proto_library", "cc_test", "cc_toolchain", "cc_toolchain_suite", "objc_library"],
    ),
    "rules_java": (
        "java",
        ["java_binary", "java_import", "java_library", "java_plugin", "java_runtime", "java_test", "java_toolchain"],
    ),
    "rules_proto": ("proto", ["proto_lang_toolchain", "proto_library"]),
    "rules_python": ("python", ["py_binary", "py_library", "py_test"]),
}

_WRAPPER = """
def {rule}(**kwargs):
    native.{rule}(**kwargs)
"""

_COVERAGE = """
filegroup(
    name = "coverage_report_generator",
    visibility = ["//visibility:public"],
)
"""

def _written_impl(ctx):
    ctx.file("WORKSPACE")
    for path, text in ctx.attr.files.items():
        ctx.file(path, text)

_written = repository_rule(
    implementation = _written_impl,
    attrs = {"files": attr.string_dict()},
)

_RUNTIME = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

package(default_visibility = ["//visibility:public"])

py_runtime(
    name = "python3",
    interpreter_path = "{python}",
    python_version = "PY3",
)

py_runtime_pair(
    name = "runtimes",
    py3_runtime = ":python3",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtimes",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

_INSTALLED = """
import importlib.metadata as m, re
names = {re.sub("[-_.]+", "-", d.metadata["Name"]).lower() for d in m.distributions()}
print(*sorted(names), sep="\\n")
"""

_REQUIREMENT = """
def requirement(name):
    return "@pip//:" + name
"""

def _installed_impl(ctx):
    root = ctx.path(ctx.attr.workspace_file).dirname
    made = str(root.get_child(".venv")) + "/bin/python"
    python = ctx.os.environ.get("PYTHON_BIN_PATH", made)
    done = ctx.execute([python, "-I", "-c", _INSTALLED])
    if done.return_code:
        fail("{}: {} Run `make`, or set PYTHON_BIN_PATH.".format(python, done.stderr))
    ctx.file("WORKSPACE")
    ctx.file("requirements.bzl", _REQUIREMENT)
    libraries = [
        'py_library(name = "{}")\n'.format(name)
        for name in done.stdout.splitlines()
    ]
    ctx.file("BUILD", _RUNTIME.format(python = python) + "".join(libraries))

_installed = repository_rule(
    implementation = _installed_impl,
    attrs = {"workspace_file": attr.label(default = "//:WORKSPACE")},
    environ = ["PYTHON_BIN_PATH"],
    local = True,
    doc = "A target for each package that is installed, and its Python as toolchain.",
)

def repositories():
    """Declares every repository that the BUILD files and Bazel itself ask for."""
    for name, (folder, rules) in _RULES.items():
        wrappers = [_WRAPPER.format(rule = rule) for rule in rules]
        _written(
            name = name,
            files = {folder + "/BUILD": "", folder + "/defs.bzl": "".join(wrappers)},
        )
    _written(name = "remote_coverage_tools", files = {"BUILD": _COVERAGE})
    _installed(name = "pip")

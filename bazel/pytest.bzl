"""Tests that pytest runs."""

load("@rules_python//python:defs.bzl", "py_test")

_MAIN = "//bazel:pytest_main.py"

def pytest_test(name, srcs, data = [], **kwargs):
    """Declares a test target whose sources pytest collects.

    Args:
        name: of the target.
        srcs: files of tests.
        data: files that they read. pytest's settings are added.
        **kwargs: of `py_test`.
    """
    py_test(
        name = name,
        srcs = srcs + [_MAIN],
        args = ["$(rootpath {})".format(src) for src in srcs],
        data = data + srcs + ["//:pyproject.toml"],
        main = _MAIN,
        **kwargs
    )

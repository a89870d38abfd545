"""Runs pytest on the files that the command names: the main file of Bazel's tests."""

import sys

import pytest

if __name__ == "__main__":
    settings = ["--config-file=pyproject.toml", "--rootdir=.", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([*settings, *sys.argv[1:]]))

"""Fixtures of the optimizer's tests."""

import keras
import pytest


@pytest.fixture(autouse=True, scope="package")
def programs_for_small_groups():
    """Has `jit_compile=True` compile groups of any size: those of tests are small.

    Here alone: tests of the trainer, in the same process, do as users do.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    from extreme_tensoring_tf import xla

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "WORTH_COMPILING", 0)
        yield

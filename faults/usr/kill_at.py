"""Kills its own process inside a call that the environment names, as `--usr_dir`.

    KILL_AT=MODULE:NAME:NUMBER:WHEN

NAME is a function, or CLASS.METHOD, of MODULE; NUMBER counts its calls from 1. WHEN is
"before" or "after" the call, or seconds after it has begun.
"""

import functools
import importlib
import itertools
import os
import signal
import threading


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _patch(module, name, number, when):
    *path, name = name.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    function, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(function)
    def counted(*args, **kwargs):
        if next(calls) != int(number):
            return function(*args, **kwargs)
        if when == "before":
            _die()
        elif when != "after":
            timer = threading.Timer(float(when), _die)
            timer.daemon = True
            timer.start()
        result = function(*args, **kwargs)
        if when == "after":
            _die()
        return result

    setattr(owner, name, counted)


if "KILL_AT" in os.environ:
    _patch(*os.environ["KILL_AT"].split(":"))

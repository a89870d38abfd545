"""Adaptive preconditioning for Keras at the memory of SGD."""

from extreme_tensoring_tf.memory import memory_report
from extreme_tensoring_tf.optimizer import ExtremeTensoring
from extreme_tensoring_tf.schedules import InverseSqrtSchedule
from extreme_tensoring_tf.tensor_index import tensor_index
from extreme_tensoring_tf.trace_ratio import TraceRatio

__version__ = "0.2.0"

__all__ = [
    "ExtremeTensoring",
    "InverseSqrtSchedule",
    "TraceRatio",
    "memory_report",
    "tensor_index",
]

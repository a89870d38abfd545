"""Momentum in the lowest byte of a float32 variable, which is memory that is there.

Of the 24 bits of a number's mantissa 16 are left, with a relative error below 2**-15:
a variable of bfloat16, which trains well if it is rounded at random, has 8.
The lowest byte holds a momentum m by its sign and a number c from 0 to 127:

    m = sign * scale * (c / 127)**4

where

    scale: the largest magnitude of the variable's momentum, kept beside it.

Both are rounded at random, up or down by the chance that makes the mean right: what is
too small to change a number by itself does so in one step of many. The chance comes
from the bits of the numbers and from the count of steps, so that equal steps give equal
results, and a step that is the same every time is rounded anew.

A lowest byte of 0, which is never written here, stands for no momentum: that of weights
which were set to 0, or to numbers of bfloat16.

The memory is known as that of Gonzalez Ortiz et al. 2026, "FlashOptim", arXiv
2602.23349, who keep weights of 24 bits beside momentum of 8.
"""

from keras import ops

PACKED = "packed"  # in the place of a dtype of the momentum

_SIGN = -(2**31)
_BYTE = 0xFF
_MIDDLE = 0x80  # what the byte stands for in the value of its variable
_LEVELS = 127


def unpack(packed, scale):
    """Returns the values of a variable, and its momentum.

    Args:
        packed: float32 tensor, the variable.
        scale: scalar tensor; with 0 the momentum is 0, whatever the bytes are.
    """
    bits = ops.view(packed, "int32")
    code = ops.bitwise_and(bits, _BYTE)
    level = ops.cast(ops.where(code == 0, 0, code - _MIDDLE), "float32") / _LEVELS
    momentum = level * ops.abs(level) * ops.square(level) * scale
    return _value(bits), momentum


def pack(values, momentum, scale, step):
    """Returns the variable that holds values and momentum; see `unpack`.

    Args:
        values: float32 tensor.
        momentum: of the same shape, no entry of a magnitude above the scale.
        scale: scalar tensor.
        step: int32 scalar tensor, the count of the variable's updates.
    """
    bits = ops.view(values, "int32")
    chance = ops.bitwise_xor(bits, ops.view(momentum, "int32"))
    chance = ops.bitwise_xor(chance, step * _ODD) * _ODD
    share = ops.abs(momentum) / ops.where(scale > 0, scale, 1)
    low = ops.floor(ops.minimum(_LEVELS * ops.sqrt(ops.sqrt(share)), _LEVELS - 1))
    below, above = ops.square(ops.square(low)), ops.square(ops.square(low + 1))
    uniform = ops.cast(ops.bitwise_and(ops.right_shift(chance, 16), 0xFFFF), "float32")
    goes_up = uniform / 2**16 * (above - below) < share * _LEVELS**4 - below
    level = ops.cast(low, "int32") + ops.cast(goes_up, "int32")
    code = ops.where(momentum < 0, -level, level) + _MIDDLE
    # To add to the bits of a magnitude is to add units in its last place, also from one
    # power of two to the next.
    magnitude = ops.bitwise_and(bits, ~_SIGN)
    shift = ops.bitwise_and(ops.right_shift(chance, 8), _BYTE) - _MIDDLE
    magnitude = ops.bitwise_and(ops.maximum(magnitude + shift, 0), ~_BYTE)
    signed = ops.bitwise_or(magnitude, ops.bitwise_and(bits, _SIGN))
    return ops.view(ops.bitwise_or(signed, code), "float32")


def _value(bits):
    """Returns the number in the middle of those that differ in the lowest byte."""
    bits = ops.bitwise_or(ops.bitwise_and(bits, ~_BYTE), _MIDDLE)
    return ops.view(bits, "float32")


# 2**32 over the golden ratio, as a signed number: a product with it spreads low bits
# over the high ones (Knuth, The Art of Computer Programming, vol. 3, section 6.4).
_ODD = -1640531527

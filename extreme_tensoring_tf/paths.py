"""Regular expressions over the paths of variables, as rules of arguments have them."""

import re
import warnings


def matching(
    rule: str, pattern: str, paths: list[str], note: str = "", warns: bool = True
) -> list[bool]:
    """Returns for every path whether a pattern is found in it.

    Args:
        rule: the name of the argument, for messages.
        pattern: regular expression.
        paths: of the variables.
        note: more on the pattern, for the warning.
        warns: whether a pattern that matches no path is worth a warning.

    Raises:
        ValueError: the pattern is no regular expression.

    Warns:
        UserWarning: the pattern matches no path. It may be meant for layers that are
            frozen now.
    """
    try:
        found = [re.search(pattern, path) is not None for path in paths]
    except re.error as error:
        raise ValueError(
            f"`{rule}` pattern {pattern!r} is not a regular expression: {error}"
        ) from None
    if warns and not any(found):
        warnings.warn(
            f"`{rule}` pattern {pattern!r}{note} matches no trainable variable. The "
            f"variables are: {paths}",
            stacklevel=3,
        )
    return found

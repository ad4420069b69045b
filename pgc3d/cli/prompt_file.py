"""A prompt from a file, as `@prompt.txt`, or from the standard input, as `-`."""

import sys
from pathlib import Path

from pgc3d.errors import InputError

LARGEST = 65_536  # bytes
HELP = "; parentheses without a number are text. @FILE reads it from a file, - from the standard input"


def read_prompt(given: str, *, stdin: bool = True) -> str:
    """The prompt that an argument stands for; line breaks become spaces.

    Args:
        given: the prompt itself, @ and the path of a file, or -.
        stdin: whether - is allowed.

    Raises:
        InputError: the file is missing, empty, too large, or not UTF-8.
    """
    if given == "-":
        if not stdin:
            raise InputError("the prompt of a list must be text or @FILE, got '-'; write it into the list")
        return _text(read_stdin(), "the standard input")
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"the prompt {given} must name a file that can be read, got: {reason}; for a prompt that begins "
            "with @, put a space before it"
        ) from error
    return _text(content, str(path))


def read_stdin() -> bytes:
    """The standard input, up to one byte more than a prompt may have.

    Raises:
        InputError: it is closed.
    """
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise InputError("the standard input must be open for the prompt -, but it is closed")
    return bytes(stream.read(LARGEST + 1))


def _text(content: bytes, name: str) -> str:
    if len(content) > LARGEST:
        raise InputError(f"a prompt must have at most {LARGEST} bytes, got more in {name}; shorten it")
    try:
        text = " ".join(content.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise InputError(
            f"a prompt must be UTF-8 text, got byte {error.start} of {name} that is not; convert the file"
        ) from error
    if not text:
        raise InputError(f"a prompt must not be empty, got no text in {name}; describe the asset in it")
    return text

"""Cases in the loop of a test."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def case(**values: object) -> Iterator[None]:
    """Within it a failure tells the values of its case."""
    try:
        yield
    except BaseException as error:  # pytest.fail, and a pytest.raises that saw nothing, raise one
        error.add_note("case: " + ", ".join(f"{name}={value!r}" for name, value in values.items()))
        raise

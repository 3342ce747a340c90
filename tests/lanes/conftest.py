"""Numbers of lanes stand where annotations say float."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def unchecked_annotations() -> Iterator[None]:
    """What is annotated as a float may be the number of a lane, which is none of Python's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

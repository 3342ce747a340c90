"""Floating-point operations of the matrix products of a traced program, loops counted as often as they run, over all devices together."""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(jaxpr: Any, *, turns: int = 1) -> float:
    """Operations of every product of matrices, two for each multiplication and addition; what is elementwise is left out.

    `turns`: how often loops run whose end is not known before (`while_loop`), at most; of such loops in each other, the inner one in all.
    Of branches the most expensive one counts.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _product(equation)
        elif name == "scan":
            total += parameters["length"] * matmul_flops(parameters["jaxpr"], turns=turns)
        elif name == "while":
            inside = parameters["body_jaxpr"]
            total += (1 if _loops(inside) else turns) * matmul_flops(inside, turns=turns)
        elif name == "cond":
            total += max(matmul_flops(branch, turns=turns) for branch in parameters["branches"])
        elif name == "shard_map":
            total += parameters["mesh"].size * matmul_flops(parameters["jaxpr"], turns=turns)
        else:
            inner = (value for value in parameters.values() if isinstance(value, ClosedJaxpr | Jaxpr))
            total += sum(matmul_flops(each, turns=turns) for each in inner)
    return total


def _loops(jaxpr: ClosedJaxpr) -> bool:
    """Whether there is a loop whose end is not known before."""
    return any(equation.primitive.name == "while" for equation in jaxpr.jaxpr.eqns)


def _product(equation: Any) -> float:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    del batch  # dimensions that both sides share are in the result
    return 2.0 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)

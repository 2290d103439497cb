"""What a rule reports."""

from typing import Literal

import onnx
from pydantic import BaseModel, ConfigDict

from tlc.export.view import label

Severity = Literal["refused", "wrong", "slow"]


class Violation(BaseModel):
    """One place in a graph that breaks a rule of the target."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    node: str
    """Name of the node, or of what it writes; name of the tensor where a tensor breaks the rule."""
    op_type: str
    """Operator of the node; "" for a tensor."""
    rule: str
    """Identifies the rule, such as "uint8-zero-point"."""
    severity: Severity
    """`refused`: the runtime does not build or load the file. `wrong`: it does, with other or less precise numbers than
    the file could give. `slow`: it does, and runs slower than it could."""
    why: str
    """What is there, and what the runtime makes of it."""
    fix: str
    """What to do, in the imperative."""
    repairable: bool
    """Whether `tlc.export.repair` can do it."""


def broken(
    node: onnx.NodeProto, rule: str, severity: Severity, why: str, fix: str, *, repairable: bool = True
) -> Violation:
    """Return the violation of `rule` by `node`."""
    return Violation(
        node=label(node), op_type=node.op_type, rule=rule, severity=severity, why=why, fix=fix, repairable=repairable
    )

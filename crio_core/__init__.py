"""Everything that the runtime decides, and nothing that it does: events go into a `Node`, effects come out.

`Node`, `Settings`, `Handler` and `Layout` are loaded when they are first used, so that a process that needs one small
module of this package does not pay for all of it. Events, effects, requests and replies are in modules of these names.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crio_core.layout import Layout
    from crio_core.node import Handler, Node, Settings

__all__ = ["Handler", "Layout", "Node", "Settings"]


def __getattr__(name: str) -> object:
    if name == "Layout":
        from crio_core import layout

        return layout.Layout
    if name in __all__:
        from crio_core import node

        return getattr(node, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

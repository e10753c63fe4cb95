# SPDX-License-Identifier: Apache-2.0
"""A module that knows what it was when it was built."""

from torch import nn

from .torch_internals import Part, find_change, list_parts


class AsBuilt(nn.Module):
    """A module that tells whether it, or a part of it, was changed since.

    Users hook, replace, prune, quantise and adapt layers. What takes a shorter way than
    through all of them asks here first.
    """

    _parts: list[Part]

    def remember_build(self) -> None:
        """Take what the module is now for the unchanged state; end ``__init__`` so."""
        self._parts = []  # so that this attribute is listed, too
        self._parts = list_parts(self)

    def find_change(self) -> str:
        """Tell what differs from then; empty text for nothing but values and mode."""
        return find_change(self, self._parts)

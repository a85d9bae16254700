"""Every allocator that ships, by its `type`."""

from __future__ import annotations

from methods.parts.allocation.uniform import Uniform

AnyAllocator = Uniform

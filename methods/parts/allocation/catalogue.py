"""Every allocator that ships, by its `type`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from methods.parts.allocation.bayes import Bayes
from methods.parts.allocation.owl import Owl
from methods.parts.allocation.per_type import PerType
from methods.parts.allocation.strs import Strs
from methods.parts.allocation.uniform import Uniform
from methods.parts.allocation.welore import WeLoreThreshold

AnyAllocator = Annotated[
    Uniform | PerType | WeLoreThreshold | Owl | Strs | Bayes, Field(discriminator="type")
]

"""Every allocator that ships, by its `type`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from methods.parts.allocation.bayes import Bayes
from methods.parts.allocation.strs import Strs
from methods.parts.allocation.uniform import Uniform

AnyAllocator = Annotated[Uniform | Bayes | Strs, Field(discriminator="type")]

"""Settings for all tests: one thread and chosen examples, so that bits repeat, no network, no hurry."""

import gc
import os
import sys
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # a second thread that waits leaves the processor to others

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support import forked

forked.install()  # before a module keeps the command of a worker
torch.set_num_threads(1)
# A machine that stands still for a moment is no failure of what is tested.
settings.register_profile(
    "lorebench", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lorebench")
_imported = 0


def pytest_collection_finish() -> None:
    """Let the collector pass over what is imported, which it would search at every window of a meter."""
    _pass_over()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Do the same with what the tests of a module have imported, once its fixtures are gone."""
    yield
    if nextitem is not None and nextitem.path != item.path and len(sys.modules) > _imported:
        _pass_over()


def _pass_over() -> None:
    global _imported
    gc.collect()
    gc.freeze()
    _imported = len(sys.modules)

"""Settings for all tests: one thread and chosen examples, so that bits repeat, no network, no hurry."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

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


def pytest_collection_finish() -> None:
    """Let the collector pass over what is imported, which it would search at every window of a meter."""
    gc.collect()
    gc.freeze()

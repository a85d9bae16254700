"""The largest batch or length that fits: the same as by trying all, with few simulations."""

from __future__ import annotations

from itertools import accumulate
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import LocalModel, Run
from harness.engine.forecast.capacity import BATCH_CEILING, ceiling, context_of, largest, value_of, with_value
from harness.errors import UserError
from harness.forecast import Capacity, Setting

BOUND = (BATCH_CEILING, "the bound")


def run_of(batch: int = 1, seq_len: int = 16) -> Run:
    return Run.model_validate(
        {
            "model": {"source": "shape", "name": "nano"},
            "data": {"source": "random", "seq_len": seq_len},
            "train": {"stage": "pretrain", "batch": batch},
            "method": "full",
        }
    )


class Peaks:
    """Peaks by batch, and which were asked for."""

    def __init__(self, *by_batch: int) -> None:
        self.by_batch, self.asked = by_batch, list[int]()

    def __call__(self, run: Run) -> int:
        self.asked.append(run.train.batch)
        return self.by_batch[run.train.batch - 1]


@pytest.mark.parametrize("setting", ["batch", "seq_len"])
def test_a_setting_is_changed_alone(setting: Setting) -> None:
    run = run_of(batch=3, seq_len=5)
    changed = with_value(run, setting, 7)
    assert value_of(changed, setting) == 7
    assert with_value(changed, setting, value_of(run, setting)) == run


@given(
    steps=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    limit=st.integers(0, 600),
    start=st.integers(1, 300),
)
def test_the_answer_is_that_of_trying_all(steps: list[int], limit: int, start: int) -> None:
    peaks = Peaks(*accumulate(steps))
    found = largest(run_of(start), "batch", limit, peaks, (len(steps), "the bound"))
    fitting = [batch for batch, peak in enumerate(peaks.by_batch, 1) if peak <= limit]
    best = max(fitting, default=0)
    assert found.largest == best
    assert found.peak_bytes == (peaks.by_batch[best - 1] if best else None)
    assert found.next_peak_bytes == (peaks.by_batch[best] if best < len(steps) else None)
    assert found.bound == (None if best < len(steps) else "the bound")
    assert found.probes == len(peaks.asked) == len(set(peaks.asked)), "none is asked for twice"


@pytest.mark.parametrize(
    ("limit", "top", "start", "best"),
    [
        (10, 9, 2, 0),
        (19, 9, 5, 0),
        (20, 9, 5, 2),
        (29, 9, 2, 2),
        (30, 9, 5, 3),
        (900, 9, 5, 9),
        (900, 1, 2, 0),
    ],
)
def test_the_shortest_length_is_one_that_a_run_takes(limit: int, top: int, start: int, best: int) -> None:
    """A sequence of one token has none to predict, so `run` refuses it."""
    asked: list[int] = []

    def peak(run: Run) -> int:
        asked.append(value_of(run, "seq_len"))
        return 10 * asked[-1]

    found = largest(run_of(seq_len=start), "seq_len", limit, peak, (top, "the context"))
    assert (found.largest, found.peak_bytes) == (best, 10 * best if best else None)
    assert all(2 <= value <= top for value in asked)
    for value in asked:
        Run.model_validate(run_of(seq_len=value).model_dump())


def rounded(bytes_: int) -> int:
    return -(-bytes_ // 512) * 512


@pytest.mark.parametrize("start", [1, 16, 512])
@pytest.mark.parametrize("limit_batches", [1, 7, 100, 1000, 4000])
def test_of_peaks_on_a_line_few_are_asked_for(start: int, limit_batches: int) -> None:
    line = [rounded(10_000_000 + 123_457 * batch) for batch in range(1, BATCH_CEILING + 1)]
    peaks = Peaks(*line)
    found = largest(run_of(start), "batch", line[limit_batches - 1] + 1000, peaks, BOUND)
    assert found.largest == limit_batches
    assert len(peaks.asked) <= 5, peaks.asked


def test_a_second_device_needs_two_more() -> None:
    peaks = Peaks(*(1000 + 10 * batch for batch in range(1, BATCH_CEILING + 1)))
    seen: dict[int, int] = {}
    first = largest(run_of(8), "batch", 5000, peaks, BOUND, seen)
    second = largest(run_of(8), "batch", 9005, peaks, BOUND, seen)
    assert (first.largest, second.largest) == (400, 800)
    assert second.probes == 2


def test_what_is_known_is_not_asked_for() -> None:
    peaks = Peaks(*(10 * batch for batch in range(1, 65)))
    found = largest(run_of(8), "batch", 85, peaks, (64, ""), {8: 80, 9: 90})
    assert (found.largest, found.probes, peaks.asked) == (8, 0, [])


@given(bend=st.integers(1, 4095), slope=st.integers(1, 1000), limit=st.integers(1, 5_000_000))
def test_of_a_line_with_a_bend_no_more_are_asked_for_than_by_doubling_and_halving_twice(
    bend: int, slope: int, limit: int
) -> None:
    """Below the bend another phase is the highest, as where a model is prepared for more than it trains."""
    peaks = Peaks(*(slope * max(bend, batch) for batch in range(1, BATCH_CEILING + 1)))
    largest(run_of(4), "batch", limit, peaks, BOUND)
    assert len(peaks.asked) <= 3 * log2(BATCH_CEILING), peaks.asked


def test_where_not_even_one_fits_the_answer_is_zero_with_the_figure() -> None:
    found = largest(run_of(32), "batch", 9, Peaks(*range(10, 100)), (90, "the bound"))
    assert found == Capacity(setting="batch", limit_bytes=9, largest=0, next_peak_bytes=10, probes=2)


def test_a_run_that_is_longer_than_its_model_begins_at_the_models_context() -> None:
    found = largest(run_of(seq_len=4000), "seq_len", 10**9, lambda run: run.data.seq_len)
    assert (found.largest, found.bound, found.probes) == (128, "the model's context", 1)


def test_a_batch_has_a_bound_of_its_own() -> None:
    assert ceiling(run_of(), "batch") == (4096, "no larger batch is tried")


def test_the_context_of_a_model_is_read_without_its_weights(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 77}')
    assert context_of(LocalModel(source="local", path=str(folder))) == 77
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not a Hugging Face model folder"):
        context_of(LocalModel(source="local", path=str(folder)))


def test_a_real_search_ends_where_a_real_simulation_says_so() -> None:
    from harness.engine.forecast.dry_run import simulate

    limit = 3_000_000

    def peak(run: Run) -> int:
        return simulate(run).peak_allocated_bytes

    found = largest(run_of(2), "batch", limit, peak)
    assert found.largest > 2
    assert peak(run_of(found.largest)) == found.peak_bytes <= limit
    assert peak(run_of(found.largest + 1)) == found.next_peak_bytes
    assert found.next_peak_bytes > limit
    assert found.probes <= 6

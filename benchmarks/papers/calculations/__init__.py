"""Calculations that check published tables without weights or data: counts, bytes, biases, arithmetic.

`{calculation: NAME, with: {argument: value, …}}` in a file of `benchmarks/papers/` asks for one value.
`nox -s tables` evaluates them all into `results/calculations.json`, a sorted
list of {calculation, with, value, unit, how}. A value is a number (12 digits), true or false, or a text.

`shape` is a name in `harness.engine.models.shapes` (60m, 130m, 350m, 1b, 7b, llama-2-7b, llama-2-13b, …),
also as papers write it (llama_60m, 60M, LLaMA 60M, LLaMA-2 7B, 13B).
`method` is as in a suite: full, {galore: {rank: 128}}, {lora: {rank: 128, others: train}},
{lowrank: {rank: 128}}, {sltrain: {rank: 128, delta: 0.03}}, {welore: {err: 0.5}}, [velora, full], ….

`python -m benchmarks.papers.calculations` lists them with arguments and defaults, which the docstring of
each function explains. Counts of parameters are in `parameters` and `matrices`, those of factors by ranks in
`ranks`, bytes in `states` (by conventions that each have a name) and `activations`, errors of evaluation in
`bias`, of other procedures in `procedures`, means, ratios and formulas over published values in
`arithmetic`; `value` has the units.
"""

from benchmarks.papers.calculations.calling import CALCULATIONS, evaluate

__all__ = ["CALCULATIONS", "evaluate"]

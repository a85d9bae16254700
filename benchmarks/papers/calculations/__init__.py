"""Calculations that check published tables without weights or data: counts, bytes, biases, arithmetic.

`{calculation: NAME, with: {argument: value, …}}` in a file of `benchmarks/papers/` asks for one value.
`nox -s tables` evaluates them all into `results/calculations.json`, a sorted
list of {calculation, with, value, unit, how}. A value is a number (12 digits), true or false, or a text.

`shape` is a name in `harness.engine.models.shapes` (60m, 130m, 350m, 1b, 7b, llama-2-7b, llama-2-13b, …),
also as papers write it (llama_60m, 60M, LLaMA 60M, LLaMA-2 7B, 13B).
`method` is as in a suite: full, {galore: {rank: 128}}, {lora: {rank: 128, others: train}},
{lowrank: {rank: 128}}, {sltrain: {rank: 128, delta: 0.03}}, {welore: {err: 0.5}}, [velora, full], ….

Counts, from the real model classes as the methods prepare them
    parameters(shape, method=full, count=total, unit=million)
        count: total | trainable | frozen | targets | others | factored | dense_targets | support | adapters
        unit: elements | million | billion
    parameter_ratio(shape, method, of=model)        of: model | targets | trainable (over all dense)
    rank_reduction_total(shape)                     denominator of effective rank reduction, in ranks
    break_even_rank(m, n)                           largest k with k (m + n) < m n
    size(shape, what)                               what: hidden | intermediate | layers | heads | vocab
    rank_over_width(shape, rank)                    text "128 / 512"
    matrix_elements(method, quantity, m, n, rank)   quantity: weights | states | total
    formula_holds(formula, method, quantity)        true where a formula in m, n, r is what real code keeps
    abilities(method)                               "yes / no / yes": subspaces, pre-training, fine-tuning
    default(method, option)                         the default of an option of ours

Bytes
    state_bytes(shape, method=full, part=total, convention=elements, unit=GB, bits=16, state_bits=None)
        part: weights | states | gradients | total (weights + states) | training (all three)
        unit: bytes | MB | MiB | GB | GiB | GiB/1000 | G (that of GaLore's tables, 1024 x 10^6 bytes)
        convention (`states.CONVENTIONS`): elements | kept | indexed64 | indexed32 | nominal (full, lora,
        lowrank, galore: with unit G these are GaLore's Tables 2, 6a and 6b); state_bits: bits unless given
    state_reduction(shape, method, than=full, part=states, convention=elements, bits=16, state_bits=None,
                    than_state_bits=None, give=percent)         give: percent, or a unit of bytes
    weight_bytes(shape, bits, of=model, unit=GiB)               of: model | targets
    implied_rank(shape, memory, convention=elements, unit=GB, part=total)    below 0: no rank takes so little
    saved_inputs(shape, compressed=[], subtoken_size=None, groups=None, tokens=1024,
                 counted=[q, k, v, o, down], unit=GiB, less_than=None)
        inputs kept for backward, kinds q | k | v | o | gate | up | down; `less_than`: see there

Bias and multiples
    evaluation_batches(rows_per_batch, devices=1)
    unbiased_perplexity(perplexity, batches=None, rows_per_batch=None, devices=1)
    multiple_of(percent, count, give=fits, decimals=3)          give: fits | nearest | distance | numerator
    multiples(percents, count, decimals=3)                      how many of a list are k / count

Arithmetic over published values
    mean(values)    total(values)    difference(minuend, subtrahend)
    ratio(numerator, denominator, give=ratio)                   give: ratio | percent | reduction | overhead
    tokens(steps, rows=512, length=256, share=1, unit=billion)  share: of positions that are no padding
"""

from benchmarks.papers.calculations.calling import CALCULATIONS, evaluate

__all__ = ["CALCULATIONS", "evaluate"]

"""The costs of the `iphone-15-pro` profile, fitted from five published rows; every other row is predicted.

Loads are fitted per kind: T5's blocks, each of which is loaded once, load at a tenth of the rate of STDiT's pairs. With
l the load and e the execution of a block, all equations are linear, and they hold for the policies `sequential` (no
technique) and `on_device_sora` as long as the longer of the two hides the shorter one (T5: l > e; STDiT: l < e).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cidl_sim.core.device import DeviceProfile, Measured
from cidl_sim.core.errors import PublishedError
from cidl_sim.core.workload import Block, Stage, Workload
from cidl_sim.devices.published import Rows, row_of
from cidl_sim.pipelines.named import named_in
from cidl_sim.pipelines.open_sora.family import OPEN_SORA
from cidl_sim.policies.on_device_sora import repeated_body, retained_blocks

FITTED_ROWS = ("t5.sequential", "t5.ci", "lpl15.256.stdit", "ci_dl.256.stdit", "components.vae")

# The resolution is printed for the two STDiT rows. That 68 frames were made, and that the component table is for
# 256x256, is assumed.
FITTED_WORKLOAD = "opensora-v1.2-256x256-68f-30s-fp32"
_LEAP_EVALUATIONS = 16

# The app's package of the embedding holds the whole table, 32128 rows of 4096 floats; the workload counts the rows
# of one prompt.
_EMBEDDING_TABLE_BYTES = 32128 * 4096 * 4


@dataclass(frozen=True)
class BlockCosts:
    """Load and execution of one block in seconds."""

    load_s: float
    exec_s: float


def fit_iphone_15_pro(rows: Rows, base: DeviceProfile) -> DeviceProfile:
    """`base` with loader bandwidth, efficiency and measured costs replaced by those that FITTED_ROWS give.

    Of `base` the memory limit, the baseline, `flops_per_s` and the memory's bandwidth count. PublishedError if a row is
    missing or the rows contradict the assumption about which operation hides the other.
    """
    workload = named_in(OPEN_SORA, FITTED_WORKLOAD)
    text_encoder, denoiser = workload.stages[0], workload.stages[1]
    first_block, block = text_encoder.blocks[1:3]
    pair = denoiser.blocks[1]

    t5 = fit_t5(rows, blocks=len(text_encoder.blocks) - 2, table_share=_EMBEDDING_TABLE_BYTES / block.weight_bytes)
    cold_load_s = t5.load_s * pair.weight_bytes / block.weight_bytes
    stdit = fit_stdit(rows, denoiser, cold_load_s=cold_load_s, first_pair_retained=_retains(base, denoiser))
    bandwidth = round(pair.weight_bytes / stdit.load_s, -6)

    measured = {
        "stdit.pair": _measured(pair, load_s=stdit.load_s, cold_load_s=cold_load_s, exec_s=stdit.exec_s),
        "t5.block": _loaded_once(block, t5, bandwidth),
        "t5.first_block": _loaded_once(first_block, t5, bandwidth),
        # Without a size, so that the cost of the whole table stands whatever the workload counts.
        "t5.embedding": Measured(
            load_s=round(_EMBEDDING_TABLE_BYTES / bandwidth, 4),
            cold_load_s=round(t5.load_s * _EMBEDDING_TABLE_BYTES / block.weight_bytes, 4),
            exec_s=0.0,
        ),
        "vae": fit_vae(rows, workload, bandwidth),
    }
    flops_per_s = base.executor.flops_per_s
    if flops_per_s is None:
        raise PublishedError(f"{base.name}: executor.flops_per_s is needed to fit the efficiency")
    efficiency = round(pair.flops / (stdit.exec_s * flops_per_s), 4)
    return base.model_copy(
        update={
            "loader": base.loader.model_copy(update={"bandwidth_bytes_per_s": bandwidth}),
            "executor": base.executor.model_copy(update={"efficiency": efficiency}),
            "measured": measured,
        }
    )


def fit_t5(rows: Rows, *, blocks: int, table_share: float) -> BlockCosts:
    """A T5 block from the text encoder's time without and with concurrent inference.

        without = (blocks + table_share) l + blocks e
        with    = (blocks + table_share) l + e            (l > e: every execution but the last is hidden)

    `table_share`: bytes of the token embedding over those of a block; it loads at the blocks' rate.
    """
    without, with_ci = row_of(rows, "t5.sequential").seconds, row_of(rows, "t5.ci").seconds
    exec_s = (without - with_ci) / (blocks - 1)
    costs = BlockCosts(load_s=(with_ci - exec_s) / (blocks + table_share), exec_s=exec_s)
    if not 0 < costs.exec_s < costs.load_s:
        raise PublishedError(f"t5.sequential and t5.ci: a load of {costs.load_s:.2f} s does not hide {exec_s:.2f} s")
    return costs


def fit_stdit(rows: Rows, denoiser: Stage, *, cold_load_s: float, first_pair_retained: bool) -> BlockCosts:
    """A pair of STDiT blocks from the denoiser's time with LPL alone (16 evaluations) and with CI-DL (30).

    In units of a pair a step loads B and executes F; the app exposes the loads X of the two end parts (and of
    the first pair, if that is not retained). n pairs load cold in the first step, which nothing overlaps.

        LPL   = 16 (B l + F e) + n (cold_load_s - l)
        CI-DL = (B l + F e) + n (cold_load_s - l) + 29 (F e + X l)
    """
    body = repeated_body(denoiser)
    pair, n = denoiser.blocks[body.start], len(body)
    weights = [block.weight_bytes / pair.weight_bytes for block in denoiser.blocks]
    loads, executions = sum(weights), sum(block.flops for block in denoiser.blocks) / pair.flops
    exposed = loads - n + (0 if first_pair_retained else 1)
    later_steps = denoiser.rounds - 1
    equations = [
        [_LEAP_EVALUATIONS * loads - n, _LEAP_EVALUATIONS * executions],
        [loads - n + later_steps * exposed, executions + later_steps * executions],
    ]
    totals = [row_of(rows, name).seconds - n * cold_load_s for name in ("lpl15.256.stdit", "ci_dl.256.stdit")]
    load_s, exec_s = (float(seconds) for seconds in np.linalg.solve(np.array(equations), np.array(totals)))
    if not 0 < load_s < exec_s:
        raise PublishedError(
            f"lpl15.256.stdit and ci_dl.256.stdit: an execution of {exec_s:.2f} s does not hide a load of {load_s:.2f}"
        )
    return BlockCosts(load_s, exec_s)


def fit_vae(rows: Rows, workload: Workload, bandwidth_bytes_per_s: float) -> Measured:
    """The decoder as a whole: its published time less its loads; kinds below `vae` scale by arithmetic and bytes."""
    visits = [visit for visit in workload.visits if workload.stages[visit.stage].group == "decoder"]
    loads_s = sum(visit.block.weight_bytes for visit in visits) / bandwidth_bytes_per_s
    exec_s = row_of(rows, "components.vae").seconds - loads_s
    if exec_s <= 0:
        raise PublishedError(f"components.vae: {loads_s:.1f} s of loads leave nothing to execute")
    return Measured(
        exec_s=round(exec_s, 2),
        flops=sum(visit.block.flops for visit in visits),
        bytes_moved=sum(visit.block.bytes_moved for visit in visits),
    )


def _retains(base: DeviceProfile, denoiser: Stage) -> bool:
    body = repeated_body(denoiser)
    return retained_blocks(base, denoiser.blocks[body.start : body.stop]) > 0


def _loaded_once(block: Block, costs: BlockCosts, later_bytes_per_s: float) -> Measured:
    """A block whose published load is a first one; a later one goes at the rate of the pairs' later loads."""
    later_s = block.weight_bytes / later_bytes_per_s
    return _measured(block, load_s=later_s, cold_load_s=costs.load_s, exec_s=costs.exec_s)


def _measured(block: Block, **seconds: float) -> Measured:
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    return Measured(weight_bytes=block.weight_bytes, flops=block.flops, bytes_moved=block.bytes_moved, **rounded)

"""A manifest and recorded samples made by hand: sizes and times are invented, kinds and shapes are the tiny model's."""

from __future__ import annotations

from cidl_sim.core.workload import Workload
from cidl_sim.coreml.export import TARGET_NAME
from cidl_sim.coreml.manifest import Manifest, Package, PackageFunction, TensorSpec
from cidl_sim.coreml.profile import BlockSamples, CostRecording
from cidl_sim.pipelines.catalog import find_workload
from cidl_sim.pipelines.open_sora.settings import OPENSORA_TINY

TINY = "opensora-tiny-32x32-17f-6s-fp16-tdtm3"
PROGRAM_BYTES = 1000
COLD_S, WARM_S, PREDICT_S = 0.5, 0.05, 0.02


def tiny() -> Workload:
    """The workload of the manifest, with plain and merged pairs."""
    return find_workload(TINY)


def manifest_by_hand(missing: tuple[str, ...] = ()) -> Manifest:
    """What an export of the tiny model looks like; packages are as large as the weights and a program."""
    kinds: dict[str, dict[str, int]] = {}
    for stage in tiny().stages:
        for block in stage.blocks:
            kinds.setdefault(block.weights, {})[block.kind] = block.weight_bytes
    packages = {
        weights: Package(
            folder=f"{weights}.mlpackage",
            bytes=max(by_kind.values()) + PROGRAM_BYTES,
            source_sha256="0" * 64,
            default_function="main" if len(by_kind) == 1 else "f0",
            functions={
                "main" if len(by_kind) == 1 else f"f{i}": _function(kind)
                for i, kind in enumerate(sorted(by_kind, key=lambda kind: "merged" in kind))
            },
            files={},
        )
        for weights, by_kind in kinds.items()
        if weights not in missing
    }
    return Manifest(
        model="opensora-tiny",
        sizes=OPENSORA_TINY.model_dump(mode="json"),
        dtype="fp16",
        compression="none",
        partition="reference",
        target=TARGET_NAME,
        made_with={"coremltools": "9.0"},
        workloads={TINY: tuple(dict.fromkeys(kind for by_kind in kinds.values() for kind in by_kind))},
        packages=packages,
        missing=missing,
    )


def _function(kind: str) -> PackageFunction:
    hidden = TensorSpec(name="hidden", dtype="fp16", shape=(1, 64, 32), flexible=(1,))
    steps = TensorSpec(name="timestep", dtype="fp32", shape=(1,))
    return PackageFunction(kind=kind, inputs=(hidden, steps), outputs=(hidden,))


def samples_by_hand(kind: str, weights: str, workload: Workload, **changed: object) -> BlockSamples:
    """Samples of one block: later loads and predictions within a few per cent of 50 and 20 ms, a first load of 500."""
    block = next(block for stage in workload.stages for block in stage.blocks if block.kind == kind)
    return BlockSamples(
        **{
            "kind": kind,
            "weights": weights,
            "function": "main",
            "package_bytes": block.weight_bytes + PROGRAM_BYTES,
            "weight_bytes": block.weight_bytes,
            "flops": block.flops,
            "workspace_bytes": block.workspace_bytes,
            "compiled_bytes": block.weight_bytes + 2 * PROGRAM_BYTES,
            "compile_ms": [200.0],
            "cold_load_ms": [COLD_S * 1e3],
            "warm_load_ms": [54.0, 49.0, 51.0, 50.0, 50.0, 47.0, 52.0, 48.0, 50.0],
            "predict_ms": [20.0, 20.5, 19.5, 20.0, 21.0, 19.0, 20.0, 20.2, 19.8],
            **changed,
        }
    )


def recording_by_hand(**changed: object) -> CostRecording:
    """One block of each kind of the tiny model, on a Mac that does not exist; `changed` is of every block."""
    workload = tiny()
    first = {block.kind: block.weights for stage in reversed(workload.stages) for block in reversed(stage.blocks)}
    return CostRecording(
        measured_by="coremltools",
        device="made by hand",
        os="macOS 0",
        date="2026-01-01",
        versions={"coremltools": "9.0"},
        compute_units="cpu_and_gpu",
        model="opensora-tiny",
        dtype="fp16",
        compression="none",
        workloads=(TINY,),
        packages_bytes=sum(package.bytes for package in manifest_by_hand().packages.values()),
        blocks=tuple(samples_by_hand(kind, weights, workload, **changed) for kind, weights in first.items()),
    )

"""Checkpoints as people have them: folders of diffusers, and original files of v1, v2 and XL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor

from cidl_sim.blocks.definition import BlockDefinition
from cidl_sim.executor.store import TOKENIZER_FOLDER, BlockStore
from cidl_sim.pipelines.checkpoint import View
from cidl_sim.pipelines.model_store import distinct_blocks, import_checkpoints, recognised
from cidl_sim.pipelines.shards import CheckpointError
from cidl_sim.pipelines.stable_diffusion.architectures import MODELS, SD_TINY
from cidl_sim.pipelines.stable_diffusion.family import STABLE_DIFFUSION
from cidl_sim.pipelines.stable_diffusion.settings import ImageSizes
from tests.pipelines.stable_diffusion.test_networks import text_keys
from tests.pipelines.stable_diffusion.test_program import library_networks

# v2's text encoder in miniature: OpenCLIP's keys in an original file.
SD2_TINY = SD_TINY.model_copy(
    update={
        "name": "sd2-tiny",
        "text_encoder": SD_TINY.text_encoder.model_copy(update={"activation": "gelu"}),
        "padding": "zero",
        "prediction": "v",
    }
)
TINY = [SD_TINY, SD2_TINY, MODELS["sdxl-tiny"]]


def states(sizes: ImageSizes) -> dict[str, dict[str, Tensor]]:
    """By part the tensors of a model under the keys that published folders have."""
    networks = library_networks(sizes)
    return {
        part: text_keys(network) if part.startswith("text") else network.state_dict()
        for part, network in networks.items()
    }


def folder_of(
    tmp_path: Path, sizes: ImageSizes, *, variant: str | None = None, shards: str = "5GB", hub: bool = False
) -> Path:
    """As the libraries of today save a pipeline's parts; `hub`: text encoders by the names of published files."""
    for part, network in library_networks(sizes).items():
        network.save_pretrained(tmp_path / part, variant=variant, max_shard_size=shards)
        if hub and part.startswith("text"):
            save_file(text_keys(network), tmp_path / part / "model.safetensors")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "scheduler").mkdir()
    kind = {"v": "v_prediction"}.get(sizes.prediction, sizes.prediction)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": kind}))
    return tmp_path


def in_a_cache(folder: Path) -> Path:
    """The same as the hub's cache has it: every file a link to one without a name."""
    blobs, snapshot = folder.with_name("blobs"), folder.with_name("snapshot")
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.rename(blobs / f"{number:064x}"))
    return snapshot


def original_of(sizes: ImageSizes) -> dict[str, Tensor]:
    """All parts in one state, under the names of the original files."""
    original: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for part, state in states(sizes).items():
        found = STABLE_DIFFUSION.in_single_file(sizes, part)
        assert found is not None
        for key, view in found[0].items():
            tensor = state[key]
            if view.squeezed:
                tensor = tensor[:, :, None, None]
            if view.rows is not None:
                thirds.setdefault(view.key, {})[int(view.rows[0] * 3)] = tensor
            else:
                assert view.key not in original
                original[view.key] = tensor.t() if view.transposed else tensor
    original |= {key: torch.cat([parts[i] for i in range(3)]) for key, parts in thirds.items()}
    return {key: tensor.contiguous() for key, tensor in original.items()}


def tensors_of(store: BlockStore, sizes: ImageSizes) -> dict[str, dict[str, Tensor]]:
    """What a store holds, by part and published key."""
    found: dict[str, dict[str, Tensor]] = {}
    for block in distinct_blocks(sizes, "fp32", store.index.partition):
        for name, tensor in load_file(store.path(block.weights)).items():
            found.setdefault(block.checkpoint, {})[block.published_key(name)] = tensor
    return found


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STABLE_DIFFUSION, "models", {sizes.name: sizes for sizes in TINY})


FORMS: dict[str, dict[str, Any]] = {
    "as saved": {},
    "of the hub": {"hub": True},
    "in shards": {"shards": "2MB"},
    "a variant in shards": {"shards": "2MB", "variant": "fp16"},
}


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("sizes", TINY, ids=lambda sizes: sizes.name)
def test_a_folder_of_diffusers_is_recognised_and_imported(
    tmp_path: Path, sizes: ImageSizes, form: dict[str, Any]
) -> None:
    folder, variant = in_a_cache(folder_of(tmp_path / "pipeline", sizes, **form)), form.get("variant")
    if "shards" in form:
        assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    found, parts = recognised(folder, variant)
    assert found == sizes
    store = import_checkpoints(tmp_path / "store", found, "fp32", parts, partition="dfine", variant=variant)
    there, expected = tensors_of(store, sizes), states(sizes)
    assert there.keys() == expected.keys()
    for part, tensors in there.items():
        assert all(torch.equal(tensor, expected[part][key]) for key, tensor in tensors.items())
    assert (tmp_path / "store" / TOKENIZER_FOLDER / "merges.txt").is_file()


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("sizes", TINY, ids=lambda sizes: sizes.name)
def test_an_original_file_is_recognised_and_imported(tmp_path: Path, sizes: ImageSizes) -> None:
    extras = {"model_ema.decay": torch.ones(1), "first_stage_model.encoder.conv_in.bias": torch.ones(8)}
    save_file(original_of(sizes) | extras, tmp_path / "original.safetensors")
    found, parts = recognised(tmp_path / "original.safetensors")
    # What the network predicts stands in no such file.
    assert found.model_copy(update={"name": "", "prediction": "v"}) == sizes.model_copy(
        update={"name": "", "prediction": "v"}
    )
    store = import_checkpoints(tmp_path / "store", found, "fp32", parts)
    there, expected = tensors_of(store, found), states(sizes)
    for part, tensors in there.items():
        assert all(torch.equal(tensor, expected[part][key]) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", ["sd-v1.5", "sd-v2.1", "sdxl"])
def test_the_unets_and_decoders_original_names_are_those_that_the_library_converts(name: str) -> None:
    sizes = MODELS[name]
    blocks = distinct_blocks(sizes, "fp32")
    for part, convert in (
        ("unet", single_file_utils.convert_ldm_unet_checkpoint),
        ("vae", single_file_utils.convert_ldm_vae_checkpoint),
    ):
        shapes = {b.published_key(n): s for b in blocks if b.checkpoint == part for n, s in b.shapes().items()}
        found = STABLE_DIFFUSION.in_single_file(sizes, part)
        assert found is not None
        original = {}
        for key, view in found[0].items():
            shape = (*shapes[key], 1, 1) if view.squeezed else shapes[key]
            original[view.key] = torch.empty(shape, device="meta")
        converted = convert(dict(original), config=library_config(sizes, part))
        there = {key: tuple(tensor.shape) for key, tensor in converted.items() if key in shapes}
        assert there == shapes


def library_config(sizes: ImageSizes, part: str) -> dict[str, Any]:
    if part == "vae":
        return {"down_block_types": ["x"] * 4, "up_block_types": ["x"] * 4}
    return {
        "layers_per_block": 2,
        "block_out_channels": [level.channels for level in sizes.unet.levels],
        "down_block_types": ["x"] * len(sizes.unet.levels),
        "up_block_types": ["x"] * len(sizes.unet.levels),
        "addition_embed_type": "text_time" if sizes.unet.pooled else None,
        "class_embed_type": None,
        "num_class_embeds": None,
    }


def test_views_cut_turn_and_squeeze() -> None:
    from fractions import Fraction

    stored = torch.arange(24.0).view(6, 4)
    view = View("x", rows=(Fraction(1, 3), Fraction(2, 3)))
    assert torch.equal(view.of(stored), stored[2:4])
    assert view.shape((6, 4)) == (2, 4)
    assert View("x", transposed=True).shape((6, 4)) == (4, 6)
    assert torch.equal(View("x", squeezed=True).of(stored[:, :, None, None]), stored)


@pytest.mark.usefixtures("known")
def test_one_wrong_key_is_told_of_the_model_that_is_nearest(tmp_path: Path) -> None:
    original = original_of(SD_TINY)
    original["model.diffusion_model.extra.weight"] = torch.ones(3)
    del original["model.diffusion_model.out.2.bias"]
    save_file(original, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 missing: conv_out.bias; 1 not of this model: model.diffusion_model.e"
    ):
        recognised(tmp_path / "x.safetensors")


@pytest.mark.usefixtures("known")
def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a checkpoint's folder nor a file"):
        recognised(tmp_path / "nowhere.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not a file of weights"):
        recognised(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="laid out as no model's"):
        recognised(tmp_path)


@pytest.mark.usefixtures("known")
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "v1.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"a pickle, which can run code.*v1.safetensors"):
        recognised(tmp_path / "v1.ckpt")


@pytest.mark.usefixtures("known")
def test_variants_and_old_names_of_the_decoders_attention(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, SD_TINY, variant="fp16")
    file = folder / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = states(SD_TINY)["vae"]
    for new, before in old.items():
        for key in [key for key in state if f"attentions.0.{new}." in key]:
            state[key.replace(new, before)] = state.pop(key)
    save_file(state, file)
    with pytest.raises(CheckpointError, match="--variant: fp16"):
        recognised(folder)
    sizes, parts = recognised(folder, "fp16")
    assert sizes == SD_TINY
    store = import_checkpoints(tmp_path / "store", sizes, "fp32", parts, variant="fp16")
    expected = states(SD_TINY)["vae"]
    assert all(torch.equal(t, expected[key]) for key, t in tensors_of(store, sizes)["vae"].items())


@pytest.mark.parametrize(("said", "predicted"), [("v_prediction", "v"), ("epsilon", "epsilon")])
def test_the_schedulers_file_says_what_the_network_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, predicted: str
) -> None:
    both = [SD2_TINY.model_copy(update={"name": kind, "prediction": kind}) for kind in ("epsilon", "v")]
    monkeypatch.setattr(STABLE_DIFFUSION, "models", {sizes.name: sizes for sizes in both})
    folder = folder_of(tmp_path, SD2_TINY)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": said}))
    assert recognised(folder)[0].name == predicted
    (folder / "scheduler" / "scheduler_config.json").write_text("[")
    assert recognised(folder)[0].name == "epsilon"


def test_blocks_of_every_model_have_their_own_keys() -> None:
    for sizes in MODELS.values():
        blocks: list[BlockDefinition] = distinct_blocks(sizes, "fp32")
        keys = [(b.checkpoint, b.published_key(name)) for b in blocks for name in b.shapes()]
        assert len(keys) == len(set(keys))

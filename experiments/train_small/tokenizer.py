"""The tokenizer of the small model: a SentencePiece model with each word of its captions whole, and letters."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import sentencepiece

from cidl_sim.core.files import write_text
from cidl_sim.pipelines.open_sora.prompt import PAD, prepared_prompt
from cidl_sim.quality.shapes import caption, random_scene, seen_combinations

PIECES = 96  # at most; rows of the token table
END, UNKNOWN = 1, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.:'"


def train_tokenizer(folder: Path, seed: int = 0, scenes_of_each: int = 2000) -> None:
    """Write `spiece.model` and what the transformers library needs beside it: from scenes of two things and of one."""
    random = np.random.default_rng(seed)
    scenes = [random_scene(random, things, seen_combinations()) for things in (2, 1) for _ in range(scenes_of_each)]
    texts = [prepared_prompt(caption(scene)) for scene in scenes]
    words = sorted({f"\u2581{word}" for text in texts for word in text.split()})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=PIECES,
        hard_vocab_limit=False,
        model_type="char",
        user_defined_symbols=["\u2581", *words],
        required_chars=LETTERS,
        normalization_rule_name="identity",
        pad_id=PAD,
        eos_id=END,
        unk_id=UNKNOWN,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    write_text(folder / "tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}\n')

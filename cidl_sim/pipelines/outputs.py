"""Frames to mp4, and images to single pictures."""

from __future__ import annotations

from pathlib import Path

import av
from torch import Tensor

from cidl_sim.core.files import replacing


def write_video(path: Path, frames: Tensor, frames_per_second: int) -> None:
    """Write (F, H, W, 3) 8-bit RGB as H.264 in mp4, in one step: `path` is whole or not there."""
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frames_per_second)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread, so that the encoder's buffers stay small beside a tight memory limit.
        stream.codec_context.thread_count = 1
        # x264's assembly gives different files for equal frames at small sizes (seen at 48x48); its C code does not.
        stream.options = {"crf": "16", "preset": "veryfast", "x264-params": "no-asm=1"}
        for frame in frames.numpy():
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_image(path: Path, image: Tensor) -> None:
    """Write (H, W, 3) 8-bit RGB as a PNG, in one step: `path` is whole or not there."""
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(image.numpy()).save(temporary, format="PNG")


def write_frames(folder: Path, frames: Tensor) -> None:
    """Write each of (F, H, W, 3) 8-bit RGB frames as frame-0000.png and so on; each file is whole or not there."""
    for i, frame in enumerate(frames):
        write_image(folder / f"frame-{i:04}.png", frame)

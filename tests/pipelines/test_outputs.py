"""Video files: whole or not there, and the same bytes for the same frames."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from cidl_sim.core.errors import MachineError
from cidl_sim.pipelines.outputs import write_video


def random_frames(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def smooth_frames(count: int, height: int, width: int) -> torch.Tensor:
    """A grey ramp that grows brighter from frame to frame."""
    ramp = torch.linspace(0, 150, width).expand(count, height, width) + 10 * torch.arange(count)[:, None, None]
    return ramp.clamp(0, 255).to(torch.uint8)[..., None].expand(-1, -1, -1, 3).contiguous()


def moving_frames(count: int, height: int, width: int) -> torch.Tensor:
    """Soft shapes that move, with a little noise: what the encoder has motion to search in."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, count // 4, 6, 6, generator=generator)
    soft = torch.nn.functional.interpolate(coarse, size=(count, height, width), mode="trilinear")[0].permute(1, 2, 3, 0)
    noise = torch.randn(count, height, width, 3, generator=generator)
    return (255 * soft + 8 * noise).clamp(0, 255).to(torch.uint8).contiguous()


def read_frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_frames_come_back_in_number_size_and_colour(tmp_path):
    frames = smooth_frames(9, 32, 48)
    write_video(tmp_path / "video.mp4", frames, 24)
    found = read_frames(tmp_path / "video.mp4")
    assert found.shape == (9, 32, 48, 3)
    assert np.abs(found.astype(int) - frames.numpy().astype(int)).mean() < 3
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert container.streams.video[0].average_rate == 24


@pytest.mark.parametrize("frames", [random_frames(17, 48, 48), moving_frames(34, 64, 64)], ids=["random", "moving"])
def test_equal_frames_give_equal_bytes(tmp_path, frames):
    for i in range(10):
        write_video(tmp_path / f"{i}.mp4", frames, 24)
    assert len({(tmp_path / f"{i}.mp4").read_bytes() for i in range(10)}) == 1


def test_other_frames_give_other_bytes(tmp_path):
    for seed in range(2):
        write_video(tmp_path / f"{seed}.mp4", random_frames(17, 48, 48, seed), 24)
    assert (tmp_path / "0.mp4").read_bytes() != (tmp_path / "1.mp4").read_bytes()


# The encoder refuses odd sides at its start; a frame of a wrong shape fails when the file is half written.
UNFIT = {
    "from the start": lambda: random_frames(5, 47, 47),
    "half way": lambda: FailsHalfWay(random_frames(60, 64, 64)),
}


class FailsHalfWay:
    """Frames of which the last has the wrong number of channels."""

    def __init__(self, frames: torch.Tensor) -> None:
        self.frames = frames
        self.shape = frames.shape

    def numpy(self) -> list[np.ndarray]:
        *fit, last = self.frames.numpy()
        return [*fit, last[..., :2]]


@pytest.mark.parametrize("unfit", UNFIT)
def test_frames_that_cannot_be_encoded_leave_no_file(tmp_path, unfit):
    with pytest.raises((av.FFmpegError, ValueError)):
        write_video(tmp_path / "video.mp4", UNFIT[unfit](), 24)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unfit", UNFIT)
def test_frames_that_cannot_be_encoded_leave_an_older_file_as_it_was(tmp_path, unfit):
    (tmp_path / "video.mp4").write_bytes(b"older")
    with pytest.raises((av.FFmpegError, ValueError)):
        write_video(tmp_path / "video.mp4", UNFIT[unfit](), 24)
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
    assert (tmp_path / "video.mp4").read_bytes() == b"older"


def test_a_folder_that_cannot_be_made_is_a_machine_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=rf"{tmp_path / 'file' / 'video.mp4'}: cannot be written"):
        write_video(tmp_path / "file" / "video.mp4", random_frames(2, 32, 32), 24)

"""Device profiles by name: the shipped ones, and `this-machine` once it has been measured."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from cidl_sim.core.device import DeviceProfile, read_device
from cidl_sim.core.errors import DeviceError, did_you_mean
from cidl_sim.core.files import cache_folder

THIS_MACHINE = "this-machine"


def this_machine_file() -> Path:
    """Where the profile of this machine is kept for later commands."""
    return cache_folder() / f"{THIS_MACHINE}.toml"


def shipped_devices() -> dict[str, Path]:
    """The profiles that come with the package, by name."""
    folder = Path(str(resources.files("cidl_sim.devices"))) / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_device(name_or_file: str) -> DeviceProfile:
    """The profile in a file, or the named one. DeviceError says which names there are."""
    path = Path(name_or_file)
    if path.suffix == ".toml" or path.is_file():
        return read_device(path)
    if name_or_file == THIS_MACHINE:
        if not this_machine_file().is_file():
            raise DeviceError(
                f"{THIS_MACHINE!r} has not been measured yet: run 'cidl demo' or 'cidl calibrate --store DIR'"
            )
        return read_device(this_machine_file())
    shipped = shipped_devices()
    if name_or_file not in shipped:
        names = [*shipped, THIS_MACHINE]
        near = did_you_mean(name_or_file, names)
        raise DeviceError(f"unknown device {name_or_file!r}: neither a file nor one of {', '.join(names)}{near}")
    return read_device(shipped[name_or_file])

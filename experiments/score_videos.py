"""Score the videos in one folder against those of the same names in another, such as an accelerated and a full run.

    .venv/bin/python experiments/score_videos.py FOLDER REFERENCE [--networks FOLDER] [--prompts FILE]

For videos of any checkpoint, as `cidl run` writes them. SSIM, PSNR and the stand-ins need nothing; with the user's
networks (docs/guides/quality.md says which files) FVD and CLIP come beside them. Prints a table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cidl_sim.core.errors import CidlError
from cidl_sim.quality.compare import compare_videos, pairs_of, read_prompts
from cidl_sim.quality.networks import Networks, find_networks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--networks", type=Path, help="a folder with i3d_torchscript.pt, clip/ or both")
    parser.add_argument("--prompts", type=Path, help="a prompt a line, in the order of the videos' names")
    args = parser.parse_args()
    try:
        pairs = pairs_of(args.folder, args.reference)
        networks = find_networks(args.networks) if args.networks else Networks()
        prompts = read_prompts(args.prompts, len(pairs)) if args.prompts else []
        scores = compare_videos(pairs, networks, prompts)
    except CidlError as problem:
        sys.stderr.write(f"score_videos: {problem}\n")
        return problem.exit_code
    print(f"{len(pairs)} videos; in brackets 95 % intervals (bootstrap over videos); * stands in for VBench's")
    print(f"| score | {args.folder} | {args.reference} |\n|---|---|---|")
    for name, (ours, theirs) in scores.items():
        print(f"| {name} | {ours:.3f} | {'-' if theirs is None else format(theirs, '.3f')} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

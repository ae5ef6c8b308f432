"""Where published figures of the same thing differ, so that no fit to one of them hides the others."""

from __future__ import annotations

from dataclasses import dataclass

from cidl_sim.devices.published import PublishedRow, Rows, row_of


@dataclass(frozen=True)
class Disagreement:
    """One quantity, what several published figures say about it, and why that matters.

    `row_ids`: the rows, where each figure is one, so that a picture can join them.
    """

    what: str
    unit: str
    figures: tuple[tuple[str, float], ...]
    note: str = ""
    row_ids: tuple[str, ...] = ()

    @property
    def spread(self) -> float:
        """The largest figure over the smallest, less one."""
        values = [value for _, value in self.figures]
        return max(values) / min(values) - 1


@dataclass(frozen=True)
class LoadRate:
    """A published load whose bytes are known."""

    row: PublishedRow
    weight_bytes: int

    @property
    def bytes_per_s(self) -> float:
        """Bytes over the published time."""
        return self.weight_bytes / self.row.seconds


def disagreements(rows: Rows) -> list[Disagreement]:
    """The disagreements among the rows of On-device Sora. PublishedError if one of them is missing."""
    return [*_components(rows), *_steps(rows), *_speed_ups(rows)]


def _components(rows: Rows) -> list[Disagreement]:
    def s(row_id: str) -> float:
        return row_of(rows, row_id).seconds

    return [
        Disagreement(
            "T5 without a technique",
            "s",
            (("components", s("components.t5")), ("concurrent inference", s("t5.sequential"))),
            "The prompt's length does not matter: prompts are padded to 300 tokens.",
            ("components.t5", "t5.sequential"),
        ),
        Disagreement(
            "T5 and VAE together, 256x256",
            "s",
            (
                ("components", s("components.t5") + s("components.vae")),
                ("LPL: total less STDiT", s("lpl15.256.total") - s("lpl15.256.stdit")),
                ("CI-DL: total less STDiT", s("ci_dl.256.total") - s("ci_dl.256.stdit")),
            ),
            "If the VAE takes its 135 s, T5 takes 45 s of the totals, less than half of what any row prints for it.",
        ),
    ]


def _steps(rows: Rows) -> list[Disagreement]:
    def s(row_id: str) -> float:
        return row_of(rows, row_id).seconds

    plain = {size: s(f"lpl15.{size}.stdit") / 16 for size in ("192", "256")}
    overlapped = {size: s(f"ci_dl.{size}.stdit") / 30 for size in ("192", "256")}
    saved = {size: plain[size] - overlapped[size] for size in plain}
    return [
        Disagreement(
            "a step of STDiT without a technique",
            "s",
            (
                ("components", s("components.stdit_step")),
                ("concurrent inference", s("ci.step_without")),
                ("concurrent inference, 1000 s / 30", s("ci.run_without") / 30),
                ("LPL at 256x256 / 16", plain["256"]),
                ("LPL at 192x192 / 16", plain["192"]),
            ),
            "29 s belongs to neither resolution; one step of 67 s and 29 of 29 s make 908 s, not 1000.",
            ("components.stdit_step", "ci.step_without"),
        ),
        Disagreement(
            "what CI or CI-DL saves of a step",
            "%",
            (
                ("concurrent inference, 29 to 23 s", 100 * (1 - s("ci.step_with") / s("ci.step_without"))),
                ("concurrent inference, 1000 to 750 s", 100 * (1 - s("ci.run_with") / s("ci.run_without"))),
                ("256x256: LPL / 16 to CI-DL / 30", 100 * saved["256"] / plain["256"]),
                ("192x192: LPL / 16 to CI-DL / 30", 100 * saved["192"] / plain["192"]),
            ),
            f"In seconds {saved['256']:.1f} at 256x256, {saved['192']:.1f} at 192x192, for the same bytes. Part of it "
            "may be the slow first step, which weighs more among 16 than among 30.",
        ),
    ]


def _speed_ups(rows: Rows) -> list[Disagreement]:
    def against_equal_steps(name: str, evaluations: float) -> Disagreement:
        printed = row_of(rows, f"lpl.speed_up.{name}").value
        figures = (("printed", printed), ("30 steps of equal cost", 30 / evaluations))
        return Disagreement(f"speed-up of {evaluations:g} evaluations over 30", "x", figures)

    counts = {"16": 16, "21": 21, "23": 23, "25": 25, "dynamic": 17.73}
    headline = Disagreement(
        "the headline",
        "x",
        (
            ("up to", row_of(rows, "claim.ten_times").value),
            (
                "sum of the components / best printed total",
                row_of(rows, "components.sum").seconds / row_of(rows, "lpl15.192.total").seconds,
            ),
        ),
        "At unequal settings: 50 steps at (probably) 256x256 against 16 at 192x192.",
    )
    return [*(against_equal_steps(name, count) for name, count in counts.items()), headline]


def load_rates(rows: Rows) -> list[LoadRate]:
    """Every row that times a load of a known number of bytes, first loads before later ones."""
    found = [
        LoadRate(row, row.conditions.weight_bytes)
        for row in rows.values()
        if row.conditions.weight_bytes and (row.conditions.load or "load" in row.conditions.not_printed)
    ]
    return sorted(found, key=lambda rate: rate.row.conditions.load or "not printed")

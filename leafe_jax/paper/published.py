"""The paper's own numbers (arXiv 2603.16843), from public transcriptions of its tables; success in percent.

They are printed apart and marked as the paper's. Other models, other budgets: nothing here is compared with
them by a test.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
    """A table of the paper.

    Attributes:
      header: names of the columns.
      rows: their cells, as printed there.
      note: what a reader has to know.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


_MAIN = ("model", "method", "WebShop", "ALFWorld", "ScienceWorld", "Sokoban")
_QWEN, _LLAMA = "Qwen2.5-7B", "Llama3.1-8B"

PUBLISHED = {
    "table1": Published(
        _MAIN,
        (
            (_QWEN, "base", "0.05 / 5.20", "26.07 / 78.57", "7.00 / 47.33", "6.90 / 43.80"),
            (
                _QWEN,
                "early_experience",
                "61.55 / 84.60",
                "72.23 / 92.86",
                "26.17 / 54.67",
                "60.15 / 71.60",
            ),
            (_QWEN, "grpo", "67.45 / 85.40", "69.46 / 91.43", "27.17 / 57.33", "58.15 / 68.00"),
            (_QWEN, "ace", "68.65 / 86.80", "66.34 / 89.63", "29.45 / 59.67", "61.30 / 70.80"),
            (_QWEN, "leafe", "66.50 / 87.80", "67.50 / 94.29", "27.88 / 62.00", "64.60 / 78.40"),
            (_LLAMA, "base", "0.00 / 1.80", "29.82 / 74.29", "7.17 / 48.67", "17.70 / 61.40"),
            (
                _LLAMA,
                "early_experience",
                "51.13 / 77.80",
                "74.15 / 95.71",
                "24.04 / 56.00",
                "57.32 / 68.20",
            ),
            (_LLAMA, "grpo", "54.95 / 79.40", "72.50 / 94.29", "24.25 / 56.00", "60.43 / 73.40"),
            (_LLAMA, "ace", "54.35 / 79.80", "70.32 / 92.50", "25.28 / 57.33", "60.79 / 73.20"),
            (_LLAMA, "leafe", "56.25 / 81.00", "71.79 / 96.43", "22.70 / 59.33", "62.00 / 77.20"),
        ),
        "Pass@1 / Pass@128. Early Experience is implicit world modelling; ACE stands on the GRPO model."
        " Which LEAFE rows start from the GRPO model is uncertain.",
    ),
    "table2": Published(
        ("model", "base", "grpo", "leafe"),
        (
            ("Qwen2.5-72B", "10.00 / 33.94", "20.45 / 36.97", "17.12 / 47.88"),
            ("Llama3-70B", "7.35 / 24.85", "13.64 / 27.88", "14.09 / 33.94"),
        ),
        "CodeContests, Pass@1 / Pass@128.",
    ),
    "table3": Published(
        ("model", "independent", "refine", "tree"),
        (
            ("Qwen2.5-32B", "48.92", "51.48", "55.52"),
            ("Qwen2.5-72B", "48.65", "49.52", "54.30"),
            ("Llama3-70B", "30.20", "38.10", "42.50"),
        ),
        "Stage 1 on CodeContests at equal budget, Pass@128.",
    ),
    "table4": Published(
        ("model", "L_reh alone", "L_cf + L_reh"),
        (
            ("Qwen2.5-7B", "27.67 / 59.33", "27.88 / 62.00"),
            ("Qwen2.5-14B", "37.17 / 67.33", "36.50 / 72.00"),
        ),
        "ScienceWorld, Pass@1 / Pass@128.",
    ),
    "table5": Published(
        ("model", "base", "grpo", "leafe"),
        (("Qwen2.5-72B", "83.33", "81.22", "85.13"),),
        "Trained on CodeContests, tested on MBPP+, Pass@128.",
    ),
    "table6": Published(
        ("model", "LEAFE alone"),
        (
            ("Qwen2.5-32B", "9.34 / 34.35"),
            ("Qwen2.5-72B", "11.15 / 40.00"),
            ("Llama3-70B", "9.33 / 30.30"),
        ),
        "CodeContests without GRPO, Pass@1 / Pass@128.",
    ),
}

"""docs/RESULTS.md is what the committed result files give."""

import json
from pathlib import Path

from made import results

from leafe_jax.paper import publish
from leafe_jax.paper.tables import config

ROOT = Path(__file__).resolve().parents[2]


def write(directory, table="table6", cell="household", seed=0, successes=(1, 4, 0)):
    c = config(table, "mini").cells[cell]
    c.seed = seed
    made = results(c, {m: [0, 0, 1] if m == "base" else list(successes) for m in c.methods})
    folder = directory / "mini" / table
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{cell}-seed{seed}.json").write_text(json.dumps(made))


def test_the_page_is_written_from_the_files_and_checked(tmp_path, capsys):
    files, page = tmp_path / "results", tmp_path / "RESULTS.md"
    for seed in (0, 1):
        write(files, seed=seed)
    write(files, cell="code")
    arguments = [f"--results={files}", f"--out={page}"]
    assert publish.main(arguments) == 0 and publish.main([*arguments, "--check"]) == 0
    text = page.read_text()
    assert "# Table 6: LEAFE with and without GRPO (mini)" in text
    assert "code: 3 tasks, seeds 0; household: 3 tasks, seeds 0, 1" in text
    assert "code seed 0, household seed 0, household seed 1: Made by aaaaaaaaaaaa." in text
    write(files, seed=1, successes=(4, 4, 4))
    assert publish.main([*arguments, "--check"]) == 2
    assert "RESULTS.md: not what" in capsys.readouterr().err
    assert publish.main([f"--results={tmp_path / 'none'}", f"--out={page}"]) == 2
    assert "no result file there" in capsys.readouterr().err


def test_the_committed_page_is_what_the_committed_files_give():
    files, page = ROOT / "results", ROOT / "docs" / "RESULTS.md"
    assert files.exists() == page.exists()  # until the tables have been run there is neither
    assert not page.exists() or publish.text_of(files) == page.read_text()

"""The script that joins runs of one family each."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import join_families
from hmrl.cli.report import main as report
from hmrl.results.reading import read
from hmrl.system.errors import UserError
from support.reported import rising, write_metrics, write_seed

LAST = {("reach", 1): 0.2, ("push", 1): 0.6, ("reach", 2): 0.4, ("push", 2): 0.8}


def run(folder: Path, family: str, seed: int, last: float, *, rows: int = 20) -> Path:
    path = write_seed(folder / family / f"{family}_ours-seed{seed}", seed)
    curve = rising(last, rows=rows)
    logs = {f"rollout/success/{family}": curve, "rollout/success/mean": curve, "ppo/entropy": curve}
    return write_metrics(path, logs).parent


def joined(monkeypatch: pytest.MonkeyPatch, runs: list[Path], out: Path) -> None:
    monkeypatch.setattr("sys.argv", ["join_families", *map(str, runs), "--out", str(out)])
    join_families.main()


def test_the_mean_is_over_the_families_of_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(tmp_path, family, seed, last) for (family, seed), last in LAST.items()]
    joined(monkeypatch, runs, tmp_path / "joined")
    for seed, ends in ((1, (0.2, 0.6, 0.4)), (2, (0.4, 0.8, 0.6))):
        table = pd.read_csv(tmp_path / f"joined/ours-seed{seed}/metrics.csv")
        names = ["reach", "push", "mean"]
        assert list(table) == ["step", *(f"rollout/success/{name}" for name in names)]
        assert table.iloc[-1].tolist() == pytest.approx([2_000_000, *ends])
        assert table.iloc[9].tolist() == pytest.approx([1_000_000, *(x / 2 for x in ends)])
    folders = [str(tmp_path / f"joined/ours-seed{seed}") for seed in (1, 2)]
    assert read(folders, "sampled").families == {"train": ("push", "reach")}
    report([*folders, "--out", str(tmp_path / "report"), "--formats", "png"])
    assert (tmp_path / "report/figures/families.png").is_file()


def test_a_run_keeps_that_it_is_fine_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(tmp_path, family, 1, 0.5) for family in ("reach", "push")]
    for path in runs:
        (path / "config.yaml").write_text("seed_everything: 1\ninit_from: some.ckpt\n")
    joined(monkeypatch, runs, tmp_path / "joined")
    assert read([str(tmp_path / "joined/ours-seed1")], "sampled").fine_tuned == {"ours"}


def test_runs_that_were_trained_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run(tmp_path, family, 1, 0.5) for family in ("reach", "push")]
    for changed, said in (
        (
            "seed_everything: 1\ninit_from: some.ckpt\n",
            "and .*push_ours-seed1 differ in init_from",
        ),
        ("seed_everything: 7\n", "push_ours-seed1 has seed_everything 7"),
        ("some words\n", "config.yaml is no configuration of hmrl fit"),
    ):
        (runs[1] / "config.yaml").write_text(changed)
        with pytest.raises(UserError, match=said):
            joined(monkeypatch, runs, tmp_path / "joined")
    (runs[1] / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"push_ours-seed1 has no config\.yaml"):
        joined(monkeypatch, runs, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_what_is_no_mean_over_equal_families_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [run(tmp_path, family, 1, 0.5) for family in ("reach", "push")]
    shorter = run(tmp_path / "shorter", "push", 1, 0.5, rows=19)
    for runs, said in (
        ([first[0], first[0]], "are the same family, method and seed"),
        ([*first, run(tmp_path, "reach", 2, 0.5)], "ours-seed2 has reach, but ours-seed1 has reach, push"),
        ([first[0], shorter], "logged at different environment steps, the last 2,000,000 and 1,900,000"),
        ([tmp_path / "none"], "there is no run directory .*none"),
        ([tmp_path], "has logged training rollouts of 0 families, not of one"),
    ):
        with pytest.raises(UserError, match=said):
            joined(monkeypatch, runs, tmp_path / "joined")
    other = first[0].rename(first[0].with_name("ours-seed1"))
    with pytest.raises(UserError, match="learns reach: name it reach_METHOD-seedN"):
        joined(monkeypatch, [other], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    (tmp_path / "joined").mkdir()
    with pytest.raises(UserError, match="which is there already"):
        joined(monkeypatch, [first[1]], tmp_path / "joined")

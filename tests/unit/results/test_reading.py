"""Reading run directories, grouping them, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmrl.results.reading import read, read_metrics
from hmrl.results.runs import Runs
from hmrl.system.errors import UserError
from support.reported import result, write_metrics, write_result, write_seed

RATES = {"train": [0.2, 0.6], "test": [0.1]}


def read_one(path: Path | str, mode: str = "sampled") -> Runs:
    return read([str(path)], mode)


def keys(runs: Runs) -> list[tuple[str, int]]:
    return [(run.method, run.seed) for run in runs.runs.itertuples()]


def test_a_result_is_read_for_one_way_of_acting(tmp_path: Path) -> None:
    content = result(RATES, git={"revision": "abc123", "modified": True})
    content["scores"]["train"]["mean_action"] = {
        family: score | {"success": 0.9} for family, score in content["scores"]["train"]["sampled"].items()
    }
    content["scores"]["test"]["mean_action"] = content["scores"]["test"]["sampled"]
    content["official"] = {"train": {"sampled": {"success": 0.3, "return": 8.0, "families": {}}}}
    write_result(write_seed(tmp_path, 1), content)
    found = read_one(f"full={tmp_path}")
    assert found.families == {"train": ("reach", "push"), "test": ("drawer-open",)}
    push = found.success("full", "first_episode", "train", "push")
    assert push == pytest.approx((0.6, 0.55, 0.65, "goals"))
    assert found.official("full", "first_episode", "train") == (0.3, None, None, "seeds")
    assert found.official("full", "first_episode", "test") is None
    (file,) = found.results.itertuples()
    assert file.revision == "abc123 (modified)"
    assert file.packages == {"python": "3.11.2", "torch": "2.13.0"}
    write_result(tmp_path, content | {"official": None, "git": None})
    other = read_one(f"full={tmp_path}", "mean_action")
    assert other.success("full", "first_episode", "train", "push").value == 0.9  # type: ignore[union-attr]
    assert other.official("full", "first_episode", "train") is None
    assert other.results["revision"].isna().all()


def test_metrics_are_read_without_empty_cells(tmp_path: Path) -> None:
    path = write_metrics(tmp_path, {"a": {100.0: 1.0, 200.0: 2.0}, "b": {200.0: 5.0}, "c": {}})
    with path.open("a") as file:
        file.write("300.0,nan,7.0,\n400.0,3.0\n")  # no number, and a row that a kill has cut
    metrics = read_metrics(path)
    assert list(metrics) == ["step", "a", "b"]
    assert metrics.dropna(subset="a")["step"].tolist() == [100.0, 200.0]
    assert metrics.dropna(subset="b")[["step", "b"]].to_numpy().tolist() == [[200.0, 5.0], [300.0, 7.0]]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("ml10-seed3", "ml10"),
        ("ml10/seed3", "ml10"),
        ("ml10", "ml10"),
        ("seedy", "seedy"),
        ("a-seed3b", "a-seed3b"),
    ],
)
def test_the_label_is_the_name_without_the_seed(tmp_path: Path, name: str, label: str) -> None:
    write_result(tmp_path / name, result(RATES))
    assert list(read_one(tmp_path / name).titles) == [label]
    assert list(read_one(f"three levels={tmp_path / name}").titles) == ["three levels"]


def test_a_path_may_contain_an_equals_sign(tmp_path: Path) -> None:
    write_result(tmp_path / "lr=3-seed1", result(RATES))
    assert list(read_one(str(tmp_path / "lr=3-seed1")).titles) == ["lr=3"]
    assert list(read_one(f"fast={tmp_path / 'lr=3-seed1'}").titles) == ["fast"]


def test_the_seed_is_that_of_training(tmp_path: Path) -> None:
    """A test of seed 1's goals does not make the run seed 1."""
    run = tmp_path / "ml10-seed3"
    write_result(run, result(RATES, seed=1))
    assert keys(read_one(str(run)))[0][1] == 3
    write_seed(run, 4)
    assert keys(read_one(str(run)))[0][1] == 4
    write_result(tmp_path / "expert", result(RATES, seed=9))
    assert keys(read_one(str(tmp_path / "expert")))[0][1] == 9


def test_methods_come_first_then_ceiling_and_floor(tmp_path: Path) -> None:
    for name, agent in (("chance", "random"), ("b-seed2", "policy"), ("script", "expert"), ("a", "policy")):
        write_result(tmp_path / name, result(RATES, agent=agent))
    write_result(tmp_path / "b-seed1", result(RATES))
    names = ("chance", "b-seed2", "script", "a", "b-seed1")
    runs = read([str(tmp_path / name) for name in names], "sampled")
    assert list(runs.titles.values()) == ["b", "a", "script (ceiling)", "chance (floor)"]
    assert keys(runs)[:3] == [("b", 1), ("b", 2), ("a", 1)]


def test_an_expert_has_one_way_of_acting_whatever_its_name(tmp_path: Path) -> None:
    write_result(tmp_path / "expert", result(RATES, mode="scripted", agent="expert"))
    found = read_one(tmp_path / "expert").success("expert", "first_episode", "train", "reach")
    assert found is not None
    assert found.value == 0.2


def test_families_without_results_are_those_of_the_columns(tmp_path: Path) -> None:
    columns = (
        "rollout/success/push",
        "rollout/success/mean",
        "success_mean_action/test/door",
        "final_success/test/x",
    )
    write_metrics(write_seed(tmp_path, 1), {column: {1.0: 0.5} for column in columns})
    assert read_one(tmp_path).families == {"train": ("push",), "test": ("door",)}


def test_refuses_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no run directory .*/missing"):
        read_one(f"a={tmp_path / 'missing'}")


def test_refuses_a_directory_without_anything_to_report(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text("{}")
    with pytest.raises(UserError, match=r"neither rows in metrics\.csv nor test-\*\.json"):
        read_one(tmp_path)


def test_refuses_a_run_of_unknown_seed(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run", {"a": {1.0: 0.5}})
    with pytest.raises(UserError, match=r"cannot tell the seed of .*/run: name the directory"):
        read_one(tmp_path / "run")


@pytest.mark.parametrize("schema", [2, None])
def test_refuses_another_schema(tmp_path: Path, schema: int | None) -> None:
    write_result(tmp_path, result(RATES, schema=schema))
    with pytest.raises(UserError, match=f"has schema {schema}, but this report reads schema 1"):
        read_one(tmp_path)


def test_refuses_a_mode_that_the_file_lacks(tmp_path: Path) -> None:
    write_result(tmp_path, result(RATES))
    with pytest.raises(UserError, match="has no mode 'mean_action': use --mode with one of sampled"):
        read_one(tmp_path, "mean_action")


def test_refuses_a_broken_file(tmp_path: Path) -> None:
    content = result(RATES)
    del content["env_steps"]
    write_result(tmp_path, content, "x")
    with pytest.raises(UserError, match="lacks 'env_steps'"):
        read_one(tmp_path)
    for content in ([], result(RATES, scores=None)):
        (tmp_path / "test-x.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="is no results file of schema 1"):
            read_one(tmp_path)
    (tmp_path / "test-x.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        read_one(tmp_path)


def test_refuses_two_results_of_one_protocol_in_a_run(tmp_path: Path) -> None:
    write_result(tmp_path, result(RATES))
    write_result(tmp_path, result(RATES), "permuted")
    with pytest.raises(UserError, match="are both of protocol first_episode: keep one"):
        read_one(tmp_path)


def test_refuses_malformed_logs(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column step"):
        read_metrics(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("step,a\n2,1\n1,1\n")
    with pytest.raises(UserError, match="go backwards"):
        read_metrics(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("step,a\n1,1\n1,2\n")
    with pytest.raises(UserError, match="go backwards or stand still"):
        read_metrics(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").write_text("step,a\n1,x\n")
    with pytest.raises(UserError, match=r"column a of .* holds what is no number: could not convert .*'x'"):
        read_metrics(tmp_path / "metrics.csv")


def test_refuses_two_runs_of_one_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_result(tmp_path / name, result(RATES, seed=5))
    with pytest.raises(UserError, match=r"runs of x have the same seed, 5: .*/a, .*/b"):
        read([f"x={tmp_path / name}" for name in ("a", "b")], "sampled")


def test_refuses_an_expert_among_a_methods_seeds(tmp_path: Path) -> None:
    write_result(tmp_path / "a", result(RATES, seed=1))
    write_result(tmp_path / "b", result(RATES, seed=2, agent="expert"))
    with pytest.raises(UserError, match="runs of x are of different agents, expert, policy"):
        read([f"x={tmp_path / name}" for name in ("a", "b")], "sampled")


def test_refuses_methods_with_different_families(tmp_path: Path) -> None:
    write_result(tmp_path / "a", result(RATES))
    write_metrics(write_seed(tmp_path / "b", 1), {"success/test/door-close": {1.0: 0.5}})
    with pytest.raises(
        UserError,
        match=r"test families differ, .*: drawer-open in .*/a \(a seed 1\), but door-close in .*/b",
    ):
        read([str(tmp_path / name) for name in ("a", "b")], "sampled")

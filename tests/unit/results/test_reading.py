"""Reading run directories, grouping them, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmrl.results.methods import group
from hmrl.results.reading import read_metrics, read_result, read_run
from hmrl.system.errors import UserError
from support.reported import result, write_metrics, write_result, write_seed

RATES = {"train": [0.2, 0.6], "test": [0.1]}


def test_a_result_is_read_for_one_way_of_acting(tmp_path: Path) -> None:
    content = result(RATES, git={"revision": "abc123", "modified": True})
    content["scores"]["train"]["mean_action"] = {
        family: score | {"success": 0.9} for family, score in content["scores"]["train"]["sampled"].items()
    }
    content["scores"]["test"]["mean_action"] = content["scores"]["test"]["sampled"]
    content["official"] = {"train": {"sampled": {"success": 0.3, "return": 8.0, "families": {}}}}
    found = read_result(write_result(tmp_path, content), "sampled")
    assert found.families("train") == ("reach", "push")
    assert found.families("test") == ("drawer-open",)
    assert found.scores["train"]["push"][:3] == pytest.approx((0.6, 0.55, 0.65))
    assert found.official == {"train": 0.3}
    assert found.revision == "abc123 (modified)"
    assert found.packages == {"python": "3.11.2", "torch": "2.13.0"}
    other = read_result(write_result(tmp_path, content | {"official": None, "git": None}), "mean_action")
    assert other.scores["train"]["push"].success == 0.9
    assert other.official == {}
    assert other.revision is None


def test_metrics_are_read_without_empty_cells(tmp_path: Path) -> None:
    path = write_metrics(tmp_path, {"a": {100.0: 1.0, 200.0: 2.0}, "b": {200.0: 5.0}, "c": {}})
    with path.open("a") as file:
        file.write("300.0,nan,7.0,\n400.0,3.0\n")  # no number, and a row that a kill has cut
    metrics = read_metrics(path)
    assert set(metrics) == {"a", "b"}
    assert metrics["a"].steps.tolist() == [100.0, 200.0]
    assert metrics["b"].steps.tolist() == [200.0, 300.0]
    assert metrics["b"].values.tolist() == [5.0, 7.0]


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
    assert read_run(str(tmp_path / name), "sampled").label == label
    assert read_run(f"three levels={tmp_path / name}", "sampled").label == "three levels"


def test_a_path_may_contain_an_equals_sign(tmp_path: Path) -> None:
    write_result(tmp_path / "lr=3-seed1", result(RATES))
    assert read_run(str(tmp_path / "lr=3-seed1"), "sampled").label == "lr=3"
    assert read_run(f"fast={tmp_path / 'lr=3-seed1'}", "sampled").label == "fast"


def test_the_seed_is_that_of_training(tmp_path: Path) -> None:
    """A test of seed 1's goals does not make the run seed 1."""
    run = tmp_path / "ml10-seed3"
    write_result(run, result(RATES, seed=1))
    assert read_run(str(run), "sampled").seed == 3
    write_seed(run, 4)
    assert read_run(str(run), "sampled").seed == 4
    write_result(tmp_path / "expert", result(RATES, seed=9))
    assert read_run(str(tmp_path / "expert"), "sampled").seed == 9


def test_methods_come_first_then_ceiling_and_floor(tmp_path: Path) -> None:
    for name, agent in (("chance", "random"), ("b-seed2", "policy"), ("script", "expert"), ("a", "policy")):
        write_result(tmp_path / name, result(RATES, agent=agent))
    write_result(tmp_path / "b-seed1", result(RATES))
    names = ("chance", "b-seed2", "script", "a", "b-seed1")
    methods = group(read_run(str(tmp_path / name), "sampled") for name in names)
    assert [m.title for m in methods] == ["b", "a", "script (ceiling)", "chance (floor)"]
    assert [run.seed for run in methods[0].runs] == [1, 2]


def test_an_expert_has_one_way_of_acting_whatever_its_name(tmp_path: Path) -> None:
    write_result(tmp_path / "expert", result(RATES, mode="scripted", agent="expert"))
    run = read_run(str(tmp_path / "expert"), "sampled")
    assert run.results["first_episode"].scores["train"]["reach"].success == 0.2


def test_families_without_results_are_those_of_the_columns(tmp_path: Path) -> None:
    columns = (
        "rollout/success/push",
        "rollout/success/mean",
        "success_mean_action/test/door",
        "final_success/test/x",
    )
    write_metrics(write_seed(tmp_path, 1), {column: {1.0: 0.5} for column in columns})
    run = read_run(str(tmp_path), "sampled")
    assert run.families("train") == ("push",)
    assert run.families("test") == ("door",)


def test_refuses_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no run directory .*/missing"):
        read_run(f"a={tmp_path / 'missing'}", "sampled")


def test_refuses_a_directory_without_anything_to_report(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text("{}")
    with pytest.raises(UserError, match=r"neither rows in metrics\.csv nor test-\*\.json"):
        read_run(str(tmp_path), "sampled")


def test_refuses_a_run_of_unknown_seed(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run", {"a": {1.0: 0.5}})
    with pytest.raises(UserError, match=r"cannot tell the seed of .*/run: name the directory"):
        read_run(str(tmp_path / "run"), "sampled")


@pytest.mark.parametrize("schema", [2, None])
def test_refuses_another_schema(tmp_path: Path, schema: int | None) -> None:
    path = write_result(tmp_path, result(RATES, schema=schema))
    with pytest.raises(UserError, match=f"has schema {schema}, but this report reads schema 1"):
        read_result(path, "sampled")


def test_refuses_a_mode_that_the_file_lacks(tmp_path: Path) -> None:
    path = write_result(tmp_path, result(RATES))
    with pytest.raises(UserError, match="has no mode 'mean_action': use --mode with one of sampled"):
        read_result(path, "mean_action")


def test_refuses_a_broken_file(tmp_path: Path) -> None:
    content = result(RATES)
    del content["env_steps"]
    with pytest.raises(UserError, match="lacks 'env_steps'"):
        read_result(write_result(tmp_path, content), "sampled")
    for content in ([], result(RATES, scores=None)):
        (tmp_path / "test-x.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="is no results file of schema 1"):
            read_result(tmp_path / "test-x.json", "sampled")
    (tmp_path / "test-x.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        read_result(tmp_path / "test-x.json", "sampled")


def test_refuses_two_results_of_one_protocol_in_a_run(tmp_path: Path) -> None:
    write_result(tmp_path, result(RATES))
    write_result(tmp_path, result(RATES), "permuted")
    with pytest.raises(UserError, match="are both of protocol first_episode: keep one"):
        read_run(str(tmp_path), "sampled")


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
    with pytest.raises(UserError, match="no number in column a"):
        read_metrics(tmp_path / "metrics.csv")


def test_refuses_two_runs_of_one_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_result(tmp_path / name, result(RATES, seed=5))
    with pytest.raises(UserError, match=r"runs of x have the same seed, 5: .*/a, .*/b"):
        group(read_run(f"x={tmp_path / name}", "sampled") for name in ("a", "b"))


def test_refuses_an_expert_among_a_methods_seeds(tmp_path: Path) -> None:
    write_result(tmp_path / "a", result(RATES, seed=1))
    write_result(tmp_path / "b", result(RATES, seed=2, agent="expert"))
    with pytest.raises(UserError, match="runs of x are of different agents, expert, policy"):
        group(read_run(f"x={tmp_path / name}", "sampled") for name in ("a", "b"))


def test_refuses_methods_with_different_families(tmp_path: Path) -> None:
    write_result(tmp_path / "a", result(RATES))
    write_metrics(write_seed(tmp_path / "b", 1), {"success/test/door-close": {1.0: 0.5}})
    with pytest.raises(
        UserError, match=r"test families differ, .*: drawer-open in .*/a, but door-close in .*/b"
    ):
        group(read_run(str(tmp_path / name), "sampled") for name in ("a", "b"))

"""The ego-state ablation: which dimensions of the observation the decoder of macro-actions is about."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmrl.envs.benchmarks import GRID_WORLD, META_WORLD
from hmrl.evaluation.protocols import EvaluationConfig
from hmrl.himeta.config import MacroVAEConfig
from hmrl.himeta.losses import macro_vae_loss
from hmrl.system.errors import UserError
from hmrl.training.datamodule import MetaWorldDataModule
from hmrl.training.module import HierarchicalMetaRL
from hmrl.types import Acting, Trajectories

GRID = {"benchmark": "GridWorld", "backend": "gridworld", "horizon": 5, "test": EvaluationConfig()}
HAND = [0, 1, 2, 3, 18, 19, 20, 21]
CASES: list[tuple[dict[str, Any], str, list[int]]] = [
    ({}, "ego", HAND),
    ({}, "everything", list(range(36))),
    ({}, "other", [i for i in range(36) if i not in HAND]),
    (GRID, "ego", [0, 1, 2, 3]),
    (GRID, "everything", list(range(8))),
    (GRID, "other", [4, 5, 6, 7]),
]


@pytest.mark.parametrize(("options", "ego_state", "wanted"), CASES)
def test_the_decoder_is_given_and_predicts_these_dimensions(
    options: dict[str, Any], ego_state: Any, wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = MetaWorldDataModule(**options, ego_state=ego_state)
    assert list(data.ego_indices) == wanted
    assert data.hparams["ego_state"] == ego_state
    config = MacroVAEConfig(encoder_hidden=(4,), decoder_hidden=(4,), n=2)
    module = HierarchicalMetaRL(
        data.families, data.observation_dim, data.action_dim, data.ego_indices, macro_vae=config
    )
    policy, width = module.policy, len(wanted)
    vae = policy.macro_vae
    assert vae is not None
    assert vae.decode(torch.zeros(3, width), torch.zeros(3, data.action_dim)).shape == (3, width)

    seen: list[torch.Tensor] = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda ego, z: seen.append(ego) or decode(ego, z))
    steps, episodes = 6, 2
    observation = torch.randn(steps + 1, episodes, data.observation_dim)
    trajectories = Trajectories(
        observation,
        action=torch.zeros(steps, episodes, data.action_dim),
        reward=torch.zeros(steps, episodes),
        macro_action=torch.zeros(steps, episodes, data.action_dim),
        family=torch.zeros(episodes, dtype=torch.long),
        hidden_goal=torch.zeros(episodes, 0),
    )
    macro_vae_loss(policy, trajectories, config, Acting())
    assert seen
    for ego in seen:
        assert torch.equal(ego, policy.normalize(observation)[:-1][..., wanted])


def test_worlds_describe_their_observations() -> None:
    assert META_WORLD.observation_dim == 39
    assert GRID_WORLD.observation_dim == 10
    for world in (META_WORLD, GRID_WORLD):
        own, other = set(world.decoded("ego")), set(world.decoded("other"))
        assert own | other == set(world.decoded("everything"))
        assert not own & other
        assert own | other | set(world.goal_indices) == set(range(world.observation_dim))
        assert not (own | other) & set(world.goal_indices)


def test_another_ego_state_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.ego_state is 'hand': use one of ego, everything, other"):
        MetaWorldDataModule(ego_state="hand")  # type: ignore[arg-type]

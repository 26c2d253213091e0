"""Which settings make a checkpoint another network's."""

from __future__ import annotations

from typing import Any

import pytest

from hmrl.compatibility import network_differences

from .helpers import build_module, encoder_config, vae_config


def hparams(**changes: Any) -> dict[str, Any]:
    encoder = encoder_config(**changes.pop("encoder", {}))
    return dict(build_module(encoder, vae_config(), **changes).hparams)


def test_a_checkpoint_from_before_a_setting_counts_as_its_old_value() -> None:
    saved = hparams()
    for name in ("macro_interval", "gradients"):
        del saved[name]
    saved["task_encoder"] = {
        k: v
        for k, v in saved["task_encoder"].items()
        if k not in ("belief", "latent", "decoder_hidden", "mixture_coef")
    }
    assert network_differences(saved, hparams()) == {}
    assert list(network_differences(saved, hparams(macro_interval=2))) == ["model.macro_interval"]
    mixture = {"belief": "mixture", "categorical_coef": 0.0}
    assert "model.task_encoder.belief" in network_differences(saved, hparams(encoder=mixture))


@pytest.mark.parametrize(("belief", "differs"), [("categorical", False), ("mixture", True)])
def test_a_mixtures_settings_count_where_there_is_one(belief: str, differs: bool) -> None:
    a, b = (hparams(encoder={"belief": belief, "latent": latent}) for latent in (2, 3))
    assert list(network_differences(a, b)) == (["model.task_encoder.latent"] if differs else [])

"""Wrong input: one line that names the key and the value, and where it is ours what would be right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from hmrl.cli.main import HmrlCLI, main
from hmrl.envs.benchmarks import World
from support.paths import CONFIGS, TINY

# Options of `hmrl fit`, and what the sentence must say: the key, the value, what would be right.
OPTIONS = [
    # families
    ("--data.benchmark ML11", "data.benchmark", "ML11", "one of ML1, ML10, ML25, ML45, custom"),
    ("--data.benchmark ''", "data.benchmark", "''", "one of ML1, ML10, ML25, ML45, custom"),
    ("--data.benchmark ML1", "data.train_families", "[]", "exactly one family"),
    (
        "--data.benchmark ML1 --data.train_families [reech]",
        "data.train_families",
        "'reech'",
        "some of assembly,",
    ),
    (
        "--data.benchmark custom --data.train_families [reach] --data.test_families [pusch]",
        *("data.test_families", "'pusch'", "some of assembly,"),
    ),
    (
        "--data.benchmark custom --data.train_families [reach,push] --data.test_families [push]",
        *("data.test_families", "push", "test families must be held out"),
    ),
    (
        "--data.benchmark custom --data.train_families [reach,reach] --data.test_families [push]",
        *("data.train_families", "'reach' twice", "name each family once"),
    ),
    (
        "--data.benchmark custom --data.train_families [reach]",
        *("data.test_families", "[]", "one or more families"),
    ),
    ("--data.train_families [reach]", "data.train_families", "['reach']", "leave it empty, or choose"),
    ("--data.train_families reach", "data.train_families", "reach", "a list"),
    # environments and goals
    ("--data.backend mujoco", "data.backend", "mujoco", "one of envpool, metaworld, metaworld_async"),
    ("--data.backend gridworld", "data.backend", "gridworld", "use envpool or metaworld or metaworld_async"),
    ("--data.benchmark GridWorld", "data.backend", "envpool", "use gridworld"),
    (
        "--data.benchmark GridWorld --data.backend gridworld --data.test.backend metaworld",
        *("data.test.backend", "metaworld", "use gridworld"),
    ),
    (
        "--data.benchmark GridWorld --data.backend gridworld --data.test.protocol meta_world",
        *("data.test.protocol", "meta_world", "use first_episode or paper"),
    ),
    (
        "--data.benchmark GridWorld --data.backend gridworld --data.horizon 25",
        *("data.horizon", "25", "1 to 24"),
    ),
    (
        "--data.benchmark GridWorld --data.train_families [hall]",
        *("data.train_families", "['hall']", "leave it empty"),
    ),
    (
        "--data.goals_shown true --data.test.protocol meta_world --data.test.backend metaworld",
        *("data.goals_shown", "true", "use first_episode or paper"),
    ),
    (
        "--data.families_shown true --data.test.protocol meta_world --data.test.backend metaworld",
        *("data.families_shown", "true", "use first_episode or paper"),
    ),
    (
        "--data.validation.protocol meta_world --data.validation.backend metaworld "
        "--data.meta_world.adaptation beliefs --model.task_encoder.reward_coef 0",
        *("data.meta_world.adaptation", "beliefs", "use memory"),
    ),
    (
        "--data.validation.protocol meta_world --data.validation.backend metaworld "
        "--data.validation.agent random --data.meta_world.adaptation beliefs",
        *("data.meta_world.adaptation", "beliefs", "use memory"),
    ),
    (
        "--data.meta_world.adaptation luck",
        *("data.meta_world.adaptation", "luck", "one of memory, beliefs"),
    ),
    ("--data.ego_state hand", "data.ego_state", "hand", "one of ego, everything, other"),
    ("--data.envs_per_family 0", "data.envs_per_family", "0", "1 or more"),
    ("--data.horizon 0", "data.horizon", "0", "1 to 500"),
    ("--data.horizon 501", "data.horizon", "501", "1 to 500"),
    ("--data.replay_trajectories 0", "data.replay_trajectories", "0", "1 or more"),
    ("--data.replay_trajectories 19", "data.replay_trajectories", "19", "20 trials, one an environment"),
    # curriculum
    ("--data.curriculum.cycles 0", "data.curriculum.cycles", "0", "1 or more"),
    ("--data.curriculum.blocks joint", "data.curriculum.blocks", "joint", "one_after_another or a list"),
    ("--data.curriculum.blocks []", "data.curriculum.blocks", "[]", "one or more blocks"),
    ("--data.curriculum.blocks [[reach],[lift]]", "data.curriculum.blocks", "'lift'", "some of reach, push,"),
    ("--data.curriculum.blocks [reach]", "data.curriculum.blocks", "reach", "a list"),
    (
        "--data.curriculum.blocks [[reach,reach]]",
        "data.curriculum.blocks",
        "'reach' twice",
        "use some of reach, push,",
    ),
    (
        "--data.curriculum.blocks [[reach,push,sweep]]",
        *("data.curriculum.blocks", "3 families, over which", "another data.envs_per_family"),
    ),
    (
        "--data.curriculum.env_steps_per_block 259",
        *("data.curriculum.env_steps_per_block", "259", "one iteration has 260: use that or more"),
    ),
    (
        "--data.curriculum.env_steps_per_block 260 --budget.env_steps 2601",
        *("budget.env_steps", "2,601", "10 blocks of data.curriculum last 2,600: use at most that"),
    ),
    (
        "--trainer.devices 2 --data.validation.envs_per_family 2 "
        "--data.curriculum.blocks [[reach,push,pick-place,door-open]]",
        *("data.curriculum.blocks", "4 families, over which, in 2", "the 20 training environments"),
    ),
    ("--model.acting.permute task_belief", "model.acting.permute", "task_belief", "use none"),
    (
        "--model.acting.task_belief sample",
        *("model.ppo.latents", "y as sample and z as mean", "set model.ppo.latents to acted"),
    ),
    (
        "--model.acting.macro_action sample",
        *("model.ppo.latents", "y as probabilities and z as sample", "set model.ppo.latents to acted"),
    ),
    (
        "--model.gradients joint --model.ppo.latents acted",
        *("model.ppo.latents", "acted", "use renewed"),
    ),
    ("--data.goals_per_family 0", "data.goals_per_family", "0", "1 or more"),
    (
        "--data.goals_per_family 51 --data.backend metaworld",
        *("data.goals_per_family", "51", "50 goals a family: use no more"),
    ),
    (
        "--data.test.goals_per_family 60 --data.test.backend metaworld",
        *("data.test.goals_per_family", "60", "50 goals a family: use no more"),
    ),
    (
        "--data.validation.goals_per_family 7 --data.validation.envs_per_family 5",
        *("data.validation.goals_per_family", "7", "goals that divide over them"),
    ),
    ("--data.test.goals_per_family 3", "data.test.goals_per_family", "3", "goals that divide over them"),
    ("--data.test.goals_per_family 0", "data.test.goals_per_family", "0", "use 1 or more"),
    ("--data.validation.envs_per_family 0", "data.validation.envs_per_family", "0", "use 1 or more"),
    ("--data.validation.envs_per_family -1", "data.validation.envs_per_family", "-1", "use 1 or more"),
    # acting
    ("--model.acting.action guess", "model.acting.action", "guess", "one of sample, mean"),
    ("--model.acting.permute all", "model.acting.permute", "all", "one of none, task_belief, macro_action"),
    ("--data.modes {}", "data.modes", "{}", "one or more ways of acting"),
    ("--data.modes 3", "data.modes", "3", "a mapping of keys to values"),
    ("--data.modes.sampled.action guess", "data.modes.sampled.action", "guess", "one of sample, mean"),
    ("--data.modes.sampled.actoin mean", "data.modes.sampled.actoin", "no key", "data.modes.sampled.action"),
    # perturbations
    ("--data.perturbation.noise_std -0.1", "data.perturbation.noise_std", "-0.1", "0 or more and finite"),
    ("--data.perturbation.noise_std loud", "data.perturbation.noise_std", "loud", "a number"),
    (
        "--data.perturbation.nois_std 0.1",
        "data.perturbation.nois_std",
        "no key",
        "data.perturbation.noise_std",
    ),
    (
        "--data.perturbation.missing.probability 1.5",
        *("data.perturbation.missing.probability", "1.5", "in [0, 1]"),
    ),
    (
        "--data.perturbation.missing.part some",
        *("data.perturbation.missing.part", "some", "one of observation, sensor"),
    ),
    (
        "--data.perturbation.action_gain '{kind: jump}'",
        *("data.perturbation.action_gain.size", "0.0", "finite and not 0"),
    ),
    (
        "--data.perturbation.action_gain '{kind: jmp, size: 1}'",
        *("data.perturbation.action_gain.kind", "jmp", "one of linear, random_walk, jump"),
    ),
    (
        "--data.perturbation.reward_scale '{size: 1, over_episodes: 0}'",
        *("data.perturbation.reward_scale.over_episodes", "0", "1 or more episodes of training, or null"),
    ),
    (
        "--data.test.perturbation '{missing: {told: true}}'",
        *("data.test.perturbation.missing.told", "true", "use false"),
    ),
    (
        "--data.perturbation.missing.told true --data.validation.perturbation {}",
        *("data.validation.perturbation.missing.told", "false", "use true"),
    ),
    (
        "--data.perturbation.noise_std 0.1 --data.test.protocol meta_world --data.test.backend metaworld",
        *("data.test.protocol", "meta_world", "first_episode"),
    ),
    # task encoder
    ("--model.task_encoder.categories 0", "model.task_encoder.categories", "0", "at least 1"),
    ("--model.task_encoder.hidden 0", "model.task_encoder.hidden", "0", "at least 1"),
    ("--model.task_encoder.cell rnn", "model.task_encoder.cell", "rnn", "one of gru, lstm, mingru"),
    ("--model.task_encoder.dropout 1", "model.task_encoder.dropout", "1.0", "in [0, 1)"),
    ("--model.task_encoder.temperature 0", "model.task_encoder.temperature", "0.0", "positive"),
    ("--model.task_encoder.value_coef -1", "model.task_encoder.value_coef", "-1.0", "0 or more"),
    ("--model.task_encoder.lr nan", "model.task_encoder.lr", "nan", "a number"),
    ("--model.task_encoder.lr .inf", "model.task_encoder.lr", "inf", "positive and finite"),
    ("--model.task_encoder.variables 0", "model.task_encoder.variables", "0", "at least 1"),
    ("--model.task_encoder.reward_embedding 0", "model.task_encoder.reward_embedding", "0", "at least 1"),
    ("--model.task_encoder.reward_coef -1", "model.task_encoder.reward_coef", "-1.0", "0 or more"),
    (
        "--model.task_encoder.belief mixture --model.task_encoder.variables 1 "
        "--model.task_encoder.goal_coef 0",
        *("model.task_encoder.reward_coef", "1.0", "use 0"),
    ),
    (
        "--model.task_encoder.embedding_hidden [0,4,4]",
        *("model.task_encoder.embedding_hidden", "(0, 4, 4)", "3 widths of at least 1"),
    ),
    (
        "--model.task_encoder.embedding_hidden [4,4]",
        *("model.task_encoder.embedding_hidden", "[4, 4]", "a list of 3"),
    ),
    ("--model.task_encoder fast", "model.task_encoder", "fast", "a mapping of keys to values or null"),
    # macro-VAE
    (
        "--model.macro_vae.goal_state nonsense",
        *("model.macro_vae.goal_state", "nonsense", "one of constant_discretisation, constant_margin, sub"),
    ),
    (
        "--model.macro_vae.goal_state sub_task --model.task_encoder null",
        *("model.macro_vae.goal_state", "sub_task", "use constant_discretisation or constant_margin"),
    ),
    ("--model.macro_vae.n 0", "model.macro_vae.n", "0", "at least 1"),
    ("--model.macro_vae.n 1000", "model.macro_vae.n", "1000", "only 7 decisions"),
    (
        "--model.macro_vae.encoder_hidden [-3]",
        "model.macro_vae.encoder_hidden",
        "(-3,)",
        "widths of at least 1",
    ),
    (
        "--model.macro_vae.log_std_range [1,0]",
        *("model.macro_vae.log_std_range", "(1.0, 0.0)", "a lower and an upper bound"),
    ),
    # low level
    ("--model.decision_interval 0", "model.decision_interval", "0", "at least 1"),
    (
        "--data.episodes_per_trial 2 --model.macro_interval 2",
        *("model.macro_interval", "2", "a macro_interval that divides them"),
    ),
    ("--model.decision_interval 14", "model.decision_interval", "14", "at most data.horizon, which is 13"),
    (
        "--model.actor_critic.actor_hidden [0]",
        "model.actor_critic.actor_hidden",
        "(0,)",
        "widths of at least 1",
    ),
    ("--model.actor_critic.log_std_init .nan", "model.actor_critic.log_std_init", "nan", "finite"),
    (
        "--model.actor_critic.log_std_range [1,0]",
        *("model.actor_critic.log_std_range", "(1.0, 0.0)", "a lower and an upper bound"),
    ),
    ("--model.ppo.advantage_pooling -1", "model.ppo.advantage_pooling", "-1.0", "0 or more"),
    (
        "--model.ppo.advantage batch --model.ppo.advantage_pooling 0.1",
        *("model.ppo.advantage_pooling", "0.1", "no family has a scale of its own: use 0"),
    ),
    ("--model.ppo.gamma 0", "model.ppo.gamma", "0.0", "in (0, 1]"),
    ("--model.ppo.gamma 1.5", "model.ppo.gamma", "1.5", "in (0, 1]"),
    ("--model.ppo.gamma .nan", "model.ppo.gamma", "nan", "in (0, 1]"),
    ("--model.ppo.gamma much", "model.ppo.gamma", "much", "a number"),
    ("--model.ppo.gamma ''", "model.ppo.gamma", "''", "a number"),
    ("--model.ppo.clip 0", "model.ppo.clip", "0.0", "positive"),
    ("--model.ppo.epochs 0", "model.ppo.epochs", "0", "at least 1"),
    ("--model.ppo.minibatches 1000", "model.ppo.minibatches", "1000", "only 140: use at most that"),
    (
        f"--config {CONFIGS / 'levels/joint.yaml'} --model.ppo.minibatches 30",
        *("model.ppo.minibatches", "30", "only 20: use at most that"),
    ),
    ("--model.ppo.advantage all", "model.ppo.advantage", "all", "one of family, batch, none"),
    ("--model.ppo.reward_scale all", "model.ppo.reward_scale", "all", "one of family, global, log, none"),
    ("--model.ppo.agreement_bonus -1", "model.ppo.agreement_bonus", "-1.0", "0 or more"),
    ("--model.ppo.entropy_coef -0.1", "model.ppo.entropy_coef", "-0.1", "0 or more"),
    ("--model.ppo.actor_lr 0", "model.ppo.actor_lr", "0.0", "positive"),
    ("--model.ppo.critic_lr -1", "model.ppo.critic_lr", "-1.0", "positive"),
    ("--model.ppo.weight_decay -1", "model.ppo.weight_decay", "-1.0", "0 or more"),
    ("--model.ppo.max_grad_norm 0", "model.ppo.max_grad_norm", "0.0", "positive"),
    # the run
    ("--seed_everything -1", "seed_everything", "-1", "a whole number from 0 to 4294967295"),
    ("--seed_everything true", "seed_everything", "true", "a whole number from 0 to 4294967295"),
    ("--model.seed 3", "model.seed", "cannot be set", "seed_everything"),
    ("--budget.env_steps -5", "budget.env_steps", "-5", "at least 1"),
    ("--budget.env_steps many", "budget.env_steps", "many", "a whole number"),
    ("--last_checkpoint.every_n_iterations 0", "last_checkpoint.every_n_iterations", "0", "at least 1"),
    ("--best_checkpoint.monitor success/train/men", "best_checkpoint.monitor", "men", "success/train/mean"),
    ("--overwrite maybe", "overwrite", "maybe", "true or false"),
    ("--run_dir ''", "run_dir", "''", "a path"),
    ("--run_dir s3://bucket/run", "run_dir", "s3://bucket/run", "a path on this machine"),
    ("--run_dir file:///tmp/run", "run_dir", "file:///tmp/run", "a path on this machine"),
    ("--ckpt_path s3://bucket/last.ckpt", "ckpt_path", "s3://bucket/last.ckpt", "a path on this machine"),
    ("--model.task_encoder '{hidden: 8, hidden: 4}'", "hidden", "again", "keep one"),
    ("--ckpt_path ''", "ckpt_path", "''", "a path"),
    ("--ckpt_path nowhere.ckpt", "checkpoint", "nowhere.ckpt", "there is no"),
    # fine-tuning
    ("--init_from nowhere.ckpt", "init_from", "nowhere.ckpt", "must be a .ckpt file"),
    ("--init_from s3://bucket/last.ckpt", "init_from", "s3://bucket/last.ckpt", "a path on this machine"),
    ("--init_from run/last.ckpt", "init_from", "run/last.ckpt", "choose another --run_dir"),
    ("--model.frozen [actr]", "model.frozen", "'actr'", "some of task_encoder, macro_vae, actor, critic"),
    ("--model.frozen actor", "model.frozen", "actor", "a list"),
    (
        "--model.macro_vae null --model.frozen [macro_vae]",
        *("model.frozen", "model.macro_vae is null", "leave it out there"),
    ),
    ("--model.frozen [actor]", "model.frozen", "['actor']", "begin from a checkpoint with --init_from"),
    # Lightning's trainer
    ("--trainer.strategy ddp", "trainer.strategy", "ddp", "auto or ddp_find_unused_parameters_true"),
    ("--trainer.devices 0", "trainer.devices", "0", "1 or more"),
    ("--trainer.devices two", "trainer.devices", "two", "1 or more"),
    ("--trainer.devices [0,1]", "trainer.devices", "[0, 1]", "1 or more"),
    ("--best_checkpoint.save_top_k 2", "best_checkpoint.save_top_k", "2", "use 1"),
    ("--data.meta_world.meta_batch_size 0", "data.meta_world.meta_batch_size", "0", "1 or more, or null"),
    ("--trainer.num_nodes 0", "trainer.num_nodes", "0", "1 or more"),
    ("--trainer.devices 2", "data.validation.envs_per_family", "1", "a multiple of 2"),
    (
        "--trainer.devices 2 --data.envs_per_family 3 --data.validation.envs_per_family 2",
        *("data.envs_per_family", "3", "a multiple of 2"),
    ),
    ("--trainer.accelerator gpu", "trainer.accelerator", "gpu", "CUDA"),
    ("--trainer.accelerator abacus", "trainer.accelerator", "'abacus'", "auto, cpu, cuda"),
    ("--trainer.accelerator mps", "trainer.accelerator", "mps", "auto, cpu or gpu"),
    ("--trainer.max_epochs many", "trainer.max_epochs", "many", "a whole number or null"),
    ("--trainer.check_val_every_n_epoch 0", "trainer.check_val_every_n_epoch", "0", "1 or more"),
    ("--trainer.check_val_every_n_epoch -1", "trainer.check_val_every_n_epoch", "-1", "1 or more"),
    ("--trainer.val_check_interval 2", "trainer.val_check_interval", "2", "trainer.check_val_every_n_epoch"),
    (
        "--trainer.accumulate_grad_batches 2",
        "trainer.accumulate_grad_batches",
        "2",
        "1: set data.envs_per_family",
    ),
    ("--trainer.gradient_clip_val 1", "trainer.gradient_clip_val", "1", "each level has a max_grad_norm"),
    ("--trainer.precision 64-true", "trainer.precision", "64-true", "32-true"),
    ("--trainer.precision bf16-mixed", "trainer.precision", "bf16-mixed", "32-true"),
    ("--trainer.barebones true", "trainer.barebones", "True", "nothing would be logged"),
    ("--trainer.max_steps 5", "trainer.max_steps", "5", "set budget.env_steps instead"),
    ("--trainer.max_epochs 5", "trainer.max_epochs", "5", "set budget.env_steps instead"),
    ("--trainer.max_epochs null", "trainer.max_epochs", "None", "set budget.env_steps instead"),
    ("--trainer.max_time 00:01:00:00", "trainer.max_time", "00:01:00:00", "timeout -s TERM"),
    (
        "--trainer.enable_checkpointing false",
        "trainer.enable_checkpointing",
        "False",
        "best_checkpoint.save_top_k",
    ),
    ("--trainer.limit_val_batches 0.5", "trainer.limit_val_batches", "0.5", "set data.validation"),
    ("--trainer.fast_dev_run true", "trainer.fast_dev_run", "True", "--config smoke"),
    ("--trainer.num_sanity_val_steps 2", "trainer.num_sanity_val_steps", "2", "a part of an evaluation"),
    ("--trainer.default_root_dir x", "trainer.default_root_dir", "x", "set run_dir instead"),
    (
        "--trainer.strategy ddp_notebook_find_unused_parameters_true",
        "trainer.strategy",
        "ddp_notebook_find_unused_parameters_true",
        "which starts processes as copies of this one",
    ),
    # keys that there are not, whatever the value
    ("--model.ppo.epoch 3", "model.ppo.epoch", "no key", "model.ppo.epochs"),  # the beginning of one
    ("--model.ppo.epoch=3", "model.ppo.epoch", "no key", "model.ppo.epochs"),
    ("--model.ppo.lr 3", "model.ppo.lr", "no key", "model.ppo.actor_lr"),
    ("--modell.decision_interval 3", "modell.decision_interval", "no key", "model.decision_interval"),
    ("--data.env_per_family 3", "data.env_per_family", "no key", "data.envs_per_family"),
    (
        "--model.task_encoder.categorys 3",
        "model.task_encoder.categorys",
        "no key",
        "model.task_encoder.categories",
    ),
    ("--run_dri x", "run_dri", "no key", "run_dir"),
    ("stray", "stray", "no key", "--help"),
    ("--model.ppo.gamma", "--model.ppo.gamma", "expected", "one argument"),
    ("--config nowhere.yaml", "--config", "nowhere.yaml", "one that exists"),
]

# The content of an overlay, and what the sentence must say.
OVERLAYS = [
    ("model: [", "--config", "overlay.yaml", "YAML"),
    ("model:\n\tppo: 3", "--config", "overlay.yaml", "YAML"),
    ("- model\n- data", "--config", "- model - data", "a mapping of keys to values"),
    ("model", "--config", "model", "a mapping of keys to values"),
    ("", "--config", "empty", "a mapping of keys to values"),
    ("budgett: {env_steps: 3}", "budgett.env_steps", "no key", "budget.env_steps"),
    ("model: {ppo: {epoch: 3}}", "model.ppo.epoch", "no key", "model.ppo.epochs"),
    ("data: {validation: {goals: 3}}", "data.validation.goals", "no key", "data.validation.goals_per_family"),
    (
        "model: {task_encoder: {categorys: 3}}",
        *("model.task_encoder.categorys", "no key", "model.task_encoder.categories"),
    ),
    ("model: {ppo: {gamma: much}}", "model.ppo.gamma", "much", "a number"),
    ("model: {ppo: {gamma: null}}", "model.ppo.gamma", "null", "a number"),
    ("model: {task_encoder: {lr: null}}", "model.task_encoder.lr", "null", "a number"),
    ("data: {horizon: null}", "data.horizon", "null", "a whole number"),
    ("run_dir: null", "run_dir", "None", "a path"),
    ("model: {macro_interval: 2}\n\nmodel: {acting: {}}", "line 3", "model", "keep one"),
    ("data:\n  test:\n    agent: expert\n    agent: random", "overlay.yaml", "line 4", "agent"),
    ("ckpt_path: last", "ckpt_path", "last", "belongs to one command"),
    ("overwrite: true", "overwrite", "True", "belongs to one command"),
    ("seed_everything: null", "seed_everything", "None", "a whole number from 0"),
    ("model: null", "model", "None", "a mapping"),
    ("model: {ppo: [1, 2]}", "model.ppo", "[1, 2]", "a mapping"),
    ("model: {ppo: fast}", "model.ppo", "fast", "a mapping of keys to values"),
    (
        "data: {modes: {sampled: {}, other: {permute: all}}}",
        "data.modes.other.permute",
        "all",
        "one of none, task_belief",
    ),
    ("data: {modes: {mine: {actoin: mean}}}", "data.modes.mine.actoin", "no key", "data.modes.mine.action"),
    ("data: {modes: {mine: null}}", "data.modes.mine", "null", "a mapping of keys to values"),
]

# Whole commands, and what the sentence must say.
ML10 = f"--config {CONFIGS / 'ml10.yaml'}"
COMMANDS = [
    ("", "subcommand", "not provided", "one of {fit,validate,test}"),
    (ML10, "subcommand", "not provided", "one of {fit,validate,test}"),
    ("fitt", "subcommand", "'fitt'", "'fit', 'validate', 'test'"),
    ("predict", "subcommand", "'predict'", "'fit', 'validate', 'test'"),
    (f"test {ML10}", "--ckpt_path", "hmrl test", "a checkpoint or a weights-only export"),
    (f"validate {ML10}", "--ckpt_path", "hmrl validate", "a checkpoint or a weights-only export"),
    (f"test {ML10} --run_dir s3://bucket/run", "run_dir", "s3://bucket/run", "a path on this machine"),
    (f"test {ML10} --ckpt_path nowhere.ckpt", "checkpoint", "nowhere.ckpt", "there is no"),
]


class Refusals:
    """Runs commands that must be refused, in a folder where nothing may be written."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, *arguments: str) -> str:
        """The one sentence on stderr."""
        before = self._files()
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        output = self._capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        assert self._files() == before
        (sentence,) = output.err.splitlines()
        assert sentence.startswith("hmrl: error: ")
        return sentence.removeprefix("hmrl: error: ")

    def fit(self, *options: str) -> str:
        fit = HmrlCLI.subcommands()["fit"]
        with pytest.MonkeyPatch.context() as patch:  # one parser is built in a third of the time of three
            patch.setattr(HmrlCLI, "subcommands", staticmethod(lambda: {"fit": fit}))
            return self("fit", *TINY, "--run_dir", "run", *options)

    def _files(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.folder.rglob("*")}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusals:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return Refusals(tmp_path, capsys)


# What is jsonargparse's sentence and not ours, and how it says some of the values.
LIBRARY = re.compile(
    "Parser key |[Uu]nrecognized arguments|not accept(ed)?|must be given via|expected one argument"
    "|Problems parsing config|Unexpected config|trainer.accelerator .*, trainer.devices "
)
SAID = {
    **{
        "null": "None",
        "''": "Got value:",
        "empty": "Unexpected config:",
        "cannot be set": "must be given via",
    },
    **{"no key": ""},
}


def check(sentence: str, key: str, value: str, right: str) -> None:
    """The key and the value are named; where the sentence is ours, so is what would be right."""
    if LIBRARY.search(sentence):
        parts = key.lstrip("-").split(".")
        for part in (".".join(parts[:2]), parts[-1], SAID.get(value, value)):
            assert part in sentence
        return
    for part in (key, value, right):
        whole = rf"(?<![\w.]){re.escape(part)}(?!\.?\w)"  # the value 1 is not in 1.5
        assert re.search(whole, sentence), f"{part!r} is not in {sentence!r}"


@pytest.mark.parametrize(("options", "key", "value", "right"), OPTIONS, ids=[row[0] for row in OPTIONS])
def test_a_wrong_option_is_one_sentence(
    options: str, key: str, value: str, right: str, refused: Refusals
) -> None:
    check(refused.fit(*shlex.split(options)), key, value, right)


@pytest.mark.parametrize(("content", "key", "value", "right"), OVERLAYS, ids=[row[0] for row in OVERLAYS])
def test_a_wrong_file_is_one_sentence(
    content: str, key: str, value: str, right: str, refused: Refusals
) -> None:
    (refused.folder / "overlay.yaml").write_text(content)
    check(refused.fit("--config", "overlay.yaml"), key, value, right)


@pytest.mark.parametrize(("command", "key", "value", "right"), COMMANDS, ids=[row[0] for row in COMMANDS])
def test_a_wrong_command_is_one_sentence(
    command: str, key: str, value: str, right: str, refused: Refusals
) -> None:
    check(refused(*shlex.split(command)), key, value, right)


def test_a_binary_file_is_refused(refused: Refusals) -> None:
    (refused.folder / "overlay.yaml").write_bytes(b"\x80\x81\x00\xff")
    check(refused.fit("--config", "overlay.yaml"), "--config", "overlay.yaml", "utf-8")


@pytest.mark.usefixtures("toy_world")
@pytest.mark.parametrize("indices", [(), (0, 39), (-1, 0)])
def test_ego_indices_out_of_range_are_refused(
    indices: tuple[int, ...], refused: Refusals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "decoded", lambda *_: indices)
    check(refused.fit(), "ego_indices", str(list(indices)), "0 to 38")

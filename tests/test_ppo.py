"""PPO: statistics, density, advantages and updates against arithmetic written out here; what the loop stores; whole
runs, one of them interrupted."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

import ppo

ROOT = Path(__file__).resolve().parent.parent
OBS_DIM = 4
SPACE = gym.spaces.Box(np.float32([-0.5, -1, -0.8]), np.float32([0.5, 1.1, 0.2]))


@pytest.fixture
def float64():
    """Everything that a test makes is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_agent(args=None):
    """An agent whose networks, of a bias and a deviation too, are not as they were initialized."""
    torch.manual_seed(0)
    agent = ppo.Agent(OBS_DIM, SPACE, args or ppo.Args())
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return agent


def make_steps(num_steps, num_envs, seed=1):
    """Steps [T, N] with ends of each kind in their midst, and at the last step."""
    torch.manual_seed(seed)
    ends = torch.rand(num_steps, num_envs)
    terminations, diverged = (ends < 0.1).to(ends), (ends > 0.9).to(ends)
    return ppo.Steps(
        observations=torch.randn(num_steps, num_envs, OBS_DIM),
        next_observations=torch.randn(num_steps, num_envs, OBS_DIM),
        actions=torch.randn(num_steps, num_envs, SPACE.shape[0]),
        logprobs=torch.randn(num_steps, num_envs),
        rewards=torch.randn(num_steps, num_envs),
        terminations=terminations,
        dones=((ends < 0.2) | (ends > 0.9)).to(ends),
        valid=1 - diverged,
    )


# ------------------------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize("shape", [(), (3,)])
def test_running_statistics_are_those_of_all_rows(shape):
    """Of batches of several sizes, with a mean far from 0 and deviations that differ by dimension."""
    rng = np.random.default_rng(0)
    rows = 1000 + rng.standard_normal((400, *shape)) * np.resize([1, 1e-3, 50], shape)
    stats = ppo.RunningMeanStd(*shape)
    assert (stats.mean == 0).all() and (stats.var == 1).all()
    for batch in np.split(rows, [1, 3, 10, 100, 350]):
        stats.update(torch.as_tensor(batch))
    assert stats.count == 400
    np.testing.assert_allclose(stats.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.var, rows.var(axis=0), rtol=1e-9)


def test_statistics_still_move_after_many_rows():
    stats = ppo.RunningMeanStd()
    stats.mean.fill_(100)
    stats.count.fill_(8e6)
    for _ in range(10_000):
        stats.update(torch.full((8,), 101.0))
    assert stats.mean.item() == pytest.approx(100 + 8e4 / 8.08e6, rel=1e-9)


def test_observations_and_rewards_are_normalized_and_clipped():
    agent = make_agent()
    rng = np.random.default_rng(0)
    rows, returns = 5 + rng.standard_normal((100, OBS_DIM)) * [1, 10, 0.1, 0], 7 * rng.standard_normal(100)
    agent.obs_stats.update(torch.as_tensor(rows))
    agent.return_stats.update(torch.as_tensor(returns))
    new = torch.tensor([[5.0, -4, 5.2, 5], [1e6, -1e6, 6.5, 5.1]])
    expected = np.clip((new.numpy() - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-8), -10, 10)
    torch.testing.assert_close(agent.normalize(new), torch.tensor(expected, dtype=torch.float32))
    assert (abs(expected) == 10).sum() == 4
    rewards = torch.tensor([0, 3.0, -7.0, 1000, -1000])  # their mean is not taken away
    expected = [0, 3 / returns.std(), -7 / returns.std(), 10, -10]
    torch.testing.assert_close(agent.scale_rewards(rewards), torch.tensor(expected, dtype=torch.float32))


def test_statistics_are_saved_and_frozen_at_evaluation():
    agent = make_agent()
    agent.obs_stats.update(5 + 3 * torch.randn(100, OBS_DIM))
    agent.return_stats.update(torch.randn(100))
    observations = 5 + 3 * torch.randn(20, OBS_DIM)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    actions = agent.policy(observations)
    assert all(value.equal(before[name]) for name, value in agent.state_dict().items())
    low, high = torch.as_tensor(SPACE.low), torch.as_tensor(SPACE.high)
    expected = torch.minimum(torch.maximum(agent.actor_mean(agent.normalize(observations)), low), high)
    torch.testing.assert_close(actions, expected)
    assert (actions == low).any() and (actions == high).any()
    restored = ppo.Agent(OBS_DIM, SPACE, ppo.Args())
    assert not torch.allclose(restored.policy(observations), actions)
    restored.load_state_dict(before)
    assert restored.policy(observations).equal(actions) and restored.return_stats.var == agent.return_stats.var


# ---------------------------------------------------------------------------------------------------------- policy


def test_log_probability_is_the_change_of_variables(float64):
    """Of actions a = mean + std z, whose derivative is taken numerically, beyond the bounds too."""
    agent = make_agent()
    observations = torch.randn(200, OBS_DIM)
    torch.manual_seed(2)
    actions, log_prob = agent.explore(observations)
    torch.manual_seed(2)
    z = torch.randn(200, SPACE.shape[0])
    mean, std, h = agent.actor_mean(observations), torch.exp(agent.actor_logstd), 1e-6
    torch.testing.assert_close(actions, mean + std * z)
    derivative = ((mean + std * (z + h)) - (mean + std * (z - h))) / (2 * h)
    expected = (-z.square() / 2 - math.log(2 * math.pi) / 2 - derivative.log()).sum(dim=1)
    torch.testing.assert_close(log_prob, expected, rtol=1e-7, atol=1e-7)
    assert (actions > torch.as_tensor(SPACE.high)).any() and (actions < torch.as_tensor(SPACE.low)).any()


def test_initialization():
    """Orthogonal, with CleanRL's gains, no biases, and unit deviation."""
    agent = ppo.Agent(100, SPACE, ppo.Args())
    for network, gain in ((agent.critic, 1), (agent.actor_mean, 0.01)):
        layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
        assert [layer.out_features for layer in layers[:2]] == [64, 64]
        for layer, std in zip(layers, (math.sqrt(2), math.sqrt(2), gain), strict=True):
            weight = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
            torch.testing.assert_close(weight @ weight.T, std**2 * torch.eye(len(weight)), atol=1e-5, rtol=1e-5)
            assert (layer.bias == 0).all()
    assert (agent.actor_logstd == 0).all()


# ------------------------------------------------------------------------------------------------------ advantages


@pytest.mark.parametrize("gae_lambda", [0, 0.9, 1])
def test_advantages_are_their_definition(float64, gae_lambda):
    """A_t = sum_l (gamma lambda)^l delta_{t+l} up to the end of the episode; only a termination has no next value, and
    nothing of a diverged step is counted."""
    args = ppo.Args(gamma=0.95, gae_lambda=gae_lambda)
    steps = make_steps(40, 6)
    values, next_values = torch.randn(40, 6), torch.randn(40, 6)
    advantages = ppo.generalized_advantages(steps, values, next_values, args)
    ends = [0, 0, 0, 0]  # terminated, truncated, diverged, the rollout's
    for t, n in np.ndindex(40, 6):
        if not steps.valid[t, n]:
            continue
        total, end = 0.0, t
        while True:
            if not steps.valid[end, n]:
                ends[2] += 1
                break
            terminated = steps.terminations[end, n].item() == 1
            target = steps.rewards[end, n] + (0 if terminated else 0.95 * next_values[end, n])
            total += (0.95 * gae_lambda) ** (end - t) * (target - values[end, n])
            if terminated or steps.dones[end, n]:
                ends[0 if terminated else 1] += 1
                break
            end += 1
            if end == 40:
                ends[3] += 1
                break
        assert advantages[t, n].item() == pytest.approx(total.item(), rel=1e-10, abs=1e-10), (t, n)
    assert min(ends) > 3  # all cases occurred


# --------------------------------------------------------------------------------------------------------- updates


def plain_network(p, name, x):
    for layer in (0, 2):
        x = (x @ p[f"{name}.{layer}.weight"].T + p[f"{name}.{layer}.bias"]).tanh()
    return x @ p[f"{name}.4.weight"].T + p[f"{name}.4.bias"]


def plain_update(p, moments, batch, args, step):
    """Update number `step`, 1 the first, of the parameters p, by name, in place; returns what is to be logged, how many
    samples each of the two clippings held back, and the norm of the gradient."""
    p_grad = {name: value.clone().requires_grad_() for name, value in p.items()}
    mean, log_std = plain_network(p_grad, "actor_mean", batch.observations), p_grad["actor_logstd"]
    log_prob = -(((batch.actions - mean) / log_std.exp()) ** 2) / 2 - log_std - math.log(2 * math.pi) / 2
    log_ratio = log_prob.sum(dim=1) - batch.logprobs
    advantages = batch.advantages
    if args.norm_adv:
        centered = advantages - advantages.sum() / len(advantages)
        advantages = centered / ((centered**2).sum() / (len(centered) - 1)).sqrt()
    policy_loss, value_loss, policy_held, value_held = 0, 0, 0, 0
    values = plain_network(p_grad, "critic", batch.observations)[:, 0]
    for i, a in enumerate(advantages):
        ratio = log_ratio[i].exp()
        limited = min(max(ratio, 1 - args.clip_coef), 1 + args.clip_coef)
        policy_loss = policy_loss - min(ratio * a, limited * a) / len(advantages)
        policy_held += (limited * a < ratio * a).item()
        error = (values[i] - batch.returns[i]) ** 2
        if args.clip_vloss:
            change = min(max(values[i] - batch.values[i], -args.clip_coef), args.clip_coef)
            limited_error = (batch.values[i] + change - batch.returns[i]) ** 2
            value_held += (limited_error > error).item()
            error = max(error, limited_error)
        value_loss = value_loss + error / 2 / len(advantages)
    entropy = (log_std + math.log(2 * math.pi * math.e) / 2).sum()
    loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss
    gradients = dict(zip(p, torch.autograd.grad(loss, p_grad.values()), strict=True))
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients.values()))
    for name, g in gradients.items():
        g = g * min(1, args.max_grad_norm / (norm + 1e-6))
        m, v = moments.get(name, (0, 0))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        moments[name] = m, v
        p[name] = p[name] - args.learning_rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-5)
    metrics = {
        "losses/value_loss": value_loss,
        "losses/policy_loss": policy_loss,
        "losses/entropy": entropy,
        "losses/old_approx_kl": -log_ratio.mean(),
        "losses/approx_kl": (log_ratio.exp() - 1 - log_ratio).mean(),
        "losses/clipfrac": ((log_ratio.exp() - 1).abs() > args.clip_coef).double().mean(),
    }
    return {name: value.item() for name, value in metrics.items()}, policy_held, value_held, norm


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"norm_adv": False, "clip_vloss": False, "ent_coef": 0.05, "max_grad_norm": 100.0},
        {"clip_coef": 0.1, "ent_coef": 0.01, "vf_coef": 2.0, "max_grad_norm": 0.1, "learning_rate": 1e-3},
    ],
)
def test_minibatch_update_is_the_plain_arithmetic(float64, args):
    args = ppo.Args(**args)
    agent = make_agent()
    optimizer = ppo.make_optimizer(agent, args)
    p, moments = {name: value.detach().clone() for name, value in agent.named_parameters()}, {}
    for step in range(1, 5):
        observations, actions = torch.randn(80, OBS_DIM), torch.randn(80, SPACE.shape[0])
        with torch.no_grad():  # the policy and the values have moved a little since the rollout
            logprobs = agent.get_distribution(observations).log_prob(actions).sum(dim=1) + 0.3 * torch.randn(80)
            values = agent.get_value(observations) + 0.3 * torch.randn(80)
        batch = ppo.Minibatch(observations, actions, logprobs, values, 2 * torch.randn(80) + 1, torch.randn(80))
        metrics = ppo.update_minibatch(agent, optimizer, batch, args)
        expected, policy_held, value_held, norm = plain_update(p, moments, batch, args, step)
        assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-7), step
        errors = {name: (value - p[name]).abs().max().item() for name, value in agent.named_parameters()}
        assert max(errors.values()) < 1e-9, (step, errors)
        assert policy_held > 3 and (value_held > 3 or not args.clip_vloss)  # both clippings were active
        assert (norm > args.max_grad_norm) == (args.max_grad_norm < 100)


def record_minibatches(monkeypatch, kl=0.0):
    """Makes update_minibatch only record what it is given; `kl` is the divergence that it reports."""
    seen = []

    def record(agent, optimizer, batch, args):
        seen.append(batch)
        return {"losses/approx_kl": torch.tensor(kl), "losses/clipfrac": torch.tensor(float(len(seen)))}

    monkeypatch.setattr(ppo, "update_minibatch", record)
    return seen


def test_epochs_take_each_valid_sample_once(float64, monkeypatch):
    args = ppo.Args(num_envs=6, num_steps=40, num_minibatches=8, update_epochs=3)  # minibatches of 30
    agent, steps = make_agent(), make_steps(40, 6)
    seen = record_minibatches(monkeypatch)
    metrics, updates = ppo.update_agent(agent, None, steps, args)
    valid = steps.valid == 1
    per_epoch = int(valid.sum()) // 30
    assert 0 < per_epoch < 8 and updates == len(seen) == 3 * per_epoch
    assert metrics["losses/clipfrac"] == (1 + updates) / 2  # the mean over all minibatches, as in CleanRL
    values = plain_network(dict(agent.named_parameters()), "critic", steps.observations)[..., 0]
    next_values = plain_network(dict(agent.named_parameters()), "critic", steps.next_observations)[..., 0]
    advantages = ppo.generalized_advantages(steps, values, next_values, args)
    returns = advantages + values
    explained = 1 - (returns - values)[valid].var() / returns[valid].var()
    assert metrics["losses/explained_variance"].item() == pytest.approx(explained.item())
    parts = steps.observations, steps.actions, steps.logprobs, values, advantages, returns
    known = {row[2].item(): row for row in zip(*(part[valid] for part in parts), strict=True)}  # by logprob
    orders = []
    for epoch in range(3):
        rows = [row for batch in seen[epoch * per_epoch :][:per_epoch] for row in zip(*batch, strict=True)]
        keys = [row[2].item() for row in rows]
        assert len(rows) == len(set(keys)) == 30 * per_epoch and set(keys) <= set(known)
        for row in rows:
            for value, expected in zip(row, known[row[2].item()], strict=True):
                torch.testing.assert_close(value, expected)
        orders.append(keys)
    assert orders[0] != orders[1] != orders[2]


def test_target_kl_ends_the_epochs(float64, monkeypatch):
    agent, steps = make_agent(), make_steps(40, 6)
    for kl, target, epochs in ((0.02, None, 3), (0.02, 0.03, 3), (0.02, 0.01, 1)):
        args = ppo.Args(num_envs=6, num_steps=40, num_minibatches=24, update_epochs=3, target_kl=target)
        seen = record_minibatches(monkeypatch, kl)
        ppo.update_agent(agent, None, steps, args)
        assert len(seen) == epochs * (int(steps.valid.sum()) // 10), (kl, target)


def test_rollout_with_less_than_a_minibatch_is_left_out(float64, monkeypatch):
    args = ppo.Args(num_envs=6, num_steps=40, num_minibatches=8, target_kl=0.01)  # minibatches of 30
    steps = make_steps(5, 6)
    steps.valid.fill_(1)
    seen = record_minibatches(monkeypatch)
    assert ppo.update_agent(make_agent(), None, steps, args)[1] == 10 and len(seen) == 10
    steps.valid[0, 0] = 0
    assert ppo.update_agent(make_agent(), None, steps, args) == ({}, 0) and len(seen) == 10


# -------------------------------------------------------------------------------------------------------- the loop


class ScriptedEnv(gym.Env):
    """Random observations; `script` says of each step its reward and how it ends: "", terminated, truncated, diverged.
    What the environment gave and got is in `log`."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
    action_space = SPACE

    def __init__(self, index, script):
        self.rng, self.script = np.random.default_rng(index), iter(script)
        self.log = SimpleNamespace(observations=[], last_observations=[], actions=[])

    def observe(self):
        self.last_obs = (3 + 2 * self.rng.standard_normal(OBS_DIM)).astype(np.float32)
        return self.last_obs

    def reset(self, *, seed=None, options=None):
        self.log.observations.append(self.observe())
        return self.last_obs, {}

    def step(self, action):
        reward, end = next(self.script)
        self.log.actions.append(action)
        info = {"physics_error": True} if end == "diverged" else {}
        self.log.last_observations.append(self.last_obs if end == "diverged" else self.observe())
        if not end:
            self.log.observations.append(self.last_obs)
        return self.last_obs, reward, end == "terminated", end in ("truncated", "diverged"), info


class ScriptedRun:
    """Counts steps like ppo.Run, without a directory. `checkpoint` is what it restores."""

    def __init__(self, args, global_step=0, **checkpoint):
        self.args, self.global_step, self.updates, self.checkpoint = args, global_step, 0, checkpoint

    def start(self, device, **learned):
        self.learned = learned
        for name, state in self.checkpoint.items():
            learned[name].load_state_dict(state)

    def goes_on(self, policy, eval_envs):
        return self.global_step < self.args.total_timesteps

    def count_step(self, metrics, infos):
        self.global_step += 1

    def finish(self, agent):
        return 0


ENDS = {(2, 0): "terminated", (3, 1): "truncated", (5, 2): "truncated", (7, 1): "diverged", (8, 0): "truncated"}


def run_loop(monkeypatch, args, **run):
    """ppo.train on three scripted environments. Returns them, the rewards [T, N], the run, and the steps and learning
    rate of each update."""
    rewards = np.random.default_rng(9).standard_normal((args.total_timesteps, 3)) + 1
    rewards[[t for t, n in ENDS if ENDS[t, n] == "diverged"], [n for t, n in ENDS if ENDS[t, n] == "diverged"]] = 0
    scripts = [[(rewards[t, n], ENDS.get((t, n), "")) for t in range(args.total_timesteps)] for n in range(3)]
    same_step = gym.vector.AutoresetMode.SAME_STEP
    envs = gym.vector.SyncVectorEnv(
        [lambda n=n: ScriptedEnv(n, scripts[n]) for n in range(3)], autoreset_mode=same_step
    )
    updates = []

    def record(agent, optimizer, steps, args):
        updates.append((ppo.Steps(*(part.clone() for part in steps)), optimizer.param_groups[0]["lr"]))
        return {}, 7

    monkeypatch.setattr(ppo, "update_agent", record)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = ScriptedRun(args, **run)
    assert ppo.train(args, run, envs, envs) == 0
    return envs.envs, rewards, run, updates


def test_loop_stores_what_happened(monkeypatch):
    """Observations, actions, rewards and ends of 13 steps, in rollouts of 5, with the statistics of their time."""
    args = ppo.Args(num_envs=3, num_steps=5, num_minibatches=1, total_timesteps=13, device="cpu", learning_rate=0.01)
    envs, rewards, run, updates = run_loop(monkeypatch, args)
    agent = run.learned["agent"]
    assert [len(steps.dones) for steps, _ in updates] == [5, 5, 3] and run.updates == 21
    rates = [0.01, 0.01 * 8 / 13, 0.01 * 3 / 13]
    assert [rate for _, rate in updates] == pytest.approx(rates)
    steps = ppo.Steps(*(torch.cat(parts) for parts in zip(*(steps for steps, _ in updates), strict=True)))

    raw = np.stack([env.log.observations for env in envs], axis=1).astype(np.float64)  # [T + 1, N, obs_dim]
    last = np.stack([env.log.last_observations for env in envs], axis=1)  # [T, N, obs_dim]
    assert len(raw) == 14 and len(last) == 13
    discounted, all_discounted = np.zeros(3), []
    for t in range(13):
        seen = raw[: t + 1].reshape(
            -1, OBS_DIM
        )  # the first observations and what the steps have returned so far, of all environments
        mean, var = seen.mean(axis=0), seen.var(axis=0)
        np.testing.assert_allclose(
            steps.observations[t], np.clip((raw[t] - mean) / np.sqrt(var + 1e-8), -10, 10), atol=1e-5, rtol=1e-5
        )
        seen = raw[: t + 2].reshape(-1, OBS_DIM)
        expected = np.clip((last[t] - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + 1e-8), -10, 10)
        np.testing.assert_allclose(steps.next_observations[t], expected, atol=1e-5, rtol=1e-5)
        discounted = args.gamma * discounted + rewards[t]
        all_discounted.append(discounted.copy())
        scaled = np.clip(rewards[t] / np.sqrt(np.var(all_discounted) + 1e-8), -10, 10)
        np.testing.assert_allclose(steps.rewards[t], scaled, atol=1e-5, rtol=1e-5)
        for n in range(3):
            if (t, n) in ENDS:
                discounted[n] = 0
    np.testing.assert_allclose(agent.obs_stats.mean, raw.reshape(-1, OBS_DIM).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(agent.return_stats.var, np.var(all_discounted), rtol=1e-6)

    for stored, kinds in (
        (steps.terminations, ["terminated"]),
        (steps.dones, ["terminated", "truncated", "diverged"]),
        (1 - steps.valid, ["diverged"]),
    ):
        assert {tuple(index) for index in stored.nonzero().tolist()} == {at for at in ENDS if ENDS[at] in kinds}
    got = torch.tensor(np.stack([env.log.actions for env in envs], axis=1))
    low, high = torch.as_tensor(SPACE.low), torch.as_tensor(SPACE.high)
    torch.testing.assert_close(got, torch.minimum(torch.maximum(steps.actions, low), high))
    assert (steps.actions > high).any() and (steps.actions < low).any()
    distribution = torch.distributions.Normal(agent.actor_mean(steps.observations), agent.actor_logstd.exp())
    torch.testing.assert_close(steps.logprobs, distribution.log_prob(steps.actions).sum(dim=2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("anneal_lr", [True, False])
def test_resumed_loop_goes_on_in_the_rollout(monkeypatch, anneal_lr):
    """With 3 of 5 steps in the checkpoint: the update is that of all 5, and nothing leaks over the break."""
    args = ppo.Args(num_envs=3, num_steps=5, num_minibatches=1, total_timesteps=10, device="cpu", anneal_lr=anneal_lr)
    before = ppo.Rollout(5, 3, OBS_DIM, SPACE.shape[0], torch.device("cpu"))
    stored = make_steps(3, 3)._replace(terminations=torch.zeros(3, 3), dones=torch.zeros(3, 3))
    for step in zip(*stored, strict=True):
        before.add(ppo.Steps(*step))
    state = before.state_dict()
    assert all(value.untyped_storage().nbytes() == 4 * value.numel() for value in state.values())  # no more is saved
    _, _, run, updates = run_loop(monkeypatch, args, global_step=3, rollout=state)
    assert [len(steps.dones) for steps, _ in updates] == [5, 5] and run.global_step == 10
    assert [rate for _, rate in updates] == pytest.approx([3e-4, 1.5e-4 if anneal_lr else 3e-4])
    for name, part in updates[0][0]._asdict().items():
        expected = stored._replace(dones=torch.tensor([[0.0] * 3, [0.0] * 3, [1.0] * 3]))
        assert part[:3].equal(getattr(expected, name)), name


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", 0.0),
        ("gamma", 1.1),
        ("gae_lambda", -0.1),
        ("num_steps", 0),
        ("num_minibatches", 0),
        ("num_minibatches", 8193),  # of one transition each
        ("update_epochs", 0),
        ("clip_coef", 0.0),
        ("max_grad_norm", math.nan),
        ("target_kl", 0.0),
        ("ent_coef", -0.1),
        ("vf_coef", -0.1),
    ],
)
def test_bad_arguments_are_named(name, value, capsys):
    ppo.check_args(ppo.Args())
    ppo.check_args(ppo.Args(num_minibatches=8192, target_kl=0.01))
    with pytest.raises(SystemExit) as error:
        ppo.check_args(ppo.Args(**{name: value}))
    message = capsys.readouterr().err
    assert error.value.code == 2 and message.count("\n") == 1
    assert f"ppo.py: error: --{name.replace('_', '-')} " in message and str(value) in message


# ------------------------------------------------------------------------------------------------------ whole runs


KICK = f"""
import os, runpy, signal
import gymnasium as gym
import numpy as np

class Kick(gym.Env):
    '''A point to be kept near 0, for 7 steps. After $KILL_AT steps in all, it terminates the trainer.'''
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    steps = 0

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:  # each evaluation, and the start of training
            self.steps = 0
        self.x, self.t = self.np_random.standard_normal(2).astype(np.float32), 0
        return self.x, {{}}

    def step(self, action):
        self.steps, self.t = self.steps + 1, self.t + 1
        if self.steps == int(os.environ.get("KILL_AT", 0)):
            os.kill(os.getppid(), signal.SIGTERM)
        self.x = (self.x + 0.3 * action).astype(np.float32)
        return self.x, -float(np.square(self.x).sum()), False, self.t == 7, {{}}

gym.register("Kick-v0", Kick)
runpy.run_path({str(ROOT / "ppo.py")!r}, run_name="__main__")
"""


def run_script(script, run_dir, *flags, status=0, **environment):
    """Runs ppo.py, or a script that runs it; returns its output."""
    command = [sys.executable, script, "--run-dir", run_dir, "--device", "cpu", *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, done.stderr
    return done.stdout


def read_evaluations(run_dir):
    with open(run_dir / "evaluations.csv") as file:
        return [{key: value for key, value in row.items() if key != "wall_seconds"} for row in csv.DictReader(file)]


def test_sigterm_in_a_rollout_and_resume(tmp_path):
    """Beside a run that was left alone: what was evaluated before the signal is the same, to the last bit, and counters
    and updates are the same at the end."""
    kick = tmp_path / "kick.py"
    kick.write_text(KICK)
    flags = "--env-id Kick-v0 --num-envs 2 --num-steps 20 --num-minibatches 4 --total-timesteps 70"
    flags = flags.split() + "--eval-frequency 30 --eval-episodes 2 --seed 5".split()
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    run_script(kick, alone, *flags)
    run_script(kick, broken, *flags, status=128 + signal.SIGTERM, KILL_AT="33")
    saved = torch.load(broken / "checkpoint.pt", weights_only=True)
    assert saved["global_step"] == 33 and len(saved["rollout"]["dones"]) == 13 and saved["updates"] == 40
    assert saved["agent"]["obs_stats.count"] == 2 + 2 * 33  # the first observations, and those of the steps
    run_script(kick, broken, *flags, "--resume")
    rows, expected = read_evaluations(broken), read_evaluations(alone)
    assert len(rows) == 8 and rows[:4] == expected[:4]
    assert rows[4:6] != expected[4:6]  # after the break, the episodes are others
    counters = "step", "frames", "updates", "episode", "length"
    assert [[row[key] for key in counters] for row in rows] == [[row[key] for key in counters] for row in expected]
    # Three rollouts of 40 samples, and 20 of the last one, in minibatches of 10.
    assert (rows[-1]["step"], rows[-1]["updates"]) == ("70", str(3 * 40 + 20))

    result = json.loads((broken / "result.json").read_text())
    returns = result["final_evaluation"]["returns"]
    played = run_script(kick, broken, "--evaluate", broken, "--eval-episodes", 2)
    assert all(f"return {value:.2f}," in played for value in returns)  # with the statistics of the networks' file


def test_learns_to_balance(tmp_path):
    """The untrained policies of seeds 1 to 4 fall after 23 to 31 steps, the trained ones after 79 to 1000."""
    pendulum = "--env-id InvertedPendulum-v5 --num-envs 4 --total-timesteps 1024 --num-steps 128 --num-minibatches 8"
    run_script(ROOT / "ppo.py", tmp_path / "run", *pendulum.split(), *"--learning-rate 1e-3 --eval-episodes 4".split())
    rows = read_evaluations(tmp_path / "run")
    returns = {step: np.mean([float(row["return"]) for row in rows if row["step"] == step]) for step in ("0", "1024")}
    assert returns["0"] < 40 and returns["1024"] > 60

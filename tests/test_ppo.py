"""PPO: statistics, advantages and updates against arithmetic written out here; what the loop stores."""

import copy
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.nn import Linear, Tanh
from torch.optim import SGD
from torch.testing import assert_close

import ppo

OBS_DIM = 4
ACTION_DIM = 3


RNG = np.random.default_rng(0)
OBSERVATIONS = torch.as_tensor(5 + [1, 10, 0.1, 0] * RNG.standard_normal((100, OBS_DIM)))
RETURNS = torch.as_tensor(7 * RNG.standard_normal(100))


def make_agent():
    """An agent with the statistics of these, whose networks are not as they were initialized, and where a gradient is
    left over."""
    torch.manual_seed(0)
    agent = ppo.Agent(OBS_DIM, ACTION_DIM, ppo.Args())
    for parameter in agent.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.grad = torch.ones_like(parameter)
    agent.obs_stats.update(OBSERVATIONS)
    agent.return_stats.update(RETURNS)
    return agent


def make_steps(num_steps, num_envs):
    """Steps [T, N]; a tenth of them terminates, and as many end in another way."""
    torch.manual_seed(1)
    observations = torch.randn(2, num_steps, num_envs, OBS_DIM)
    actions = torch.randn(num_steps, num_envs, ACTION_DIM)
    logprobs, rewards, ends = torch.randn(3, num_steps, num_envs)
    return ppo.Steps(*observations, actions, logprobs, rewards, 1.0 * (ends < -1.3), 1.0 * (ends < -0.8))


# ----------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("scale", [1, [1, 1e-3, 50]])
def test_running_statistics_are_those_of_all_rows(scale):
    """Of batches of several sizes, with a mean far from 0 and deviations that differ by dimension."""
    shape = np.shape(scale)
    rows = 1000 + scale * np.random.default_rng(0).standard_normal((400, *shape))
    stats = ppo.RunningMeanStd(*shape)

    for batch in np.split(rows, [1, 3, 10, 100, 350]):
        stats.update(torch.as_tensor(batch))

    assert stats.count == 400
    np.testing.assert_allclose(stats.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.var, rows.var(axis=0), rtol=1e-9)


NEW = torch.tensor([[5.0, -4, 5.2, 5], [1e6, -1e6, 6.5, 5.1]])  # observations, of which the second is far outside


def test_observations_are_normalized_and_clipped():
    normalized = make_agent().normalize(NEW)

    variances = OBSERVATIONS.var(dim=0, correction=0) + 1e-8
    expected = (NEW - OBSERVATIONS.mean(dim=0)) / variances.sqrt()
    assert_close(normalized, expected.clip(-10, 10).float())


def test_rewards_are_scaled_and_clipped_but_not_centered():
    scaled = make_agent().scale_rewards(torch.tensor([0.0, 3, 1000, -1000]))

    assert_close(scaled, torch.tensor([0, 3 / RETURNS.std(correction=0), 10, -10]).float())


def test_policy_is_the_clipped_mean_and_changes_nothing_in_the_agent():
    agent = make_agent()
    agent.actor_mean[4].weight.data *= 10
    before = copy.deepcopy(agent.state_dict())

    actions = agent.policy(NEW)

    mean = agent.actor_mean(agent.normalize(NEW))
    assert mean.abs().max() > 1
    assert actions.equal(mean.clip(-1, 1))
    assert_close(agent.state_dict(), before, rtol=0, atol=0)


def test_statistics_are_saved_with_the_networks():
    agent = make_agent()
    restored = ppo.Agent(OBS_DIM, ACTION_DIM, ppo.Args())

    restored.load_state_dict(agent.state_dict())

    assert restored.obs_stats.var.equal(agent.obs_stats.var)
    assert restored.return_stats.var.equal(agent.return_stats.var)


# ----------------------------------------------------------------------------------------------------- advantages


@pytest.mark.parametrize("gae_lambda", [0, 0.9, 1])
def test_advantages_are_their_definition(float64, gae_lambda):
    """A_t = sum_l (gamma lambda)^l delta_{t+l} up to the end of the episode; only a termination has no next value."""
    steps = make_steps(40, 6)
    values = torch.randn(40, 6)
    next_values = torch.randn(40, 6)

    advantages = ppo.generalized_advantages(steps, values, next_values, ppo.Args(gamma=0.95, gae_lambda=gae_lambda))

    deltas = steps.rewards + 0.95 * (1 - steps.terminations) * next_values - values
    expected = torch.zeros(40, 6)
    for t, n in np.ndindex(40, 6):
        weight = 1
        for end in range(t, 40):
            expected[t, n] += weight * deltas[end, n]
            weight *= 0.95 * gae_lambda * (1 - steps.dones[end, n])
    assert_close(advantages, expected)


# -------------------------------------------------------------------------------------------------------- updates


@pytest.mark.parametrize("name", ["critic", "actor_mean"])
def test_networks_have_two_tanh_layers(name):
    network = make_agent().get_submodule(name)

    assert [type(layer) for layer in network] == [Linear, Tanh, Linear, Tanh, Linear]


@torch.no_grad()
def make_minibatch(agent):
    """Policy and values have moved a little since the rollout."""
    observations = torch.randn(80, OBS_DIM)
    actions = torch.randn(80, ACTION_DIM)
    logprobs = agent.get_distribution(observations).log_prob(actions).sum(dim=1) + 0.3 * torch.randn(80)
    values = agent.get_value(observations) + 0.3 * torch.randn(80)
    return ppo.Minibatch(observations, actions, logprobs, values, *torch.randn(2, 80))


def plain_losses(agent, batch, args):
    """The loss of a minibatch, and what is to be logged."""
    distribution = Normal(agent.actor_mean(batch.observations), agent.actor_logstd.exp())
    log_ratio = distribution.log_prob(batch.actions).sum(dim=1) - batch.logprobs
    ratio = log_ratio.exp()
    clip = args.clip_coef
    a = batch.advantages
    if args.norm_adv:
        a = (a - a.mean()) / a.std()
    policy_loss = -torch.minimum(ratio * a, ratio.clip(1 - clip, 1 + clip) * a).mean()
    values = agent.critic(batch.observations)[:, 0]
    errors = (values - batch.returns).square()
    if args.clip_vloss:
        held_values = batch.values + (values - batch.values).clip(-clip, clip)
        errors = errors.maximum((held_values - batch.returns).square())
    value_loss = errors.mean() / 2
    entropy = distribution.entropy().sum(dim=1).mean()
    metrics = {
        "losses/value_loss": value_loss,
        "losses/policy_loss": policy_loss,
        "losses/entropy": entropy,
        "losses/old_approx_kl": -log_ratio.mean(),
        "losses/approx_kl": (ratio - 1 - log_ratio).mean(),
        "losses/clipfrac": ((ratio - 1).abs() > clip).double().mean(),
    }
    return policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss, metrics


LOSSES = [
    {},
    {"norm_adv": False, "clip_vloss": False, "ent_coef": 0.05, "max_grad_norm": 100.0},
    {"clip_coef": 0.1, "ent_coef": 0.01, "vf_coef": 2.0, "max_grad_norm": 0.1},
]


@pytest.mark.parametrize("args", LOSSES)
def test_minibatch_descends_its_loss(float64, args):
    """By gradient descent with a step size of 1, which shows the gradients."""
    args = ppo.Args(**args)
    agent = make_agent()
    batch = make_minibatch(agent)
    other = copy.deepcopy(agent)
    loss, expected = plain_losses(other, batch, args)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), args.max_grad_norm)
    SGD(other.parameters(), lr=1).step()

    metrics = ppo.update_minibatch(agent, SGD(agent.parameters(), lr=1), batch, args)

    assert_close(agent.state_dict(), other.state_dict())
    assert_close(metrics, expected, check_dtype=False)


ROLLOUT = make_steps(39, 6)


def run_epochs(monkeypatch, steps=ROLLOUT, **args):
    """The minibatches of up to 3 epochs, and what update_agent returned."""
    seen = []

    def record(agent, optimizer, batch, args):
        seen.append(batch)
        return {"losses/approx_kl": torch.tensor(0.02), "losses/clipfrac": torch.tensor(float(len(seen)))}

    monkeypatch.setattr(ppo, "update_minibatch", record)
    args = ppo.Args(num_envs=6, num_steps=40, num_minibatches=8, update_epochs=3, **args)
    return seen, *ppo.update_agent(make_agent(), None, steps, args)


@pytest.mark.parametrize("target_kl, epochs", [(None, 3), (0.03, 3), (0.01, 1)])
def test_epochs_end_at_target_kl(monkeypatch, target_kl, epochs):
    seen, _, updates = run_epochs(monkeypatch, target_kl=target_kl)

    assert updates == len(seen) == 7 * epochs  # minibatches of 30, of 234 samples


def test_each_epoch_takes_a_sample_once_in_an_order_of_its_own(monkeypatch):
    seen, _, _ = run_epochs(monkeypatch)

    orders = torch.cat([batch.logprobs for batch in seen]).reshape(3, 210)
    assert len(orders.unique(dim=0)) == 3
    assert [len(order.unique()) for order in orders] == [210] * 3


@torch.no_grad()
def values_and_advantages():
    """Of the agent in run_epochs, on the rollout."""
    agent = make_agent()
    values = agent.get_value(ROLLOUT.observations)
    next_values = agent.get_value(ROLLOUT.next_observations)
    return values, ppo.generalized_advantages(ROLLOUT, values, next_values, ppo.Args())


def test_minibatches_hold_samples_of_the_rollout(monkeypatch):
    (batch, *_), _, _ = run_epochs(monkeypatch)

    values, advantages = values_and_advantages()
    parts = [ROLLOUT.observations, ROLLOUT.actions, ROLLOUT.logprobs, values, advantages, advantages + values]
    names = ROLLOUT.logprobs.flatten().tolist()
    index = [names.index(name) for name in batch.logprobs.tolist()]
    assert_close(list(batch), [part.flatten(0, 1)[index] for part in parts])


def test_epochs_log_the_mean_clipfrac_of_all_minibatches_and_the_explained_variance(monkeypatch):
    """As in CleanRL."""
    _, metrics, _ = run_epochs(monkeypatch)

    values, advantages = values_and_advantages()
    explained = 1 - advantages.var() / (advantages + values).var()
    assert metrics["losses/clipfrac"] == (1 + 21) / 2
    assert_close(metrics["losses/explained_variance"], explained)


def test_fewer_samples_than_a_minibatch_teach_nothing(monkeypatch):
    """And give no NaN."""
    _, metrics, updates = run_epochs(monkeypatch, make_steps(4, 6), target_kl=0.03)

    assert (metrics, updates) == ({}, 0)


# ------------------------------------------------------------------------------------------------------- the loop

TERMINATED = {(2, 0), (12, 1)}  # step, environment
TRUNCATED = {(3, 1), (5, 2), (8, 0)}
ENDS = TERMINATED | TRUNCATED
CUTS = {0, 7, 10}  # steps with an evaluation, which ends all episodes: in a rollout, and between two


class ScriptedEnv(gym.Env):
    """Environment n of three. Its observations are random, and stand in `shown`, which all have together."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS_DIM,))
    action_space = gym.spaces.Box(-1, 1, (ACTION_DIM,))

    def __init__(self, n, shown):
        self.n = n
        self.shown = shown
        self.steps = []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.observation = (3 + 2 * self.np_random.standard_normal(OBS_DIM)).astype(np.float32)
        self.shown[tuple(self.observation)] = True
        return self.observation, {}

    def step(self, action):
        at = len(self.steps), self.n
        before = self.observation
        after, _ = self.reset()
        reward = 1 + self.np_random.standard_normal()
        self.steps.append({"before": before, "after": after, "action": action, "reward": reward})
        return after, reward, at in TERMINATED, at in TRUNCATED, {}


class ScriptedRun:
    """What train() needs of a Run, without a directory; it makes the environments, trains, and records what is done."""

    device = torch.device("cpu")
    updates = 0
    over = False

    def __init__(self, monkeypatch, global_step=0, rollout=None, **args):
        monkeypatch.setattr(ppo, "update_agent", self.update_agent)
        self.args = ppo.Args(num_envs=3, num_steps=5, num_minibatches=1, **args)
        self.global_step = global_step
        self.rollout = rollout
        self.shown = {}  # the different observations, in their order
        self.evaluated = []  # how many the networks had seen that were evaluated
        self.saved = []  # and that were saved
        self.rollouts = []
        self.learning_rates = []
        makers = [partial(ScriptedEnv, n, self.shown) for n in range(3)]
        self.envs = gym.vector.SyncVectorEnv(makers, autoreset_mode="SameStep")
        self.status = ppo.train(self.args, self, self.envs)

    def update_agent(self, agent, optimizer, steps, args):
        self.optimizer = optimizer
        self.rollouts.append(copy.deepcopy(steps))
        self.learning_rates.append(optimizer.param_groups[0]["lr"])
        return {}, 7

    def restore(self, agent, optimizer, rollout):
        self.agent = agent
        if self.rollout is not None:
            rollout.load_state_dict(self.rollout)

    def reset(self, envs):
        observations, _ = envs.reset(seed=10 * self.global_step)
        return observations.copy()

    def evaluate(self, policy, envs):
        self.evaluated.append(self.agent.obs_stats.count.item())
        return self.global_step in CUTS

    def log_step(self, infos, metrics):
        pass

    def save(self):
        self.saved.append(self.agent.obs_stats.count.item())
        self.over = self.global_step == self.args.total_timesteps

    def finish(self, agent):
        return 0

    def stored(self):
        """The steps of all rollouts."""
        return ppo.Steps(*[torch.cat(parts) for parts in zip(*self.rollouts, strict=True)])

    def happened(self, name):
        """What the environments saw in these steps, [T, N, ...]."""
        return np.stack([[step[name] for step in env.steps] for env in self.envs.envs], axis=1)


@pytest.fixture
def run(monkeypatch):
    return ScriptedRun(monkeypatch, total_timesteps=13, learning_rate=0.01)


def test_loop_updates_after_each_rollout_and_at_the_end(run):
    assert run.status == 0
    assert run.updates == 21
    assert [len(steps.dones) for steps in run.rollouts] == [5, 5, 3]


def test_loop_has_adam_with_a_falling_step_size(run):
    assert run.learning_rates == pytest.approx([0.01, 0.01 * 8 / 13, 0.01 * 3 / 13])
    assert run.optimizer.defaults["betas"] == (0.9, 0.999)
    assert run.optimizer.defaults["eps"] == 1e-5


def test_loop_counts_each_observation_once(run):
    """True last ones too; the second reset at step 0 shows the same observations."""
    assert len(run.shown) == 3 * (1 + 13 + 2) + len(ENDS)
    assert run.agent.obs_stats.count == len(run.shown)


def test_loop_saves_the_statistics_that_were_evaluated(run):
    assert run.saved == run.evaluated[1:]


def assert_normalized(stored, observations, shown):
    normalized = (observations - shown.mean(axis=0)) / np.sqrt(shown.var(axis=0) + 1e-8)
    np.testing.assert_allclose(stored, normalized.clip(-10, 10), rtol=1e-5, atol=1e-5)


def test_loop_normalizes_observations_by_the_statistics_of_their_time(run):
    shown = np.array(list(run.shown), dtype=np.float64)
    stored = run.stored()
    count = 3
    for t in range(13):
        assert_normalized(stored.observations[t], run.happened("before")[t], shown[:count])
        count += 3 + sum(at == t for at, _ in ENDS)
        assert_normalized(stored.next_observations[t], run.happened("after")[t], shown[:count])
        if t + 1 in CUTS:
            count += 3


def test_loop_scales_rewards_by_the_deviation_of_the_discounted_return(run):
    discounted = np.zeros(3)
    seen = []
    for t, rewards in enumerate(run.happened("reward")):
        discounted = run.args.gamma * discounted + rewards
        seen.append(discounted)
        scaled = rewards / np.sqrt(np.var(seen) + 1e-8)
        np.testing.assert_allclose(run.stored().rewards[t], scaled.clip(-10, 10), rtol=1e-5)
        over = [(t, n) in ENDS or t + 1 in CUTS for n in range(3)]
        discounted = np.where(over, 0, discounted)


def places(marks):
    """Where marks [T, N] are not 0."""
    return {tuple(at) for at in marks.nonzero().tolist()}


def test_loop_stores_terminations_and_ends(run):
    """The evaluation at step 7 cuts episodes short, which bootstrap; after step 10 the rollout was learned from."""
    steps = run.stored()
    assert places(steps.terminations) == TERMINATED
    assert places(steps.dones) == ENDS | {(6, 0), (6, 1), (6, 2)}


def test_loop_stores_actions_as_sampled_with_their_density(run):
    """The environments clip them."""
    steps = run.stored()
    normal = Normal(run.agent.actor_mean(steps.observations), run.agent.actor_logstd.exp())
    assert np.array_equal(steps.actions, run.happened("action"))
    assert steps.actions.abs().max() > 1
    assert_close(steps.logprobs, normal.log_prob(steps.actions).sum(dim=2), rtol=1e-5, atol=1e-5)


def make_saved_rollout():
    """Three steps, and what a checkpoint has of them."""
    steps = make_steps(3, 3)
    rollout = ppo.Rollout(5, 3, OBS_DIM, ACTION_DIM, torch.device("cpu"))
    for step in zip(*steps, strict=True):
        rollout.add(ppo.Steps(*step))
    return steps, rollout.state_dict()


def test_checkpoint_has_no_more_than_the_steps_so_far():
    _, state = make_saved_rollout()

    assert all(value.untyped_storage().nbytes() == 4 * value.numel() for value in state.values())


def test_resumed_loop_goes_on_in_the_rollout(monkeypatch):
    """The first update is that of all 5 steps, and nothing leaks over the break."""
    steps, state = make_saved_rollout()

    run = ScriptedRun(monkeypatch, 3, state, total_timesteps=10)

    steps.dones[-1] = 1
    assert [len(rollout.dones) for rollout in run.rollouts] == [5, 5]
    assert_close([part[:3] for part in run.rollouts[0]], list(steps))


@pytest.mark.parametrize("anneal_lr, last", [(True, 1.5e-4), (False, 3e-4)])
def test_resumed_loop_goes_on_with_the_step_size(monkeypatch, anneal_lr, last):
    _, state = make_saved_rollout()

    run = ScriptedRun(monkeypatch, 3, state, total_timesteps=10, anneal_lr=anneal_lr)

    assert run.learning_rates == pytest.approx([3e-4, last])

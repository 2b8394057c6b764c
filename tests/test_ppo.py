"""PPO: statistics, advantages and updates against arithmetic written out here; what the loop stores."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import ppo

OBS_DIM, ACTION_DIM = 4, 3


@pytest.fixture
def float64():
    """Everything that a test makes is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_agent():
    """An agent whose networks, of a bias and a deviation too, are not as they were initialized."""
    torch.manual_seed(0)
    agent = ppo.Agent(OBS_DIM, ACTION_DIM, ppo.Args())
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return agent


def make_steps(num_steps, num_envs):
    """Steps [T, N] with ends of each kind in their midst, and at the last step."""
    torch.manual_seed(1)
    ends = torch.rand(num_steps, num_envs)
    observations = torch.randn(2, num_steps, num_envs, OBS_DIM)
    actions, others = torch.randn(num_steps, num_envs, ACTION_DIM), torch.randn(2, num_steps, num_envs)
    return ppo.Steps(*observations, actions, *others, (ends < 0.1).to(ends), (ends < 0.2).to(ends))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_running_statistics_are_those_of_all_rows(shape):
    """Of batches of several sizes, with a mean far from 0 and deviations that differ by dimension."""
    rows = 1000 + np.random.default_rng(0).standard_normal((400, *shape)) * np.resize([1, 1e-3, 50], shape)
    stats = ppo.RunningMeanStd(*shape)
    for batch in np.split(rows, [1, 3, 10, 100, 350]):
        stats.update(torch.as_tensor(batch))
    assert stats.count == 400
    np.testing.assert_allclose(stats.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.var, rows.var(axis=0), rtol=1e-9)


def test_statistics_normalize_clip_are_saved_and_stay_as_they_are_at_evaluation():
    agent, rng = make_agent(), np.random.default_rng(0)
    rows, returns = 5 + rng.standard_normal((100, OBS_DIM)) * [1, 10, 0.1, 0], 7 * rng.standard_normal(100)
    agent.obs_stats.update(torch.as_tensor(rows))
    agent.return_stats.update(torch.as_tensor(returns))
    new = torch.tensor([[5.0, -4, 5.2, 5], [1e6, -1e6, 6.5, 5.1]])
    expected = np.clip((new.numpy() - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-8), -10, 10)
    torch.testing.assert_close(agent.normalize(new), torch.tensor(expected).float())
    assert (abs(expected) == 10).sum() == 4
    expected = [0, 3 / returns.std(), 10, -10]  # the mean of the rewards is not taken away
    torch.testing.assert_close(agent.scale_rewards(torch.tensor([0.0, 3, 1000, -1000])), torch.tensor(expected).float())
    agent.actor_mean[4].weight.data *= 10
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    actions, mean = agent.policy(new), agent.actor_mean(agent.normalize(new))
    assert actions.equal(mean.clip(-1, 1)) and (mean.abs() > 1).any() and not actions.requires_grad
    assert all(value.equal(before[name]) for name, value in agent.state_dict().items())
    (restored := ppo.Agent(OBS_DIM, ACTION_DIM, ppo.Args())).load_state_dict(before)
    assert restored.policy(new).equal(actions) and restored.return_stats.var == agent.return_stats.var


@pytest.mark.parametrize("gae_lambda", [0, 0.9, 1])
def test_advantages_are_their_definition(float64, gae_lambda):
    """A_t = sum_l (gamma lambda)^l delta_{t+l} up to the end of the episode; only a termination has no next value."""
    steps, (values, next_values) = make_steps(40, 6), torch.randn(2, 40, 6)
    args = ppo.Args(gamma=0.95, gae_lambda=gae_lambda)
    advantages = ppo.generalized_advantages(steps, values, next_values, args)
    for t, n in np.ndindex(40, 6):
        total = 0.0
        for end in range(t, 40):
            target = steps.rewards[end, n] + (0 if steps.terminations[end, n] else 0.95 * next_values[end, n])
            total += (0.95 * gae_lambda) ** (end - t) * (target - values[end, n]).item()
            if steps.dones[end, n]:
                break
        assert advantages[t, n].item() == pytest.approx(total, rel=1e-10, abs=1e-10), (t, n)
    assert 3 < steps.terminations.sum() < steps.dones.sum() - 3 and steps.dones[-1].sum() < 6


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
    log_ratio, count, a = log_prob.sum(dim=1) - batch.logprobs, len(mean), batch.advantages
    if args.norm_adv:
        a = (a - a.sum() / count) / (((a - a.sum() / count) ** 2).sum() / (count - 1)).sqrt()
    ratio, c = log_ratio.exp(), args.clip_coef
    limit = torch.where(a > 0, ratio.clip(max=1 + c), ratio.clip(min=1 - c))  # only what would gain is held back
    policy_loss = -(limit * a).mean()
    values = plain_network(p_grad, "critic", batch.observations)[:, 0]
    error, change = (values - batch.returns) ** 2, (values - batch.values).clip(-c, c)
    limited = (batch.values + change - batch.returns) ** 2
    held = [(limit != ratio).sum(), (limited > error).sum()]
    value_loss = torch.where((limited > error) & torch.tensor(args.clip_vloss), limited, error).mean() / 2
    entropy = (log_std + math.log(2 * math.pi * math.e) / 2).sum()
    loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss
    gradients = dict(zip(p, torch.autograd.grad(loss, p_grad.values()), strict=True))
    norm = math.sqrt(sum((g**2).sum().item() for g in gradients.values()))
    for name, g in gradients.items():
        g = g * min(1, args.max_grad_norm / (norm + 1e-6))
        m, v = moments.get(name, (0, 0))
        moments[name] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p[name] = p[name] - args.learning_rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-5)
    metrics = {"value_loss": value_loss, "policy_loss": policy_loss, "entropy": entropy}
    metrics |= {"old_approx_kl": -log_ratio.mean(), "approx_kl": (ratio - 1 - log_ratio).mean()}
    metrics["clipfrac"] = ((ratio - 1).abs() > c).double().mean()
    return {f"losses/{name}": value.item() for name, value in metrics.items()}, held, norm


CASES = [{}, {"norm_adv": False, "clip_vloss": False, "ent_coef": 0.05, "max_grad_norm": 100.0}]
CASES += [{"clip_coef": 0.1, "ent_coef": 0.01, "vf_coef": 2.0, "max_grad_norm": 0.1, "learning_rate": 1e-3}]


@pytest.mark.parametrize("args", CASES)
def test_minibatch_update_is_the_plain_arithmetic(float64, args):
    args, agent = ppo.Args(**args), make_agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)  # as in train()
    p, moments = {name: value.detach().clone() for name, value in agent.named_parameters()}, {}
    for step in range(1, 5):
        observations, actions = torch.randn(80, OBS_DIM), torch.randn(80, ACTION_DIM)
        with torch.no_grad():  # the policy and the values have moved a little since the rollout
            logprobs = agent.get_distribution(observations).log_prob(actions).sum(dim=1) + 0.3 * torch.randn(80)
            values = agent.get_value(observations) + 0.3 * torch.randn(80)
        batch = ppo.Minibatch(observations, actions, logprobs, values, 2 * torch.randn(80) + 1, torch.randn(80))
        metrics = ppo.update_minibatch(agent, optimizer, batch, args)
        expected, held, norm = plain_update(p, moments, batch, args, step)
        assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-7), step
        errors = {name: (value - p[name]).abs().max().item() for name, value in agent.named_parameters()}
        assert max(errors.values()) < 1e-9, (step, errors)
        assert min(held) > 3  # both clippings were active
        assert (norm > args.max_grad_norm) == (args.max_grad_norm < 100)


def test_epochs_take_each_sample_once_until_target_kl(float64, monkeypatch):
    agent, steps, seen = make_agent(), make_steps(39, 6), []
    values, next_values = (plain_network(dict(agent.named_parameters()), "critic", part)[..., 0] for part in steps[:2])

    def record(agent, optimizer, batch, args):
        seen.append(batch)
        return {"losses/approx_kl": torch.tensor(0.02), "losses/clipfrac": torch.tensor(float(len(seen)))}

    monkeypatch.setattr(ppo, "update_minibatch", record)
    for target, epochs in ((None, 3), (0.03, 3), (0.01, 1)):
        seen.clear()
        args = ppo.Args(num_envs=6, num_steps=40, num_minibatches=8, update_epochs=3, target_kl=target)
        metrics, updates = ppo.update_agent(agent, None, steps, args)
        assert updates == len(seen) == epochs * 7  # minibatches of 30, of 234 samples
        assert metrics["losses/clipfrac"] == (1 + updates) / 2  # the mean over all minibatches, as in CleanRL
        advantages = ppo.generalized_advantages(steps, values, next_values, args)
        parts = steps.observations, steps.actions, steps.logprobs, values, advantages, advantages + values
        known = {row[2].item(): torch.hstack(row) for row in zip(*(part.flatten(0, 1) for part in parts), strict=True)}
        rows = [row for batch in seen for row in zip(*batch, strict=True)]
        keys = [row[2].item() for row in rows]  # a sample's logprob is its name
        orders = {tuple(keys[210 * epoch :][:210]) for epoch in range(epochs)}
        assert len(orders) == epochs and all(len(set(order)) == 210 for order in orders)
        torch.testing.assert_close([torch.hstack(row) for row in rows], [known[key] for key in keys])
        explained = 1 - (parts[5] - values).var() / parts[5].var()
        assert metrics["losses/explained_variance"].item() == pytest.approx(explained.item())
    few = ppo.Steps(*(part[:4] for part in steps))  # fewer than a minibatch: nothing to learn from, and no NaN
    assert ppo.update_agent(agent, None, few, args) == ({}, 0)


ENDS = {(2, 0): "terminated", (3, 1): "truncated", (5, 2): "truncated", (8, 0): "truncated", (12, 1): "terminated"}
CUTS = {0, 7, 10}  # steps with an evaluation, which ends all episodes: in a rollout, and between two


class ScriptedEnv(gym.Env):
    """Environment n. Random observations, all of them in `rows`; `steps` has what each step was given and gave."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

    def __init__(self, n, rows):
        self.n, self.rows, self.steps = n, rows, []

    def observe(self):
        self.rows.append((3 + 2 * self.rng.standard_normal(OBS_DIM)).astype(np.float32))
        return self.rows[-1]

    def reset(self, *, seed=None, options=None):
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        self.current = self.observe()
        return self.current, {}

    def step(self, action):
        before, reward, end = self.current, 1 + self.rng.standard_normal(), ENDS.get((len(self.steps), self.n))
        self.current = self.observe()
        self.steps.append((before, self.current, action, reward))
        return self.current, reward, end == "terminated", end == "truncated", {}


class ScriptedRun:
    """Counts steps like ppo.Run, without a directory. `counts` has how many observations were seen when."""

    def __init__(self, args, global_step=0, rollout=None):
        self.args, self.global_step, self.rollout = args, global_step, rollout
        self.updates, self.device, self.over, self.rows, self.counts = 0, torch.device("cpu"), False, [], []

    def restore(self, **parts):
        self.agent = parts["agent"]
        parts["rollout"].load_state_dict(self.rollout) if self.rollout else None

    def reset(self, envs):
        self.rows[:] = self.rows if self.global_step else []  # the second reset at step 0 shows the same observations
        observations = envs.reset(seed=[10 * self.global_step + n for n in range(3)])[0].copy()
        self.counts[-1:] = [[*self.counts[-1][:1], len(self.rows)]] if self.counts else []
        return observations

    def evaluate(self, policy, envs):
        self.evaluated = len(self.rows)
        return self.global_step in CUTS

    def log_step(self, infos, metrics):
        self.counts.append([len(self.rows)])

    def save(self):
        assert self.agent.obs_stats.count == len(self.rows) == self.evaluated, "what is saved is what was evaluated"
        self.counts[-1].append(len(self.rows))
        self.over = self.global_step == self.args.total_timesteps

    def finish(self, agent):
        return 0


def run_loop(monkeypatch, run):
    """ppo.train on three scripted environments; returns them, and the steps and the learning rate of each update."""
    updates = []

    def record(agent, optimizer, steps, args):
        updates.append((ppo.Steps(*(part.clone() for part in steps)), optimizer.param_groups[0]["lr"]))
        assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-5
        return {}, 7

    monkeypatch.setattr(ppo, "update_agent", record)
    makers = [lambda n=n: ScriptedEnv(n, run.rows) for n in range(3)]
    envs = gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    assert ppo.train(run.args, run, envs) == 0
    return envs.envs, updates


def test_loop_stores_what_happened(monkeypatch):
    """13 steps, in rollouts of 5, with the statistics of their time: also a true last observation is counted."""
    args = ppo.Args(num_envs=3, num_steps=5, num_minibatches=1, total_timesteps=13, learning_rate=0.01)
    run = ScriptedRun(args)
    envs, updates = run_loop(monkeypatch, run)
    assert [len(steps.dones) for steps, _ in updates] == [5, 5, 3] and run.updates == 21
    assert [rate for _, rate in updates] == pytest.approx([0.01, 0.01 * 8 / 13, 0.01 * 3 / 13])
    steps = ppo.Steps(*(torch.cat(parts) for parts in zip(*(steps for steps, _ in updates), strict=True)))

    rows, close = np.array(run.rows, dtype=np.float64), {"rtol": 1e-5, "atol": 1e-5}
    columns = [zip(*env.steps, strict=True) for env in envs]
    before, after, actions, rewards = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    assert len(rows) == 3 * (1 + 13 + 2) + len(ENDS) == run.agent.obs_stats.count
    counts, discounted, all_discounted = [[3, 3], *run.counts], np.zeros(3), []
    for t in range(13):
        for stored, raw, count in zip(steps[:2], (before, after), (counts[t][1], counts[t + 1][0]), strict=True):
            mean, var = rows[:count].mean(axis=0), rows[:count].var(axis=0)
            np.testing.assert_allclose(stored[t], np.clip((raw[t] - mean) / np.sqrt(var + 1e-8), -10, 10), **close)
        discounted = args.gamma * discounted + rewards[t]
        all_discounted.append(discounted)
        scaled = np.clip(rewards[t] / np.sqrt(np.var(all_discounted) + 1e-8), -10, 10)
        np.testing.assert_allclose(steps.rewards[t], scaled, **close)
        discounted = discounted * [(t, n) not in ENDS and t + 1 not in CUTS for n in range(3)]
    np.testing.assert_allclose(run.agent.return_stats.var, np.var(all_discounted), rtol=1e-6)

    terminated = {at for at, end in ENDS.items() if end == "terminated"}
    assert {tuple(index) for index in steps.terminations.nonzero().tolist()} == terminated
    # The evaluation at step 7 cuts episodes short, which bootstrap; after step 10 the rollout was learned from already.
    assert {tuple(index) for index in steps.dones.nonzero().tolist()} == {*ENDS, (6, 0), (6, 1), (6, 2)}
    assert (actions == steps.actions.numpy()).all() and abs(actions).max() > 1  # as sampled: Task clips them
    distribution = torch.distributions.Normal(run.agent.actor_mean(steps.observations), run.agent.actor_logstd.exp())
    torch.testing.assert_close(steps.logprobs, distribution.log_prob(steps.actions).sum(dim=2), **close)


@pytest.mark.parametrize("anneal_lr", [True, False])
def test_resumed_loop_goes_on_in_the_rollout(monkeypatch, anneal_lr):
    """With 3 of 5 steps in the checkpoint: the update is that of all 5, and nothing leaks over the break."""
    args = ppo.Args(num_envs=3, num_steps=5, num_minibatches=1, total_timesteps=10, anneal_lr=anneal_lr)
    rollout = ppo.Rollout(5, 3, OBS_DIM, ACTION_DIM, torch.device("cpu"))
    stored = make_steps(3, 3)._replace(terminations=torch.zeros(3, 3), dones=torch.zeros(3, 3))
    for step in zip(*stored, strict=True):
        rollout.add(ppo.Steps(*step))
    state = rollout.state_dict()
    assert all(value.untyped_storage().nbytes() == 4 * value.numel() for value in state.values())  # no more is saved
    _, updates = run_loop(monkeypatch, ScriptedRun(args, 3, state))
    assert [rate for _, rate in updates] == pytest.approx([3e-4, 1.5e-4 if anneal_lr else 3e-4])
    assert [len(steps.dones) for steps, _ in updates] == [5, 5]
    expected = stored._replace(dones=torch.tensor([[0.0] * 3, [0.0] * 3, [1.0] * 3]))
    assert all(part[:3].equal(value) for part, value in zip(updates[0][0], expected, strict=True))

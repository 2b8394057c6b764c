"""The learner of TD3, AMS-TD3, SAC and AMS-SAC: targets and whole updates against arithmetic written out here, what
train() makes of them, the replay buffer, exploration, and CUDA graphs.

Random draws of a script and of the arithmetic beside it are paired by equal seeds.
"""

import contextlib
import csv
import io
import itertools
import math
import threading
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

import ams_sac
import ams_td3
import ppo
import sac
import td3

OBS_DIM, ACTION_DIM = 5, 3
AMS, TD3_FAMILY = (ams_td3, ams_sac), (td3, ams_td3)
EVERY = pytest.mark.parametrize("module", [td3, ams_td3, sac, ams_sac])


@pytest.fixture
def float64():
    """Everything that a test makes is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dense(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def hidden(p, network, i, x):
    """Layer i of a network: relu(LN(W x + b)), or without LN where p, the parameters by name, has none."""
    x = dense(p, f"{network}.fc{i}", x)
    if f"{network}.ln{i}.weight" in p:
        mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, correction=0)
        x = (x - mean) / (variance + 1e-5) ** 0.5 * p[f"{network}.ln{i}.weight"] + p[f"{network}.ln{i}.bias"]
    return x * (x > 0)


def plain_q(p, network, observations, actions):
    x = hidden(p, network, 2, hidden(p, network, 1, torch.cat([observations, actions], dim=1)))
    return dense(p, f"{network}.fc3", x)[:, 0]


def plain_action(p, network, observations, projection="tanh"):
    """The deterministic action: by eq. 38, or eq. 37."""
    x = hidden(p, network, 2, hidden(p, network, 1, observations))
    mu = dense(p, f"{network}.fc_mu" if f"{network}.fc_mu.bias" in p else f"{network}.fc_mean", x)
    return mu.tanh() if projection == "tanh" else mu / (mu**2).sum(dim=1, keepdim=True) ** 0.5


def plain_sample(p, observations):
    """SAC's sampled actions and the logarithm of their density, as PyTorch's distributions compute it."""
    x = hidden(p, "actor", 2, hidden(p, "actor", 1, observations))
    mean, std = dense(p, "actor.fc_mean", x), torch.exp(-1.5 + 3.5 * dense(p, "actor.fc_logstd", x).tanh())
    squash = TanhTransform(cache_size=1)
    actions = squash(mean + std * torch.randn_like(mean))
    return actions, Independent(TransformedDistribution(Normal(mean, std), squash), 1).log_prob(actions)


def smaller(p, names, observations, actions):
    q = [plain_q(p, name, observations, actions) for name in names]
    return torch.where(q[0] < q[1], *q)


def plain_target(p, module, batch, args, directions=None):
    """y [B] for directions [B, K, d], one neighbor after the other; without them, TD3's or SAC's own."""
    projection, entropy, s = getattr(args, "action_projection", "tanh"), 0, batch.next_observations
    if module in TD3_FAMILY:
        actions = plain_action(p, "target_actor", s, projection)
        if directions is None:
            noise = (args.policy_noise * torch.randn_like(actions)).clip(-args.noise_clip, args.noise_clip)
            actions = (actions + noise).clip(-1, 1)
    else:
        actions, log_pi = plain_sample(p, s)
        entropy = -p["log_alpha"].exp() * log_pi
    neighbors = [actions]
    if directions is not None:
        center = plain_action(p, "target_actor" if module is ams_td3 else "actor", s, projection)
        neighbors = [(center + args.epsilon * v).clip(-1, 1) for v in directions.unbind(dim=1)]
    values = [smaller(p, ("qf1_target", "qf2_target"), s, neighbor) for neighbor in neighbors]
    return batch.rewards + args.gamma * (1 - batch.terminations) * (sum(values) / len(values) + entropy)


def plain_adam(p, moments, gradients, lr):
    """Kingma and Ba, Algorithm 1, with the defaults of PyTorch and CleanRL."""
    for name, g in gradients.items():
        m, v, step = moments.get(name, (0, 0, 0))
        m, v, step = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, step + 1
        moments[name] = m, v, step
        p[name] = p[name] - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)


def plain_gradients(p, prefixes, loss_of):
    """The loss and its gradients with respect to the parameters whose names start with one of `prefixes`."""
    variables = {name: value.clone().requires_grad_() for name, value in p.items() if name.startswith(prefixes)}
    loss = loss_of(p | variables)
    return loss.item(), dict(zip(variables, torch.autograd.grad(loss, variables.values()), strict=True))


def plain_update(p, moments, module, batch, args, update, directions=None):
    """Update number `update`, 1 the first, of the parameters p in place. Returns what is to be logged."""
    td3_family, turn = module in TD3_FAMILY, update % args.policy_frequency == 0
    y, s, metrics = plain_target(p, module, batch, args, directions), batch.observations, {}

    def critic_loss(p):
        for name in ("qf1", "qf2"):
            q = plain_q(p, name, s, batch.actions)
            metrics[f"losses/{name}_values"], metrics[f"losses/{name}_loss"] = q.mean(), ((q - y) ** 2).mean()
        return metrics["losses/qf1_loss"] + metrics["losses/qf2_loss"]

    def actor_loss(p):
        if td3_family:
            return -plain_q(p, "qf1", s, plain_action(p, "actor", s, args.action_projection)).mean()
        actions, log_pi = plain_sample(p, s)
        return (p["log_alpha"].exp() * log_pi - smaller(p, ("qf1", "qf2"), s, actions)).mean()

    loss, gradients = plain_gradients(p, ("qf1.", "qf2."), critic_loss)
    plain_adam(p, moments, gradients, args.learning_rate if td3_family else args.q_lr)
    metrics["losses/qf_loss"] = loss / 2
    metrics["diagnostics/critic_grad_norm"] = sum((g**2).sum() for g in gradients.values()) ** 0.5
    metrics["diagnostics/td_target_variance"] = ((y - y.mean()) ** 2).sum() / (len(y) - 1)
    for _ in range(turn * (1 if td3_family else args.policy_frequency)):
        metrics["losses/actor_loss"], gradients = plain_gradients(p, ("actor.",), actor_loss)
        plain_adam(p, moments, gradients, args.learning_rate if td3_family else args.policy_lr)
        if not td3_family and args.autotune:
            gap = -plain_sample(p, s)[1].mean() + ACTION_DIM  # of the entropy, to its target -d
            metrics["losses/alpha_loss"] = p["log_alpha"].exp() * gap
            plain_adam(p, moments, {"log_alpha": p["log_alpha"].exp() * gap}, args.q_lr)
    for target, network in (("target_actor.", "actor."), ("qf1_target.", "qf1."), ("qf2_target.", "qf2.")):
        for name in [name for name in p if name.startswith(target) and (turn or not td3_family)]:
            p[name] = args.tau * p[name.replace(target, network)] + (1 - args.tau) * p[name]
    metrics |= {} if td3_family else {"losses/alpha": p["log_alpha"].exp()}
    return {name: torch.as_tensor(value).item() for name, value in metrics.items()}


def make_agent(module, args):
    """An agent whose networks all differ from each other, and whose policy is often near its bounds."""
    torch.manual_seed(0)
    agent = module.Agent(OBS_DIM, ACTION_DIM, args).to(torch.get_default_dtype())
    with torch.no_grad():
        for name, parameter in agent.named_parameters():
            if name != "log_alpha":
                parameter += 0.05 * torch.randn_like(parameter)
        for actor in (agent.actor, getattr(agent, "target_actor", agent.actor)):
            actor.get_submodule("fc_mu" if module in TD3_FAMILY else "fc_mean").weight *= 3
    return agent


def make_optimizers(module, agent, args):
    """Adam as train() makes it, which test_train_makes_the_updates_of_the_method holds."""
    rates = [args.learning_rate] * 2 if module in TD3_FAMILY else [args.q_lr, args.policy_lr, args.q_lr]
    groups = agent.critic_parameters(), agent.actor.parameters(), [getattr(agent, "log_alpha", None)]
    adam = partial(torch.optim.Adam, fused=True, capturable=args.cuda_graphs)
    return [adam(group, lr=lr) for group, lr in zip(groups, rates, strict=False)]


def make_batch(module):
    terminations = 1.0 * (torch.arange(16) % 3 == 0)
    return module.Batch(*torch.randn(2, 16, OBS_DIM), 2 * torch.rand(16, ACTION_DIM) - 1, torch.randn(16), terminations)


def make_directions(module, args):
    """What train() gives an update beside the batch."""
    ntd = module in AMS and args.ntd
    return [module.sample_directions(args.sampling, 16, args.num_neighbors, ACTION_DIM) * torch.ones(1)] if ntd else []


CASES = [(td3, {"policy_frequency": 3, "gamma": 0.9, "tau": 0.2, "learning_rate": 1e-3})]
CASES += [(sac, {"policy_frequency": 3, "gamma": 0.9, "tau": 0.2, "q_lr": 3e-3, "policy_lr": 2e-3})]
CASES += [(td3, {"action_projection": "normalize", "policy_noise": 0.6}), (sac, {"autotune": False, "alpha": 0.05})]
CASES += [(ams_td3, {"epsilon": 0.7, "action_projection": "normalize"})]
NTD = [{}, {"num_neighbors": 2}, {"sampling": "antithetic"}, {"sampling": "gaussian"}, {"layer_norm": False}]
CASES += [(module, {"epsilon": 0.7, **ntd}) for module in AMS for ntd in NTD]
CASES += [(module, {"ntd": False, "layer_norm": layer_norm}) for module in AMS for layer_norm in (True, False)]


@pytest.mark.parametrize("module, args", CASES)
def test_targets_and_updates_are_the_plain_arithmetic(float64, module, args):
    """Of the target (Figure 2, lines 2-5), with states repeated for each neighbor, where the critic splits its first
    layer; and of seven updates: Adam's bias correction and the delayed steps of actor and targets are all crossed."""
    args = module.Args(**args)
    agent, batch = make_agent(module, args), make_batch(module)
    with torch.no_grad():  # for half of the rows each critic is the smaller one
        center = agent.policy(batch.next_observations)
        q1, q2 = (q(batch.next_observations, center) for q in (agent.qf1_target, agent.qf2_target))
        agent.qf2_target.fc3.bias += (q1 - q2).median()
    optimizers, moments = make_optimizers(module, agent, args), {}
    p = {name: value.detach().clone() for name, value in agent.named_parameters()}
    for update in range(1, 8):
        directions = make_directions(module, args)
        torch.manual_seed(update)
        y = module.td_target(agent, batch, args, *(directions or [None] * (module in AMS)))
        metrics = module.update(agent, *optimizers, args, update % args.policy_frequency == 0, batch, *directions)
        torch.manual_seed(update)
        torch.testing.assert_close(y, plain_target(p, module, batch, args, *directions), rtol=1e-9, atol=1e-9)
        expected = plain_update(p, moments, module, batch, args, update, *directions)
        values = {name: value.item() for name, value in metrics.items()}
        assert values == pytest.approx(expected, rel=1e-8), f"update {update}"
        errors = {name: (value - p[name]).abs().max().item() for name, value in agent.named_parameters()}
        assert max(errors.values()) < 1e-9, f"update {update}: {errors}"
        batch = make_batch(module)
    if module in AMS and args.ntd:
        moved = center.unsqueeze(1) + args.epsilon * directions[0]
        assert (moved > 1).any() and (moved < -1).any()  # the bounds mattered


@EVERY
def test_exploration_is_independent_and_evaluation_deterministic(float64, module):
    agent, n = make_agent(module, module.Args(**({"exploration_noise": 1e-3} if module in TD3_FAMILY else {}))), 20_000
    observations, state = torch.ones(n, OBS_DIM), torch.get_rng_state()  # n environments in the same state
    center = agent.policy(observations)
    assert torch.equal(torch.get_rng_state(), state) and not center.requires_grad
    torch.testing.assert_close(center, plain_action(dict(agent.named_parameters()), "actor", observations).detach())
    if module in TD3_FAMILY:
        noise = (agent.explore(observations) - center) / 1e-3
        agent.exploration_noise = 2
        assert agent.explore(observations).aminmax() == (-1, 1)
    else:
        mean, log_std = agent.actor(observations)
        noise = (agent.explore(observations).atanh() - mean) / log_std.exp()
    # Standard normal, and independent between environments and dimensions: of 24 means of numbers with variances of at
    # most 2, none is 6 standard errors off (false alarm: 5e-8).
    both = torch.cat([noise[:-1], noise[1:]], dim=1)  # each environment beside the next one
    errors = both.T @ both / (n - 1) - torch.eye(2 * ACTION_DIM)
    assert max(errors.abs().max(), noise.mean(dim=0).abs().max()) < 6 * math.sqrt(2 / n)


@pytest.mark.parametrize("module", [sac, ams_sac])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_density_is_that_of_distributions_also_where_it_saturates(module, dtype, tolerance):
    """In the middle, near the bounds (at 9, tanh is 3e-8 away from 1), and where tanh rounds to 1."""
    for mean, output in itertools.product((-30, -6, 0, 2, 9, 30), (-100, -0.5, 0.4, 100)):
        actor = make_agent(module, module.Args()).to(dtype).actor.requires_grad_(False)
        for head, value in ((actor.fc_mean, mean), (actor.fc_logstd, output)):
            head.weight.mul_(0.1), head.bias.copy_(value + torch.arange(ACTION_DIM) / 8)
        actor.requires_grad_(True)
        observations, noise = torch.randn(50, OBS_DIM).to(dtype), torch.randn(50, ACTION_DIM, dtype=dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda like, noise=noise: noise.to(like))
            actions, log_prob, center = actor.get_action(observations)
            p = {f"actor.{name}": value.detach().double() for name, value in actor.named_parameters()}
            expected = *plain_sample(p, observations.double()), plain_action(p, "actor", observations.double())
        for value, plain in zip((actions, log_prob, center), expected, strict=True):
            torch.testing.assert_close(value.double(), plain, rtol=tolerance, atol=tolerance)
        (log_prob.sum() + actions.sum()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in actor.parameters())


# ----------------------------------------------------------------------------------------------------- whole runs


class Reach(gym.Env):
    """A point in the plane that is to be moved to 0, in 10 steps; an episode in which it flees is terminated."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.x, {}

    def step(self, action):
        self.x, self.t = self.x + np.float32(0.3) * action, self.t + 1
        return self.x, -float(np.abs(self.x).sum()), bool(np.abs(self.x).max() > 2), self.t == 10, {}


gym.register("Reach-v0", Reach)
SHORT = {"env_id": "Reach-v0", "num_envs": 2, "total_timesteps": 69, "learning_starts": 40, "batch_size": 16}
SHORT |= {"buffer_size": 150, "eval_frequency": 100, "eval_episodes": 2, "log_frequency": 23, "keep_checkpoint": True}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains, in this process and with workers; returns the directory and the rows of evaluations.csv."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def train(module, **args):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        args = {name: value for name, value in (SHORT | args).items() if hasattr(module.Args, name)}
        args = module.Args(**args, run_dir=str(path))
        run = module.Run(args, torch.device("cpu"), [])
        with contextlib.closing(module.WorkerEnvs(args)) as envs:
            assert module.train(args, run, envs) == 0
        with open(path / "evaluations.csv") as file:
            return path, [{key: row[key] for key in row if key != "wall_seconds"} for row in csv.DictReader(file)]

    return train


@pytest.mark.parametrize("module, base", [(ams_td3, td3), (ams_sac, sac)])
def test_train_makes_the_updates_of_the_method(train, module, base):
    """AMS without its parts is the base, to the last bit of every return and parameter; reading diagnostics at every
    step changes nothing."""
    path, rows = train(module)
    read_path, read_rows = train(module, log_frequency=1)
    assert [row["step"] for row in rows] == ["0", "0", "69", "69"] and rows[-1]["updates"] == "29"
    assert rows == read_rows and rows[0]["return"] != rows[2]["return"]  # the policy did change
    bare_path, bare_rows = train(module, ntd=False, layer_norm=False)
    base_path, base_rows = train(base)
    assert bare_rows == base_rows != rows

    paths = path, read_path, bare_path, base_path
    saved = [torch.load(at / "checkpoint.pt", weights_only=True) for at in paths]
    for one, other in (saved[:2], saved[2:]):
        for name in ("agent", "rb"):
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
        assert one["torch_rng"].equal(other["torch_rng"]) and one["numpy_rng"] == other["numpy_rng"]
    optimizers = [("q_optimizer", 3e-4 if base is td3 else 1e-3, 29), ("alpha_optimizer", 1e-3, 28)]
    optimizers[1 if base is td3 else 2 :] = [("actor_optimizer", 3e-4, 14 if base is td3 else 28)]
    for name, lr, steps in optimizers:
        expected = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
        assert expected.items() <= saved[0][name]["param_groups"][0].items()
        assert {state["step"].item() for state in saved[0][name]["state"].values()} == {steps}


LEARNING = [(td3, {"learning_rate": 1e-3}), (ams_td3, {"learning_rate": 1e-3}), (sac, {"policy_lr": 1e-3})]
LEARNING += [(ams_sac, {"policy_lr": 1e-3}), (ppo, {"learning_rate": 2e-3, "num_steps": 150, "num_minibatches": 5})]


@pytest.mark.parametrize("module, args", LEARNING)
def test_learns_to_reach(train, module, args):
    """A resting point has a mean return of -10; with seeds 1 to 3 untrained policies have -7 to -10, trained ones at
    least -2.8 (ppo.py: -3)."""
    longer = {"total_timesteps": 600, "learning_starts": 100, "buffer_size": 4000, "eval_frequency": 600}
    _, rows = train(module, **longer, **args, gamma=0.9, batch_size=64, eval_episodes=8)
    before, after = (np.mean([float(row["return"]) for row in part]) for part in (rows[:8], rows[8:]))
    assert before < -6 and after > -4 and len(rows) == 16


def make_buffer(capacity):
    buffer = td3.ReplayBuffer(capacity, 2, 1, torch.device("cpu"))
    buffer.rows.fill_(math.nan)  # what is not stored must not be read
    return buffer


def make_step(first, count):
    """Transitions first, first + 1, ...; in transition i, the j-th of all numbers is i + j / 8."""
    rows = np.arange(first, first + count)[:, None] + np.arange(7) / 8
    return rows[:, :2], rows[:, 2:4], rows[:, 4:5], rows[:, 5], rows[:, 6]


@pytest.mark.parametrize("steps", [[3] * 9, [10, 10, 10], [4, 10, 1, 7, 7], [1] * 25])
def test_buffer_keeps_the_last_transitions(steps):
    """The capacity 10 is no multiple of 3 or 4. After each step it goes on from its state in a file."""
    buffer, added = make_buffer(10), 0
    for step in steps:
        buffer.add(*make_step(added, step))
        added += step
        assert sorted(buffer.rows[: buffer.size, 0].tolist()) == list(range(max(0, added - 10), added))
        state, file = buffer.state_dict(), io.BytesIO()
        assert state["rows"].untyped_storage().nbytes() == 4 * 7 * buffer.size  # of a slice, all would be saved
        torch.save(state, file)
        file.seek(0)
        buffer = make_buffer(10)
        buffer.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(buffer.rows, buffer.rows[:, :1] + torch.arange(7) / 8)


@pytest.mark.parametrize("added", [40, 130])
def test_sampling_is_uniform_and_whole_transitions(added):
    buffer, draws, cells = make_buffer(100), 40_000, min(added, 100)
    for first in range(0, added, 10):
        buffer.add(*make_step(first, 10))
    torch.manual_seed(0)
    batch = buffer.sample(draws)
    index = batch.observations[:, 0]
    row = index.unsqueeze(1) + torch.arange(7) / 8
    for part, columns in zip(batch, ([0, 1], [2, 3], [4], 5, 6), strict=True):
        assert torch.equal(part, row[:, columns])
    counts = (index - (added - cells)).long().bincount()
    statistic = ((counts - draws / cells) ** 2 / (draws / cells)).sum().item()
    # Chi-square with k degrees of freedom is above k + 2 sqrt(k x) + 2x or below k - 2 sqrt(k x) with probability
    # exp(-x) or less each (Laurent and Massart 2000): 8e-7 for x = 14.
    k, x = cells - 1, 14
    assert len(counts) == cells and k - 2 * math.sqrt(k * x) < statistic < k + 2 * math.sqrt(k * x) + 2 * x


@EVERY
def test_a_buffer_that_does_not_fit_is_refused(module, monkeypatch, capsys):
    capacity = 10**6  # 28 MB, which the allocator would give
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * 2**20))
    with pytest.raises(SystemExit, match="2"):
        module.ReplayBuffer(capacity, 2, 1, torch.device("cpu"))
    output, reason = capsys.readouterr(), "the replay buffer does not fit into memory; lower --buffer-size"
    assert output.err == f"{module.__name__}.py: error: {reason}\n"
    assert f"{capacity:,} transitions take {28 * capacity / 2**30:.2f} GiB of 0.0 free (cpu)" in output.out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY
def test_captured_updates_on_cuda_are_the_eager_ones(module):
    """20 updates from equal seeds. In a graph sums may be rounded differently, and Adam turns that into a small part of
    its step where a gradient is near 0. SAC's noise is drawn in the graph, from the same generator."""
    results = []
    for captured in (False, True):
        args = module.Args(cuda_graphs=captured)
        agent = make_agent(module, args).to("cuda")
        networks = agent, *make_optimizers(module, agent, args), args
        updates = [partial(module.update, *networks, with_actor) for with_actor in (False, True)]
        updates = [module.CudaGraphModule(update) for update in updates] if captured else updates  # as in train()
        start = torch.nn.utils.parameters_to_vector(agent.parameters()).detach().clone()
        torch.manual_seed(1)
        metrics = {}
        for update in range(1, 21):
            batch = module.Batch(*(part.to("cuda") for part in make_batch(module)))
            directions = [part.to("cuda") for part in make_directions(module, args)]
            logged = updates[update % args.policy_frequency == 0](batch, *directions)
            metrics |= {name: value.item() for name, value in logged.items()}
        end = torch.nn.utils.parameters_to_vector(agent.parameters()).detach()
        results.append((end, end - start, metrics))
    (eager_end, moved, eager_metrics), (captured_end, _, captured_metrics) = results
    assert (captured_end - eager_end).norm() < 0.01 * moved.norm()
    assert captured_metrics == pytest.approx(eager_metrics, rel=1e-2, abs=1e-3)
    if module in AMS:
        frames = module.orthonormal_directions(4096, 8, 38, device="cuda").double()
        assert (frames @ frames.mT - torch.eye(8, device="cuda")).abs().max() < 1e-6

"""The learner of TD3, AMS-TD3, SAC and AMS-SAC: targets and whole updates against arithmetic written out here, what
train() makes of them, the replay buffer, exploration, and CUDA graphs.

Random draws of a script and of the arithmetic beside it are paired by equal seeds.
"""

import contextlib
import csv
import io
import math
import threading
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

import ams_sac
import ams_td3
import sac
import td3

OBS_DIM, ACTION_DIM = 5, 3
AMS, TD3_FAMILY = (ams_td3, ams_sac), (td3, ams_td3)
BARE = {"ntd": False, "layer_norm": False}


@pytest.fixture
def float64():
    """Everything that a test makes is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ------------------------------------------------------------------------------------------------ plain arithmetic


def dense(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def hidden(p, network, i, x):
    """Layer i of a network: relu(LN(W x + b)), or without LN where p, the parameters by name, has none."""
    x = dense(p, f"{network}.fc{i}", x)
    if f"{network}.ln{i}.weight" in p:
        mean = x.sum(dim=1, keepdim=True) / x.shape[1]
        variance = ((x - mean) ** 2).sum(dim=1, keepdim=True) / x.shape[1]
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
    policy = Independent(TransformedDistribution(Normal(mean, std), squash), 1)
    actions = squash(mean + std * torch.randn_like(mean))
    return actions, policy.log_prob(actions)


def smaller(p, names, observations, actions):
    q = [plain_q(p, name, observations, actions) for name in names]
    return torch.where(q[0] < q[1], *q)


def plain_target(p, module, batch, args, directions):
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
    loss, *metrics = loss_of(p | variables)
    gradients = dict(zip(variables, torch.autograd.grad(loss, variables.values()), strict=True))
    return loss.item(), gradients, [metric.item() for metric in metrics]


def plain_update(p, moments, module, batch, args, update, directions=None):
    """Update number `update`, 1 the first, of the parameters p, by name, in place. Returns what is to be logged."""
    td3_family, turn = module in TD3_FAMILY, update % args.policy_frequency == 0
    with torch.no_grad():
        y = plain_target(p, module, batch, args, directions)

    def critic_loss(p):
        q1, q2 = (plain_q(p, name, batch.observations, batch.actions) for name in ("qf1", "qf2"))
        losses = ((q1 - y) ** 2).mean(), ((q2 - y) ** 2).mean()
        return sum(losses), q1.mean(), q2.mean(), *losses

    def actor_loss(p):
        if td3_family:
            actions = plain_action(p, "actor", batch.observations, args.action_projection)
            return [-plain_q(p, "qf1", batch.observations, actions).mean()]
        actions, log_pi = plain_sample(p, batch.observations)
        return [(p["log_alpha"].exp() * log_pi - smaller(p, ("qf1", "qf2"), batch.observations, actions)).mean()]

    loss, gradients, (q1, q2, loss1, loss2) = plain_gradients(p, ("qf1.", "qf2."), critic_loss)
    plain_adam(p, moments, gradients, args.learning_rate if td3_family else args.q_lr)
    metrics = {"losses/qf1_values": q1, "losses/qf2_values": q2, "losses/qf1_loss": loss1, "losses/qf2_loss": loss2}
    metrics["losses/qf_loss"] = loss / 2
    metrics["diagnostics/critic_grad_norm"] = math.sqrt(sum((g**2).sum().item() for g in gradients.values()))
    metrics["diagnostics/td_target_variance"] = ((y - y.mean()) ** 2).sum().item() / (len(y) - 1)
    for _ in range(turn * (1 if td3_family else args.policy_frequency)):
        metrics["losses/actor_loss"], gradients, _ = plain_gradients(p, ("actor.",), actor_loss)
        plain_adam(p, moments, gradients, args.learning_rate if td3_family else args.policy_lr)
        if not td3_family and args.autotune:
            gap = -plain_sample(p, batch.observations)[1].mean() + ACTION_DIM  # of the entropy, to its target -d
            metrics["losses/alpha_loss"] = (p["log_alpha"].exp() * gap).item()
            plain_adam(p, moments, {"log_alpha": p["log_alpha"].exp() * gap}, args.q_lr)
    for target, network in (("target_actor.", "actor."), ("qf1_target.", "qf1."), ("qf2_target.", "qf2.")):
        for name in [name for name in p if name.startswith(target) and (turn or not td3_family)]:
            p[name] = args.tau * p[name.replace(target, network)] + (1 - args.tau) * p[name]
    return metrics if td3_family else metrics | {"losses/alpha": p["log_alpha"].exp().item()}


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
    td3_family = module in TD3_FAMILY
    groups = [(agent.critic_parameters(), args.learning_rate if td3_family else args.q_lr)]
    groups += [(agent.actor.parameters(), args.learning_rate if td3_family else args.policy_lr)]
    groups += [] if td3_family else [([agent.log_alpha], args.q_lr)]
    return [torch.optim.Adam(group, lr=lr, fused=True, capturable=args.cuda_graphs) for group, lr in groups]


def make_batch(module, size=16):
    terminations = (torch.arange(size) % 3 == 0).to(torch.get_default_dtype())
    states, actions = torch.randn(2, size, OBS_DIM), 2 * torch.rand(size, ACTION_DIM) - 1
    return module.Batch(*states, actions, torch.randn(size), terminations)


def make_directions(module, args, size=16):
    """What train() gives an update beside the batch."""
    if module not in AMS or not args.ntd:
        return []
    return [module.sample_directions(args.sampling, size, args.num_neighbors, ACTION_DIM).to(torch.get_default_dtype())]


def parameters(agent) -> dict:
    return {name: value.detach().clone() for name, value in agent.named_parameters()}


# --------------------------------------------------------------------------------------------- targets and updates


NTD = [{"sampling": "orthogonal"}, {"sampling": "orthogonal", "num_neighbors": 2}]
NTD += [{"sampling": "antithetic"}, {"sampling": "gaussian"}, {"layer_norm": False}]


@pytest.mark.parametrize("module", [td3, ams_td3, sac, ams_sac])
def test_td_target(float64, module):
    """Figure 2, lines 2-5, for every rule of sampling; and TD3's and SAC's own, with --no-ntd too."""
    variants = [*NTD, {"ntd": False}, BARE] if module in AMS else [{}]
    variants += [{"action_projection": "normalize"}] if module in TD3_FAMILY else []
    for variant in variants:
        noise = {"policy_noise": 0.6} if module in TD3_FAMILY else {}
        args = module.Args(gamma=0.9, **({"epsilon": 0.7} if module in AMS else {}), **noise, **variant)
        agent, batch = make_agent(module, args), make_batch(module, 64)
        with torch.no_grad():  # for half of the rows each critic is the smaller one
            mu = agent.policy(batch.next_observations)
            q1, q2 = (q(batch.next_observations, mu) for q in (agent.qf1_target, agent.qf2_target))
            agent.qf2_target.fc3.bias += (q1 - q2).median()
        directions = make_directions(module, args, 64) or [None] * (module in AMS)
        torch.manual_seed(1)
        y = module.td_target(agent, batch, args, *directions)
        torch.manual_seed(1)
        expected = plain_target(parameters(agent), module, batch, args, *(directions or [None]))
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11, msg=lambda text, v=variant: f"{v}: {text}")
        if module in AMS and args.ntd:  # the bounds matter
            moved = mu.unsqueeze(1) + args.epsilon * directions[0]
            assert (moved > 1).double().mean() > 0.05 and (moved < -1).double().mean() > 0.05


CASES = [(td3, {"policy_frequency": 3, "gamma": 0.9, "tau": 0.2, "learning_rate": 1e-3})]
CASES += [(td3, {"action_projection": "normalize"})]
CASES += [(ams_td3, {}), (ams_td3, BARE), (sac, {}), (sac, {"autotune": False, "alpha": 0.05})]
CASES += [(sac, {"policy_frequency": 3, "gamma": 0.9, "tau": 0.2, "q_lr": 3e-3, "policy_lr": 2e-3})]
CASES += [(ams_sac, {}), (ams_sac, BARE)]


@pytest.mark.parametrize("module, args", CASES)
def test_updates_are_the_plain_arithmetic(float64, module, args):
    """Seven updates: Adam's bias correction and the delayed steps of the actor and the targets are all crossed."""
    args = module.Args(**args)
    agent = make_agent(module, args)
    optimizers, p, moments = make_optimizers(module, agent, args), parameters(agent), {}
    for update in range(1, 8):
        batch, directions = make_batch(module), make_directions(module, args)
        torch.manual_seed(update)
        metrics = module.update(agent, *optimizers, args, update % args.policy_frequency == 0, batch, *directions)
        torch.manual_seed(update)
        expected = plain_update(p, moments, module, batch, args, update, *directions)
        values = {name: value.item() for name, value in metrics.items()}
        assert values == pytest.approx(expected, rel=1e-8), f"update {update}"
        errors = {name: (value - p[name]).abs().max().item() for name, value in agent.named_parameters()}
        assert max(errors.values()) < 1e-9, f"update {update}: {errors}"


@pytest.mark.parametrize("module", AMS)
@pytest.mark.parametrize("layer_norm", [True, False])
def test_split_first_layer_is_concatenation_with_repeated_states(float64, module, layer_norm):
    agent, observations = make_agent(module, module.Args(layer_norm=layer_norm)), torch.randn(16, OBS_DIM)
    for num in (1, 8):
        actions = torch.randn(16, num, ACTION_DIM)
        split = agent.qf1(observations, actions)
        repeated = plain_q(parameters(agent), "qf1", observations.repeat_interleave(num, dim=0), actions.flatten(0, 1))
        assert split.shape == (16, num) and split.std() > 0.1
        torch.testing.assert_close(split, repeated.view_as(split), rtol=1e-12, atol=1e-12)
    assert isinstance(agent.qf1.ln1, torch.nn.LayerNorm) == layer_norm


@pytest.mark.parametrize("module", TD3_FAMILY)
def test_exploration_noise_is_independent_and_clipped(float64, module):
    agent, n = make_agent(module, module.Args(exploration_noise=0.1)), 20_000
    with torch.no_grad():
        agent.actor.fc_mu.weight.zero_()
        agent.actor.fc_mu.bias.zero_()
    noise = agent.explore(torch.ones(n, OBS_DIM)) / 0.1  # n environments in the same state, far from the bounds
    # Standard normal and independent between environments and dimensions: products of two have variance 1, squares 2.
    # None of these 24 means is 6 standard errors off (false alarm: 5e-8).
    second = torch.cat([noise[:-1], noise[1:]], dim=1)  # each environment beside the next one
    errors = (second.T @ second / (n - 1) - torch.eye(2 * ACTION_DIM)) * math.sqrt(n / 2)
    assert errors.abs().max() < 6 and (noise.mean(dim=0) * math.sqrt(n)).abs().max() < 6
    agent.exploration_noise = 2
    assert agent.explore(torch.ones(n, OBS_DIM)).aminmax() == (-1, 1)


# ----------------------------------------------------------------------------------------------------- whole runs


class Reach(gym.Env):
    """A point in the plane that is to be moved to 0, in 10 steps; it ends early where it flees."""

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
SHORT = {"env_id": "Reach-v0", "num_envs": 2, "total_timesteps": 70, "learning_starts": 40, "batch_size": 16}
SHORT |= {"buffer_size": 150, "eval_frequency": 100, "eval_episodes": 2, "device": "cpu", "keep_checkpoint": True}
SHORT |= {"log_frequency": 35}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains, in this process and with workers; returns the directory and the rows of evaluations.csv."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def train(module, **args):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        args = module.Args(**SHORT | args, run_dir=str(path))
        run = module.Run(args, torch.device("cpu"), [])
        with contextlib.closing(module.make_envs(args.env_id, args.num_envs)) as envs:
            assert module.train(args, run, envs) == 0
        with open(path / "evaluations.csv") as file:
            return path, [{key: row[key] for key in row if key != "wall_seconds"} for row in csv.DictReader(file)]

    return train


LOGGED = """charts/episodic_return charts/episodic_length charts/SPS charts/frames charts/updates eval/episodic_return
eval/episodic_return_std losses/qf1_values losses/qf2_values losses/qf1_loss losses/qf2_loss losses/qf_loss
losses/actor_loss diagnostics/critic_grad_norm diagnostics/td_target_variance diagnostics/saturated_actions
diagnostics/action_gradient""".split()
SAC_TAGS, NTD_TAGS = {"losses/alpha", "losses/alpha_loss"}, {"diagnostics/target_shift", "diagnostics/target_noise"}


@pytest.mark.parametrize("module, base", [(ams_td3, td3), (ams_sac, sac)])
def test_train_makes_the_updates_of_the_method(train, module, base):
    """AMS without its parts is the base, to the last bit of every return and parameter; reading diagnostics at every
    step changes nothing; the logs have the tags of the specification, section 5."""
    path, rows = train(module)
    read_path, read_rows = train(module, log_frequency=1)
    assert [row["step"] for row in rows] == ["0", "0", "70", "70"] and rows[-1]["updates"] == "30"
    assert rows == read_rows and rows[0]["return"] != rows[2]["return"]  # the policy did change
    bare_path, bare_rows = train(module, **BARE)
    base_path, base_rows = train(base)
    assert bare_rows == base_rows != rows

    plain, read, bare, checkpoint = (
        torch.load(at / "checkpoint.pt", weights_only=True) for at in (path, read_path, bare_path, base_path)
    )
    for one, other in ((plain, read), (bare, checkpoint)):
        assert one["agent"].keys() == other["agent"].keys()
        assert all(value.equal(other["agent"][name]) for name, value in one["agent"].items())
        assert one["torch_rng"].equal(other["torch_rng"]) and one["numpy_rng"] == other["numpy_rng"]
    for saved in (plain, checkpoint):
        critics = 3e-4 if base is td3 else 1e-3
        optimizers = [("q_optimizer", critics, 30), ("actor_optimizer", 3e-4, 15 if base is td3 else 30)]
        optimizers += [] if base is td3 else [("alpha_optimizer", critics, 30)]
        for name, lr, steps in optimizers:
            [group] = saved[name]["param_groups"]
            assert (group["lr"], group["betas"], group["eps"]) == (lr, (0.9, 0.999), 1e-8)
            assert group["weight_decay"] == 0 and not group["amsgrad"]
            assert {state["step"].item() for state in saved[name]["state"].values()} == {steps}

    for at, extra in ((path, NTD_TAGS), (read_path, NTD_TAGS), (bare_path, set()), (base_path, set())):
        events = EventAccumulator(str(at), {"scalars": 0}).Reload()
        assert set(events.Tags()["scalars"]) == {*LOGGED, *extra, *(SAC_TAGS if base is sac else ())}
    events = EventAccumulator(str(read_path), {"scalars": 0}).Reload()
    for tag in NTD_TAGS:
        assert [event.step for event in events.Scalars(tag)] == list(range(41, 71))
        assert min(event.value for event in events.Scalars(tag)) > 0


@pytest.mark.parametrize("module", [td3, ams_td3, sac, ams_sac])
def test_learns_to_reach(train, module):
    """A resting point has a mean return of -10; with seeds 1 to 3 untrained policies have -7 to -10, trained ones at
    least -2.8."""
    lr = {"learning_rate": 1e-3} if module in TD3_FAMILY else {"policy_lr": 1e-3}
    longer = {"total_timesteps": 600, "learning_starts": 100, "buffer_size": 4000, "eval_frequency": 600}
    _, rows = train(module, **longer, **lr, gamma=0.9, batch_size=64, eval_episodes=8)
    before, after = (np.mean([float(row["return"]) for row in part]) for part in (rows[:8], rows[8:]))
    assert before < -6 and after > -4 and len(rows) == 16


# --------------------------------------------------------------------------------------------------- replay buffer


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


@pytest.mark.parametrize("module", [td3, ams_td3, sac, ams_sac])
@pytest.mark.parametrize("capacity", [10**9, 10**15])  # 28 GB are refused where memory is not free, 28 PB anywhere
def test_a_buffer_that_does_not_fit_is_refused(module, capacity, monkeypatch, capsys):
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * 2**30))
    with pytest.raises(SystemExit, match="2"):
        module.ReplayBuffer(capacity, 2, 1, torch.device("cpu"))
    output, reason = capsys.readouterr(), "the replay buffer does not fit into memory; lower --buffer-size"
    assert output.err == f"{module.__name__}.py: error: {reason}\n"
    assert f"{capacity:,} transitions take {28 * capacity / 2**30:.2f} GiB of 20.0 free (cpu)" in output.out


# ------------------------------------------------------------------------------------------------------------ CUDA


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("module", [td3, ams_td3, sac, ams_sac])
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num, dim", [(8, 38), (6, 6), (8, 1)])
def test_directions_on_cuda_are_orthonormal(num, dim):
    directions = ams_td3.orthonormal_directions(4096, num, dim, device="cuda").double()
    for frame in directions.split(dim, dim=1):
        assert (frame @ frame.mT - torch.eye(frame.shape[1], device="cuda")).abs().max() < 1e-6

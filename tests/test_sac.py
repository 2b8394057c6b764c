"""SAC and AMS-SAC: the policy's density, the target, updates against arithmetic written out here, and whole runs.

Random draws of a script and of the arithmetic beside it are paired by equal seeds.
"""

import csv
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution

import ams_sac
import sac

ROOT = Path(__file__).resolve().parent.parent
OBS_DIM = 5


@pytest.fixture
def float64():
    """Everything that a test makes is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def bounds(dim: int) -> gym.spaces.Box:
    """Bounds like Quadruped's, where each leg has three actuators with ranges of their own."""
    return gym.spaces.Box(np.resize([-1, -1, -0.8], dim), np.resize([1, 1.1, 0.8], dim), dtype=np.float64)


def make_agent(module, dim: int, **args):
    """An agent, whose networks all differ from each other, LayerNorm's weights from 1 and 0, and its arguments."""
    torch.manual_seed(0)
    args = module.Args(**args)
    agent = module.Agent(OBS_DIM, bounds(dim), args).double()
    with torch.no_grad():
        for name, parameter in agent.named_parameters():
            if name != "log_alpha":
                parameter += 0.1 * torch.randn_like(parameter)
    return agent, args


def make_batch(module, dim: int, size=16):
    """Some of the rows are terminated."""
    low, high = torch.tensor(bounds(dim).low), torch.tensor(bounds(dim).high)
    return module.Batch(
        observations=torch.randn(size, OBS_DIM),
        next_observations=torch.randn(size, OBS_DIM),
        actions=low + (high - low) * torch.rand(size, dim),
        rewards=torch.randn(size),
        terminations=(torch.arange(size) % 3 == 0).double(),
    )


# ---------------------------------------------------------------------------------------------------------- policy


def make_policy(mean: float, logstd: float):
    """An actor on three dimensions with the same mean for each observation; `logstd` is its output before the bound."""
    actor = sac.Actor(OBS_DIM, bounds(3)).to(torch.get_default_dtype())
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
        actor.fc_mean.bias.fill_(mean)
        actor.fc_logstd.bias.fill_(logstd)
    return actor


def numerical_log_density(x, mean: float, std: float) -> float:
    """log p(a) of a = tanh(x) scale + bias, x [3] normal, by a numerical derivative.

    It is taken of a's distance to its nearer bound, which has all its digits however small it is.
    """
    total, h = 0.0, 1e-5
    for value, scale in zip(x.tolist(), (1, 1.05, 0.8), strict=True):
        distances = [scale * 2 / (1 + math.exp(2 * math.copysign(1, value) * (value + step))) for step in (-h, h)]
        derivative = abs(distances[1] - distances[0]) / (2 * h)
        normal = math.exp(-(((value - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
        total += math.log(normal) - math.log(derivative)
    return total


@pytest.mark.parametrize("mean", [-30, -6, -0.3, 0, 2, 9, 30])
@pytest.mark.parametrize("logstd", [-0.5, 0.4])
def test_log_probability_is_the_change_of_variables(float64, mean, logstd):
    """In the middle, near the bounds (at 9, tanh is 3e-8 away from 1) and where tanh rounds to 1."""
    policy = make_policy(mean, logstd)
    torch.manual_seed(3)
    actions, log_prob, center = policy.get_action(torch.zeros(50, OBS_DIM))
    torch.manual_seed(3)
    std = math.exp(-5 + 3.5 * (math.tanh(logstd) + 1))
    x = mean + std * torch.randn(50, 3)
    scale, bias = torch.tensor([1, 1.05, 0.8]), torch.tensor([0, 0.05, 0])
    torch.testing.assert_close(actions, x.tanh() * scale + bias)
    torch.testing.assert_close(center, math.tanh(mean) * scale.expand(50, 3) + bias)
    expected = torch.tensor([numerical_log_density(row, mean, std) for row in x])
    torch.testing.assert_close(log_prob, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mean", [-30, -6, 0, 9, 30])
def test_log_probability_keeps_its_precision_in_float32(mean):
    policy = make_policy(mean, 0)
    torch.manual_seed(4)
    _, log_prob, _ = policy.get_action(torch.zeros(50, OBS_DIM))
    torch.manual_seed(4)
    std = math.exp(-1.5)
    x = mean + std * torch.randn(50, 3)
    expected = torch.tensor([numerical_log_density(row, mean, std) for row in x.double()])
    torch.testing.assert_close(log_prob, expected, rtol=1e-5, atol=1e-5)


def test_log_std_is_bounded_smoothly():
    outputs = torch.tensor([-100, -1, 0, 1, 100])
    log_std = torch.stack([make_policy(0, output)(torch.zeros(1, OBS_DIM))[1] for output in outputs.tolist()])
    expected = [-5, -1.5 - 3.5 * math.tanh(1), -1.5, -1.5 + 3.5 * math.tanh(1), 2]
    torch.testing.assert_close(log_std, torch.tensor(expected).reshape(5, 1, 1).expand(5, 1, 3))


@pytest.mark.parametrize("module", [sac, ams_sac])
def test_evaluation_plays_the_mean_and_exploration_samples_for_each_environment(float64, module):
    agent, _ = make_agent(module, 3)
    observations = torch.randn(1, OBS_DIM).expand(4000, OBS_DIM)
    mean, log_std = agent.actor(observations)
    scale, bias = torch.tensor([1, 1.05, 0.8]), torch.tensor([0, 0.05, 0])
    torch.testing.assert_close(agent.policy(observations), mean.tanh() * scale + bias)
    torch.manual_seed(5)
    before_tanh = ((agent.explore(observations) - bias) / scale).atanh()
    z = (before_tanh - mean) / log_std.exp()
    assert z.unique(dim=0).shape == z.shape  # environments with the same observation act differently
    assert z.mean(dim=0).abs().max() < 5 / math.sqrt(4000) and (z.var(dim=0) - 1).abs().max() < 5 * math.sqrt(2 / 4000)


# ---------------------------------------------------------------------------------------------------------- target


def slow_hidden(linear, norm, x):
    """relu(LN(W x + b)) of one vector x; `norm` is no LayerNorm without LN-Q."""
    x = linear.weight.mv(x) + linear.bias
    if isinstance(norm, torch.nn.LayerNorm):
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * norm.weight + norm.bias
    return x.clamp(min=0)


def slow_q(critic, observation, action: list[float]) -> float:
    x = torch.cat([observation, torch.tensor(action)])
    hidden = slow_hidden(critic.fc1, getattr(critic, "ln1", None), x)
    hidden = slow_hidden(critic.fc2, getattr(critic, "ln2", None), hidden)
    return critic.fc3.weight[0].dot(hidden).item() + critic.fc3.bias.item()


def slow_target(agent, batch, args, noise, perturbations):
    """y = r + gamma (1 - terminated) (mean_k min_j Q'_j(s', a'_k) - alpha log pi(a~|s')), one number at a time.

    a~ is the action that `noise` [B, d] gives; a'_k are neighbors of the mean, by `perturbations` [B, K, d] in units of
    half the action range, or, without them, a~. Also returns how many components of neighbors were clipped below, above
    and not, and how often each critic was the smaller one.
    """
    size, dim = noise.shape
    low, high = bounds(dim).low.tolist(), bounds(dim).high.tolist()
    scale = [(high[i] - low[i]) / 2 for i in range(dim)]
    bias = [(high[i] + low[i]) / 2 for i in range(dim)]
    alpha = math.exp(agent.log_alpha.item())
    actor, clipped, smaller, targets = agent.actor, [0, 0, 0], [0, 0], []
    for b in range(size):
        hidden = slow_hidden(actor.fc2, None, slow_hidden(actor.fc1, None, batch.next_observations[b]))
        mean = (actor.fc_mean.weight.mv(hidden) + actor.fc_mean.bias).tolist()
        output = (actor.fc_logstd.weight.mv(hidden) + actor.fc_logstd.bias).tolist()
        sampled, log_pi = [], 0.0
        for i in range(dim):
            std = math.exp(-5 + (math.tanh(output[i]) + 1) / 2 * 7)
            x = mean[i] + std * noise[b, i].item()
            sampled.append(math.tanh(x) * scale[i] + bias[i])
            log_pi += -(noise[b, i].item() ** 2) / 2 - math.log(std * math.sqrt(2 * math.pi))
            log_pi -= math.log(scale[i] / math.cosh(x) ** 2)
        actions = [sampled] if perturbations is None else []
        for direction in [] if perturbations is None else perturbations[b].tolist():
            action = []
            for i in range(dim):
                a = math.tanh(mean[i]) * scale[i] + bias[i] + scale[i] * direction[i]
                clipped[0 if a < low[i] else 1 if a > high[i] else 2] += 1
                action.append(min(max(a, low[i]), high[i]))
            actions.append(action)
        q_values = []
        for action in actions:
            q = [slow_q(critic, batch.next_observations[b], action) for critic in (agent.qf1_target, agent.qf2_target)]
            smaller[q.index(min(q))] += 1
            q_values.append(min(q))
        soft_value = sum(q_values) / len(q_values) - alpha * log_pi
        targets.append(batch.rewards[b].item() + args.gamma * (0 if batch.terminations[b] else soft_value))
    return torch.tensor(targets), clipped, smaller


def make_target(module, dim: int, **args):
    """An agent whose policy is near the bounds, a batch and the arguments."""
    agent, args = make_agent(module, dim, **args)
    agent.requires_grad_(False)
    agent.actor.fc_mean.weight *= 5
    agent.log_alpha.fill_(math.log(0.3))
    batch = make_batch(module, dim)
    # For about half of the rows each critic is the smaller one.
    actions = agent.policy(batch.next_observations)
    difference = agent.qf1_target(batch.next_observations, actions) - agent.qf2_target(batch.next_observations, actions)
    agent.qf2_target.fc3.bias += difference.median()
    return agent, batch, args


@pytest.mark.parametrize("num, dim", [(8, 12), (5, 3)])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_ams_target_is_the_formula(float64, num, dim, layer_norm):
    agent, batch, args = make_target(ams_sac, dim, num_neighbors=num, layer_norm=layer_norm, epsilon=0.7, gamma=0.9)
    torch.manual_seed(1)
    y = ams_sac.td_target(agent, batch, args)
    torch.manual_seed(1)
    noise = torch.randn(len(y), dim)
    # Frames by Householder QR with its signs fixed, of the Gaussian matrices that the script draws.
    frames, columns = math.ceil(num / dim), min(num, dim)
    q, r = torch.linalg.qr(torch.randn(columns, dim, len(y) * frames).permute(2, 1, 0))
    directions = (q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)).mT.reshape(len(y), frames * columns, dim)[:, :num]
    expected, clipped, smaller = slow_target(agent, batch, args, noise, args.epsilon * directions)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert min(clipped) > 0.05 * sum(clipped) and min(smaller) > 0.1 * sum(smaller)  # all cases occurred


@pytest.mark.parametrize(
    "module, args", [(sac, {}), (ams_sac, {"ntd": False}), (ams_sac, {"ntd": False, "layer_norm": False})]
)
def test_target_without_ntd_is_sacs_own(float64, module, args):
    agent, batch, args = make_target(module, 12, **args, gamma=0.9)
    torch.manual_seed(1)
    y = module.td_target(agent, batch, args)
    torch.manual_seed(1)
    expected, _, smaller = slow_target(agent, batch, args, torch.randn(len(y), 12), None)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert min(smaller) > 0.1 * sum(smaller)


# --------------------------------------------------------------------------------------------------------- updates


def dense(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def plain_q(p, network, observations, actions):
    x = torch.cat([observations, actions], dim=1)
    for layer in ("fc1", "fc2"):
        x = dense(p, f"{network}.{layer}", x)
        x = x * (x > 0)
    return dense(p, f"{network}.fc3", x)[:, 0]


def plain_sample(p, observations):
    """Sampled actions and the logarithm of their density, as PyTorch's distributions compute it."""
    x = observations
    for layer in ("actor.fc1", "actor.fc2"):
        x = dense(p, layer, x)
        x = x * (x > 0)
    mean, std = dense(p, "actor.fc_mean", x), torch.exp(-1.5 + 3.5 * dense(p, "actor.fc_logstd", x).tanh())
    low, high = torch.tensor(bounds(3).low), torch.tensor(bounds(3).high)
    squash = [TanhTransform(cache_size=1), AffineTransform((low + high) / 2, (high - low) / 2, cache_size=1)]
    policy = Independent(TransformedDistribution(Normal(mean, std), squash), 1)
    actions = mean + std * torch.randn_like(mean)
    for transform in squash:
        actions = transform(actions)
    return actions, policy.log_prob(actions)


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


def plain_update(p, moments, batch, args, update):
    """Update number `update`, 1 the first, of the parameters p, by name, in place. Returns what is to be logged."""
    with torch.no_grad():
        next_actions, next_log_pi = plain_sample(p, batch.next_observations)
        next_q = [plain_q(p, name, batch.next_observations, next_actions) for name in ("qf1_target", "qf2_target")]
        next_value = torch.where(next_q[0] < next_q[1], *next_q) - p["log_alpha"].exp() * next_log_pi
        y = batch.rewards + args.gamma * (1 - batch.terminations) * next_value

    def critic_loss(p):
        q1, q2 = (plain_q(p, name, batch.observations, batch.actions) for name in ("qf1", "qf2"))
        losses = ((q1 - y) ** 2).mean(), ((q2 - y) ** 2).mean()
        return sum(losses), q1.mean(), q2.mean(), *losses

    loss, gradients, (q1, q2, loss1, loss2) = plain_gradients(p, ("qf1.", "qf2."), critic_loss)
    plain_adam(p, moments, gradients, args.q_lr)
    metrics = {
        "losses/qf1_values": q1,
        "losses/qf2_values": q2,
        "losses/qf1_loss": loss1,
        "losses/qf2_loss": loss2,
        "losses/qf_loss": loss / 2,
        "diagnostics/critic_grad_norm": math.sqrt(sum((g**2).sum().item() for g in gradients.values())),
        "diagnostics/td_target_variance": ((y - y.mean()) ** 2).sum().item() / (len(y) - 1),
    }
    for _ in range(args.policy_frequency if update % args.policy_frequency == 0 else 0):

        def actor_loss(p):
            actions, log_pi = plain_sample(p, batch.observations)
            q = [plain_q(p, name, batch.observations, actions) for name in ("qf1", "qf2")]
            return [(p["log_alpha"].exp() * log_pi - torch.where(q[0] < q[1], *q)).mean()]

        metrics["losses/actor_loss"], gradients, _ = plain_gradients(p, ("actor.",), actor_loss)
        plain_adam(p, moments, gradients, args.policy_lr)
        if args.autotune:
            _, log_pi = plain_sample(p, batch.observations)
            gap = -log_pi.mean().detach() - (-3)  # of the entropy, to minus the action dimension
            metrics["losses/alpha_loss"] = p["log_alpha"].exp().item() * gap.item()
            plain_adam(p, moments, {"log_alpha": p["log_alpha"].exp() * gap}, args.q_lr)
    for name in p:
        if "_target." in name:
            p[name] = args.tau * p[name.replace("_target", "")] + (1 - args.tau) * p[name]
    return metrics | {"losses/alpha": p["log_alpha"].exp().item()}


@pytest.mark.parametrize(
    "module, args",
    [
        (sac, {}),
        (sac, {"policy_frequency": 3, "gamma": 0.9, "tau": 0.2, "q_lr": 3e-3, "policy_lr": 2e-3}),
        (sac, {"autotune": False, "alpha": 0.05}),
        (ams_sac, {"ntd": False, "layer_norm": False}),
    ],
)
def test_updates_are_the_plain_arithmetic(float64, module, args):
    """Seven updates: Adam's bias correction and the delayed, then repeated steps of the actor are all crossed."""
    agent, args = make_agent(module, 3, **args)
    p, moments = {name: value.detach().clone() for name, value in agent.named_parameters()}, {}
    assert p["log_alpha"].item() == pytest.approx(0 if args.autotune else math.log(0.05), abs=1e-6)
    batches = [make_batch(module, 3) for _ in range(7)]
    buffer = SimpleNamespace(sample=lambda batch_size: batches[update - 1])
    update_networks = module.make_update(agent, *module.make_optimizers(agent, args), buffer, args)
    for update in range(1, 8):
        torch.manual_seed(update)
        metrics = update_networks(update % args.policy_frequency == 0)  # as in train()
        torch.manual_seed(update)
        expected = plain_update(p, moments, batches[update - 1], args, update)
        values = {name: value.item() for name, value in metrics.items()}
        assert values == pytest.approx(expected, rel=1e-8), f"update {update}"
        errors = {name: (value - p[name]).abs().max().item() for name, value in agent.named_parameters()}
        assert max(errors.values()) < 1e-9, f"update {update}: {errors}"


@pytest.mark.parametrize("module", [sac, ams_sac])
def test_steps_of_actor_and_alpha_leave_the_rest_alone(float64, module):
    agent, args = make_agent(module, 3)
    _, actor_optimizer, alpha_optimizer = module.make_optimizers(agent, args)

    def changed(update, optimizer):
        before = {name: value.clone() for name, value in agent.state_dict().items()}
        update(agent, optimizer, make_batch(module, 3))
        return {name.split(".")[0] for name, value in agent.state_dict().items() if not value.equal(before[name])}

    assert changed(module.update_actor, actor_optimizer) == {"actor"}
    assert changed(module.update_alpha, alpha_optimizer) == {"log_alpha"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("module", [sac, ams_sac])
def test_captured_updates_are_the_eager_ones(module, capsys):
    """20 updates from equal seeds and buffers, of which the graphs replay 14; sums may be rounded differently."""
    device = torch.device("cuda")
    space = gym.spaces.Box(bounds(3).low.astype(np.float32), bounds(3).high.astype(np.float32))
    results = []
    for captured in (False, True):
        args = module.Args(cuda_graphs=captured)
        torch.manual_seed(0)
        agent = module.Agent(OBS_DIM, space, args).to(device)
        buffer = module.ReplayBuffer(1000, OBS_DIM, 3, device)
        rows = torch.randn(1000, sum(buffer.columns))
        rows[:, -1] = rows[:, -1] > 1
        buffer.add(rows.to(device))
        update_networks = module.make_update(agent, *module.make_optimizers(agent, args), buffer, args)
        # Detached, or it would keep autograd's nodes of the wrong stream alive, which breaks the capture.
        start = torch.nn.utils.parameters_to_vector(agent.parameters()).detach().clone()
        torch.cuda.manual_seed(1)
        metrics = {}
        for update in range(1, 21):
            metrics |= update_networks(update % args.policy_frequency == 0)
        torch.cuda.synchronize()
        end = torch.nn.utils.parameters_to_vector(agent.parameters()).detach()
        results.append((end, end - start, {name: value.item() for name, value in metrics.items()}))
    (eager_end, moved, eager_metrics), (captured_end, _, captured_metrics) = results
    assert (captured_end - eager_end).norm() < 0.01 * moved.norm()  # with other random numbers they are 1 apart
    assert captured_metrics == pytest.approx(eager_metrics, rel=1e-2, abs=1e-3)
    assert "CUDA graphs are off" not in capsys.readouterr().out  # the captured run was one


# ------------------------------------------------------------------------------------------------------- bad input


BAD = [("policy_lr", 0.0), ("q_lr", math.nan), ("alpha", -0.1), ("tau", 1.5), ("gamma", -0.1), ("policy_frequency", 0)]
BAD += [("updates_per_step", 0), ("batch_size", 40_001)]


@pytest.mark.parametrize(
    "module, name, value",
    [(module, *bad) for module in (sac, ams_sac) for bad in BAD]
    + [(ams_sac, "num_neighbors", 0), (ams_sac, "epsilon", -0.1)],
)
def test_bad_arguments_are_named(module, name, value, capsys):
    module.check_args(module.Args())
    with pytest.raises(SystemExit) as error:
        module.check_args(module.Args(**{name: value}))
    message = capsys.readouterr().err
    assert error.value.code == 2 and message.count("\n") == 1
    assert f"{module.__name__}.py: error: --{name.replace('_', '-')} " in message and str(value) in message


# ------------------------------------------------------------------------------------------------------ whole runs


# Runs each script of a list, with its flags, in a process of its own. Forks spare each the time of the imports.
RUNS = """
import ast, importlib, os, sys
import dm_control.suite
for script, *flags in ast.literal_eval(sys.argv[1]):
    module = importlib.import_module(script)
    sys.argv[1:] = flags
    child = os.fork()
    if not child:
        os._exit(module.main())
    assert os.waitpid(child, 0)[1] == 0, flags
"""


def train(*runs):
    """Trains each of `runs`, (script, directory, flags); returns each evaluations.csv, rows without the wall clock."""
    commands = [[script, "--run-dir", str(path), "--device", "cpu", *map(str, flags)] for script, path, flags in runs]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUNS, repr(commands)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    results = []
    for _, path, _ in runs:
        with open(path / "evaluations.csv") as file:
            results.append([{key: row[key] for key in row if key != "wall_seconds"} for row in csv.DictReader(file)])
    return results


def mean_return(rows, step: int) -> float:
    return float(np.mean([float(row["return"]) for row in rows if row["step"] == str(step)]))


TINY = """--env-id Pendulum-v1 --num-envs 2 --total-timesteps 70 --learning-starts 40 --batch-size 16 --buffer-size 150
--eval-frequency 100 --eval-episodes 1""".split()


def test_ams_sac_without_its_parts_is_sac_and_seeds_reproduce(tmp_path):
    """To the last bit of every return, over 30 updates."""
    base, bare, again, method, method_again, other = train(
        ("sac", tmp_path / "base", [*TINY, "--seed", 3]),
        ("ams_sac", tmp_path / "bare", [*TINY, "--seed", 3, "--no-ntd", "--no-layer-norm"]),
        ("sac", tmp_path / "again", [*TINY, "--seed", 3]),
        ("ams_sac", tmp_path / "method", [*TINY, "--seed", 3]),
        ("ams_sac", tmp_path / "method_again", [*TINY, "--seed", 3]),
        ("sac", tmp_path / "other", [*TINY, "--seed", 4]),
    )
    assert [row["step"] for row in base] == ["0", "70"] and base[1]["updates"] == "30"
    assert base[0]["return"] != base[1]["return"]  # the policy did change
    assert bare == base and again == base and method_again == method
    assert method[0] == base[0] and method[1] != base[1] and other[0] != base[0]


@pytest.mark.parametrize("script, steps", [("sac", 700), ("ams_sac", 350)])
def test_learns_to_balance(tmp_path, script, steps):
    """The untrained policies of seeds 1, 2 and 3 fall after 6 to 10 steps, the trained ones after 73 to 95."""
    pendulum = "--env-id InvertedPendulum-v5 --num-envs 4 --learning-starts 100 --batch-size 64 --buffer-size 5000"
    faster = "--gamma 0.97 --policy-lr 1e-3 --tau 0.02 --eval-episodes 4"
    [rows] = train((script, tmp_path / "run", [*pendulum.split(), *faster.split(), "--total-timesteps", steps]))
    assert mean_return(rows, 0) < 12 and mean_return(rows, steps) > 40

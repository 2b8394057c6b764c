"""The learner: updates against arithmetic written out here, the replay buffer, exploration, and CUDA graphs."""

import contextlib
import io
import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

import ams_td3
import td3

OBS_DIM, ACTION_DIM = 5, 3
SPACE = gym.spaces.Box(np.array([-1, -1, -0.8]), np.array([1, 1.1, 0.8]), dtype=np.float64)
SCALE, BIAS = torch.tensor([[1, 1.05, 0.8], [0, 0.05, 0]], dtype=torch.float64)


@pytest.fixture
def float64():
    """Everything that a test makes is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --------------------------------------------------------------------------------------------------------- updates


def dense(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def hidden(p, network, i, x):
    """Layer i of a network: relu(LN(W x + b)), or without LN where p has none."""
    x = dense(p, f"{network}.fc{i}", x)
    if f"{network}.ln{i}.weight" in p:
        mean = x.sum(dim=1, keepdim=True) / x.shape[1]
        variance = ((x - mean) ** 2).sum(dim=1, keepdim=True) / x.shape[1]
        x = (x - mean) / (variance + 1e-5) ** 0.5 * p[f"{network}.ln{i}.weight"] + p[f"{network}.ln{i}.bias"]
    return x * (x > 0)


def plain_q(p, network, observations, actions):
    x = hidden(p, network, 2, hidden(p, network, 1, torch.cat([observations, actions], dim=1)))
    return dense(p, f"{network}.fc3", x)[:, 0]


def plain_action(p, network, observations):
    x = hidden(p, network, 2, hidden(p, network, 1, observations))
    return dense(p, f"{network}.fc_mu", x).tanh() * SCALE + BIAS


def plain_target(p, batch, args):
    """y for the perturbations [B, K, d] that the global random numbers give, in units of half the action range."""
    size = len(batch.rewards), ACTION_DIM
    if getattr(args, "ntd", False):
        directions = ams_td3.sample_directions(args.sampling, size[0], args.num_neighbors, ACTION_DIM)
        perturbations = list(args.epsilon * directions.transpose(0, 1))
    else:
        perturbations = [(args.policy_noise * torch.randn(size)).clip(-args.noise_clip, args.noise_clip)]
    center, smaller = plain_action(p, "target_actor", batch.next_observations), []
    for perturbation in perturbations:
        actions = torch.minimum(torch.maximum(center + SCALE * perturbation, BIAS - SCALE), BIAS + SCALE)
        q = [plain_q(p, name, batch.next_observations, actions) for name in ("qf1_target", "qf2_target")]
        smaller.append(torch.where(q[0] < q[1], q[0], q[1]))
    return batch.rewards + args.gamma * (1 - batch.terminations) * sum(smaller) / len(smaller)


def plain_adam(p, moments, gradients, step, lr):
    """Kingma and Ba, Algorithm 1, with the defaults of PyTorch and CleanRL."""
    for name, g in gradients.items():
        m, v = moments.get(name, (0, 0))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        moments[name] = m, v
        p[name] = p[name] - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)


def plain_gradients(p, prefixes, loss_of):
    """The loss and its gradients with respect to the parameters whose names start with one of `prefixes`."""
    variables = {name: value.clone().requires_grad_() for name, value in p.items() if name.startswith(prefixes)}
    loss, *metrics = loss_of(p | variables)
    return loss.item(), dict(zip(variables, torch.autograd.grad(loss, variables.values()), strict=True)), metrics


def plain_update(p, moments, batch, args, update):
    """Update number `update`, 1 the first, of the parameters p, by name, in place. Returns what is to be logged."""
    y = plain_target(p, batch, args)

    def critic_loss(p):
        q1, q2 = (plain_q(p, name, batch.observations, batch.actions) for name in ("qf1", "qf2"))
        losses = ((q1 - y) ** 2).mean(), ((q2 - y) ** 2).mean()
        return sum(losses), q1.mean().item(), q2.mean().item(), losses[0].item(), losses[1].item()

    loss, gradients, (q1, q2, loss1, loss2) = plain_gradients(p, ("qf1.", "qf2."), critic_loss)
    plain_adam(p, moments, gradients, update, args.learning_rate)
    metrics = {
        "losses/qf1_values": q1,
        "losses/qf2_values": q2,
        "losses/qf1_loss": loss1,
        "losses/qf2_loss": loss2,
        "losses/qf_loss": loss / 2,
        "diagnostics/critic_grad_norm": math.sqrt(sum((g**2).sum().item() for g in gradients.values())),
        "diagnostics/td_target_variance": ((y - y.mean()) ** 2).sum().item() / (len(y) - 1),
    }
    if update % args.policy_frequency == 0:

        def actor_loss(p):
            return [-plain_q(p, "qf1", batch.observations, plain_action(p, "actor", batch.observations)).mean()]

        loss, gradients, _ = plain_gradients(p, ("actor.",), actor_loss)
        plain_adam(p, moments, gradients, update // args.policy_frequency, args.learning_rate)
        metrics["losses/actor_loss"] = loss
        for target, network in (("target_actor.", "actor."), ("qf1_target.", "qf1."), ("qf2_target.", "qf2.")):
            for name in p:
                if name.startswith(target):
                    p[name] = args.tau * p[name.replace(target, network)] + (1 - args.tau) * p[name]
    return metrics


def make_agent(module, args):
    """An agent whose six networks all differ from each other."""
    torch.manual_seed(0)
    agent = module.Agent(OBS_DIM, SPACE, args).double()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return agent


def make_batch(module, size=16):
    return module.Batch(
        observations=torch.randn(size, OBS_DIM),
        next_observations=torch.randn(size, OBS_DIM),
        actions=BIAS + SCALE * (2 * torch.rand(size, ACTION_DIM) - 1),
        rewards=torch.randn(size),
        terminations=(torch.arange(size) % 3 == 0).double(),
    )


@pytest.mark.parametrize(
    "module, args",
    [
        (td3, {}),
        (td3, {"policy_frequency": 3, "gamma": 0.9, "tau": 0.2, "learning_rate": 1e-3}),
        (ams_td3, {}),
        (ams_td3, {"ntd": False, "layer_norm": False}),
    ],
)
def test_updates_are_the_plain_arithmetic(float64, module, args):
    """Seven updates: Adam's bias correction and the delayed steps of the actor and the targets are all crossed."""
    args = module.Args(**args)
    agent = make_agent(module, args)
    batches = iter([make_batch(module) for _ in range(7)])
    buffer = SimpleNamespace(sample=lambda batch_size: batch)
    update_networks = module.make_update(agent, *module.make_optimizers(agent, args), buffer, args)
    p, moments = {name: value.detach().clone() for name, value in agent.named_parameters()}, {}
    for update in range(1, 8):
        batch = next(batches)
        torch.manual_seed(update)
        metrics = update_networks(update % args.policy_frequency == 0)  # as in train()
        torch.manual_seed(update)
        expected = plain_update(p, moments, batch, args, update)
        values = {name: value.item() for name, value in metrics.items()}
        assert values == pytest.approx(expected, rel=1e-9), f"update {update}"
        errors = {name: (value - p[name]).abs().max().item() for name, value in agent.named_parameters()}
        assert max(errors.values()) < 1e-10, f"update {update}: {errors}"


@pytest.mark.parametrize("module", [td3, ams_td3])
def test_actor_steps_leave_the_critics_alone(float64, module):
    args = module.Args()
    agent = make_agent(module, args)
    _, actor_optimizer = module.make_optimizers(agent, args)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    for _ in range(3):
        module.update_actor(agent, actor_optimizer, make_batch(module))
    changed = {name.split(".")[0] for name, value in agent.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"actor"}


@pytest.mark.parametrize("module", [td3, ams_td3])
def test_a_loaded_optimizer_keeps_its_own_settings_and_no_tensor_of_the_checkpoint(float64, module):
    """A CPU run resumed with CUDA graphs must stay capturable, and the checkpoint's file must not stay in use."""
    agent, batch = make_agent(module, module.Args()), make_batch(module)
    saved, _ = module.make_optimizers(agent, module.Args())
    module.update_critics(agent, saved, batch, module.Args())
    loaded, _ = module.make_optimizers(agent, module.Args(cuda_graphs=True))
    state = saved.state_dict()
    module.load_state(loaded, state, None)
    assert [group["capturable"] for group in loaded.param_groups] == [True]
    for index, moments in loaded.state_dict()["state"].items():
        for name, tensor in moments.items():
            assert tensor.equal(state["state"][index][name])
            assert tensor.data_ptr() != state["state"][index][name].data_ptr()


@pytest.mark.parametrize("module", [td3, ams_td3])
@pytest.mark.parametrize("fails", [False, True])
def test_when_updates_are_captured_and_replayed(module, fails, monkeypatch, capsys):
    """With stand-ins for CUDA's streams and graphs, since order and bookkeeping need no GPU: of each kind, three calls
    run as they are, the fourth is captured, and that and all later ones are replayed; or a failure is said once."""
    events, streams = [], []

    class Graph:
        def replay(self):
            events.append("replay")

    @contextlib.contextmanager
    def graph(graph, stream):
        events.append("capture")
        yield
        if fails:
            streams.append(stream)  # CUDA leaves this one current
            raise RuntimeError("no capture today")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda other: None))
    default = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1] if streams else default)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    update = module.cuda_graphs(lambda with_actor: events.append(with_actor) or {"with_actor": with_actor})
    for call in range(1, 13):
        assert update(call % 2 == 0) == {"with_actor": call % 2 == 0}
    warm_up = [False, True] * 3
    if fails:  # the other kind is not even tried, and a call in which the capture failed still is an update
        assert events == [*warm_up, "capture", False, False, True, False, True, False, True]
        assert streams[-1] is default
        assert capsys.readouterr().out.count("CUDA graphs are off, because the capture failed: no capture today") == 1
    else:
        captures = ["capture", False, "replay", "capture", True, "replay"]
        assert events == [*warm_up, *captures, *["replay"] * 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("module", [td3, ams_td3])
def test_captured_updates_are_the_eager_ones(module, capsys):
    """20 updates from equal seeds and buffers, of which the graphs replay 14. Random numbers are the same in a graph;
    sums may be rounded differently, and Adam turns that into a small part of its step where a gradient is near 0."""
    device = torch.device("cuda")
    space = gym.spaces.Box(SPACE.low.astype(np.float32), SPACE.high.astype(np.float32))
    results = []
    for captured in (False, True):
        args = module.Args(cuda_graphs=captured)
        torch.manual_seed(0)
        agent = module.Agent(OBS_DIM, space, args).to(device)
        buffer = module.ReplayBuffer(1000, OBS_DIM, ACTION_DIM, device)
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
    assert (captured_end - eager_end).norm() < 0.01 * moved.norm()  # with other random numbers, 0.6 of it
    assert captured_metrics == pytest.approx(eager_metrics, rel=1e-2, abs=1e-3)
    assert "CUDA graphs are off" not in capsys.readouterr().out  # the captured run was one


# --------------------------------------------------------------------------------------------------- replay buffer


def make_buffer(capacity, obs_dim=2, action_dim=1):
    buffer = td3.ReplayBuffer(capacity, obs_dim, action_dim, torch.device("cpu"))
    buffer.rows.fill_(math.nan)  # what is not stored must not be read
    return buffer


def make_rows(first, count, width=7):
    """Rows first, first + 1, ...; in row i, column j holds i + j / 10."""
    return torch.arange(first, first + count).unsqueeze(1) + torch.arange(width) / 10


@pytest.mark.parametrize("steps", [[3] * 9, [10, 10, 10], [4, 10, 1, 0, 7, 7], [1] * 25])
def test_buffer_keeps_the_last_transitions(steps):
    """The capacity 10 is no multiple of 3 or 4; a step of no transitions is one in which all simulations diverged."""
    buffer, added = make_buffer(10), 0
    for step in steps:
        buffer.add(make_rows(added, step))
        added += step
        stored = sorted(buffer.rows[: buffer.size, 0].tolist())
        assert stored == list(range(max(0, added - 10), added))
        assert buffer.size == buffer.device_size.item() == len(stored)
    assert torch.equal(buffer.rows, buffer.rows[:, :1] + torch.arange(7) / 10)


def test_sampled_rows_are_stored_rows_with_the_right_columns():
    buffer = make_buffer(10, obs_dim=3, action_dim=2)  # columns: 3 + 3 + 2 + 1 + 1
    buffer.add(make_rows(0, 7, width=10))
    torch.manual_seed(0)
    batch = buffer.sample(200)
    index = batch.observations[:, 0].round()
    assert set(index.tolist()) == set(range(7))  # each of them: one is left out with probability 7 (6/7)^200 = 3e-13
    row = index.unsqueeze(1) + torch.arange(10) / 10
    for part, columns in zip(batch[:3], ([0, 1, 2], [3, 4, 5], [6, 7]), strict=True):
        assert torch.equal(part, row[:, columns])
    assert torch.equal(batch.rewards, row[:, 8]) and torch.equal(batch.terminations, row[:, 9])


@pytest.mark.parametrize("added, capacity", [(40, 100), (130, 100)])
def test_sampling_is_uniform(added, capacity):
    buffer = make_buffer(capacity)
    buffer.add(make_rows(0, min(added, capacity)))
    buffer.add(make_rows(capacity, max(0, added - capacity)))
    torch.manual_seed(0)
    draws, cells = 40_000, min(added, capacity)
    index = torch.cat([buffer.sample(400).observations[:, 0] for _ in range(draws // 400)])
    counts = (index - max(0, added - capacity)).round().long().bincount()
    assert len(counts) == cells
    statistic = ((counts - draws / cells) ** 2 / (draws / cells)).sum().item()
    # Chi-square with k degrees of freedom is above k + 2 sqrt(k x) + 2x or below k - 2 sqrt(k x) with probability
    # exp(-x) or less each (Laurent and Massart 2000): 8e-7 for x = 14.
    k, x = cells - 1, 14
    assert k - 2 * math.sqrt(k * x) < statistic < k + 2 * math.sqrt(k * x) + 2 * x


@pytest.mark.parametrize("added", [4, 10, 23])
def test_buffer_goes_on_after_a_checkpoint_as_without(added):
    buffer, loaded, file = make_buffer(10), make_buffer(10), io.BytesIO()
    for first in range(0, added, 2):
        buffer.add(make_rows(first, min(2, added - first)))
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for step in (1, 3, 3, 3, 3):
        assert torch.equal(loaded.rows[: buffer.size], buffer.rows[: buffer.size])
        assert (loaded.size, loaded.position, loaded.device_size) == (buffer.size, buffer.position, buffer.device_size)
        batches = []
        for each in (buffer, loaded):
            torch.manual_seed(0)
            batches.append(each.sample(20))
        assert all(map(torch.equal, *batches))
        for each in (buffer, loaded):
            each.add(make_rows(100, step))


def test_checkpoints_hold_only_the_filled_part():
    buffer, file = make_buffer(100_000), io.BytesIO()
    buffer.add(make_rows(0, 10))
    torch.save(buffer.state_dict(), file)
    assert len(file.getvalue()) < 10_000  # a plain slice would take all 2.8 MB of its tensor along


def test_a_buffer_that_does_not_fit_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        make_buffer(10**13)
    error = capsys.readouterr().err
    assert "does not fit" in error and "--buffer-size" in error and error.count("\n") == 1


# ----------------------------------------------------------------------------------------------------- exploration


@pytest.mark.parametrize("module", [td3, ams_td3])
def test_exploration_noise_is_independent_and_in_units_of_the_action_range(float64, module):
    """Around the center of the bounds, where 0.1 of half the range is never clipped."""
    agent = make_agent(module, module.Args(exploration_noise=0.1))
    agent.actor.fc_mu.requires_grad_(False)
    agent.actor.fc_mu.weight.zero_()
    agent.actor.fc_mu.bias.zero_()
    n = 20_000
    noise = (agent.explore(torch.ones(n, OBS_DIM)) - BIAS) / (0.1 * SCALE)  # n environments in the same state
    # Standard normal and independent between environments and dimensions: products of two have variance 1, squares 2.
    # None of these 24 means is 6 standard errors off (false alarm: 5e-8).
    second = torch.cat([noise[:-1], noise[1:]], dim=1)  # each environment beside the next one
    errors = (second.T @ second / (n - 1) - torch.eye(2 * ACTION_DIM)) * math.sqrt(n / 2)
    assert errors.abs().max() < 6
    assert (noise.mean(dim=0) * math.sqrt(n)).abs().max() < 6
    assert len(noise[:8].unique(dim=0)) == 8


@pytest.mark.parametrize("module", [td3, ams_td3])
def test_exploration_is_clipped_to_the_bounds_of_each_dimension(float64, module):
    agent = make_agent(module, module.Args(exploration_noise=2))
    actions = agent.explore(torch.randn(500, OBS_DIM))
    assert torch.equal(actions.amin(dim=0), torch.tensor(SPACE.low))
    assert torch.equal(actions.amax(dim=0), torch.tensor(SPACE.high))


@pytest.mark.parametrize("module", [td3, ams_td3])
def test_evaluation_is_deterministic_and_without_noise(float64, module):
    agent = make_agent(module, module.Args())
    observations = torch.randn(20, OBS_DIM)
    state = torch.get_rng_state()
    actions = agent.policy(observations)
    assert torch.equal(torch.get_rng_state(), state) and not actions.requires_grad
    torch.testing.assert_close(actions, plain_action(agent.state_dict(), "actor", observations), rtol=0, atol=1e-12)

"""The learner of TD3, AMS-TD3, SAC and AMS-SAC: networks, targets and updates against arithmetic written out here, what
train() makes of them, the replay buffer, exploration, and CUDA graphs.

What is drawn inside fork_rng() is drawn once more after it: so the arithmetic has a script's random numbers. Single
updates are made by gradient descent with a step size of 1 (SGD), which shows whole gradients; Adam would show little
more than their signs.
"""

import copy
import math
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmark import make_optimizers
from commands import RUN, checkpoint, evaluations, run
from learners import (
    ACTION_DIM,
    AMS,
    BATCH_SIZE,
    EVERY,
    EVERY_AMS,
    EVERY_SAC,
    EVERY_TD3,
    OFF_POLICY,
    TD3_FAMILY,
    make_batch,
    make_directions,
    make_learner,
)
from scipy.stats import chisquare
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD
from torch.random import fork_rng
from torch.testing import assert_close

import ams_sac
import ams_td3
import sac
import td3

EXACT = {"rtol": 0, "atol": 0}

# ------------------------------------------------------------------------------------------------------- networks


def hidden(network, x, layer_norm=False):
    """What the last layer of a network sees of x [B, n]."""
    for i in ("1", "2"):
        x = network.get_submodule(f"fc{i}")(x)
        if layer_norm:
            norm = network.get_submodule(f"ln{i}")
            x = F.layer_norm(x, [256], norm.weight, norm.bias)
        x = x.relu()
    return x


CRITICS = [(module, {}) for module in OFF_POLICY] + [(module, {"layer_norm": False}) for module in AMS]


@pytest.mark.parametrize("module, args", CRITICS)
def test_critic_has_two_hidden_layers(float64, module, args):
    agent, batch, args, _ = make_learner(module, **args)

    values = agent.qf1(batch.observations, batch.actions)

    inputs = torch.cat([batch.observations, batch.actions], dim=1)
    x = hidden(agent.qf1, inputs, module in AMS and args.layer_norm)
    assert_close(values, agent.qf1.fc3(x).squeeze(1))


@EVERY_TD3
@pytest.mark.parametrize("projection", ["tanh", "normalize"])
def test_deterministic_actor_projects_onto_cuboid_or_sphere(float64, module, projection):
    """Eq. 38 and 37."""
    agent, batch, *_ = make_learner(module, action_projection=projection)

    actions = agent.actor(batch.observations)

    mu = agent.actor.fc_mu(hidden(agent.actor, batch.observations))
    expected = {"tanh": mu.tanh(), "normalize": mu / mu.norm(dim=1, keepdim=True)}
    assert_close(actions, expected[projection])


@EVERY_SAC
def test_gaussian_actor_has_a_log_deviation_from_minus_5_to_2(float64, module):
    agent, batch, *_ = make_learner(module)

    mean, log_std = agent.actor(batch.observations)

    x = hidden(agent.actor, batch.observations)
    assert_close(mean, agent.actor.fc_mean(x))
    assert_close(log_std, -1.5 + 3.5 * agent.actor.fc_logstd(x).tanh())


@EVERY_SAC
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("mean", [-30.0, -6.0, 0.0, 2.0, 9.0, 30.0])  # at 9, tanh is 3e-8 away from 1; at 30, 0
@pytest.mark.parametrize("log_std", [-5.0, -3.0, -0.2, 2.0])
def test_density_is_exact_also_where_it_saturates(module, dtype, tolerance, mean, log_std):
    torch.manual_seed(0)
    actor = module.Actor(1, 3)
    mean = torch.full((50, 3), mean, dtype=dtype, requires_grad=True)
    log_std = torch.full_like(mean, log_std, requires_grad=True)
    actor.forward = lambda observations: (mean, log_std)

    with fork_rng():
        actions, log_prob, center = actor.get_action(None)
    (log_prob.sum() + actions.sum()).backward()

    normal = Normal(mean.double(), log_std.double().exp())
    squash = TanhTransform(cache_size=1)  # which remembers what an action was made of
    expected = squash(normal.mean + normal.stddev * torch.randn_like(mean))
    expected_log_prob = TransformedDistribution(normal, squash).log_prob(expected).sum(dim=1)
    exact = [expected, expected_log_prob, normal.mean.tanh()]
    assert_close([actions, log_prob, center], exact, rtol=tolerance, atol=tolerance, check_dtype=False)
    assert mean.grad.isfinite().all()
    assert log_std.grad.isfinite().all()


# --------------------------------------------------------------------------------------------------------- acting


@EVERY
def test_policy_is_deterministic(module):
    agent, batch, *_ = make_learner(module)
    state = torch.get_rng_state()

    actions = agent.policy(batch.observations)

    outputs = agent.actor(batch.observations)
    assert_close(actions, outputs if module in TD3_FAMILY else outputs[0].tanh())
    assert torch.get_rng_state().equal(state)


def exploration_noise(module, agent, observations):
    """What exploration adds to the policy, in standard deviations."""
    actions = agent.explore(observations)
    if module in TD3_FAMILY:
        return (actions - agent.actor(observations)) / agent.exploration_noise
    mean, log_std = agent.actor(observations)
    return (actions.atanh() - mean) / log_std.exp()


@EVERY
def test_exploration_is_independent_between_environments_and_dimensions(float64, module):
    agent, batch, *_ = make_learner(module)
    agent.exploration_noise = 1e-3  # TD3's: so that nothing is clipped
    observations = batch.observations[:1].expand(10_000, -1)  # environments in the same state

    noise = exploration_noise(module, agent, observations)

    # Standard normal, each environment's beside the next one's: of 6 means and 36 products, whose variances are at most
    # 2, none is 6 standard errors off (false alarm: 8e-8).
    both = torch.cat([noise[:-1], noise[1:]], dim=1)
    covariance = both.T @ both / len(both)
    bound = 6 * math.sqrt(2 / len(both))
    assert both.mean(dim=0).abs().max() < bound
    assert (covariance - torch.eye(len(covariance))).abs().max() < bound


@EVERY_TD3
def test_exploration_stays_within_the_bounds(module):
    agent, batch, *_ = make_learner(module, exploration_noise=2)

    actions = agent.explore(batch.observations)

    assert actions.aminmax() == (-1, 1)


# -------------------------------------------------------------------------------------------------------- targets


def plain_target(agent, batch, args, next_actions, entropy=0):
    """Eq. 6, for a list of next actions [B, d]."""
    next_q = 0
    for actions in next_actions:
        qf1_values = agent.qf1_target(batch.next_observations, actions)
        qf2_values = agent.qf2_target(batch.next_observations, actions)
        next_q += qf1_values.minimum(qf2_values) / len(next_actions)
    return batch.rewards + args.gamma * (1 - batch.terminations) * (next_q + entropy)


TD3_TARGETS = [
    (td3, {"gamma": 0.9}),
    (td3, {"action_projection": "normalize", "policy_noise": 0.6}),
    (ams_td3, {"ntd": False, "policy_noise": 0.6}),
]


@pytest.mark.parametrize("module, args", TD3_TARGETS)
def test_td3s_target_has_clipped_noise(float64, module, args):
    agent, batch, args, directions = make_learner(module, **args)

    with fork_rng():
        y = module.td_target(agent, batch, args, *directions)

    center = agent.target_actor(batch.next_observations)
    noise = (args.policy_noise * torch.randn_like(center)).clip(-args.noise_clip, args.noise_clip)
    assert_close(y, plain_target(agent, batch, args, [(center + noise).clip(-1, 1)]))


@pytest.mark.parametrize("module, args", [(sac, {"gamma": 0.9}), (ams_sac, {"ntd": False})])
def test_sacs_target_has_the_entropy_of_an_action(float64, module, args):
    agent, batch, args, directions = make_learner(module, **args)

    with fork_rng():
        y = module.td_target(agent, batch, args, *directions)

    actions, log_pi, _ = agent.actor.get_action(batch.next_observations)
    assert_close(y, plain_target(agent, batch, args, [actions], -agent.log_alpha.exp() * log_pi))


NEIGHBORHOODS = [
    {"gamma": 0.9},
    {"num_neighbors": 2},  # one piece, as on a GPU
    {"num_neighbors": 3},
    {"sampling": "antithetic"},
    {"sampling": "gaussian"},
    {"layer_norm": False},
]


def neighbors(center, directions):
    """Figure 2, line 4, one neighbor after the other."""
    return [(center + 0.7 * v).clip(-1, 1) for v in directions.unbind(dim=1)]


@pytest.mark.parametrize("args", [*NEIGHBORHOODS, {"action_projection": "normalize"}])
def test_neighborhood_target_of_td3(float64, args):
    agent, batch, args, [directions] = make_learner(ams_td3, epsilon=0.7, **args)

    y = ams_td3.td_target(agent, batch, args, directions)

    center = agent.target_actor(batch.next_observations)
    assert_close(y, plain_target(agent, batch, args, neighbors(center, directions)))


@pytest.mark.parametrize("args", NEIGHBORHOODS)
def test_neighborhood_target_of_sac(float64, args):
    agent, batch, args, [directions] = make_learner(ams_sac, epsilon=0.7, **args)

    with fork_rng():
        y = ams_sac.td_target(agent, batch, args, directions)

    _, log_pi, center = agent.actor.get_action(batch.next_observations)
    entropy = -agent.log_alpha.exp() * log_pi
    assert_close(y, plain_target(agent, batch, args, neighbors(center, directions), entropy))


# -------------------------------------------------------------------------------------------------------- updates


def descended(parameters, loss):
    """The parameters after a step of size 1 down the loss."""
    gradients = torch.autograd.grad(loss, parameters)
    return [parameter.detach() - gradient for parameter, gradient in zip(parameters, gradients, strict=True)]


@EVERY
def test_critics_descend_the_squared_errors(float64, module):
    agent, batch, args, directions = make_learner(module)
    with fork_rng():
        y = module.td_target(agent, batch, args, *directions)
    parameters = agent.critic_parameters()
    qf1_values = agent.qf1(batch.observations, batch.actions)
    qf2_values = agent.qf2(batch.observations, batch.actions)
    qf1_loss = F.mse_loss(qf1_values, y)
    qf2_loss = F.mse_loss(qf2_values, y)
    expected = descended(parameters, qf1_loss + qf2_loss)

    metrics = module.update_critics(agent, SGD(parameters, lr=1), batch, args, *directions)

    expected_metrics = {
        "losses/qf1_values": qf1_values,
        "losses/qf2_values": qf2_values,
        "losses/qf1_loss": qf1_loss,
        "losses/qf2_loss": qf2_loss,
        "losses/qf_loss": (qf1_loss + qf2_loss) / 2,
    }
    assert_close(parameters, expected)
    assert_close(metrics, expected_metrics)


@EVERY
def test_spread_of_the_targets_and_norm_of_the_critics_gradient(float64, module):
    agent, batch, args, directions = make_learner(module)
    with fork_rng():
        if module in AMS:
            drawn = module.sample_directions(args.sampling, 2 * BATCH_SIZE, args.num_neighbors, ACTION_DIM)
            directions = [drawn[:BATCH_SIZE]]
        y = module.td_target(agent, batch, args, *directions)
    qf1_loss = F.mse_loss(agent.qf1(batch.observations, batch.actions), y)
    qf2_loss = F.mse_loss(agent.qf2(batch.observations, batch.actions), y)
    gradients = torch.autograd.grad(qf1_loss + qf2_loss, agent.critic_parameters())

    stages = module.pathway_diagnostics(agent, batch, args)

    assert_close(stages["diagnostics/td_target_variance"], y.var(correction=0))
    assert_close(stages["diagnostics/critic_grad_norm"], parameters_to_vector(gradients).norm())


@pytest.mark.parametrize("module, base", [(ams_td3, td3), (ams_sac, sac)])
def test_ams_without_its_parts_reads_what_its_base_reads(module, base):
    agent, batch, args, _ = make_learner(module, ntd=False, layer_norm=False)
    with fork_rng():
        expected = base.pathway_diagnostics(agent, batch, args)

    assert module.pathway_diagnostics(agent, batch, args) == expected


@EVERY_TD3
def test_deterministic_actor_climbs_the_first_critic(float64, module):
    agent, batch, *_ = make_learner(module)
    parameters = list(agent.actor.parameters())
    loss = -agent.qf1(batch.observations, agent.actor(batch.observations)).mean()
    expected = descended(parameters, loss)

    metrics = module.update_actor(agent, SGD(parameters, lr=1), batch)

    assert_close(parameters, expected)
    assert_close(metrics, {"losses/actor_loss": loss})


@EVERY_SAC
def test_gaussian_actor_climbs_the_smaller_critic_and_the_entropy(float64, module):
    agent, batch, *_ = make_learner(module)
    parameters = list(agent.actor.parameters())
    with fork_rng():
        actions, log_pi, _ = agent.actor.get_action(batch.observations)
    qf1_values = agent.qf1(batch.observations, actions)
    qf2_values = agent.qf2(batch.observations, actions)
    loss = (agent.log_alpha.exp() * log_pi - qf1_values.minimum(qf2_values)).mean()
    expected = descended(parameters, loss)

    metrics = module.update_actor(agent, SGD(parameters, lr=1), batch)

    assert_close(parameters, expected)
    assert_close(metrics, {"losses/actor_loss": loss})


@EVERY_SAC
def test_alpha_takes_the_entropy_to_minus_d(float64, module):
    agent, batch, *_ = make_learner(module)
    with fork_rng():
        _, log_pi, _ = agent.actor.get_action(batch.observations)
    loss = agent.log_alpha.exp() * (ACTION_DIM - log_pi.mean())
    expected = descended([agent.log_alpha], loss)

    metrics = module.update_alpha(agent, SGD([agent.log_alpha], lr=1), batch)

    assert_close([agent.log_alpha], expected)
    assert_close(metrics, {"losses/alpha_loss": loss})


@EVERY_SAC
def test_alpha_stays_as_given_without_autotune(module):
    agent = module.Agent(1, 1, module.Args(autotune=False, alpha=0.05))

    assert agent.log_alpha.exp().item() == pytest.approx(0.05)


@EVERY
def test_targets_move_by_tau(float64, module):
    agent, *_ = make_learner(module)
    before = copy.deepcopy(agent.state_dict())

    module.update_targets(agent, 0.2)

    for name, value in agent.state_dict().items():
        network = name.replace("_target", "").replace("target_", "")  # of a network, its own name
        assert_close(value, 0.8 * before[name] + 0.2 * before[network])


@EVERY_TD3
@pytest.mark.parametrize("with_actor", [False, True])
def test_td3_updates_critics_and_then_actor_and_targets(module, with_actor):
    agent, batch, args, directions = make_learner(module)
    other = copy.deepcopy(agent)
    q_optimizer, actor_optimizer = make_optimizers(other, args)

    with fork_rng():
        metrics = module.update(agent, *make_optimizers(agent, args), args, with_actor, batch, *directions)

    expected = module.update_critics(other, q_optimizer, batch, args, *directions)
    if with_actor:
        expected |= module.update_actor(other, actor_optimizer, batch)
        module.update_targets(other, args.tau)
    assert_close([agent.state_dict(), metrics], [other.state_dict(), expected], **EXACT)


@EVERY_SAC
@pytest.mark.parametrize("autotune", [False, True])
@pytest.mark.parametrize("actor_updates", [0, 3])
def test_sac_updates_critics_and_actor_and_alpha_in_turns_and_then_targets(module, autotune, actor_updates):
    agent, batch, args, directions = make_learner(module, autotune=autotune, policy_frequency=3)
    other = copy.deepcopy(agent)
    q_optimizer, actor_optimizer, alpha_optimizer = make_optimizers(other, args)

    with fork_rng():
        metrics = module.update(agent, *make_optimizers(agent, args), args, actor_updates > 0, batch, *directions)

    expected = module.update_critics(other, q_optimizer, batch, args, *directions)
    for _ in range(actor_updates):
        expected |= module.update_actor(other, actor_optimizer, batch)
        if autotune:
            expected |= module.update_alpha(other, alpha_optimizer, batch)
    module.update_targets(other, args.tau)
    expected["losses/alpha"] = other.log_alpha.exp()
    assert_close([agent.state_dict(), metrics], [other.state_dict(), expected], **EXACT)


# ----------------------------------------------------------------------------------------------------- whole runs

SHORT = "--total-timesteps 69 --learning-starts 40 --keep-checkpoint --env-id learners:Reach-v0"
LONG = """--total-timesteps 600 --env-id learners:Reach-v0 --gamma 0.9 --eval-frequency 600 --eval-episodes 8
--checkpoint-frequency 600"""
BASES = pytest.mark.parametrize("script, base", [("ams_td3", "td3"), ("ams_sac", "sac")])


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains for 69 steps, once for each command; returns the checkpoint and the rows of evaluations.csv."""

    @cache
    def train(script, words=""):
        folder = tmp_path_factory.mktemp(script)
        run(script, SHORT, words, cwd=folder)
        return checkpoint(folder / RUN), evaluations(folder / RUN)

    return train


def assert_same_training(one, other):
    """The same evaluations, networks, transitions, and random numbers to come, to the last bit."""
    assert one[1] == other[1]
    for name in ("agent", "rb", "torch_rng"):
        assert_close(one[0][name], other[0][name], **EXACT)
    assert one[0]["numpy_rng"] == other[0]["numpy_rng"]


OPTIMIZERS = [
    ("ams_td3", "q_optimizer", 3e-4, 29),
    ("ams_td3", "actor_optimizer", 3e-4, 14),
    ("ams_sac", "q_optimizer", 1e-3, 29),
    ("ams_sac", "actor_optimizer", 3e-4, 28),
    ("ams_sac", "alpha_optimizer", 1e-3, 28),
]


@pytest.mark.parametrize("script, name, learning_rate, steps", OPTIMIZERS)
def test_training_steps_with_adam(train, script, name, learning_rate, steps):
    saved, _ = train(script)

    optimizer = saved[name]
    settings = {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    assert settings.items() <= optimizer["param_groups"][0].items()
    assert {state["step"].item() for state in optimizer["state"].values()} == {steps}


@pytest.mark.parametrize("script", ["ams_td3", "ams_sac"])
def test_reading_diagnostics_changes_nothing(train, script):
    assert_same_training(train(script), train(script, "--log-frequency 1"))


@BASES
def test_ams_without_its_parts_is_its_base(train, script, base):
    assert_same_training(train(script, "--no-ntd --no-layer-norm"), train(base))


@BASES
def test_ams_with_its_parts_is_not_its_base(train, script, base):
    assert train(script)[1] != train(base)[1]


PPO_LONG = """--total-timesteps 1200 --eval-frequency 1200 --learning-rate 2e-3 --num-steps 150 --num-minibatches 5
--update-epochs 10"""
LEARNING = [
    ("td3", "--learning-rate 1e-3 --learning-starts 100 --batch-size 64"),
    ("ams_td3", "--learning-rate 1e-3 --learning-starts 100 --batch-size 64"),
    ("sac", "--policy-lr 1e-3 --learning-starts 100 --batch-size 64"),
    ("ams_sac", "--policy-lr 1e-3 --learning-starts 100 --batch-size 64"),
    ("ppo", PPO_LONG),
]


@pytest.mark.parametrize("script, words", LEARNING)
def test_learns_to_reach(own_folder, script, words):
    """A resting point has a mean return of -10; with seeds 1 to 3 untrained policies have -8 to -14, trained ones at
    least -3.9."""
    run(script, LONG, words)

    returns = np.array(evaluations(RUN))[:, 4]
    before, after = returns.reshape(2, 8).mean(axis=1)
    assert before < -7
    assert after > -5


# -------------------------------------------------------------------------------------------------- replay buffer

CPU = torch.device("cpu")
STEPS = [[3], [3] * 9, [10, 10], [4, 10, 1], [4, 10, 1, 7, 7], [1] * 25]


def transitions(count):
    """As rows; the j-th number of transition i is i + j / 8."""
    return np.arange(count)[:, None] + np.arange(7) / 8


def make_buffer(capacity, steps):
    """A buffer of 2 observations and 1 action per transition to which steps of these sizes were added."""
    buffer = td3.ReplayBuffer(capacity, 2, 1, CPU)
    buffer.rows.fill_(math.nan)  # what is not stored must not be read
    for rows in np.split(transitions(sum(steps)), np.cumsum(steps)[:-1]):
        add(buffer, rows)
    return buffer


def add(buffer, rows):
    buffer.add(*np.split(rows, [2, 4, 5, 6], axis=1))


@pytest.mark.parametrize("steps", STEPS)
def test_buffer_keeps_the_last_transitions(steps):
    buffer = make_buffer(10, steps)

    rows = buffer.rows[: buffer.size].tolist()
    assert sorted(rows) == transitions(sum(steps))[-10:].tolist()


@pytest.mark.parametrize("steps", STEPS)
def test_buffer_goes_on_from_its_state(steps):
    restored = make_buffer(10, [])

    restored.load_state_dict(make_buffer(10, steps).state_dict())
    add(restored, transitions(sum(steps) + 4)[-4:])

    assert_close(restored.rows, make_buffer(10, [*steps, 4]).rows, equal_nan=True)


def test_file_of_a_buffer_is_as_large_as_what_it_holds():
    state = make_buffer(10, [3]).state_dict()

    assert state["rows"].untyped_storage().nbytes() == 4 * 7 * 3  # of a slice, all would be saved


@pytest.mark.parametrize("steps", [4, 13])
def test_sampling_is_uniform(steps):
    buffer = make_buffer(100, [10] * steps)
    torch.manual_seed(0)

    batch = buffer.sample(40_000)

    _, counts = batch.observations[:, 0].unique(return_counts=True)
    # The p-value is itself uniform, approximately: a false alarm has probability 2e-6.
    assert len(counts) == buffer.size
    assert 1e-6 < chisquare(counts).pvalue < 1 - 1e-6


def test_sampled_transitions_are_whole():
    batch = make_buffer(100, [10] * 13).sample(1000)

    expected = batch.observations[:, :1] + torch.arange(7) / 8
    assert torch.column_stack(batch).equal(expected)


@EVERY
def test_a_buffer_that_does_not_fit_is_refused(module, monkeypatch, capsys):
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * 2**20))

    with pytest.raises(SystemExit, match="2"):
        module.ReplayBuffer(1_000_000, 2, 1, CPU)  # 28 MB, which the allocator would give

    output = capsys.readouterr()
    reason = "the replay buffer does not fit into memory; lower --buffer-size"
    assert output.err == f"{module.__name__}.py: error: {reason}\n"
    assert "1,000,000 transitions take 0.03 GiB of 0.0 free (cpu)" in output.out


# ----------------------------------------------------------------------------------------------------------- CUDA

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def train_on_cuda(module, captured):
    """The parameters before and after 20 updates, and what was logged last."""
    with torch.device("cuda"):
        agent, _, args, _ = make_learner(module, cuda_graphs=captured)
        update = partial(module.update, agent, *make_optimizers(agent, args), args)
        updates = [partial(update, False), partial(update, True)]
        if captured:
            updates = [module.CudaGraphModule(update) for update in updates]
        before = parameters_to_vector(agent.parameters()).detach()
        torch.manual_seed(1)
        for number in range(1, 21):
            inputs = make_batch(module), *make_directions(module, args)
            metrics = updates[number % args.policy_frequency == 0](*inputs)
    return before, parameters_to_vector(agent.parameters()), metrics


@needs_cuda
@EVERY
def test_captured_updates_on_cuda_are_the_eager_ones(module):
    """In a graph sums may be rounded differently, and Adam turns that into a small part of its step where a gradient is
    near 0. SAC's noise is drawn in the graph, from the same generator."""
    before, eager, eager_metrics = train_on_cuda(module, captured=False)

    _, captured, captured_metrics = train_on_cuda(module, captured=True)

    assert (captured - eager).norm() < 0.01 * (eager - before).norm()
    assert_close(captured_metrics, eager_metrics, rtol=1e-2, atol=1e-3)


@needs_cuda
@EVERY_AMS
def test_directions_on_cuda_are_orthonormal(module):
    frames = module.orthonormal_directions(4096, 8, 38, device="cuda").cpu().double()

    assert (frames @ frames.mT - torch.eye(8)).abs().max() < 1e-6

"""The method against the paper: directions (eq. 9, 29), neighborhood (Figure 2), and what the diagnostics of the
pathway say of functions whose gradient and Laplacian are known (Theorem 3.3, eq. 32-34).

Statistical tests have fixed seeds. The false alarm probabilities in their comments are those of a fresh seed.
"""

import inspect
import math

import pytest
import torch
from benchmark import Counter
from learners import EVERY, EVERY_AMS
from torch.testing import assert_close

import ams_sac
import ams_td3

SHAPES = pytest.mark.parametrize("num, dim", [(8, 38), (8, 12), (8, 6), (6, 6), (8, 1), (1, 1)])  # K, d
EVERY_SAMPLING = pytest.mark.parametrize("sampling", ["orthogonal", "antithetic", "gaussian"])


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def seeded():
    return torch.Generator().manual_seed(6)


# ----------------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize("name", ["orthonormal_directions", "sample_directions", "neighborhood_actions"])
def test_both_scripts_have_the_same_function(name):
    """So the tests of directions and neighborhood need only one of them."""
    assert inspect.getsource(getattr(ams_td3, name)) == inspect.getsource(getattr(ams_sac, name))


def assert_orthonormal(directions):
    """The frames that stand side by side in directions [N, K, d] are so."""
    for frame in directions.double().split(directions.shape[2], dim=1):
        error = frame @ frame.mT - torch.eye(frame.shape[1])
        assert error.abs().max() < 1e-6


def positive_qr(rows):
    """The orthonormal rows [N, K, d] of `rows` = L Q with diag(L) > 0, by Householder reflections in float64."""
    q, r = torch.linalg.qr(rows.double().mT)
    signs = r.diagonal(dim1=1, dim2=2).sign()
    return (q * signs.unsqueeze(1)).mT.float()


@SHAPES
def test_directions_are_the_orthonormal_ones_of_a_qr_decomposition_with_positive_diagonal(num, dim):
    """Of the Gaussian matrices that the generator gives, which makes them Haar distributed."""
    directions = ams_td3.orthonormal_directions(500, num, dim, generator=seeded())

    frames = math.ceil(num / dim)
    gaussian = torch.randn(500 * frames, min(num, dim), dim, generator=seeded())
    side_by_side = positive_qr(gaussian).reshape(500, -1, dim)
    assert_orthonormal(directions)
    assert_close(directions, side_by_side[:, :num], rtol=0, atol=1e-6)


def directions_of(rows, monkeypatch):
    """The directions made of these Gaussian vectors [N, K, d]."""
    monkeypatch.setattr(torch, "randn", lambda shape, device, generator: rows)
    return ams_td3.orthonormal_directions(*rows.shape)


DRAWS = pytest.mark.parametrize("num, dim", [(1, 1), (2, 2), (6, 6), (8, 38)])


@DRAWS
@pytest.mark.parametrize("distance", [1e-6, 1e-4, 1e-2])
def test_nearly_dependent_draws_give_orthonormal_directions(monkeypatch, num, dim, distance):
    """One pass of Cholesky QR loses orthogonality as distance^-2 eps does."""
    rows = torch.randn(200, num, dim)
    rows[:100, -1] = rows[:100, 0] + distance * rows[:100, -1]

    directions = directions_of(rows, monkeypatch)

    assert_orthonormal(directions)
    assert_close(directions, positive_qr(rows), rtol=0, atol=1e-5)


@DRAWS
def test_a_draw_of_zeros_gives_finite_directions(monkeypatch, num, dim):
    """torch.randn on the CPU returns an exact 0 once in some ten million draws, which d = 1 meets in every run."""
    rows = torch.randn(200, num, dim)
    rows[:100, -1] = 0

    directions = directions_of(rows, monkeypatch)

    assert directions.norm(dim=2).max() < 1 + 1e-6
    assert_close(directions[100:], positive_qr(rows[100:]), rtol=0, atol=1e-5)


def moments_z(directions, square, product):
    """The largest deviation, in standard errors, of the moments of each v_k in directions [n, K, d] from E[v] = 0 and
    E[v v^T] = I/d. Given are the variances of v_i^2 and v_i v_j."""
    v = directions.double()
    n, num, dim = v.shape
    identity = torch.eye(dim, dtype=torch.float64)
    variance = torch.where(identity > 0, square, product)
    mean = v.mean(dim=0)
    covariance = torch.einsum("nki,nkj->kij", v, v) / n - identity / dim
    mean_z = mean.abs() * math.sqrt(n * dim)
    covariance_z = covariance.abs() / (variance / n + 1e-12).sqrt()  # at d = 1, v^2 = 1 up to rounding
    return max(mean_z.max(), covariance_z.max())


def haar_z(directions):
    """moments_z against Haar frames: E[v_i^4] = 3 / (d (d + 2)), E[v_i^2 v_j^2] = 1 / (d (d + 2))."""
    dim = directions.shape[2]
    return moments_z(directions, 2 * (dim - 1) / (dim**2 * (dim + 2)), 1 / (dim * (dim + 2)))


Z = 7  # standard errors; by the central limit theorem a larger deviation has probability 3e-12


@SHAPES
def test_directions_are_haar_distributed(num, dim):
    """False alarm: at most 2e-8, for the 6,200 moments of (8, 38)."""
    directions = ams_td3.orthonormal_directions(4000, num, dim)

    assert haar_z(directions) < Z


@EVERY_SAMPLING
def test_directions_are_drawn_from_the_generator_alone(sampling):
    generator = seeded()
    state = torch.get_rng_state()

    first = ams_td3.sample_directions(sampling, 4, 8, 6, generator=generator)
    second = ams_td3.sample_directions(sampling, 4, 8, 6, generator=generator)

    assert not torch.isclose(first, second).any()
    assert ams_td3.sample_directions(sampling, 4, 8, 6, generator=seeded()).equal(first)
    assert torch.get_rng_state().equal(state)


@EVERY_SAMPLING
def test_directions_without_a_generator_are_from_the_global_one(sampling):
    torch.manual_seed(6)

    directions = ams_td3.sample_directions(sampling, 4, 8, 6)

    assert ams_td3.sample_directions(sampling, 4, 8, 6, generator=seeded()).equal(directions)


@pytest.mark.parametrize("num, dim", [(8, 38), (8, 6)])
def test_gaussian_directions_are_independent_with_unit_mean_square(num, dim):
    directions = ams_td3.sample_directions("gaussian", 4000, num, dim)

    # Independent N(0, 1/d): the variances of v_i^2 and v_i v_j are 2/d^2 and 1/d^2, that of |v|^2 is 2/d.
    squares = directions.square().sum(dim=2)
    assert moments_z(directions, 2 / dim**2, 1 / dim**2) < Z
    assert abs(squares.mean() - 1) < Z * math.sqrt(2 / dim / squares.numel())
    assert squares.std() > 0.5 * math.sqrt(2 / dim)  # unlike those of the other two rules


@pytest.mark.parametrize("num, dim", [(8, 38), (12, 6), (16, 6), (2, 1), (4, 1)])
def test_antithetic_directions_are_haar_frames_and_their_negatives(num, dim):
    directions = ams_td3.sample_directions("antithetic", 4000, num, dim)

    half, opposite = directions.chunk(2, dim=1)
    assert half.equal(-opposite)
    assert_orthonormal(half)
    assert haar_z(half) < Z


def test_number_of_operations_of_the_directions():
    with Counter() as counter:
        ams_td3.orthonormal_directions(16, 8, 38)

    assert 0 < counter.total <= 13  # the draw, two conversions, and five in each pass


# --------------------------------------------------------------------------------------------------- neighborhood


@pytest.mark.parametrize("radius", [0.5, [0.3, 0.6, 0.9]])
def test_neighborhood_actions_stay_within_the_bounds_of_each_dimension(radius):
    radius = torch.tensor(radius)
    low = torch.tensor([-1, -1, -0.8])
    high = torch.tensor([1, 1.1, 0.8])
    centers = low + (high - low) * torch.rand(60, 3)
    directions = ams_td3.orthonormal_directions(60, 4, 3)

    actions = ams_td3.neighborhood_actions(centers, directions, radius, low, high)

    for k in range(4):
        moved = centers + radius * directions[:, k]
        assert_close(actions[:, k], moved.maximum(low).minimum(high))


# ------------------------------------------------------------------------------------- diagnostics of the pathway

EPSILON = 0.2  # both the default
GAMMA = 0.99
ALPHA = 0.3
DIM = 6


class Quadratic:
    """An agent and its own actor, whose action is what it observes: Q(s, a) = g (a - c) + (a - c) H (a - c) / 2, with
    tr H well above 0, and a second critic that is always larger. log pi is as random as that of a sampled action."""

    log_alpha = torch.tensor(ALPHA).log()
    log_pi = 0.0

    def __init__(self, slope=1, curvature=1):
        hessian = torch.randn(DIM, DIM)
        self.actor = self
        self.gradient = slope * torch.randn(DIM)
        self.hessian = curvature * (hessian + hessian.T + 4 * torch.eye(DIM))
        self.center = torch.rand(DIM) - 0.5
        self.offset = torch.zeros(1, requires_grad=True)

    def critic_parameters(self):
        return [self.offset]

    def qf1(self, observations, actions):
        x = actions - self.center
        return x @ self.gradient + (x @ self.hessian * x).sum(dim=-1) / 2 + self.offset

    def qf2_target(self, observations, actions):
        return self.qf1(observations, actions) + 1

    def policy(self, observations):
        return observations.clone()

    def get_action(self, observations):
        self.log_pi = 3 * torch.randn(len(observations))
        return torch.rand_like(observations), self.log_pi, self.policy(observations)

    qf1_target = qf1
    qf2 = qf2_target
    target_actor = policy
    __call__ = policy


def make_actions(size):
    return torch.rand(size, DIM) - 0.5


def make_transitions(module, actions, next_actions):
    """Of which a quarter is terminated; the actions are those of the policy."""
    size = len(actions)
    terminations = 1.0 * (torch.arange(size) % 4 == 0)
    rewards = torch.randn(size)
    return module.Batch(actions, next_actions, torch.zeros(size, DIM), rewards, terminations)


def point_deviation(agent, batch):
    """The standard deviation of the point target, r + gamma (1 - terminated) (Q(s', mu') - alpha log pi)."""
    value = agent.qf1(None, batch.next_observations) - ALPHA * agent.log_pi
    y = batch.rewards + GAMMA * (1 - batch.terminations) * value
    return y.std(correction=0).item()


def diagnose(module, agent, batch, **args):
    stages = module.pathway_diagnostics(agent, batch, module.Args(**args))
    return {name.removeprefix("diagnostics/"): value.item() for name, value in stages.items()}


@EVERY_AMS
@pytest.mark.parametrize("sampling, num, slope", [("orthogonal", 6, 0), ("orthogonal", 12, 0), ("antithetic", 12, 0.5)])
def test_target_shift_of_a_quadratic_is_its_laplacian(float64, module, sampling, num, slope):
    """Theorem 3.3, eq. 28: gamma epsilon^2 / (2d) tr H, exactly, where frames are complete and either the gradient is 0
    or its terms cancel in pairs; then the draw makes no difference."""
    agent = Quadratic(slope)
    next_actions = agent.center + slope * make_actions(64)
    batch = make_transitions(module, next_actions, next_actions)

    stages = diagnose(module, agent, batch, sampling=sampling, num_neighbors=num)

    shift = GAMMA * EPSILON**2 / (2 * DIM) * agent.hessian.trace().item() * math.sqrt(0.75)
    assert stages["target_shift"] == pytest.approx(shift / point_deviation(agent, batch), rel=1e-5)
    assert stages["target_noise"] < 1e-5 * stages["target_shift"]


@EVERY_AMS
@pytest.mark.parametrize("stage", ["target_shift", "target_noise"])
@pytest.mark.parametrize("sampling, num", [("orthogonal", 3), ("orthogonal", 6), ("orthogonal", 8), ("gaussian", 3)])
def test_target_noise_of_a_linear_q(float64, module, sampling, num, stage):
    """Eq. 32-34: E[v_k v_l^T] is I/d for k = l and 0 otherwise, so that mean_k g v_k has the variance |g|^2 / (K d),
    whether the directions are orthonormal or independent. The Laplacian is 0: the shift is all noise, and as large."""
    agent = Quadratic(curvature=0)
    actions = make_actions(4096)
    batch = make_transitions(module, actions, actions)

    stages = diagnose(module, agent, batch, sampling=sampling, num_neighbors=num)

    rms = GAMMA * EPSILON * agent.gradient.norm().item() * math.sqrt(0.75 / (num * DIM))
    # The sum of K orthonormal vectors over sqrt(K) is uniform on the sphere; with independent frames or Gaussian draws
    # too the kurtosis of its components is at most 3. So the mean of n squares has a relative standard error of at most
    # sqrt(2 / n), and the rms half of it: 5 of them have a false alarm probability of 6e-7.
    bound = 5 * math.sqrt(2 / (0.75 * 4096)) / 2
    assert stages[stage] == pytest.approx(rms / point_deviation(agent, batch), rel=bound)


@EVERY_AMS
def test_antithetic_targets_of_a_linear_q_have_no_noise(float64, module):
    actions = make_actions(64)
    batch = make_transitions(module, actions, actions)

    stages = diagnose(module, Quadratic(curvature=0), batch, sampling="antithetic", num_neighbors=4)

    assert stages["target_shift"] < 1e-12
    assert stages["target_noise"] < 1e-12


@EVERY
def test_share_of_saturated_actions(module):
    actions = torch.zeros(64, DIM)
    actions[:16] = torch.tensor([1, -1, 0.991, -0.991, 0.989, -0.989])

    stages = diagnose(module, Quadratic(), make_transitions(module, actions, 0 * actions))

    assert stages["saturated_actions"] == pytest.approx(16 * 4 / (64 * 6))


@EVERY
def test_norm_of_the_gradient_by_the_action(module):
    agent = Quadratic()
    actions = make_actions(64)

    stages = diagnose(module, agent, make_transitions(module, actions, 0 * actions))

    gradients = agent.gradient + (actions - agent.center) @ agent.hessian
    assert stages["action_gradient"] == pytest.approx(gradients.norm(dim=1).mean().item())


@EVERY_AMS
def test_without_ntd_the_target_is_not_diagnosed(module):
    """It is the point target."""
    actions = torch.zeros(64, DIM)

    stages = diagnose(module, Quadratic(), make_transitions(module, actions, actions), ntd=False)

    assert stages.keys() == {"saturated_actions", "action_gradient", "td_target_variance", "critic_grad_norm"}


@EVERY_AMS
def test_target_of_no_deviation_is_not_diagnosed_as_nan(module):
    actions = torch.zeros(32, DIM)
    batch = make_transitions(module, actions, actions)
    constant = batch._replace(rewards=torch.zeros(32), terminations=torch.ones(32))

    stages = diagnose(module, Quadratic(), constant)

    assert stages["target_shift"] == stages["target_noise"] == 0

"""The method against the paper: directions (eq. 9, 29), neighborhood (Figure 2), and what the diagnostics of the
pathway say of functions whose gradient and Laplacian are known (Theorem 3.3, eq. 32-34).

Statistical tests have fixed seeds. The false alarm probabilities in their comments are those of a fresh seed.
"""

import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ams_sac
import ams_td3
import sac
import td3

SHAPES = [(8, 38), (8, 12), (8, 6), (6, 6), (8, 1), (1, 1)]  # (K, d); with (8, 6), frames of 6 and 2 vectors
Z = 7  # standard errors; by the central limit theorem a larger deviation has probability 3e-12


@pytest.fixture
def float64():
    """Everything that a test makes is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gram_error(directions) -> float:
    """How far the frames that stand side by side in directions [N, K, d] are from orthonormal."""
    frames = directions.double().split(directions.shape[2], dim=1)
    return max((frame @ frame.mT - torch.eye(frame.shape[1])).abs().max().item() for frame in frames)


def positive_qr(rows):
    """The orthonormal rows [N, K, d] of `rows` = L Q with diag(L) > 0, by Householder reflections in float64."""
    q, r = torch.linalg.qr(rows.double().mT)
    return (q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)).mT


def test_both_scripts_have_the_same_directions_and_neighborhood():
    """So the tests below need only one of them."""
    for name in ("orthonormal_directions", "sample_directions", "neighborhood_actions"):
        assert inspect.getsource(getattr(ams_td3, name)) == inspect.getsource(getattr(ams_sac, name)), name


@pytest.mark.parametrize("num, dim", SHAPES)
def test_directions_are_the_qr_decomposition_with_positive_diagonal(num, dim):
    """In float64, of the Gaussian matrices that the generator gives: so they are orthonormal, and Haar distributed."""
    frames, columns = math.ceil(num / dim), min(num, dim)
    directions = ams_td3.orthonormal_directions(500, num, dim, generator=seeded(1))
    assert directions.shape == (500, num, dim) and directions.dtype == torch.float32
    assert gram_error(directions) < 1e-6
    expected = positive_qr(torch.randn(500 * frames, columns, dim, generator=seeded(1)))
    expected = expected.reshape(500, frames * columns, dim)[:, :num].float()
    torch.testing.assert_close(directions, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num, dim", [(1, 1), (2, 2), (6, 6), (8, 38)])
@pytest.mark.parametrize("distance", [0, 1e-6, 1e-4, 1e-2])
def test_dependent_draws(monkeypatch, num, dim, distance):
    """One pass of Cholesky QR loses orthogonality as distance^-2 eps does. 0 is a row of zeros: torch.randn on the CPU
    returns an exact 0 once in some ten million draws, which d = 1 meets in every run."""
    rows = torch.randn(200, num, dim, generator=seeded(2))
    rows[:100, -1] = (distance > 0) * (rows[:100, 0] + distance * rows[:100, -1])
    monkeypatch.setattr(torch, "randn", lambda shape, device, generator: rows)
    directions = ams_td3.orthonormal_directions(200, num, dim)
    assert directions.isfinite().all() and (directions.norm(dim=2) < 1 + 1e-6).all()
    dependable = slice(None if distance else 100, None)
    assert gram_error(directions[dependable]) < 1e-6
    torch.testing.assert_close(directions[dependable], positive_qr(rows[dependable]).float(), rtol=0, atol=1e-5)


def moments_z(v, square: float, product: float) -> float:
    """The largest deviation, in standard errors, of the moments of each v_k in directions [n, K, d] from E[v] = 0 and
    E[v v^T] = I/d. Given are the variances of v_i^2 and v_i v_j."""
    n, num, dim = v.shape
    v = v.double()
    variance = torch.full((dim, dim), product, dtype=torch.float64).fill_diagonal_(square)
    second = torch.einsum("nki,nkj->kij", v, v) / n - torch.eye(dim) / dim
    # At d = 1 nothing but the sign is random: v^2 = 1 up to rounding.
    return max((v.mean(0).abs() * math.sqrt(n * dim)).max(), (second.abs() / (variance / n + 1e-12).sqrt()).max())


def haar_z(v) -> float:
    """moments_z against Haar frames: E[v_i^4] = 3 / (d (d + 2)), E[v_i^2 v_j^2] = 1 / (d (d + 2))."""
    dim = v.shape[2]
    return moments_z(v, 2 * (dim - 1) / (dim**2 * (dim + 2)), 1 / (dim * (dim + 2)))


@pytest.mark.parametrize("num, dim", SHAPES)
def test_directions_are_haar_distributed(num, dim):
    """False alarm: at most 2e-8, for the 6,200 moments of (8, 38)."""
    assert haar_z(ams_td3.orthonormal_directions(4000, num, dim, generator=seeded(4))) < Z
    if num <= dim:  # the check sees what it is for: LAPACK's Q has a preferred direction
        assert haar_z(torch.linalg.qr(torch.randn(4000, dim, num, generator=seeded(4))).Q.mT) > 3 * Z


@pytest.mark.parametrize("sampling", ["orthogonal", "antithetic", "gaussian"])
def test_generator_and_device(sampling):
    generator, state = seeded(6), torch.get_rng_state()
    first, second = (ams_td3.sample_directions(sampling, 4, 8, 6, generator=generator) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ams_td3.sample_directions(sampling, 4, 8, 6, generator=seeded(6)), first)
    assert not torch.isclose(first, second).any()
    torch.manual_seed(6)  # without a generator: from the global one
    assert torch.equal(ams_td3.sample_directions(sampling, 4, 8, 6), first)
    elsewhere = ams_td3.sample_directions(sampling, 4, 8, 6, device="meta")
    assert elsewhere.device.type == "meta" and elsewhere.shape == (4, 8, 6)


@pytest.mark.parametrize("num, dim", [(8, 38), (8, 6)])
def test_gaussian_directions_have_unit_mean_square(num, dim):
    v = ams_td3.sample_directions("gaussian", 4000, num, dim, generator=seeded(7))
    assert v.shape == (4000, num, dim)
    # Independent N(0, 1/d): the variances of v_i^2 and v_i v_j are 2/d^2 and 1/d^2, that of |v|^2 is 2/d.
    assert moments_z(v, 2 / dim**2, 1 / dim**2) < Z
    lengths = v.double().square().sum(dim=2)
    assert abs(lengths.mean() - 1) < Z * math.sqrt(2 / dim / lengths.numel())
    assert lengths.std() > 0.5 * math.sqrt(2 / dim)  # unlike those of the other two rules


@pytest.mark.parametrize("num, dim", [(8, 38), (12, 6), (16, 6), (2, 1), (4, 1)])
def test_antithetic_directions_are_orthonormal_pairs(num, dim):
    v = ams_td3.sample_directions("antithetic", 4000, num, dim, generator=seeded(8))
    assert v.shape == (4000, num, dim)
    half, opposite = v.split(num // 2, dim=1)
    assert torch.equal(half, -opposite) and gram_error(half) < 1e-6 and haar_z(half) < Z


@pytest.mark.parametrize("radius", [0.5, [0.3, 0.6, 0.9]])
def test_neighborhood_actions_stay_within_the_bounds_of_each_dimension(float64, radius):
    low, high = torch.tensor([-1, -1, -0.8]), torch.tensor([1, 1.1, 0.8])
    centers = low + (high - low) * torch.rand(60, 3, generator=seeded(9))
    directions = ams_td3.orthonormal_directions(60, 4, 3, generator=seeded(10)).double()
    actions = ams_td3.neighborhood_actions(centers, directions, torch.tensor(radius), low, high)
    for i, r in enumerate(np.resize(radius, 3)):
        moved = (centers[:, None, i] + r * directions[:, :, i]).tolist()
        expected = [[min(max(a, low[i].item()), high[i].item()) for a in row] for row in moved]
        torch.testing.assert_close(actions[:, :, i], torch.tensor(expected))
    assert torch.equal(actions.amin(dim=(0, 1)), low) and torch.equal(actions.amax(dim=(0, 1)), high)


class Count(TorchDispatchMode):
    """Counts PyTorch's operations; views cost nothing and are left out."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += not func.is_view
        return func(*args, **(kwargs or {}))


def count_operations(module, with_actor: bool) -> int:
    """Operations of one update of the critics, the directions included, and of the actor and the targets if asked."""
    agent = module.Agent(7, 6, args := module.Args())
    groups = agent.critic_parameters(), agent.actor.parameters()
    optimizers = [torch.optim.Adam(group, lr=1e-3, fused=True) for group in groups]
    batch = module.Batch(*(torch.rand(16, *size) for size in ((7,), (7,), (6,), (), ())))
    for _ in range(2):  # the first one also makes Adam's moments
        with Count() as count:
            directions = [ams_td3.sample_directions(args.sampling, 16, 8, 6)] if module is ams_td3 else []
            module.update(agent, *optimizers, args, with_actor, batch, *directions)
    return count.total


def test_number_of_operations():
    """On a GPU each is a kernel, and small ones cost the same as large ones."""
    counts = {(module.__name__, turn): count_operations(module, turn) for module in (td3, ams_td3) for turn in (0, 1)}
    print(counts)
    assert 0 < counts["td3", 0] < counts["ams_td3", 0] <= 110
    with Count() as directions:
        ams_td3.orthonormal_directions(16, 8, 38)
    assert directions.total <= 13  # the draw, two conversions, and five in each pass


# ------------------------------------------------------------------------------------- diagnostics of the pathway

EPSILON, GAMMA = 0.2, 0.99


def make_quadratic(dim: int):
    """g, H and the vertex c of Q(s, a) = 2 s_0 + g (a - c) + (a - c) H (a - c) / 2, with tr H well above 0."""
    hessian = torch.randn(dim, dim, generator=seeded(12))
    center = torch.rand(dim, generator=seeded(13)) - 0.5
    return torch.randn(dim, generator=seeded(14)), hessian + hessian.T + 4 * torch.eye(dim), center


def make_agent(module, gradient, hessian, center):
    """Networks of either family, whose first critic is the quadratic one and whose second is always larger. The action
    is in the observation, [s_0, a]. log pi is as random as that of a sampled action."""

    def q(observations, actions):
        x = actions - center
        state = 2 * observations[:, 0].reshape(-1, *[1] * (actions.dim() - 2))
        return state + x @ gradient + (x @ hessian * x).sum(dim=-1) / 2

    def get_action(observations):
        log_pis.append(3 * torch.randn(len(observations)))
        return torch.rand_like(act(observations)), log_pis[-1], act(observations)

    log_pis, act = [], lambda observations: observations[:, 1:]  # noqa: E731
    networks = {"qf1": q, "qf1_target": q, "qf2_target": lambda *at: q(*at) + 1, "policy": act, "target_actor": act}
    actor = act if module in (td3, ams_td3) else SimpleNamespace(get_action=get_action)
    return SimpleNamespace(**networks, actor=actor, log_alpha=torch.tensor(0.3).log(), log_pis=log_pis)


def make_batch(module, actions, next_actions):
    size, dim = actions.shape
    torch.manual_seed(15)
    states, next_states = torch.randn(2, size, 1)
    observations, next_observations = torch.cat([states, actions], dim=1), torch.cat([next_states, next_actions], dim=1)
    terminations = (torch.arange(size) % 4 == 0).to(actions)
    return module.Batch(observations, next_observations, torch.rand(size, dim), torch.randn(size), terminations)


def point_deviation(agent, batch) -> float:
    """The standard deviation of r + gamma (1 - terminated) (Q(s', mu') - alpha log pi)."""
    value = agent.qf1_target(batch.next_observations, batch.next_observations[:, 1:])
    if agent.log_pis:
        value = value - 0.3 * agent.log_pis[-1]
    y = batch.rewards + GAMMA * (1 - batch.terminations) * value
    return (y - y.mean()).square().mean().sqrt().item()


def diagnose(module, agent, batch, **args) -> dict[str, float]:
    args = [module.Args(gamma=GAMMA, epsilon=EPSILON, **args)] if module in (ams_td3, ams_sac) else []
    stages = module.pathway_diagnostics(agent, batch, *args)
    return {name.removeprefix("diagnostics/"): value.item() for name, value in stages.items()}


AMS = pytest.mark.parametrize("module", [ams_td3, ams_sac])


@AMS
@pytest.mark.parametrize("sampling, num", [("orthogonal", 6), ("orthogonal", 12), ("antithetic", 12)])
def test_target_shift_of_a_quadratic_is_its_laplacian(float64, module, sampling, num):
    """Theorem 3.3, eq. 28: gamma epsilon^2 / (2d) tr H, exactly, where frames are complete and either the gradient is 0
    or its terms cancel in pairs; then the draw makes no difference."""
    gradient, hessian, center = make_quadratic(6)
    next_actions = torch.rand(64, 6, generator=seeded(16)) - 0.5
    if sampling == "orthogonal":
        gradient, next_actions = 0 * gradient, center.expand(64, 6)
    agent = make_agent(module, gradient, hessian, center)
    batch = make_batch(module, next_actions, next_actions)
    stages = diagnose(module, agent, batch, sampling=sampling, num_neighbors=num)
    shift = GAMMA * EPSILON**2 / 12 * hessian.trace().item() * math.sqrt(0.75)  # a quarter of the rows is terminated
    assert stages["target_shift"] == pytest.approx(shift / point_deviation(agent, batch), rel=1e-5)
    assert stages["target_noise"] < 1e-5 * stages["target_shift"]


@AMS
@pytest.mark.parametrize("sampling, num", [*[("orthogonal", k) for k in (3, 6, 8)], ("gaussian", 3), ("antithetic", 4)])
def test_target_noise_of_a_linear_q(float64, module, sampling, num):
    """Eq. 32-34: E[v_k v_l^T] is I/d for k = l and 0 otherwise, so that mean_k g v_k has the variance |g|^2 / (K d),
    whether the directions are orthonormal or independent; in pairs the terms cancel. The Laplacian is 0: the shift is
    all noise, and as large."""
    size, (gradient, hessian, center) = 4096, make_quadratic(6)
    actions = torch.rand(size, 6, generator=seeded(17)) - 0.5
    agent = make_agent(module, gradient, 0 * hessian, center)
    batch = make_batch(module, actions, actions)
    torch.manual_seed(18)
    stages = diagnose(module, agent, batch, sampling=sampling, num_neighbors=num)
    rms = GAMMA * EPSILON * gradient.norm().item() * math.sqrt(0.75 / (num * 6)) * (sampling != "antithetic")
    # The sum of K orthonormal vectors over sqrt(K) is uniform on the sphere; with independent frames or Gaussian draws
    # too the kurtosis of its components is at most 3. So the mean of n squares has a relative standard error of at most
    # sqrt(2 / n), and the rms half of it: 5 of them have a false alarm probability of 6e-7.
    bound = 5 * math.sqrt(2 / (0.75 * size)) / 2
    for stage in ("target_shift", "target_noise"):
        assert stages[stage] == pytest.approx(rms / point_deviation(agent, batch), rel=bound, abs=1e-12), stage


@pytest.mark.parametrize("module", [td3, ams_td3, sac, ams_sac])
def test_saturation_and_gradient_of_the_policys_actions(float64, module):
    gradient, hessian, center = make_quadratic(6)
    actions = torch.rand(64, 6, generator=seeded(20)) * 1.8 - 0.9
    actions[:16] = torch.tensor([1, -1, 0.991, -0.991, 0.989, -0.989])
    agent = make_agent(module, gradient, hessian, center)
    batch = make_batch(module, actions, 0 * actions)
    stages = diagnose(module, agent, batch, **({"ntd": False} if module in (ams_td3, ams_sac) else {}))
    assert stages.keys() == {"saturated_actions", "action_gradient"}  # without NTD, the target is the point target
    assert stages["saturated_actions"] == pytest.approx(16 * 4 / (64 * 6))
    norms = [(gradient + hessian @ (action - center)).square().sum().sqrt().item() for action in actions]
    assert stages["action_gradient"] == pytest.approx(np.mean(norms))


@AMS
def test_diagnostics_of_a_constant_target_are_finite(module):
    agent = make_agent(module, torch.zeros(6), torch.zeros(6, 6), torch.zeros(6))
    batch = make_batch(module, torch.zeros(32, 6), torch.zeros(32, 6))
    terminated = batch._replace(rewards=torch.zeros(32), terminations=torch.ones(32))
    assert [*diagnose(module, agent, terminated).values()] == [0] * 4

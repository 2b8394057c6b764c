"""The method against the paper: directions (eq. 9, 29, 35), neighborhood and target (Figure 2), Theorems 3.2 and 3.3,
LN-Q's split first layer, and the action projections (eq. 37 and 38).

Statistical tests have fixed seeds. The false alarm probabilities in their comments are those of a fresh seed.
"""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ams_td3
import td3

SHAPES = [(8, 38), (8, 12), (8, 6), (1, 1), (6, 6)]  # (K, d); with (8, 6), frames of 6 and 2 vectors
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def float64():
    """Everything that a test makes is in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gram_error(frames) -> float:
    """How far the rows of frames [N, K, d] are from orthonormal."""
    frames = frames.double()
    return (frames @ frames.mT - torch.eye(frames.shape[1])).abs().max().item()


def positive_qr(matrices):
    """Q [N, d, K] of matrices [N, d, K] = Q R with diag(R) > 0, by Householder reflections in float64."""
    q, r = torch.linalg.qr(matrices.double())
    return q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)


# ------------------------------------------------------------------------------------------------------ directions


@pytest.mark.parametrize("num, dim", SHAPES)
def test_directions_are_orthonormal(num, dim):
    directions = ams_td3.orthonormal_directions(500, num, dim, generator=seeded())
    assert directions.shape == (500, num, dim)
    frames = directions.split(dim, dim=1)
    assert len(frames) == math.ceil(num / dim)
    assert max(map(gram_error, frames)) < 1e-5


@pytest.mark.parametrize("num, dim", SHAPES)
def test_directions_are_the_qr_decomposition_with_positive_diagonal(num, dim):
    count, frames, columns = 200, math.ceil(num / dim), min(num, dim)
    directions = ams_td3.orthonormal_directions(count, num, dim, generator=seeded(1))
    gaussian = torch.randn(columns, dim, count * frames, generator=seeded(1)).permute(2, 1, 0)  # [N, d, columns]
    expected = positive_qr(gaussian).mT.reshape(count, frames * columns, dim)[:, :num]
    # Q moves by at most about sqrt(2) cond |dA| / |A| (Sun 1991), and Gram-Schmidt is exact for a matrix that is a few
    # roundings away; with hundreds of square Gaussian matrices, some have a condition number of 1000.
    bound = 2 * EPS * torch.linalg.cond(gaussian.double()).reshape(count, frames).amax(dim=1)
    assert ((directions - expected).abs().amax(dim=(1, 2)) < bound).all()


@pytest.mark.parametrize("columns", [torch.zeros(1, 1, 1), torch.ones(2, 2, 1), torch.zeros(3, 5, 1)])
def test_gram_schmidt_of_dependent_columns_is_finite(columns):
    """torch.randn on the CPU returns an exact 0 once in some ten million draws, which d = 1 meets in every run."""
    q = ams_td3.gram_schmidt(columns)
    assert q.isfinite().all() and (q.norm(dim=1) < 1 + 1e-6).all()


@pytest.mark.parametrize("condition", [1e3, 1e4, 1e5, 1e6])
def test_gram_schmidt_of_nearly_dependent_columns(condition):
    """Where one pass of Gram-Schmidt loses orthogonality, by cond^2 eps, two passes keep all of it."""
    left, right = positive_qr(torch.randn(2 * 200, 6, 6, generator=seeded(2))).split(200)
    matrices = (left * torch.logspace(0, -math.log10(condition), 6) @ right.mT).float()
    result = ams_td3.gram_schmidt(matrices.permute(2, 1, 0).contiguous()).permute(2, 0, 1)  # [N, K, d]
    assert gram_error(result) < 1e-5
    bound = 2 * EPS * torch.linalg.cond(matrices.double())
    assert ((result - positive_qr(matrices).mT).abs().amax(dim=(1, 2)) < bound).all()


def largest_z(v, square: float, product: float, cross: float) -> float:
    """The largest deviation, in standard errors, of the moments of n sets of K directions v [n, K, d] from E[v_k] = 0,
    E[v_k v_k^T] = I/d and E[v_k v_l^T] = 0. Given are the variances of v_ki^2, v_ki v_kj and v_ki v_lj."""
    n, num, dim = v.shape
    flat = v.double().flatten(1)
    same = torch.kron(torch.eye(num), torch.ones(dim, dim)).bool()  # pairs of components of one direction
    variance = torch.where(same, product, cross).double().fill_diagonal_(square)
    second = flat.T @ flat / n - torch.eye(num * dim) / dim
    # At d = 1 nothing but the sign is random: v^2 = 1 up to rounding.
    return max((flat.mean(0).abs() * math.sqrt(n * dim)).max(), (second.abs() / (variance / n + 1e-12).sqrt()).max())


def haar_z(v) -> float:
    """largest_z against Haar frames: E[v_ki^4] = 3 / (d (d + 2)), E[v_ki^2 v_kj^2] = 1 / (d (d + 2)), and, larger than
    for i = j and for vectors of independent frames, E[v_ki^2 v_lj^2] = (d + 1) / (d (d - 1) (d + 2)) for i != j."""
    dim = v.shape[2]
    cross = (dim + 1) / (dim * (dim - 1) * (dim + 2)) if dim > 1 else 1
    return largest_z(v, 2 * (dim - 1) / (dim**2 * (dim + 2)), 1 / (dim * (dim + 2)), cross)


# By the central limit theorem a deviation of 7 standard errors has probability 3e-12, so at most 2e-7 for any of the
# 47,000 moments of (8, 38); 3e-6 with Cramer's correction for the skewness 2.8 of v_ki^2 (n = 4000).
Z = 7


@pytest.mark.parametrize("num, dim", SHAPES)
def test_directions_are_haar_distributed(num, dim):
    assert haar_z(ams_td3.orthonormal_directions(4000, num, dim, generator=seeded(3))) < Z


@pytest.mark.parametrize("num, dim", [shape for shape in SHAPES if shape[0] <= shape[1]])
def test_qr_without_a_sign_fix_is_not_haar_distributed(num, dim):
    """The check above has the power to see what it is for: LAPACK's Q has a preferred direction."""
    assert haar_z(torch.linalg.qr(torch.randn(4000, dim, num, generator=seeded(3))).Q.mT) > 3 * Z


@pytest.mark.parametrize("num, dim", [(8, 38), (8, 6), (6, 6)])
def test_each_batch_element_has_its_own_directions(num, dim):
    directions = ams_td3.orthonormal_directions(256, num, dim, generator=seeded(4)).flatten(0, 1).double()
    distances = torch.cdist(directions, directions).fill_diagonal_(math.inf)
    # Two directions in R^6 are less than r apart with probability r^5 / 6 or less, and there are 2 million pairs.
    assert distances.min() > 1e-3


@pytest.mark.parametrize("sampling", ["orthogonal", "antithetic", "gaussian"])
def test_a_generator_makes_the_directions_reproducible(sampling):
    generator = seeded(5)
    state = torch.get_rng_state()
    first = ams_td3.sample_directions(sampling, 4, 8, 6, generator=generator)
    second = ams_td3.sample_directions(sampling, 4, 8, 6, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ams_td3.sample_directions(sampling, 4, 8, 6, generator=seeded(5)), first)
    assert not torch.isclose(first, second).any()
    torch.manual_seed(5)  # without a generator: from the global one
    assert torch.equal(ams_td3.sample_directions(sampling, 4, 8, 6), first)


@pytest.mark.parametrize("num, dim", [(8, 38), (8, 6)])
def test_gaussian_directions_have_unit_mean_square(num, dim):
    v = ams_td3.sample_directions("gaussian", 4000, num, dim, generator=seeded(6))
    assert v.shape == (4000, num, dim)
    # Independent N(0, 1/d): the variances of v_i^2 and v_i v_j are 2/d^2 and 1/d^2, that of |v|^2 is 2/d.
    assert largest_z(v, 2 / dim**2, 1 / dim**2, 1 / dim**2) < Z
    lengths = v.double().square().sum(dim=2)
    assert abs(lengths.mean() - 1) < Z * math.sqrt(2 / dim / lengths.numel())
    # Lengths vary, unlike those of the other two rules; of their variance, one standard error is 1% (d = 6: sqrt(4/n)).
    assert lengths.var() == pytest.approx(2 / dim, rel=0.1)


@pytest.mark.parametrize("num, dim", [(8, 38), (12, 6), (16, 6), (2, 1), (4, 1)])
def test_antithetic_directions_are_orthonormal_pairs(num, dim):
    v = ams_td3.sample_directions("antithetic", 4000, num, dim, generator=seeded(7))
    assert v.shape == (4000, num, dim)
    half, opposite = v.split(num // 2, dim=1)
    assert torch.equal(half, -opposite)
    assert max(map(gram_error, half.split(dim, dim=1))) < 1e-5
    assert haar_z(half) < Z


def test_antithetic_needs_an_even_number_of_neighbors(capsys):
    with pytest.raises(SystemExit, match="2"):
        ams_td3.check_args(ams_td3.Args(sampling="antithetic", num_neighbors=7))
    assert "--num-neighbors must be even" in capsys.readouterr().err
    ams_td3.check_args(ams_td3.Args(sampling="antithetic", num_neighbors=6))


# -------------------------------------------------------------------------------------------------------- theorems

EPSILON, GAMMA = 0.2, 0.99


def neighborhood_average(q, directions):
    """gamma / K sum_k Q(mu' + epsilon v_k), the random part of eq. 6, for each of n sets of directions [n, K, d]."""
    dim = directions.shape[2]
    center, bound = torch.linspace(-0.5, 0.6, dim), torch.full((dim,), 2.0)
    centers = center.expand(len(directions), dim)
    return GAMMA * q(ams_td3.neighborhood_actions(centers, directions, EPSILON, -bound, bound) - center).mean(dim=1)


def make_quadratic(dim: int, linear: float):
    """Q(mu' + x) = 3 + g x + x H x / 2 with |g| = linear, and H."""
    random = torch.randn(dim, dim, generator=seeded(8))
    hessian = random + random.T + 4 * torch.eye(dim)
    gradient = linear * F.normalize(torch.arange(1.0, dim + 1), dim=0)
    return lambda x: 3 + x @ gradient + (x @ hessian * x).sum(dim=-1) / 2, hessian


@pytest.mark.parametrize("dim", [1, 6, 38])
def test_theorem_3_3_is_exact_for_a_quadratic_and_a_full_basis(float64, dim):
    q, hessian = make_quadratic(dim, linear=1)
    expected = GAMMA * (3 + EPSILON**2 / (2 * dim) * hessian.trace())
    pairs = ams_td3.sample_directions("antithetic", 20, 2 * dim, dim, generator=seeded(9))
    torch.testing.assert_close(neighborhood_average(q, pairs), expected.expand(20), rtol=1e-13, atol=0)


@pytest.mark.parametrize("num, dim", [(3, 6), (8, 6), (8, 38)])
def test_theorem_3_3_holds_in_the_mean_for_one_sided_frames(float64, num, dim):
    q, hessian = make_quadratic(dim, linear=1)
    laplacian = EPSILON**2 / (2 * dim) * hessian.trace()
    y = neighborhood_average(q, ams_td3.orthonormal_directions(10_000, num, dim, generator=seeded(10)))
    standard_error = y.std() / math.sqrt(len(y))
    assert GAMMA * laplacian > 50 * standard_error  # what is claimed can be seen with this many draws
    assert abs(y.mean() - GAMMA * (3 + laplacian)) < 5 * standard_error  # false alarm: 6e-7


LIPSCHITZ = {  # functions of x = a - mu' in R^d, each with Lipschitz constant 1
    "linear": lambda x: x.sum(dim=-1) / math.sqrt(x.shape[-1]),
    "tent": lambda x: (x[..., 0] - EPSILON / 4).abs(),
    "distance": lambda x: (x - EPSILON / 2 * torch.eye(x.shape[-1])[0]).norm(dim=-1),
    "largest": lambda x: x.amax(dim=-1),
    "wave": lambda x: torch.sin(x.sum(dim=-1) * 30 / math.sqrt(x.shape[-1])) / 30,
}


@pytest.mark.parametrize("num, dim", [(1, 1), (8, 1), (2, 2), (8, 6), (8, 38)])
def test_theorem_3_2_bounds_the_variance_of_the_target(num, dim):
    """At d = 1 the linear function reaches the bound: there, K equal directions would exceed it K times."""
    n, lipschitz = 5000, 10
    directions = ams_td3.orthonormal_directions(n, num, dim, generator=seeded(11))
    bound = GAMMA**2 * lipschitz**2 * EPSILON**2 / num
    # At the bound y is a mean of signs: its kurtosis is at most 3, the standard error of a sample variance is then at
    # most sqrt(2/n) of it, and a false alarm has probability 3e-7.
    for name, q in LIPSCHITZ.items():
        y = neighborhood_average(lambda x, q=q: lipschitz * q(x), directions)
        assert y.var() < bound * (1 + 5 * math.sqrt(2 / n)), name


def variance(y) -> tuple[float, float]:
    """The sample variance of y [n] and its standard error."""
    squares = (y - y.mean()).square()
    return squares.mean().item(), (squares.std() / math.sqrt(len(y))).item()


def independent_unit_directions(n, num, dim, generator):
    """What eq. 35 compares with: K independent uniform unit vectors."""
    return F.normalize(torch.randn(n, num, dim, generator=generator), dim=2)


@pytest.mark.parametrize("num, dim", [(3, 6), (6, 6), (8, 6), (8, 12), (8, 38)])
def test_orthonormal_directions_gain_nothing_for_a_linear_q(float64, num, dim):
    """Eq. 35 sharpened: E[v_k v_l^T] = 0 for both, so that both have the variance (gamma epsilon |g|)^2 / (d K)."""
    gradient = torch.arange(1.0, dim + 1)
    expected = (GAMMA * EPSILON * gradient.norm()) ** 2 / (dim * num)
    for draw in (ams_td3.orthonormal_directions, independent_unit_directions):
        y = neighborhood_average(lambda x: x @ gradient, draw(10_000, num, dim, generator=seeded(12)))
        sample, standard_error = variance(y)
        assert abs(sample - expected) < 5 * standard_error, draw  # false alarm: 6e-7 each


@pytest.mark.parametrize("num, dim", [(3, 6), (8, 6), (8, 12), (8, 38)])
def test_orthonormal_directions_have_less_variance_for_a_quadratic_q(float64, num, dim):
    """Over a whole basis sum_k v_k H v_k = tr H is constant. So two of its terms have the covariance -sigma^2 / (d - 1)
    and m vectors of one frame the variance m sigma^2 (d - m) / (d - 1), where m independent ones have m sigma^2."""
    q, hessian = make_quadratic(dim, linear=0)
    trace, square = hessian.trace(), hessian.square().sum()
    # Var(v H v) = 2 (d |H|^2 - (tr H)^2) / (d^2 (d + 2)) for a uniform unit vector v
    sigma2 = (GAMMA * EPSILON**2 / 2) ** 2 * 2 * (dim * square - trace**2) / (dim**2 * (dim + 2))
    whole, rest = divmod(num, dim)
    ratio = (rest * (dim - rest) / (dim - 1)) / num
    sample, standard_error = variance(
        neighborhood_average(q, ams_td3.orthonormal_directions(10_000, num, dim, generator=seeded(13)))
    )
    other_sample, other_error = variance(
        neighborhood_average(q, independent_unit_directions(10_000, num, dim, generator=seeded(14)))
    )
    # Each is within 5 standard errors of the theory (false alarm: 6e-7), and so the difference is clearly seen.
    assert abs(other_sample - sigma2 / num) < 5 * other_error
    assert abs(sample - ratio * sigma2 / num) < 5 * standard_error
    assert sample + 5 * standard_error < other_sample - 5 * other_error


@pytest.mark.parametrize("num, dim", [(6, 6), (12, 6), (38, 38)])
def test_a_whole_basis_has_no_variance_for_a_purely_quadratic_q(float64, num, dim):
    q, hessian = make_quadratic(dim, linear=0)
    y = neighborhood_average(q, ams_td3.orthonormal_directions(200, num, dim, generator=seeded(15)))
    expected = GAMMA * (3 + EPSILON**2 / (2 * dim) * hessian.trace())
    torch.testing.assert_close(y, expected.expand(200), rtol=1e-13, atol=0)


@pytest.mark.parametrize("num, dim", [(8, 38), (16, 6)])
def test_antithetic_pairs_have_no_variance_for_a_linear_q(float64, num, dim):
    gradient = torch.arange(1.0, dim + 1)
    pairs = ams_td3.sample_directions("antithetic", 200, num, dim, generator=seeded(16))
    y = neighborhood_average(lambda x: 3 + x @ gradient, pairs)
    torch.testing.assert_close(y, torch.full((200,), 3 * GAMMA), rtol=1e-13, atol=0)


# --------------------------------------------------------------------------------------------------------- target

OBS_DIM = 5


def bounds(dim: int) -> gym.spaces.Box:
    """Bounds like Quadruped's, where each leg has three actuators with ranges of their own."""
    return gym.spaces.Box(np.resize([-1, -1, -0.8], dim), np.resize([1, 1.1, 0.8], dim), dtype=np.float64)


def make_agent(module, dim: int, **args):
    """An agent, a batch and the arguments. All networks differ from each other, LayerNorm's weights are not 1 and 0,
    the target policy is near the bounds, and some rows are terminated."""
    torch.manual_seed(0)
    args = module.Args(**args)
    agent = module.Agent(OBS_DIM, bounds(dim), args).double().requires_grad_(False)
    for parameter in agent.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    agent.target_actor.fc_mu.weight *= 5
    size = 16
    batch = module.Batch(
        observations=torch.randn(size, OBS_DIM),
        next_observations=torch.randn(size, OBS_DIM),
        actions=torch.rand(size, dim),
        rewards=torch.randn(size),
        terminations=(torch.arange(size) % 3 == 0).double(),
    )
    # For about half of the rows each critic is the smaller one.
    actions = agent.target_actor(batch.next_observations)
    difference = agent.qf1_target(batch.next_observations, actions) - agent.qf2_target(batch.next_observations, actions)
    agent.qf2_target.fc3.bias += difference.median()
    return agent, batch, args


def slow_hidden(linear, norm, x):
    """relu(LN(W x + b)) of one vector x; `norm` is None without LayerNorm."""
    x = linear.weight.mv(x) + linear.bias
    if norm is not None:
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * norm.weight + norm.bias
    return x.clamp(min=0)


def slow_mu(actor, observation):
    hidden = slow_hidden(actor.fc2, None, slow_hidden(actor.fc1, None, observation))
    return actor.fc_mu.weight.mv(hidden) + actor.fc_mu.bias


def slow_q(critic, observation, action: list[float]) -> float:
    norms = [getattr(critic, name, None) for name in ("ln1", "ln2")]  # td3.py has none
    norms = [norm if isinstance(norm, torch.nn.LayerNorm) else None for norm in norms]
    x = torch.cat([observation, torch.tensor(action)])
    hidden = slow_hidden(critic.fc2, norms[1], slow_hidden(critic.fc1, norms[0], x))
    return critic.fc3.weight[0].dot(hidden).item() + critic.fc3.bias.item()


def slow_target(agent, batch, args, perturbations, space):
    """Figure 2, lines 2-5, one number at a time. `perturbations` [B, K, d] are in units of half the action range.

    Returns the targets, how many components of neighbors were clipped below, above and not, and how often each critic
    was the smaller one.
    """
    low, high = space.low.tolist(), space.high.tolist()
    clipped, smaller, targets = [0, 0, 0], [0, 0], []
    for b in range(len(batch.rewards)):
        mu = slow_mu(agent.target_actor, batch.next_observations[b])
        q_values = []
        for direction in perturbations[b].tolist():
            action = []
            for i, v in enumerate(direction):
                scale = (high[i] - low[i]) / 2
                center = math.tanh(mu[i]) * scale + (high[i] + low[i]) / 2
                a = center + scale * v
                clipped[0 if a < low[i] else 1 if a > high[i] else 2] += 1
                action.append(min(max(a, low[i]), high[i]))
            q = [slow_q(critic, batch.next_observations[b], action) for critic in (agent.qf1_target, agent.qf2_target)]
            smaller[q.index(min(q))] += 1
            q_values.append(min(q))
        average = sum(q_values) / len(q_values)
        targets.append(batch.rewards[b] + args.gamma * (0 if batch.terminations[b] else average))
    return torch.stack(targets), clipped, smaller


@pytest.mark.parametrize("radius", [0.5, [0.3, 0.6, 0.9]])
def test_neighborhood_actions_stay_within_the_bounds_of_each_dimension(float64, radius):
    low, high = torch.tensor(bounds(3).low), torch.tensor(bounds(3).high)
    centers = low + (high - low) * torch.rand(60, 3, generator=seeded(17))
    directions = ams_td3.orthonormal_directions(60, 4, 3, generator=seeded(18))
    per_dimension = np.resize(radius, 3)
    radius = radius if isinstance(radius, float) else torch.tensor(radius)
    actions = ams_td3.neighborhood_actions(centers, directions, radius, low, high)
    assert actions.shape == (60, 4, 3)
    for b, k, i in np.ndindex(60, 4, 3):
        moved = centers[b, i] + per_dimension[i] * directions[b, k, i]
        torch.testing.assert_close(actions[b, k, i], min(max(moved, low[i]), high[i]))
    on_bounds = (actions == low).flatten(0, 1).sum(dim=0), (actions == high).flatten(0, 1).sum(dim=0)
    assert torch.stack(on_bounds).min() > 0  # each bound was active


@pytest.mark.parametrize("sampling, num, dim", [("orthogonal", 8, 12), ("orthogonal", 5, 3), ("antithetic", 4, 3)])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_td_target_is_figure_2(float64, sampling, num, dim, layer_norm):
    agent, batch, args = make_agent(
        ams_td3, dim, sampling=sampling, num_neighbors=num, layer_norm=layer_norm, epsilon=0.7, gamma=0.9
    )
    torch.manual_seed(1)
    y = ams_td3.td_target(agent, batch, args)
    torch.manual_seed(1)
    directions = ams_td3.sample_directions(sampling, len(y), num, dim)
    expected, clipped, smaller = slow_target(agent, batch, args, args.epsilon * directions, bounds(dim))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert min(clipped) > 0.05 * sum(clipped) and min(smaller) > 0.1 * sum(smaller)  # all cases occurred


@pytest.mark.parametrize(
    "module, args", [(td3, {}), (ams_td3, {"ntd": False}), (ams_td3, {"ntd": False, "layer_norm": False})]
)
def test_td_target_without_ntd_is_td3s_own(float64, module, args):
    agent, batch, args = make_agent(module, 12, **args, policy_noise=0.6, noise_clip=0.5)
    torch.manual_seed(1)
    y = module.td_target(agent, batch, args)
    torch.manual_seed(1)
    noise = 0.6 * torch.randn(len(y), 12)
    assert (noise.abs() > 0.5).any()
    expected, clipped, smaller = slow_target(agent, batch, args, noise.clamp(-0.5, 0.5).unsqueeze(1), bounds(12))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert min(clipped) > 0.05 * sum(clipped) and min(smaller) > 0.1 * sum(smaller)


# ----------------------------------------------------------------------------------------------- critic and actor


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("num", [1, 8])
def test_split_first_layer_is_concatenation_with_repeated_states(float64, layer_norm, num):
    agent, batch, _ = make_agent(ams_td3, 12, layer_norm=layer_norm)
    actions = torch.randn(len(batch.rewards), num, 12)
    split = agent.qf1(batch.observations, actions)
    repeated = agent.qf1(batch.observations.repeat_interleave(num, dim=0), actions.flatten(0, 1))
    assert split.shape == (len(batch.rewards), num) and split.std() > 0.1
    torch.testing.assert_close(split, repeated.view_as(split), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_critics_have_layer_norm_before_each_relu(float64, layer_norm):
    """LN-Q: Linear-LayerNorm-ReLU twice, then Linear (section 2 of the specification)."""
    agent, batch, _ = make_agent(ams_td3, 3, layer_norm=layer_norm)
    expected = [slow_q(agent.qf2, s, a.tolist()) for s, a in zip(batch.observations, batch.actions, strict=True)]
    q = agent.qf2(batch.observations, batch.actions)
    torch.testing.assert_close(q, torch.tensor(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", [td3, ams_td3])
@pytest.mark.parametrize("projection", ["tanh", "normalize"])
def test_action_projections(float64, module, projection):
    """Onto the cuboid (eq. 38) and onto the sphere, or with unequal bounds the ellipsoid in the cuboid (eq. 37)."""
    agent, batch, _ = make_agent(module, 12, action_projection=projection)
    low, high = torch.tensor(bounds(12).low), torch.tensor(bounds(12).high)
    actions = agent.policy(batch.observations)
    unit = (actions - (high + low) / 2) / ((high - low) / 2)
    for row, observation in zip(unit, batch.observations, strict=True):
        mu = slow_mu(agent.actor, observation)
        expected = mu.tanh() if projection == "tanh" else mu / mu.square().sum().sqrt()
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)
    assert ((low <= actions) & (actions <= high)).all()
    if projection == "normalize":
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)), rtol=1e-12, atol=0)

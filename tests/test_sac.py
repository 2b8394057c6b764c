"""SAC's policy: its density, also where it saturates, what explores and what is evaluated. Its updates are in
test_update.py."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

import ams_sac
import sac

OBS_DIM, DIM = 5, 3


def make_agent(module, mean: float, output: float, dtype=torch.float64):
    """An agent with the same policy for each observation; `output` gives its deviation, before the bound."""
    agent = module.Agent(OBS_DIM, DIM, module.Args()).to(dtype)
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()
        agent.actor.fc_mean.bias.copy_(mean + torch.arange(DIM) / 8)
        agent.actor.fc_logstd.bias.fill_(output)
    return agent


@pytest.mark.parametrize("module", [sac, ams_sac])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("mean", [-30, -6, -0.3, 0, 2, 9, 30])
def test_density_of_sampled_actions(module, dtype, tolerance, mean):
    """In the middle, near the bounds (at 9, tanh is 3e-8 away from 1) and where tanh rounds to 1."""
    for output in (-100, -0.5, 0.4, 100):
        agent, std = (
            make_agent(module, mean, output, dtype),
            math.exp(-5 + 3.5 * (math.tanh(output) + 1)),
        )  # smooth bound
        torch.manual_seed(0)
        actions, log_prob, center = agent.actor.get_action(torch.zeros(50, OBS_DIM, dtype=dtype))
        torch.manual_seed(0)
        means = (mean + torch.arange(DIM) / 8).double()
        x = means + std * torch.randn(50, DIM, dtype=dtype).double()
        squash = TanhTransform(cache_size=1)  # which remembers x where its tanh is 1
        policy = Independent(TransformedDistribution(Normal(means, std), squash), 1)
        torch.testing.assert_close(actions.double(), squash(x), rtol=0, atol=tolerance)
        torch.testing.assert_close(center.double(), torch.tanh(means).expand(50, DIM), rtol=0, atol=tolerance)
        torch.testing.assert_close(log_prob.double(), policy.log_prob(squash(x)), rtol=tolerance, atol=tolerance)
        # The same with 1 - tanh(x)^2 = 4 e / (1 + e)^2, e = exp(-2 |x|), which is exact at saturation too
        e = (-2 * x.abs()).exp()
        expected = (Normal(means, std).log_prob(x) - (4 * e / (1 + e) ** 2).log()).sum(dim=1)
        torch.testing.assert_close(log_prob.double(), expected, rtol=tolerance, atol=tolerance)
        (log_prob.sum() + actions.sum()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in agent.actor.parameters())


@pytest.mark.parametrize("module", [sac, ams_sac])
def test_evaluation_plays_the_mean_and_exploration_samples_for_each_environment(module):
    agent, n = make_agent(module, 0.1, 0.2), 4000
    observations, state = torch.zeros(n, OBS_DIM, dtype=torch.float64), torch.get_rng_state()
    torch.testing.assert_close(agent.policy(observations)[0], (0.1 + torch.arange(DIM) / 8).double().tanh())
    assert torch.equal(torch.get_rng_state(), state)  # evaluation is deterministic
    torch.manual_seed(2)
    mean, log_std = agent.actor(observations)
    z = (agent.explore(observations).atanh() - mean) / log_std.exp()
    # Standard normal: z and z^2 have variances 1 and 2 (false alarm for these six means of n: 3e-6).
    assert (
        z.mean(dim=0).abs().max() < 5 / math.sqrt(n) and (z.square().mean(dim=0) - 1).abs().max() < 5 * (2 / n) ** 0.5
    )
    assert z.unique(dim=0).shape == z.shape  # environments with the same observation act differently

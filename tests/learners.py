"""What an update of the off-policy scripts takes: an agent, a batch and directions; and a task that is learned in
seconds."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import ams_sac
import ams_td3
import sac
import td3

OBS_DIM = 5
ACTION_DIM = 3
BATCH_SIZE = 16
TD3_FAMILY = [td3, ams_td3]
OFF_POLICY = [td3, ams_td3, sac, ams_sac]
AMS = [ams_td3, ams_sac]
EVERY = pytest.mark.parametrize("module", OFF_POLICY)
EVERY_TD3 = pytest.mark.parametrize("module", TD3_FAMILY)
EVERY_SAC = pytest.mark.parametrize("module", [sac, ams_sac])
EVERY_AMS = pytest.mark.parametrize("module", AMS)


def make_learner(module, **args):
    """An agent, a batch, arguments, and in a list what a target takes beside them: directions, if it is an AMS script.
    The agent's networks all differ, its policy is often near the bounds, and a gradient is left over."""
    args = module.Args(**args)
    torch.manual_seed(0)
    agent = module.Agent(OBS_DIM, ACTION_DIM, args)
    for parameter in agent.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
        parameter.grad = torch.ones_like(parameter)
    return agent, make_batch(module), args, make_directions(module, args)


def make_batch(module):
    observations = torch.randn(2, BATCH_SIZE, OBS_DIM)
    actions = 2 * torch.rand(BATCH_SIZE, ACTION_DIM) - 1
    terminations = 1.0 * (torch.arange(BATCH_SIZE) % 3 == 0)
    return module.Batch(*observations, actions, torch.randn(BATCH_SIZE), terminations)


def make_directions(module, args):
    if module not in AMS:
        return []
    return [module.sample_directions(args.sampling, BATCH_SIZE, args.num_neighbors, ACTION_DIM)]


class Reach(gym.Env):
    """A point in the plane that is to be moved to 0, in 10 steps; an episode in which it flees is terminated."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Box(-1, 1, (2,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.x, {}

    def step(self, action):
        self.x = self.x + 0.3 * action
        distance = np.abs(self.x)
        return self.x, -distance.sum(), distance.max() > 2, False, {}


gym.register("Reach-v0", Reach, max_episode_steps=10)

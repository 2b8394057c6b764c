"""What an update of the off-policy scripts takes: an agent, its optimizers, a batch and directions; and a task that is
learned in seconds."""

import gymnasium as gym
import numpy as np
import torch

import ams_sac
import ams_td3
import sac
import td3

OBS_DIM = 5
ACTION_DIM = 3
BATCH_SIZE = 16
TD3_FAMILY = [td3, ams_td3]
SAC_FAMILY = [sac, ams_sac]
OFF_POLICY = TD3_FAMILY + SAC_FAMILY
AMS = [ams_td3, ams_sac]


def make_learner(module, **args):
    """An agent, a batch, arguments, and in a list what a target takes beside them: directions, or None without NTD. The
    agent's networks all differ, its policy is often near the bounds, and a gradient is left over."""
    args = module.Args(**args)
    torch.manual_seed(0)
    agent = module.Agent(OBS_DIM, ACTION_DIM, args)
    for parameter in agent.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    batch = make_batch(module)
    return agent, batch, args, make_directions(module, args)


def make_batch(module):
    observations = torch.randn(2, BATCH_SIZE, OBS_DIM)
    actions = 2 * torch.rand(BATCH_SIZE, ACTION_DIM) - 1
    terminations = 1.0 * (torch.arange(BATCH_SIZE) % 3 == 0)
    return module.Batch(*observations, actions, torch.randn(BATCH_SIZE), terminations)


def make_directions(module, args):
    if module not in AMS:
        return []
    if not args.ntd:
        return [None]
    directions = module.sample_directions(args.sampling, BATCH_SIZE, args.num_neighbors, ACTION_DIM)
    return [directions.to(torch.get_default_dtype())]


def make_optimizers(module, agent, args):
    """Adam as in train(), but for the step sizes."""
    groups = [agent.critic_parameters(), agent.actor.parameters()]
    if module in SAC_FAMILY:
        groups.append([agent.log_alpha])
    return [torch.optim.Adam(group, lr=1e-3, fused=True, capturable=args.cuda_graphs) for group in groups]


class Reach(gym.Env):
    """A point in the plane that is to be moved to 0, in 10 steps; an episode in which it flees is terminated."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.x, {}

    def step(self, action):
        self.x = self.x + np.float32(0.3) * action
        distance = np.abs(self.x)
        return self.x, -float(distance.sum()), bool(distance.max() > 2), False, {}


gym.register("Reach-v0", Reach, max_episode_steps=10)

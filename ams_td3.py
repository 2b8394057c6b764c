# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#     "dm_control==1.0.50",
#     "gymnasium==1.4.0",
#     "imageio==2.38.1",
#     "moviepy==2.2.1",
#     "mujoco==3.17.0",
#     "numpy==2.4.6",
#     "psutil==7.2.2",
#     "shimmy==2.0.1",
#     "tensorboard==2.21.0",
#     "tensordict==0.15.3",
#     "torch==2.13.0",
#     "tyro==1.0.17",
# ]
# ///
"""AMS-TD3: TD3 (arXiv 1802.09477) with Action Manifold Smoothing (Lin, "Action Manifold Smoothing: A Lipschitz Pathway
Perspective on High-Dimensional Reinforcement Learning"): the TD target is averaged over K orthonormal perturbations of
the next action instead of TD3's noise (NTD, eq. 4-9), and the critics have LayerNorm (LN-Q): `diff td3.py ams_td3.py`.

    python ams_td3.py --env-id dog-run                                # train; add --resume to go on after a kill
    python ams_td3.py --env-id InvertedPendulum-v5 --total-timesteps 10000 --learning-starts 1000   # done in minutes
    python ams_td3.py --evaluate runs/dog-run__ams_td3__1 --capture-video                    # play what was trained

One step is one vector step: all environments advance once, and one gradient update is made (1M steps = 8M frames).
Actions are in units of half the task's action range, from -1 to 1, in networks, replay buffer and method alike.

Deviations from the paper's text: the signs of the QR decomposition are fixed so that the frames are Haar distributed
(Mezzadri, arXiv math-ph/0609050); actor and targets move together every `policy_frequency` updates, as in TD3 and
CleanRL (Figure 2 prints line 8 outside line 7's interval). Deviations from CleanRL: exploration noise is independent
per environment, critics see actions in the units above, every finished episode is logged, the update runs while the
environments simulate (so it draws from the transitions up to the step before).
"""

import contextlib
import copy
import fcntl
import importlib
import json
import math
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
import zipfile
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import tyro
from gymnasium.vector.async_vector_env import _async_worker
from tensordict.nn import CudaGraphModule
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Args:
    env_id: str = "dog-run"
    """the task: a dm_control task such as dog-run, any Gymnasium id such as HalfCheetah-v5, or module:Env-v0"""
    exp_name: str = "ams_td3"
    """name of this variant in the run directory and in plots"""
    seed: int = 1
    """seed of everything random; training, evaluation and each environment derive their own streams from it"""
    total_timesteps: int = 1_000_000
    """length of training, in vector steps: one step of all environments together"""
    num_envs: int = 8
    """environments, each in a worker process of its own"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where networks and replay buffer live; auto takes CUDA if there is one"""
    cuda_graphs: bool = False
    """replay each update as one CUDA graph instead of launching its kernels one by one (needs a CUDA device)"""
    torch_deterministic: bool = False
    """use only deterministic PyTorch algorithms (the CPU is deterministic without it)"""
    run_dir: str | None = None
    """where everything is written; by default runs/{env_id}__{exp_name}__{seed}"""
    resume: bool = False
    """go on from the checkpoint in the run directory, or start if there is none"""
    overwrite: bool = False
    """delete the run that is in the run directory, and start"""
    checkpoint_frequency: int = 50_000
    """steps between checkpoints; one is also saved on SIGTERM and SIGINT"""
    keep_checkpoint: bool = False
    """keep a checkpoint (with the replay buffer) when the run is complete, so that it can be made longer"""
    log_frequency: int = 1000
    """steps between two readings of losses, counters and diagnostics"""
    eval_frequency: int = 10_000
    """steps between two evaluations, at which training begins new episodes: more than an episode is long"""
    eval_episodes: int = 8
    """deterministic episodes in an evaluation"""
    evaluate: str | None = None
    """play the trained policy in this run directory or .pt file, for --eval-episodes episodes, instead of training"""
    capture_video: bool = False
    """with --evaluate: write the first episode as an mp4 beside the networks"""
    track: bool = False
    """send the TensorBoard scalars to Weights & Biases too (pip install wandb; WANDB_PROJECT says where)"""

    learning_rate: float = 3e-4
    """step size of Adam, for actor and critics"""
    buffer_size: int = 1_000_000
    """transitions in the replay buffer"""
    gamma: float = 0.99
    """discount factor, in [0, 1]"""
    tau: float = 0.005
    """part of the way that the target networks move towards the networks at each target update, in [0, 1]"""
    batch_size: int = 256
    """transitions in an update"""
    learning_starts: int = 25_000
    """steps of uniformly random actions, without updates, before learning"""
    updates_per_step: int = 1
    """gradient updates of the critics per step"""
    policy_frequency: int = 2
    """updates of the critics per update of the actor and of the targets"""
    exploration_noise: float = 0.1
    """standard deviation of the exploration noise, in units of half the action range"""
    policy_noise: float = 0.2
    """standard deviation of TD3's target noise (only with --no-ntd), in units of half the action range"""
    noise_clip: float = 0.5
    """bound on TD3's target noise (only with --no-ntd), in units of half the action range"""
    action_projection: Literal["tanh", "normalize"] = "tanh"
    """how the actor's output becomes an action: onto the cuboid (tanh) or onto the sphere (normalize)"""

    ntd: bool = True
    """average the TD target over a neighborhood of the next action; --no-ntd gives TD3's own target, with its noise"""
    layer_norm: bool = True
    """LayerNorm after each hidden layer of the critics"""
    num_neighbors: int = 8
    """K, the number of neighbors"""
    epsilon: float = 0.2
    """radius of the neighborhood, in units of half the action range"""
    sampling: Literal["orthogonal", "antithetic", "gaussian"] = "orthogonal"
    """the K directions: orthonormal, K/2 orthonormal ones and their negatives, or independent N(0, I/d)"""


def conflicts(args: Args) -> list:
    """What can be wrong between arguments: whether it is, and what to say then."""
    stored = min(args.learning_starts * args.num_envs, args.buffer_size)
    no_cuda = args.device == "cpu" or not torch.cuda.is_available()
    odd = args.num_neighbors % 2 == 1
    return [
        (args.buffer_size < args.num_envs, "--buffer-size must hold one step of --num-envs transitions"),
        (args.batch_size > stored, f"--batch-size is more than the {stored} transitions of the first update"),
        (args.cuda_graphs and no_cuda, "--cuda-graphs needs CUDA"),
        (args.sampling == "antithetic" and odd, "--sampling antithetic takes pairs: an even --num-neighbors"),
    ]


class Batch(NamedTuple):
    """B transitions: observations [B, obs_dim], actions [B, action_dim], rewards, terminations (no time limit) [B]."""

    observations: Tensor
    next_observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminations: Tensor


class ReplayBuffer:
    """The last `capacity` transitions, as rows of one tensor: a step is stored by one copy, a batch is one gather."""

    def __init__(self, capacity, obs_dim, action_dim, device):
        self.columns = [obs_dim, obs_dim, action_dim, 1, 1]
        gib = 4 * capacity * sum(self.columns) / 2**30
        free = psutil.virtual_memory().available / 2**30
        if device.type == "cuda":
            free = torch.cuda.mem_get_info()[0] / 2**30
        log(f"replay buffer: {capacity:,} transitions take {gib:.2f} GiB of {free:.1f} free ({device})")
        too_large = "the replay buffer does not fit into memory; lower --buffer-size"
        if gib > free:
            fail(too_large)
        try:
            self.rows = torch.empty(capacity, sum(self.columns), device=device)
        except RuntimeError:  # a limit on the process, such as ulimit's
            fail(too_large)
        self.position = 0
        self.size = 0

    def add(self, observations, next_observations, actions, rewards, terminations):
        """Stores a step, arrays [n, dim] or [n], n <= capacity, over the oldest transitions."""
        rows = np.column_stack([observations, next_observations, actions, rewards, terminations])
        rows = torch.as_tensor(rows, dtype=torch.float32, device=self.rows.device)
        end = self.position + len(rows)
        index = torch.arange(self.position, end, device=self.rows.device) % len(self.rows)
        self.rows[index] = rows
        self.position = end % len(self.rows)
        self.size = min(self.size + len(rows), len(self.rows))

    def sample(self, batch_size) -> Batch:
        """Draws a batch uniformly, with replacement."""
        index = torch.randint(2**62, (batch_size,), device=self.rows.device) % self.size
        *vectors, rewards, terminations = self.rows[index].split(self.columns, dim=1)
        return Batch(*vectors, rewards.squeeze(1), terminations.squeeze(1))

    def state_dict(self) -> dict:
        # On the CPU this copies nothing. torch.save writes all that a slice is part of, and an array isn't a slice.
        return {"rows": torch.from_numpy(self.rows[: self.size].cpu().numpy()), "position": self.position}

    def load_state_dict(self, state):
        self.size = len(state["rows"])
        self.position = state["position"]
        self.rows[: self.size] = state["rows"]


class QNetwork(nn.Module):
    """Critic with LayerNorm after each hidden layer (LN-Q, section 3.4 and appendix B.2)."""

    def __init__(self, obs_dim, action_dim, layer_norm):
        super().__init__()
        norm = nn.LayerNorm if layer_norm else nn.Identity
        self.fc1 = nn.Linear(obs_dim + action_dim, 256)
        self.ln1 = norm(256)
        self.fc2 = nn.Linear(256, 256)
        self.ln2 = norm(256)
        self.fc3 = nn.Linear(256, 1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q-values [B] of actions [B, d], or [B, K] of K actions per state [B, K, d]; observations are [B, obs_dim]."""
        if actions.dim() == 2:
            return self.head(self.fc1(torch.cat([observations, actions], dim=1)))
        # W [s; a] + b = (W_s s + b) + W_a a: the state's part is computed once, not once per neighbor.
        weight_s, weight_a = self.fc1.weight.tensor_split([observations.shape[1]], dim=1)
        of_states = F.linear(observations, weight_s, self.fc1.bias)  # [B, 256]
        # A CPU takes 2 neighbors at a time: what lies between two layers then stays in its cache. On one core beside a
        # training run (dog, K = 8, both critics) that takes 17.1 ms instead of 30.4.
        piece = 2 if actions.device.type == "cpu" else actions.shape[1]
        q_values = []
        for neighbors in actions.transpose(0, 1).split(piece):  # [piece, B, d]
            x = torch.baddbmm(of_states, neighbors, weight_a.T.expand(len(neighbors), -1, -1))
            q_values.append(self.head(x))
        return torch.cat(q_values).T

    def head(self, x: Tensor) -> Tensor:
        """Q-values [...] of what the first layer gave, [..., 256], which is overwritten."""
        x = F.relu(self.ln1(x), inplace=True)
        x = F.relu(self.ln2(self.fc2(x)), inplace=True)
        return self.fc3(x).squeeze(-1)


class Actor(nn.Module):
    """Deterministic policy, in [-1, 1] per dimension."""

    def __init__(self, obs_dim, action_dim, action_projection):
        super().__init__()
        self.fc1 = nn.Linear(obs_dim, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc_mu = nn.Linear(256, action_dim)
        self.action_projection = action_projection

    def forward(self, observations: Tensor) -> Tensor:
        """Actions [B, d] for observations [B, obs_dim]."""
        x = F.relu(self.fc1(observations))
        x = F.relu(self.fc2(x))
        mu = self.fc_mu(x)
        # Appendix A.7 of the AMS paper: the cuboid lets every joint saturate on its own, the sphere shares one norm.
        return torch.tanh(mu) if self.action_projection == "tanh" else F.normalize(mu, dim=-1)


class Agent(nn.Module):
    """Actor, twin critics and their target networks, in one state_dict."""

    def __init__(self, obs_dim, action_dim, args: Args):
        super().__init__()
        self.actor = Actor(obs_dim, action_dim, args.action_projection)
        self.qf1 = QNetwork(obs_dim, action_dim, args.layer_norm)
        self.qf2 = QNetwork(obs_dim, action_dim, args.layer_norm)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.qf1_target = copy.deepcopy(self.qf1).requires_grad_(False)
        self.qf2_target = copy.deepcopy(self.qf2).requires_grad_(False)
        self.exploration_noise = args.exploration_noise

    def critic_parameters(self) -> list:
        return [*self.qf1.parameters(), *self.qf2.parameters()]

    @torch.no_grad()
    def explore(self, observations: Tensor) -> Tensor:
        """Actions [n, d] for training: noise is drawn for each environment and dimension."""
        actions = self.actor(observations)
        return (actions + torch.randn_like(actions) * self.exploration_noise).clamp(-1, 1)

    @torch.no_grad()
    def policy(self, observations: Tensor) -> Tensor:
        """Actions [n, d] for evaluation, deterministic."""
        return self.actor(observations)


# ------------------------------------------------------------------------------------------------------ the method


def orthonormal_directions(batch_size, num_directions, action_dim, device=None, generator=None) -> Tensor:
    """Eq. 9: for each of B batch elements its own K orthonormal vectors in R^d, [B, K, d], Haar distributed.
    Shifted Cholesky QR (Fukaya et al., arXiv 1809.11085), twice, in float64: a QR decomposition with diag(R) > 0, which
    makes Gaussian matrices Haar distributed frames (Mezzadri, arXiv math-ph/0609050). The shift covers nearly dependent
    rows. More than d vectors can't be orthonormal: then ceil(K / d) independent frames stand side by side, cut to K.
    """
    frames = -(-num_directions // action_dim)
    shape = batch_size * frames, min(num_directions, action_dim), action_dim
    q = torch.randn(shape, device=device, generator=generator).double()
    for shift in (1e-12, 1e-30):
        gram = q @ q.mT
        gram.diagonal(dim1=1, dim2=2).add_(shift)
        q = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(gram).L, q, upper=False)
    return q.float().reshape(batch_size, -1, action_dim)[:, :num_directions]


def sample_directions(sampling, batch_size, num_directions, action_dim, device=None, generator=None) -> Tensor:
    """K directions [B, K, d] with E|v|^2 = 1, E[v v^T] = I/d: the method's; K/2 and their negatives, whose first-order
    terms cancel where nothing is clipped; or independent N(0, I/d), which is appendix A.5's N(0, I) at that length."""
    if sampling == "gaussian":
        normal = torch.randn(batch_size, num_directions, action_dim, device=device, generator=generator)
        return normal / math.sqrt(action_dim)
    if sampling == "antithetic":
        half = orthonormal_directions(batch_size, num_directions // 2, action_dim, device, generator)
        return torch.cat([half, -half], dim=1)
    return orthonormal_directions(batch_size, num_directions, action_dim, device, generator)


def draw_directions(args: Args, action_dim, device) -> list:
    """The directions [B, K, d] of the next updates: of one on a CPU, of 64 on a GPU, where each of the 13 operations
    of a call costs a launch or more, however small it is."""
    updates = 1 if device.type == "cpu" else 64
    directions = sample_directions(args.sampling, updates * args.batch_size, args.num_neighbors, action_dim, device)
    return list(directions.split(args.batch_size))


def neighborhood_actions(centers: Tensor, directions: Tensor, radius, low, high) -> Tensor:
    """Figure 2, line 4: clip(center + radius * v_k), [B, K, d], from centers [B, d] and directions [B, K, d].

    `radius`, in the units of the actions, is a number or one per dimension [d]; so are the bounds `low` and `high`.
    """
    return (centers.unsqueeze(1) + radius * directions).clamp(low, high)


@torch.no_grad()
def td_target(agent: Agent, batch: Batch, args: Args, directions: Tensor | None) -> Tensor:
    """The TD target y [B] (Figure 2, lines 2-5; eq. 6), over the directions v_k [B, K, d]; None with --no-ntd."""
    next_actions = agent.target_actor(batch.next_observations)
    if args.ntd:
        next_actions = neighborhood_actions(next_actions, directions, args.epsilon, -1, 1)  # [B, K, d]
    else:
        noise = (torch.randn_like(next_actions) * args.policy_noise).clamp(-args.noise_clip, args.noise_clip)
        next_actions = (next_actions + noise).clamp(-1, 1)
    qf1_next = agent.qf1_target(batch.next_observations, next_actions)
    qf2_next = agent.qf2_target(batch.next_observations, next_actions)
    next_q = torch.min(qf1_next, qf2_next)  # [B, K]; [B] with --no-ntd
    if args.ntd:
        next_q = next_q.mean(dim=1)
    return batch.rewards + args.gamma * (1 - batch.terminations) * next_q


def pathway_diagnostics(agent: Agent, batch: Batch, args: Args) -> dict:
    """Stages of the Lipschitz pathway (eq. 1), from one batch: is the policy saturated (L1), how steep is Q (L3), how
    far, over its deviation, does NTD move the point target of eq. 4, and how noisy is the draw of directions (L4)?"""
    actions = agent.policy(batch.observations).requires_grad_()
    (gradient,) = torch.autograd.grad(agent.qf1(batch.observations, actions).sum(), actions)
    stages = {
        "diagnostics/saturated_actions": (actions.abs() > 0.99).float().mean(),
        "diagnostics/action_gradient": gradient.norm(dim=1).mean(),
    }
    if args.ntd:
        count, dim = actions.shape
        draws = sample_directions(args.sampling, 2 * count, args.num_neighbors, dim, actions.device)
        first_draw, second_draw = draws.chunk(2)
        first = td_target(agent, batch, args, first_draw)
        second = td_target(agent, batch, args, second_draw)
        point = td_target(agent, batch, args, torch.zeros_like(first_draw[:, :1]))
        spread = point.std(correction=0).clamp_min(1e-12)
        stages["diagnostics/target_shift"] = F.mse_loss(first, point).sqrt() / spread
        stages["diagnostics/target_noise"] = (F.mse_loss(first, second) / 2).sqrt() / spread
    return stages


# ---------------------------------------------------------------------------------------------------------- update


def update_critics(agent, q_optimizer, batch, args, directions) -> dict:
    """One step of both critics towards the TD target (arXiv 1802.09477, Algorithm 1). Returns what to log."""
    next_q_value = td_target(agent, batch, args, directions)
    qf1_values = agent.qf1(batch.observations, batch.actions)
    qf2_values = agent.qf2(batch.observations, batch.actions)
    qf1_loss = F.mse_loss(qf1_values, next_q_value)
    qf2_loss = F.mse_loss(qf2_values, next_q_value)
    qf_loss = qf1_loss + qf2_loss
    q_optimizer.zero_grad()
    qf_loss.backward()
    grad_norm = nn.utils.get_total_norm(parameter.grad for parameter in agent.critic_parameters())
    q_optimizer.step()
    return {
        "losses/qf1_values": qf1_values.mean(),
        "losses/qf2_values": qf2_values.mean(),
        "losses/qf1_loss": qf1_loss,
        "losses/qf2_loss": qf2_loss,
        "losses/qf_loss": qf_loss / 2,
        "diagnostics/critic_grad_norm": grad_norm,
        "diagnostics/td_target_variance": next_q_value.var(correction=min(1, len(next_q_value) - 1)),
    }


def update_actor(agent, actor_optimizer, batch) -> dict:
    """One step of the actor up the first critic (the same algorithm's deterministic policy gradient)."""
    actor_loss = -agent.qf1(batch.observations, agent.actor(batch.observations)).mean()
    actor_optimizer.zero_grad()
    # Only for the actor: a plain backward() would also compute the critic's gradients, to throw them away.
    actor_loss.backward(inputs=list(agent.actor.parameters()))
    actor_optimizer.step()
    return {"losses/actor_loss": actor_loss}


@torch.no_grad()
def update_targets(agent, tau):
    """Moves every target parameter by tau towards its network's."""
    targets = [*agent.target_actor.parameters(), *agent.qf1_target.parameters(), *agent.qf2_target.parameters()]
    parameters = [*agent.actor.parameters(), *agent.critic_parameters()]
    torch._foreach_lerp_(targets, parameters, tau)  # target.lerp_(parameter, tau) for each pair, in one call


def update(agent, q_optimizer, actor_optimizer, args, with_actor, batch, directions=None):
    """One update of the critics and, if asked, of the actor and the targets, on tensors alone. Returns what to log."""
    metrics = update_critics(agent, q_optimizer, batch, args, directions)
    if with_actor:
        metrics |= update_actor(agent, actor_optimizer, batch)
        update_targets(agent, args.tau)
    return {name: value.detach() for name, value in metrics.items()}


def train(args: Args, run: "Run", envs) -> int:
    """Trains up to --total-timesteps or a signal; returns the exit status."""
    obs_dim = envs.single_observation_space.shape[0]
    action_dim = envs.single_action_space.shape[0]
    torch.manual_seed(args.seed)
    agent = Agent(obs_dim, action_dim, args).to(run.device)
    adam = partial(optim.Adam, lr=args.learning_rate, fused=True, capturable=args.cuda_graphs)
    q_optimizer = adam(agent.critic_parameters())
    actor_optimizer = adam(agent.actor.parameters())
    rb = ReplayBuffer(args.buffer_size, obs_dim, action_dim, run.device)
    run.restore(agent=agent, q_optimizer=q_optimizer, actor_optimizer=actor_optimizer, rb=rb)
    updates = {}  # by whether the actor is updated too
    for with_actor in (False, True):
        updates[with_actor] = partial(update, agent, q_optimizer, actor_optimizer, args, with_actor)
        if args.cuda_graphs:  # batches and directions are drawn outside: cuSOLVER is not made for capture
            updates[with_actor] = CudaGraphModule(updates[with_actor])

    directions = []  # of the next updates
    run.evaluate(agent.policy, envs)
    obs = run.reset(envs)
    while not run.over:
        # Act
        learning = run.global_step >= args.learning_starts
        if learning:
            actions = agent.explore(torch.as_tensor(obs, device=run.device)).cpu().numpy()
        else:
            actions = run.rng.uniform(-1, 1, (args.num_envs, action_dim)).astype(np.float32)
        envs.step_async(actions)

        # Update, while the environments simulate (not again, if the run was saved when a worker died in this step)
        metrics = {}
        while learning and run.updates < (run.global_step + 1 - args.learning_starts) * args.updates_per_step:
            run.updates += 1
            with_actor = run.updates % args.policy_frequency == 0
            batch = rb.sample(args.batch_size)
            if args.ntd and not directions:
                directions = draw_directions(args, action_dim, run.device)
            metrics |= updates[with_actor](batch, directions.pop() if args.ntd else None)

        # Step and store; an environment that ended is reset already, and its last observation is in the infos
        next_obs, rewards, terminations, truncations, infos = envs.step_wait()
        run.global_step += 1
        real_next_obs = next_obs.copy()
        for i in np.flatnonzero(terminations | truncations):
            real_next_obs[i] = infos["final_obs"][i]
        rb.add(obs, real_next_obs, actions, rewards, terminations)
        obs = next_obs.copy()

        # Log, evaluate, save
        if learning and run.global_step % args.log_frequency == 0:
            devices = [run.device] if run.device.type == "cuda" else []
            with torch.random.fork_rng(devices):  # a reading changes no random number
                metrics |= pathway_diagnostics(agent, rb.sample(args.batch_size), args)
        run.log_step(infos, metrics)
        if run.evaluate(agent.policy, envs):
            obs = run.reset(envs)
        run.save()
    return run.finish(agent)


# =========================== the plumbing: from here on, the same text in all five scripts ===========================
ALGORITHM = Args.exp_name  # the default names the script
CHECKPOINT, CSV_HEADER = "checkpoint.pt", "step,frames,updates,wall_seconds,episode,return,length"
SAVED = "global_step updates wall_seconds evaluations episodes wandb_id".split()  # of a Run, in the checkpoint
TRAINING, EVALUATION, WARM_UP, MAKING = range(4)  # independent streams of random numbers
STREAMS = random.seed, np.random.seed, torch.manual_seed  # an environment may draw from them beside its own
MAY_BE_ZERO = "seed learning_starts exploration_noise policy_noise noise_clip epsilon alpha ent_coef vf_coef".split()
MAY_CHANGE = "total_timesteps device cuda_graphs run_dir resume overwrite checkpoint_frequency keep_checkpoint".split()
MAY_CHANGE += "log_frequency eval_frequency evaluate capture_video track".split()  # of a resumed run: not the method


def log(message: str) -> None:
    """Prints a line; on a full disk, or into a pipe that nobody reads any more, training goes on without it."""
    with contextlib.suppress(OSError):
        print(message, flush=True)


def fail(message: str, status: int = 2):
    """Ends the program with one line on stderr and an exit status."""
    print(f"{ALGORITHM}.py: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


def derive_seeds(*key: int, count: int) -> list[int]:
    """`count` seeds, which fit into a C int, for the stream that `key`, such as (seed, TRAINING), names."""
    return (np.random.SeedSequence(key).generate_state(count) >> 1).tolist()


class Task(gym.Wrapper):
    """Flat float32 observations, actions in [-1, 1], plain numbers; what is not finite raises ChildProcessError."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        space = env.action_space
        vector = isinstance(space, gym.spaces.Box) and space.dtype.kind == "f" and len(space.shape) == 1
        self.low, self.high = (space.low.astype(float), space.high.astype(float)) if vector else (0, np.inf)
        if not (env.observation_space.is_np_flattenable and np.all(self.high - self.low < 1e9)):  # lqr has 2e10
            env.close()
            raise ValueError(f"{space}, {env.observation_space}: needed is a vector of bounded continuous actions")
        self.action_scale, self.action_bias = (self.high - self.low) / 2, (self.high + self.low) / 2
        self.action_space = gym.spaces.Box(-1, 1, space.shape, np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (gym.spaces.utils.flatdim(env.observation_space),))

    def flatten(self, space: gym.Space, value) -> list[np.ndarray]:
        if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
            keys = range(len(space)) if isinstance(space, gym.spaces.Tuple) else space
            return [flat for key in keys for flat in self.flatten(space[key], value[key])]
        if isinstance(space, gym.spaces.Box) and np.shape(value) != space.shape:
            raise ChildProcessError(f"the observation has the shape {np.shape(value)}, its space {space.shape}")
        return [np.ravel(value if isinstance(space, gym.spaces.Box) else gym.spaces.utils.flatten(space, value))]

    def observe(self, observation) -> np.ndarray:
        flat = self.flatten(self.env.observation_space, observation)
        self.last_observation = np.concatenate(flat, dtype=np.float32, casting="unsafe")
        if not np.isfinite(self.last_observation).all():
            raise ChildProcessError("the observation is not finite")
        return self.last_observation

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        own = self.env.unwrapped
        for set_seed in (*STREAMS, own.action_space.seed, own.observation_space.seed) if seed is not None else ():
            set_seed(seed)
        observation, _ = self.env.reset(seed=seed, options=options)
        return self.observe(observation), {}

    def step(self, action: np.ndarray):
        if not np.isfinite(action).all():
            raise ChildProcessError("the action is not finite")
        action = np.clip(self.action_scale * action + self.action_bias, self.low, self.high)
        try:
            observation, *numbers, _ = self.env.step(action.astype(self.env.action_space.dtype))
        except Exception as error:
            if type(error).__name__ != "PhysicsError":  # dm_control's, of a simulation that diverged
                raise
            log(f"{error}; the episode is cut short at its last valid observation")
            return self.last_observation, 0.0, False, True, {}
        reward, terminated, truncated = (np.asarray(number).item() for number in numbers)
        if not np.isfinite(np.float32(reward)):
            raise ChildProcessError(f"the reward is {reward}")
        return self.observe(observation), float(reward), bool(terminated), bool(truncated), {}


def make_env(env_id: str, render_mode: str | None = None) -> gym.Env:
    """Makes a task by its Gymnasium id, or by dm_control's (dog-run) and HumanoidBench's (h1-walk) short forms."""
    options = {"render_mode": render_mode} if render_mode else {}
    humanoid = env_id.split("-")[0] in ("h1", "h1hand", "h1simplehand", "h1strong", "h1touch", "g1")
    if humanoid:
        clone = "git clone https://github.com/carlosferrazza/humanoid-bench; git -C humanoid-bench checkout 791405f"
        find_spec("humanoid_bench") or fail(f"no HumanoidBench: {clone}; pip install --no-deps -e humanoid-bench")
        sizes = importlib.import_module("dm_control.mujoco.wrapper.mjbindings.sizes")  # its own are of mujoco 3.1.6
        sys.modules["humanoid_bench.dmc_deps.dmc_sizes"] = sizes
        sys.modules["humanoid_bench.mjx.flax_to_torch"] = SimpleNamespace(TorchModel=None, TorchPolicy=None)  # jax
        importlib.import_module("humanoid_bench")
        options["render_mode"] = render_mode  # or it makes an OpenGL context
        env_id = "h1-sit_simple-v0" if env_id == "h1-sit" else env_id.removesuffix("-v0") + "-v0"
    elif env_id not in gym.registry and ":" not in env_id:
        importlib.import_module("absl.logging").set_verbosity("error")  # MuJoCo's remarks on dm_control's own models
        importlib.import_module("shimmy")  # registers dm_control's tasks; a typo is told the nearest of them
        if f"dm_control/{env_id}-v0" in gym.registry or env_id.islower() and "-v" not in env_id and "/" not in env_id:
            env_id = f"dm_control/{env_id}-v0"
            options |= {"render_kwargs": {"width": 640, "height": 480, "camera_id": 0}} if render_mode else {}
    env = gym.make(env_id, disable_env_checker=True, **options)
    if humanoid:  # its own call does not fit Gymnasium 1.4
        env.unwrapped.render = lambda: env.unwrapped.mujoco_renderer.render("rgb_array")
    return gym.wrappers.RecordEpisodeStatistics(Task(env))


def simulate(seed: int, index: int, make, pipe, parent_pipe, shared_memory, error_queue, *settings) -> None:
    """What a worker process does: Gymnasium's own worker, but for seeds, signals, errors and priority."""

    def report(error: Exception) -> None:  # as one line, behind the traceback of an error of the environment's own
        place = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = place.startswith((__file__, *gym.__path__)) and f"gymnasium{os.sep}envs" not in place
        api = "; Gymnasium: step() returns 5 values, reward a number; reset(seed=..., options=...) 2" if ours else ""
        if not ours and not isinstance(error, (ChildProcessError, EOFError, ConnectionError)):
            traceback.print_exception(error)
        message = error if isinstance(error, ChildProcessError) else f"{type(error).__name__}: {error}{api}"
        error_queue.put((index, ChildProcessError, f"environment {index}: {message}", ""))

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: None)  # for the trainer to hear; ignored ones would be so in simulators too
    os.nice(5)  # where cores are scarce, a step is as long as the learner: workers take what it leaves
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the process that made the first environment has shown them
    for set_seed in STREAMS:
        set_seed(*derive_seeds(seed, MAKING, index, count=1))
    try:
        env = make()
    except Exception as error:
        report(error)
        parent_pipe.close()
        pipe.recv()
        return pipe.send((None, False))
    with contextlib.suppress(ConnectionError):  # the trainer was killed
        queue = SimpleNamespace(put=lambda received: report(received[2]))
        _async_worker(index, lambda: env, pipe, parent_pipe, shared_memory, queue, *settings)


class WorkerEnvs(gym.vector.AsyncVectorEnv):
    """A task in worker processes. One that ends is reset in the same step, and its last observation is in the infos."""

    def __init__(self, args: Args):
        made, worker = [partial(make_env, args.env_id)] * args.num_envs, partial(simulate, args.seed)
        try:
            super().__init__(made, copy=False, autoreset_mode="SameStep", worker=worker)
        except Exception as error:
            self.close_extras()
            died = isinstance(error, (EOFError, ConnectionError)) and "a worker died"
            fail(f"--env-id {args.env_id} can't be made: {died or f'{type(error).__name__}: {error}'}")
        gym.logger.min_level = 50  # from here on, an environment's error becomes one line

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        for pipe in getattr(self, "parent_pipes", ()):
            with contextlib.suppress(OSError, AttributeError):  # of a worker that is gone already
                pipe.send(("close", None))
        end = time.monotonic() + 5  # seconds, after which they are killed
        for process in [process for process in getattr(self, "processes", ()) if process.pid]:
            process.join(max(0, end - time.monotonic()))
            process.kill()


def evaluate(policy, envs, seed: int, episodes: int, device, stop=()) -> tuple[np.ndarray, np.ndarray] | None:
    """Plays `policy` from the evaluation seeds; returns `episodes` returns and lengths, None if `stop` fills before."""
    seeds = derive_seeds(seed, EVALUATION, count=episodes + envs.num_envs)
    returns, lengths = np.zeros(0), np.zeros(0, dtype=int)
    while len(returns) < episodes:
        observations, _ = envs.reset(seed=seeds[len(returns) : len(returns) + envs.num_envs])
        episode_returns, episode_lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=int)
        running = np.arange(envs.num_envs) < episodes - len(returns)
        while running.any():
            if stop:
                return None
            actions = policy(torch.as_tensor(observations, device=device)).cpu().numpy()
            observations, rewards, terminations, truncations, _ = envs.step(actions)
            episode_returns += running * rewards
            episode_lengths += running
            running &= ~(terminations | truncations)
            if running.any() and episode_lengths.max() % 10_000 == 0:
                log(f"evaluation: no end in {episode_lengths.max():,} steps; register the task with max_episode_steps")
        returns, lengths = np.append(returns, episode_returns), np.append(lengths, episode_lengths)
    return returns[:episodes], lengths[:episodes]


def play(args: Args, device: torch.device, stop: list[int]) -> None:
    """--evaluate: prints every return of a trained policy, their mean and standard deviation (over n)."""
    path = Path(args.evaluate)
    path = max(sorted(path.glob("*.pt")), key=lambda file: file.name != CHECKPOINT, default=path)
    saved = load_file(path)
    missing = ", ".join(f"{f.name} ({f.default})" for f in fields(Args) if f.name not in saved["args"])
    missing and log(f"{path} has no argument {missing}; the default is taken")
    trained, name = Args(**saved["args"]), f"{path.stem}_step{saved['global_step']}"
    with contextlib.closing(WorkerEnvs(trained)) as envs:
        agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.shape[0], trained).to(device)
        agent.load_state_dict(saved["agent"])
        result = evaluate(agent.policy, envs, trained.seed, args.eval_episodes, device, stop)
    returns, lengths = result or sys.exit(128 + stop[0])
    episodes = ", ".join(f"{r:.2f} ({n} steps)" for r, n in zip(returns, lengths, strict=True))
    log(f"{name}: mean {returns.mean():.2f}, std {returns.std():.2f} over {len(returns)} episodes: {episodes}")
    args.capture_video or sys.exit(0)
    try:
        with contextlib.closing(make_env(trained.env_id, render_mode="rgb_array")) as env:
            shimmy = "shimmy" in type(env.unwrapped).__module__
            fps = 1 / env.unwrapped.dt if shimmy else env.metadata.get("render_fps") or 30
            env = gym.wrappers.RecordVideo(env, str(path.parent), lambda i: i == 0, name_prefix=name, fps=fps)
            evaluate(agent.policy, gym.vector.SyncVectorEnv([lambda: env]), trained.seed, 1, device, stop)
            env.stop_recording()
    except Exception as error:
        opengl = any(word in repr(error).lower() for word in ("egl", "opengl", "osmesa", "glfw", "glcontext"))
        advice = "; rendering needs EGL (Debian: apt install libegl1 libgl1-mesa-dri)" if opengl else ""
        sys.unraisablehook = lambda _: None  # what MuJoCo's half-made renderer says when it is deleted
        fail(f"no video: {type(error).__name__}: {str(error) or 'the task does not draw'}{advice}", 1)
    log(f"video: {path.parent / name}-episode-0.mp4")


def replace_file(path: Path, content) -> bool:
    """Replaces a file, which is whole at any moment; warns where that fails, as on a full disk, and returns False."""
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb") as file:
            if path.suffix == ".pt":
                torch.save(content, file)
            else:  # JSON knows no NaN
                text = json.dumps(content, indent=2, allow_nan=False) if path.suffix == ".json" else content
                file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        return True
    except (OSError, RuntimeError) as error:
        new.unlink(missing_ok=True)
        log(f"warning: {path} can't be written, the one before is kept: {error}")
        return False


def load_file(path: Path) -> dict:
    """What this script saved in `path`, on the CPU; ends the program if that is something else."""
    try:
        assert not zipfile.ZipFile(path).testzip()  # the checksums, which torch does not look at
        saved = torch.load(path, map_location="cpu", weights_only=True)
        assert saved["algorithm"] == ALGORITHM and Args(**saved["args"]), f"{saved['algorithm']}.py wrote it"
        return saved | {"agent": saved["agent"]}  # an error where there is none
    except Exception as error:  # what a damaged file raises is as varied as the damage
        fail(f"{path} is missing, damaged or foreign: {type(error).__name__} {error}".splitlines()[0])


class Run:
    """A run directory: its lock, logs, evaluations and checkpoint, and the counters of training."""

    def __init__(self, args: Args, device: torch.device, stop: list[int]):
        self.args, self.device, self.stop = args, device, stop
        self.dir = Path(args.run_dir or f"runs/{args.env_id.replace('/', '_')}__{args.exp_name}__{args.seed}")
        self.rng = np.random.default_rng(derive_seeds(args.seed, WARM_UP, count=1))
        self.global_step = self.updates = self.first_step = self.wall_seconds = 0
        self.evaluations, self.episodes = [CSV_HEADER], []  # lines; [step, return] of the training episodes
        self.metrics, self.training_return, self.wandb_id = {}, "-", f"{self.dir.name}-{int(time.time())}"
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            was = json.loads((self.dir / "args.json").read_text()) if (self.dir / "args.json").exists() else {}
            if "algorithm" not in was and not {path.name for path in self.dir.iterdir()} <= {".lock", "args.json.new"}:
                raise FileExistsError("it is neither a run directory nor empty")
            self.lock = open(self.dir / ".lock", "w")  # the lock ends with the process, however that ends
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (OSError, ValueError) as error:
            busy = isinstance(error, BlockingIOError) and "another process is training there"
            fail(f"--run-dir {self.dir} can't be used: {busy or error}", os.EX_TEMPFAIL if busy else 2)
        if was and not args.resume and not args.overwrite:
            fail(f"{self.dir} exists; --resume goes on with it, --overwrite deletes it, --run-dir goes elsewhere")
        if was and args.resume:
            now = {"algorithm": ALGORITHM, **asdict(args)}
            may_change = MAY_CHANGE[now.get("anneal_lr", False) :]  # where the budget, its first, sets the step size
            changed = [name for name in now if name not in may_change and was.get(name) != now[name]]
            if changed:
                given = ", ".join(f"--{name.replace('_', '-')} {was.get(name)}, not {now[name]}" for name in changed)
                fail(f"{self.dir} was trained with {given}; give the same arguments, or another --run-dir")
            if (self.dir / "result.json").exists() and args.total_timesteps <= was["total_timesteps"]:
                log(f"{self.dir} is complete")
                raise SystemExit(0)
            if (self.dir / "result.json").exists() and not (self.dir / CHECKPOINT).exists():
                fail(f"{self.dir} is complete at step {was['total_timesteps']}; only --keep-checkpoint lets it go on")

    def restore(self, **parts) -> None:
        """Loads counters, random states and `parts` from the checkpoint, if any, and opens the logs as of then."""
        self.parts, path, args = parts, self.dir / CHECKPOINT, asdict(self.args)
        for pattern in ("result.json", "*.pt", "events.out.tfevents.*", "*.csv", "*.mp4", "*.new", "args.json"):
            for old in self.dir.glob(pattern) if self.args.overwrite else ():
                old.unlink()  # only now that nothing can be wrong; a kill leaves the folder of an unfinished run
        if path.exists():
            checkpoint = load_file(path)
            self.__dict__ |= {name: checkpoint[name] for name in SAVED}
            for name, part in parts.items():
                if isinstance(part, torch.optim.Optimizer):  # its settings follow from this run's device
                    checkpoint[name]["param_groups"] = part.state_dict()["param_groups"]
                part.load_state_dict(checkpoint[name])
            torch.set_rng_state(checkpoint["torch_rng"])
            torch.cuda.set_rng_state_all(checkpoint["cuda_rng"][: torch.cuda.device_count()])
            self.rng.bit_generator.state = checkpoint["numpy_rng"]
            (self.dir / "result.json").unlink(missing_ok=True)  # of a run that is made longer
        replace_file(self.dir / "args.json", {"algorithm": ALGORITHM, **args}) or fail("there is no room for a run", 1)
        replace_file(self.dir / "evaluations.csv", "\n".join(self.evaluations) + "\n")
        if self.args.track:
            settings = {"name": self.dir.name, "id": self.wandb_id, "resume": "allow", "config": args}
            importlib.import_module("wandb").init(**settings, sync_tensorboard=True)
        threading.excepthook = lambda e: e.exc_type is OSError or threading.__excepthook__(e)  # write_scalars tells
        self.writer = SummaryWriter(self.dir, purge_step=self.global_step + path.exists())  # all, if no step was saved
        rows = "".join(f"|{name}|{value}|\n" for name, value in args.items())
        self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        self.first_step, self.logged_step, self.logged_time = self.global_step, self.global_step, time.time()
        self.started, self.over = time.time() - self.wall_seconds, self.global_step >= self.args.total_timesteps
        log(f"{self.dir}: from step {self.global_step:,}, on {self.device}, {torch.get_num_threads()} learner threads")

    def reset(self, envs: WorkerEnvs) -> np.ndarray:
        """Begins new episodes, from this step's own seeds: simulators are not saved, and play the evaluations too."""
        return envs.reset(seed=derive_seeds(self.args.seed, TRAINING, self.global_step, count=envs.num_envs))[0].copy()

    def write_scalars(self, scalars: dict[str, float]) -> None:
        """Logs to TensorBoard at the current step; a full disk loses them, with a warning, and not the run."""
        try:
            self.writer = self.writer or SummaryWriter(self.dir)  # one does not survive an error
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, self.global_step)
            self.writer.flush()  # a kill costs nothing that a checkpoint relies on
        except OSError as error:
            log(f"warning: step {self.global_step:,} is not in TensorBoard's log: {error}")
            self.writer = None

    def evaluate(self, policy, envs: WorkerEnvs) -> bool:
        """Every --eval-frequency steps and at the end, plays the policy; returns whether the environments did so."""
        step, args = self.global_step, self.args
        if self.evaluations[-1].startswith(f"{step},") or step % args.eval_frequency and step < args.total_timesteps:
            return False
        result = evaluate(policy, envs, args.seed, args.eval_episodes, self.device, self.stop)
        if not result:  # a signal came: the resumed run evaluates at this step
            self.save()
            return True
        counters = f"{step},{step * args.num_envs},{self.updates},{time.time() - self.started:.3f}"
        self.evaluations += [f"{counters},{i},{r},{n}" for i, (r, n) in enumerate(zip(*result, strict=True))]
        replace_file(self.dir / "evaluations.csv", "\n".join(self.evaluations) + "\n")
        mean, std = result[0].mean(), result[0].std()
        self.write_scalars({"eval/episodic_return": mean, "eval/episodic_return_std": std})
        log(f"step {step:,}: evaluation {mean:.1f} +/- {std:.1f}")
        return True

    def log_step(self, infos: dict, metrics: dict[str, torch.Tensor]) -> None:
        """Logs the episodes that ended in this step and, every --log-frequency steps, metrics and counters."""
        step, args = self.global_step, self.args
        self.metrics |= metrics
        if "final_info" in infos:
            returns, lengths = (infos["final_info"]["episode"][key][infos["_final_info"]] for key in "rl")
            self.episodes += [[step, episode_return] for episode_return in returns.tolist()]
            self.training_return = f"{returns.mean():.1f}"
            self.write_scalars({"charts/episodic_return": returns.mean(), "charts/episodic_length": lengths.mean()})
        if step % args.log_frequency == 0 or step >= args.total_timesteps:
            values = dict(zip(self.metrics, torch.tensor([*self.metrics.values()]).tolist(), strict=True))
            broken = [tag for tag, value in values.items() if not math.isfinite(value)]
            if broken:
                fail(f"step {step}: {', '.join(broken)} not finite; the checkpoint is left as it was", 1)
            sps = (step - self.logged_step) / (time.time() - self.logged_time)
            self.logged_step, self.logged_time = step, time.time()
            charts = {"charts/SPS": sps, "charts/frames": step * args.num_envs, "charts/updates": self.updates}
            self.write_scalars(values | charts)
            self.metrics = {}  # what no update has renewed by the next time is not logged again
            left = f"{(args.total_timesteps - step) / sps / 3600:.1f} h left"
            log(f"step {step:,}: return {self.training_return}, SPS {sps:.0f}, {left}")

    def save(self, now: bool = False) -> None:
        """Writes all that --resume needs at a signal, every --checkpoint-frequency steps, or `now`. Sets `over`."""
        args, finished, stopped = self.args, self.global_step >= self.args.total_timesteps, bool(self.stop)
        was_over, self.over = self.over, finished or stopped
        due = stopped or (args.keep_checkpoint if finished else self.global_step % args.checkpoint_frequency == 0)
        if now or due and not was_over:
            if not all(value.isfinite().all() for value in self.parts["agent"].state_dict().values()):
                fail(f"step {self.global_step}: the networks are not finite; the checkpoint is left as it was", 1)
            self.wall_seconds = time.time() - self.started
            content = {"algorithm": ALGORITHM, "args": asdict(args), "numpy_rng": self.rng.bit_generator.state}
            content |= {"torch_rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
            content |= {n: getattr(self, n) for n in SAVED} | {n: part.state_dict() for n, part in self.parts.items()}
            replace_file(self.dir / CHECKPOINT, content)

    def finish(self, agent: torch.nn.Module) -> int:
        """Writes the networks and the result, or says what stopped the run; returns the exit status."""
        args, step, seconds = self.args, self.global_step, time.time() - self.started
        if step < args.total_timesteps or not self.evaluations[-1].startswith(f"{step},"):
            log(f"stopped by {signal.Signals(self.stop[0]).name} at step {step:,}; --resume goes on")
            return 128 + self.stop[0]
        returns = np.array([float(row.split(",")[5]) for row in self.evaluations if row.startswith(f"{step},")])
        tail = [episode_return for at, episode_return in self.episodes if at > 0.9 * step]
        packages = filter(find_spec, ["torch", "numpy", "gymnasium", "shimmy", "dm_control", "mujoco"])
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else f"cpu, {os.cpu_count()} cores"
        saved = {"algorithm": ALGORITHM, "args": asdict(args), "global_step": step}
        result = saved | {name: getattr(args, name) for name in ("exp_name", "env_id", "seed")}
        result |= {"frames": step * args.num_envs, "updates": self.updates, "device": device}
        result |= {"wall_seconds": seconds, "sps": step / seconds, "threads": torch.get_num_threads()}
        result |= {"final_evaluation": {"mean": returns.mean(), "std": returns.std(), "returns": returns.tolist()}}
        result |= {"training_return_last_10_percent": float(np.mean(tail)) if tail else None}
        result |= {"versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]}}
        done = replace_file(self.dir / f"{args.exp_name}.pt", saved | {"agent": agent.state_dict()})
        done and replace_file(self.dir / "result.json", result) or fail("no room for the result; --resume ends it", 1)
        args.keep_checkpoint or (self.dir / CHECKPOINT).unlink(missing_ok=True)
        log(f"complete: {self.dir}, evaluation {returns.mean():.1f} +/- {returns.std():.1f}")
        return 0


def main() -> int:
    """Reads the command line, and trains or plays; returns the exit status."""
    args = tyro.cli(Args, description=__doc__)
    for name, value in vars(args).items():
        most, zero = (1, True) if name in ("gamma", "tau", "gae_lambda") else (2**63 - 1, name in MAY_BE_ZERO)
        if type(value) in (int, float) and not (0 <= value <= most and (zero or value)):
            wanted = f"between 0 and {most}" if zero or value > 0 else "positive"
            fail(f"--{name.replace('_', '-')} must be {wanted}, not {value}")
    rules = [
        *conflicts(args),
        (args.exp_name in ("", "checkpoint") or "/" in args.exp_name, "--exp-name must be good for a file name"),
        (args.resume and args.overwrite, "--resume goes on with a run and --overwrite deletes it: give one of them"),
        (args.capture_video and args.evaluate is None, "--capture-video goes with --evaluate RUN_DIR_OR_FILE"),
        (args.track and not getattr(find_spec("wandb"), "origin", None), "--track needs wandb: pip install wandb"),
        (args.device == "cuda" and not torch.cuda.is_available(), "--device cuda: PyTorch finds no CUDA device here"),
    ]
    any(fail(message) for wrong, message in rules if wrong)
    if getattr(args, "learning_starts", 0) >= args.total_timesteps:
        log(f"warning: nothing is learned in {args.total_timesteps} steps: --learning-starts is {args.learning_starts}")
    gl = ("egl" if sys.platform == "linux" else "glfw") if args.capture_video else "disable"  # egl draws offscreen
    os.environ.setdefault("MUJOCO_GL", gl)  # before MuJoCo is imported
    if "OMP_NUM_THREADS" not in os.environ:  # leave the workers' cores to them; small matrices gain nothing beyond 4
        torch.set_num_threads(max(1, min(4, torch.get_num_threads() - args.num_envs)))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which deterministic algorithms need
    torch.use_deterministic_algorithms(args.torch_deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a replay buffer is large, and empty at first
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    stop: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: stop.append(number))
    run = None
    try:
        if args.evaluate is not None:
            return play(args, device, stop)
        try:  # before a run directory is made, which may refuse before workers are
            make_env(args.env_id).close()
        except Exception as error:
            fail(f"--env-id {args.env_id} can't be made: {type(error).__name__}: {error}")
        run = Run(args, device, stop)
        with contextlib.closing(WorkerEnvs(args)) as envs:  # forked before threads and CUDA start
            return train(args, run, envs)
    except (OSError, EOFError) as error:  # ChildProcessError is an environment's
        reason = "a simulation worker died" if isinstance(error, (EOFError, ConnectionError)) else str(error)
    except (RuntimeError, MemoryError) as error:
        if "alloc" not in str(error) and "state_dict" not in str(error):
            raise
        fail(f"memory is too small, or the networks are of another version: {str(error)[:250]}")
    if run and run.global_step > run.first_step:
        run.save(now=True)
        reason += "; --resume goes on from the checkpoint"
    fail(f"step {run.global_step}: {reason}" if run else reason, 1)


if __name__ == "__main__":
    sys.exit(main())

# /// script
# requires-python = ">=3.11,<3.15"
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
# [tool.uv]  # labmaze has no wheels for Python 3.13 and later, and only dm_control's mazes use it
# override-dependencies = ["labmaze; python_version < '3.13'"]
# ///
"""TD3 (Fujimoto et al., "Addressing Function Approximation Error in Actor-Critic Methods", arXiv 1802.09477), with the
hyperparameters of CleanRL. `diff td3.py ams_td3.py` shows what Action Manifold Smoothing adds.

    python td3.py --env-id dog-run                                # train; add --resume to go on after a kill
    python td3.py --env-id InvertedPendulum-v5 --total-timesteps 10000 --learning-starts 1000       # done in minutes
    python td3.py --evaluate runs/dog-run__td3__1 --capture-video                    # play what was trained

One step is one vector step: all environments advance once, and one gradient update is made (1M steps = 8M frames).
Actions are in units of half the task's action range, from -1 to 1, in networks, replay buffer and method alike.

Deviations from CleanRL: exploration noise is independent per environment, critics see actions in the units above, every
finished episode is logged, the update runs while the environments simulate (so it draws from the transitions up to the
step before).
"""

import contextlib
import copy
import importlib
import io
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
import zipfile
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import tyro
from tensordict.nn import CudaGraphModule
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Args:
    env_id: str = "dog-run"
    """the task: a dm_control task such as dog-run, any Gymnasium id such as HalfCheetah-v5, or module:Env-v0"""
    exp_name: str = "td3"
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
    """standard deviation of the target noise, in units of half the action range"""
    noise_clip: float = 0.5
    """bound on the target noise, in units of half the action range"""
    action_projection: Literal["tanh", "normalize"] = "tanh"
    """how the actor's output becomes an action: onto the cuboid (tanh) or onto the sphere (normalize)"""


def conflicts(args: Args) -> list:
    """What can be wrong between arguments: whether it is, and what to say then."""
    stored = min(args.learning_starts * args.num_envs, args.buffer_size)
    no_cuda = args.device == "cpu" or not torch.cuda.is_available()
    return [
        (args.buffer_size < args.num_envs, "--buffer-size must hold one step of --num-envs transitions"),
        (args.batch_size > stored, f"only {stored} transitions for a batch: raise --learning-starts"),
        (args.cuda_graphs and no_cuda, "--cuda-graphs needs CUDA"),
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
    """Critic."""

    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.fc1 = nn.Linear(obs_dim + action_dim, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q-values [B] of actions [B, d] in observations [B, obs_dim]."""
        x = self.fc1(torch.cat([observations, actions], dim=1))
        x = F.relu(x, inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
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
        self.qf1 = QNetwork(obs_dim, action_dim)
        self.qf2 = QNetwork(obs_dim, action_dim)
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


@torch.no_grad()
def td_target(agent: Agent, batch: Batch, args: Args) -> Tensor:
    """The TD target y [B], with clipped target noise and the smaller of two critics (arXiv 1802.09477, Algorithm 1)."""
    next_actions = agent.target_actor(batch.next_observations)
    noise = (torch.randn_like(next_actions) * args.policy_noise).clamp(-args.noise_clip, args.noise_clip)
    next_actions = (next_actions + noise).clamp(-1, 1)
    qf1_next = agent.qf1_target(batch.next_observations, next_actions)
    qf2_next = agent.qf2_target(batch.next_observations, next_actions)
    next_q = torch.min(qf1_next, qf2_next)
    return batch.rewards + args.gamma * (1 - batch.terminations) * next_q


def critic_loss(agent: Agent, batch: Batch, next_q_value: Tensor) -> tuple[Tensor, dict]:
    """The squared errors of both critics from the TD target y [B], which update_critics() descends; and what to log."""
    qf1_values = agent.qf1(batch.observations, batch.actions)
    qf2_values = agent.qf2(batch.observations, batch.actions)
    qf1_loss = F.mse_loss(qf1_values, next_q_value)
    qf2_loss = F.mse_loss(qf2_values, next_q_value)
    qf_loss = qf1_loss + qf2_loss
    metrics = {
        "losses/qf1_values": qf1_values,
        "losses/qf2_values": qf2_values,
        "losses/qf1_loss": qf1_loss,
        "losses/qf2_loss": qf2_loss,
        "losses/qf_loss": qf_loss / 2,
    }
    return qf_loss, metrics


def pathway_diagnostics(agent: Agent, batch: Batch, args: Args) -> dict:
    """Numbers from one batch: is the policy saturated, how steep is Q where it acts, how much do the targets vary, and
    how strongly do they pull at the critics?"""
    actions = agent.policy(batch.observations).requires_grad_()
    (gradient,) = torch.autograd.grad(agent.qf1(batch.observations, actions).sum(), actions)
    next_q_value = td_target(agent, batch, args)
    qf_loss, _ = critic_loss(agent, batch, next_q_value)
    critic_gradients = torch.autograd.grad(qf_loss, agent.critic_parameters())
    stages = {
        "diagnostics/saturated_actions": (actions.abs() > 0.99).float().mean(),
        "diagnostics/action_gradient": gradient.norm(dim=1).mean(),
        "diagnostics/td_target_variance": next_q_value.var(correction=0),
        "diagnostics/critic_grad_norm": nn.utils.get_total_norm(critic_gradients),
    }
    return stages


# ---------------------------------------------------------------------------------------------------------- update


def update_critics(agent, q_optimizer, batch, args) -> dict:
    """One step of both critics towards the TD target (arXiv 1802.09477, Algorithm 1). Returns what to log."""
    next_q_value = td_target(agent, batch, args)
    qf_loss, metrics = critic_loss(agent, batch, next_q_value)
    q_optimizer.zero_grad()
    qf_loss.backward()
    q_optimizer.step()
    return metrics


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


def update(agent, q_optimizer, actor_optimizer, args, with_actor, batch):
    """One update of the critics and, if asked, of the actor and the targets, on tensors alone. Returns what to log."""
    metrics = update_critics(agent, q_optimizer, batch, args)
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
        if args.cuda_graphs:
            updates[with_actor] = CudaGraphModule(updates[with_actor])

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
            metrics |= updates[with_actor](batch)

        # Step and store; an environment that ended is reset already, and its last observation is in the infos
        next_obs, rewards, terminations, truncations, infos = envs.step_wait()
        run.global_step += 1
        real_next_obs = next_obs.copy()
        for i in np.flatnonzero(terminations | truncations):
            real_next_obs[i] = infos["final_obs"][i]
        rb.add(obs, real_next_obs, actions, rewards, terminations)
        obs = next_obs.copy()

        # Log, evaluate, save
        if learning and run.reading_is_due():
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
START_METHOD = "fork" if sys.platform == "linux" else "spawn"  # of worker processes
PATIENCE = 3  # seconds to wait for an environment that does not answer: after a signal, and again when it is closed
TRAINING, EVALUATION, WARM_UP, MAKING = range(4)  # independent streams of random numbers
CSV_HEADER = "step,frames,updates,wall_seconds,episode,return,length"

# Arguments that --resume may change: where, how long and how closely watched a run goes on, not the method.
MAY_CHANGE = [
    "total_timesteps",
    "device",
    "cuda_graphs",
    "run_dir",
    "resume",
    "overwrite",
    "checkpoint_frequency",
    "keep_checkpoint",
    "log_frequency",
    "eval_frequency",
    "evaluate",
    "capture_video",
    "track",
]
FRACTIONS = ["gamma", "tau", "gae_lambda"]  # between 0 and 1
MAY_BE_ZERO = [
    *FRACTIONS,
    "seed",
    "learning_starts",
    "exploration_noise",
    "policy_noise",
    "noise_clip",
    "epsilon",
    "alpha",
    "ent_coef",
    "vf_coef",
]


def log(message, file=None):
    """Prints a line; training goes on if nobody can read it."""
    try:
        print(message, file=file, flush=True)
    except OSError:
        pass


def fail(message: str, status: int = 2) -> NoReturn:
    """Ends the program with one line on stderr; status 2 is a user's mistake, 1 something that went wrong."""
    log(f"{ALGORITHM}.py: error: {' '.join(message.split())}", sys.stderr)
    sys.exit(status)


# ------------------------------------------------------------------------------------------------- environments


class Task(gym.Wrapper):
    """Flat float32 observations, actions in [-1, 1]; what fails in the environment becomes a ChildProcessError."""

    def __init__(self, env: gym.Env, index: int = 0):
        self.index = index  # which of the environments this is, for messages
        box = env.action_space
        width = np.inf
        if isinstance(box, gym.spaces.Box) and box.dtype.kind == "f" and len(box.shape) == 1:
            width = box.high.astype(np.float64) - box.low
        if not np.all(width < 1e9) or not env.observation_space.is_np_flattenable:  # 1e10 in dm_control's lqr
            raise ValueError(f"{box}, {env.observation_space}: needed is a vector of bounded continuous actions")
        super().__init__(gym.wrappers.FlattenObservation(env))
        self.action_scale = width / 2
        self.action_bias = box.low + width / 2
        self.action_space = gym.spaces.Box(-1, 1, box.shape)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self.env.observation_space.shape)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            seed_everything(seed)
            self.unwrapped.action_space.seed(seed)
            self.unwrapped.observation_space.seed(seed)
        try:
            observation, _ = self.env.reset(seed=seed, options=options)
            return self.check(observation), {}
        except Exception as error:
            raise self.failure(error) from error

    def step(self, action):
        try:
            if not np.isfinite(action).all():
                raise FloatingPointError("the action is not finite")
            box = self.env.action_space
            action = self.action_scale * action + self.action_bias
            action = np.clip(action, box.low, box.high)  # rounding; RescaleAction is a hair outside
            observation, reward, terminated, truncated, _ = self.env.step(action.astype(box.dtype))
            reward = np.asarray(reward).item()
            if not np.isfinite(np.float32(reward)):
                raise FloatingPointError(f"the reward is {reward}")
            return self.check(observation), reward, bool(terminated), bool(truncated), {}
        except Exception as error:
            if type(error).__name__ != "PhysicsError":  # dm_control's, of a simulation that diverged
                raise self.failure(error) from error
            log(f"{error}; the episode is cut short at its last valid observation")
            return self.last_observation, 0.0, False, True, {}

    def check(self, observation):
        # DtypeObservation would refuse a space that is wider than float32.
        observation = observation.astype(np.float32)
        wanted = self.observation_space.shape
        if observation.shape != wanted:
            raise ValueError(f"the observation has the shape {observation.shape}, its space {wanted}")
        if not np.isfinite(observation).all():
            raise FloatingPointError("the observation is not finite")
        self.last_observation = observation
        return observation

    def failure(self, error):
        return ChildProcessError(f"environment {self.index}: {describe(error)}")

    def close(self):
        try:
            super().close()
        except Exception as error:
            log(f"warning: {self.failure(error)}")
        trainer = multiprocessing.parent_process()
        if not trainer:  # this is no worker
            return
        kill_children()  # whatever close() has left: no simulator outlives a run
        if not trainer.is_alive():  # killed; Gymnasium's worker would print a broken pipe's traceback
            os._exit(1)


def describe(error: Exception) -> str:
    """What went wrong in an environment, as one line; errors of its own code are shown with their traceback, too."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    if place == __file__:  # Task says what is wrong
        return str(error)
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, (gym.error.Error, ImportError)):
        return message
    if place.startswith(gym.__path__[0]):
        return f"{message} (Gymnasium: step() returns 5 values, reset(seed=..., options=...) 2)"
    traceback.print_exception(error)
    return message


def register(env_id: str):
    """Makes dm_control's tasks known to Gymnasium, unless `env_id` is known already."""
    if env_id not in gym.registry and ":" not in env_id:
        importlib.import_module("absl.logging").set_verbosity("error")  # MuJoCo's remarks on dm_control's own models
        with contextlib.redirect_stdout(None):  # without labmaze, shimmy prints which tasks it lacks
            importlib.import_module("shimmy")


def make_env(env_id: str, index: int = 0, film: Path | None = None) -> gym.Env:
    """Makes a task by its Gymnasium id, or by dm_control's (dog-run) and HumanoidBench's (h1-walk) short forms.

    `index` names it in messages. Its first episode is filmed, if `film` says where: {film}-episode-0.mp4.
    """
    options = {}  # render_mode only where it is needed: an environment may not know the argument
    if film:
        options["render_mode"] = "rgb_array"
    if env_id.split("-")[0] in ("h1", "h1hand", "h1simplehand", "h1strong", "h1touch", "g1"):
        env = make_humanoid_bench(env_id, options.get("render_mode"))
    else:
        register(env_id)
        if env_id not in gym.registry and not any(sign in env_id for sign in (":", "/", "-v")):
            env_id = f"dm_control/{env_id}-v0"
        is_dm_control = env_id.startswith("dm_control/")
        if film and is_dm_control:
            options["render_kwargs"] = {"width": 640, "height": 480, "camera_id": 0}
        env = gym.make(env_id, disable_env_checker=True, **options)
        if is_dm_control:
            env.metadata["render_fps"] = 1 / env.unwrapped.dt  # shimmy's is the step in milliseconds
    if film:
        env = gym.wrappers.RecordVideo(env, str(film.parent), lambda episode: episode == 0, name_prefix=film.name)
    return gym.wrappers.RecordEpisodeStatistics(Task(env, index))


def make_humanoid_bench(env_id: str, render_mode: str | None) -> gym.Env:
    """Makes a task of HumanoidBench 791405f, whose pins are of 2024, on today's MuJoCo and Gymnasium."""
    if not find_spec("humanoid_bench"):
        clone = "git clone https://github.com/carlosferrazza/humanoid-bench; git -C humanoid-bench checkout 791405f"
        raise ImportError(f"no HumanoidBench: {clone}; pip install --no-deps -e humanoid-bench")
    sizes = importlib.import_module("dm_control.mujoco.wrapper.mjbindings.sizes")
    sys.modules["humanoid_bench.dmc_deps.dmc_sizes"] = sizes  # its own are of MuJoCo 3.1.6
    sys.modules["humanoid_bench.mjx.flax_to_torch"] = SimpleNamespace(TorchModel=None, TorchPolicy=None)  # needs jax
    importlib.import_module("humanoid_bench")
    name = "h1-sit_simple" if env_id == "h1-sit" else env_id.removesuffix("-v0")
    env = gym.make(f"{name}-v0", render_mode=render_mode, disable_env_checker=True)
    env.unwrapped.render = lambda: env.unwrapped.mujoco_renderer.render("rgb_array")  # its own is of Gymnasium 0.29
    return env


def seed_everything(seed: int):
    """Seeds the generators that an environment may draw from beside its own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def derive_seeds(*key: int, count: int) -> list[int]:
    """`count` seeds, which fit into a C int, of the stream that `key`, such as (seed, TRAINING), names."""
    return (np.random.SeedSequence(key).generate_state(count) >> 1).tolist()


class Output(io.FileIO):
    """Where a worker prints to: its environment goes on if nobody reads it (`| head -1`) or a disk is full."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError:
            return len(data)  # as if it were written


def leave_signals_to_trainer():
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: None)  # simulators would inherit SIG_IGN, and a SIGTERM must end them


def become_worker(seed: int):
    """Sets up the process of an environment, before it is made."""
    leave_signals_to_trainer()
    os.nice(5)  # where cores are scarce, a step is as long as the learner: workers take what it leaves
    torch.set_num_threads(1)
    sys.stdout = io.TextIOWrapper(Output(1, "w", closefd=False), line_buffering=True)
    sys.stderr = io.TextIOWrapper(Output(2, "w", closefd=False), line_buffering=True)
    seed_everything(seed)


def send_spaces(args: Args, answers):
    """What the process of find_spaces does."""
    become_worker(*derive_seeds(args.seed, MAKING, count=1))
    try:
        env = make_env(args.env_id)
    except Exception as error:
        answers.send(describe(error))
        return
    if env.has_wrapper_attr("obs_rms") or env.has_wrapper_attr("return_rms"):
        log(f"warning: {args.env_id} normalizes by statistics that no checkpoint has: each start begins with new ones")
    answers.send([env.observation_space, env.action_space])
    env.close()


def find_spaces(args: Args) -> list[gym.Space]:
    """The observation and action space of the task; ends the program if it can't be made.

    It is made in a process of its own, because an environment may change its process: signal handlers, folder,
    PyTorch's settings. The trainer's process runs no environment's code.
    """
    if START_METHOD == "fork":
        register(args.env_id)  # what this imports, the workers share
    context = multiprocessing.get_context(START_METHOD)
    answers, childs_end = context.Pipe(duplex=False)
    process = context.Process(target=send_spaces, args=(args, childs_end), daemon=True)
    process.start()
    childs_end.close()
    try:
        answer = answers.recv()
        process.join(PATIENCE)
    except EOFError:
        process.join()
        answer = f"its process ended with status {process.exitcode}"
    finally:
        kill(process)
    if isinstance(answer, str):
        fail(f"--env-id {args.env_id} can't be made: {answer}")
    return answer


def make_in_worker(args: Args, index: int, film: Path | None, spaces: list[gym.Space], trainer: int) -> gym.Env:
    """Makes environment `index` in its worker process; the first is filmed, if `film` says where."""
    if os.getpid() == trainer:  # AsyncVectorEnv makes one there to read its spaces, which are known
        env = gym.Env()
        env.observation_space, env.action_space = spaces
        return env
    become_worker(*derive_seeds(args.seed, MAKING, index, count=1))
    warnings.simplefilter("ignore")  # find_spaces has shown them
    gym.logger.min_level = gym.logger.ERROR + 1
    try:
        env = make_env(args.env_id, index, film if index == 0 else None)
    except Exception as error:
        fail(f"environment {index} can't be made: {describe(error)}")
    leave_signals_to_trainer()  # again, whatever the environment has set
    return env


class WorkerEnvs(gym.vector.AsyncVectorEnv):
    """A task in worker processes, each reset in the step that ends its episode; the last observation is in the infos.

    No wait for a process that is dead or hangs lasts for ever. `stop` holds the signals that came.
    """

    def __init__(self, args: Args, spaces: list[gym.Space], stop: list[int], film: Path | None = None):
        self.stop = stop
        self.parent_pipes = []
        self.processes = []
        trainer = os.getpid()
        makers = [partial(make_in_worker, args, index, film, spaces, trainer) for index in range(args.num_envs)]
        gym.logger.min_level = gym.logger.ERROR + 1  # what fails becomes one line of ours
        try:
            super().__init__(makers, copy=False, context=START_METHOD, autoreset_mode="SameStep")
            hear_signals(stop)
        except BaseException as error:
            self.close_extras()
            if isinstance(error, SystemExit):  # at a signal
                raise
            fail(f"--env-id {args.env_id} can't be made: {what_failed(error)}")

    def reset_wait(self, timeout=None):
        self.wait_for_answers()
        return super().reset_wait(timeout)

    def step_wait(self, timeout=None):
        self.wait_for_answers()
        return super().step_wait(timeout)

    def wait_for_answers(self):
        """Waits until every worker has answered or died; PATIENCE seconds after a signal it gives up."""
        waiting = set(self.parent_pipes)
        end = math.inf
        while waiting:
            waiting -= set(multiprocessing.connection.wait(waiting, timeout=1))
            if self.stop:
                end = min(end, time.monotonic() + PATIENCE)
            if waiting and time.monotonic() > end:
                raise TimeoutError("an environment does not answer")

    def close_extras(self, **_):
        """Tells the workers to close their environments, and kills those that have not after PATIENCE seconds."""
        for pipe in self.parent_pipes:
            try:
                if pipe:
                    pipe.send(("close", None))
            except OSError:  # its worker is gone
                pass
        end = time.monotonic() + PATIENCE
        for process in self.processes:
            if process.pid:
                process.join(max(0, end - time.monotonic()))
                kill(process)


def kill(process):
    """Kills a process that has not ended, and all that it started."""
    if process.is_alive():
        kill_children(process.pid)
        process.kill()


def kill_children(pid: int | None = None):
    """Kills all that a process, by default this one, has started."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            child.kill()


def what_failed(error: BaseException) -> str:
    if isinstance(error, (EOFError, ConnectionError)):
        return "a simulation worker died"
    return str(error)


# --------------------------------------------------------------------------------------------------- evaluation


def evaluate(policy, envs, seed: int, episodes: int, device, stop) -> tuple[np.ndarray, np.ndarray] | None:
    """Plays `policy` from the evaluation seeds; returns `episodes` returns and lengths, None if `stop` fills before."""
    seeds = derive_seeds(seed, EVALUATION, count=episodes + envs.num_envs)
    returns = []
    lengths = []
    while len(returns) < episodes:
        observations, _ = envs.reset(seed=seeds[len(returns) : len(returns) + envs.num_envs])
        episode_returns = np.zeros(envs.num_envs)
        episode_lengths = np.zeros(envs.num_envs, dtype=int)
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
        returns += episode_returns.tolist()
        lengths += episode_lengths.tolist()
    return np.array(returns[:episodes]), np.array(lengths[:episodes])


def play(args: Args, device: torch.device, stop: list[int]) -> int:
    """--evaluate: prints the returns of a trained policy and, with --capture-video, films the first episode."""
    path = Path(args.evaluate).expanduser().absolute()
    if path.is_dir():
        networks = [file for file in sorted(path.glob("*.pt")) if file.name != "checkpoint.pt"]
        path = networks[0] if networks else path / "checkpoint.pt"
    saved = load_file(path)
    trained = {name: value for name, value in saved["args"].items() if name not in MAY_CHANGE}
    args = tyro.cli(Args, description=__doc__, default=Args(**trained))  # what is not given is as it was trained
    refuse_changes(path, saved["args"], asdict(args), [*MAY_CHANGE, "seed", "num_envs", "eval_episodes"])
    name = f"{path.stem}_step{saved['global_step']}"
    film = path.with_name(name) if args.capture_video else None
    with contextlib.closing(WorkerEnvs(args, find_spaces(args), stop, film)) as envs:
        agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.shape[0], args).to(device)
        agent.load_state_dict(saved["agent"])
        try:
            result = evaluate(agent.policy, envs, args.seed, args.eval_episodes, device, stop)
        except TimeoutError:  # a signal came, and an environment does not answer
            result = None
        except ChildProcessError as error:
            if film:
                fail(f"no video: {error}; if OpenGL is missing: apt install libegl1 libgl1-mesa-dri", 1)
            raise
    if result is None:
        return 128 + stop[0]
    returns, lengths = result
    for episode_return, length in zip(returns, lengths, strict=True):
        log(f"return {episode_return:.2f}, {length} steps")
    log(f"{name}: mean {returns.mean():.2f}, std {returns.std():.2f} over {len(returns)} episodes")
    if film:
        log(f"video: {film}-episode-0.mp4")
    return 0


# -------------------------------------------------------------------------------------------------------- files


def replace_file(path: Path, content):
    """Replaces a file in one step, so that a kill at any moment leaves the old one or the new one."""
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "wb") as file:
            if path.suffix == ".pt":
                torch.save(content, file)
            elif path.suffix == ".json":
                file.write(json.dumps(content, indent=2, allow_nan=False).encode())
            else:
                file.write(content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except (OSError, RuntimeError) as error:  # torch's of a full disk is a RuntimeError
        new.unlink(missing_ok=True)
        raise OSError(f"{path} can't be written, what was there before is kept: {error}") from error


def load_file(path: Path) -> dict:
    """Reads what this script saved, onto the CPU; ends the program if that is something else."""
    try:
        damaged = zipfile.ZipFile(path).testzip()  # by the checksums, which torch does not look at
        if damaged:
            raise ValueError(f"{damaged} in it is damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["algorithm"] != ALGORITHM:
            raise ValueError(f"{saved['algorithm']}.py wrote it")
        if saved["args"].keys() != asdict(Args()).keys() or "agent" not in saved:
            raise ValueError("another version wrote it")
        return saved
    except Exception as error:  # what a damaged file raises is as varied as the damage
        first_line = str(error).partition("\n")[0]
        fail(f"{path} is missing, damaged or foreign: {type(error).__name__}: {first_line}")


# ------------------------------------------------------------------------------------------------ run directory


class Run:
    """A run directory: its lock, logs, evaluations and checkpoint, and the counters of training."""

    def __init__(self, args: Args, device: torch.device, stop: list[int]):
        name = f"{args.env_id.replace('/', '_')}__{args.exp_name}__{args.seed}"
        self.dir = Path(args.run_dir or f"runs/{name}").expanduser().absolute()
        if not str(self.dir).isprintable():
            fail(f"--run-dir {str(self.dir)!r} has a character that TensorBoard can't write")
        self.args = args
        self.device = device
        self.stop = stop  # the signals that came
        self.rng = np.random.default_rng(derive_seeds(args.seed, WARM_UP, count=1))
        self.global_step = 0
        self.updates = 0
        self.wall_seconds = 0  # up to the checkpoint
        self.evaluations = [CSV_HEADER]  # lines
        self.episodes = []  # [step, return] of the training episodes
        self.metrics = {}  # of the updates since the last reading
        self.training_return = "-"
        self.evaluation = "-"
        self.wandb_id = f"{name}-{int(time.time())}"
        self.open_directory()

    def open_directory(self):
        """Makes and locks the directory; ends the program if it can't be used with these arguments."""
        import fcntl  # Windows lacks it

        was = None
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            if any(self.dir.glob("[!.]*")):
                was = json.loads((self.dir / "args.json").read_text())
                if "algorithm" not in was:
                    raise ValueError("its args.json is not that of a run")
            self.lock = open(self.dir / ".lock", "w")  # held until the process ends, however it ends
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"--run-dir {self.dir} can't be used: another process is training there", os.EX_TEMPFAIL)
        except (OSError, ValueError) as error:
            fail(f"--run-dir {self.dir} can't be used; it must be new, empty or that of a run: {error}")
        if was is None or self.args.overwrite:
            return
        if not self.args.resume:
            fail(f"{self.dir} exists; --resume goes on with it, --overwrite deletes it, --run-dir goes elsewhere")
        may_change = MAY_CHANGE
        if getattr(self.args, "anneal_lr", False):
            may_change = [name for name in MAY_CHANGE if name != "total_timesteps"]  # it sets the step size
        refuse_changes(self.dir, was, {"algorithm": ALGORITHM, **asdict(self.args)}, may_change)
        if not (self.dir / "result.json").exists():
            return
        if self.args.total_timesteps <= was["total_timesteps"]:
            log(f"{self.dir} is complete")
            sys.exit(0)
        if not (self.dir / "checkpoint.pt").exists():
            fail(f"{self.dir} is complete at step {was['total_timesteps']}; only --keep-checkpoint lets it go on")

    def restore(self, **parts):
        """Loads counters, random states and `parts` from the checkpoint, if any, and opens the logs as of then."""
        self.parts = parts
        if self.args.overwrite:  # only now that nothing can be wrong; a kill leaves the folder of an unfinished run
            for pattern in ("result.json", "*.pt", "events.out.tfevents.*", "*.csv", "*.mp4", "args.json"):
                for old in self.dir.glob(pattern):
                    old.unlink()
        path = self.dir / "checkpoint.pt"
        resumed = path.exists()
        if resumed:
            checkpoint = load_file(path)
            self.global_step = checkpoint["global_step"]
            self.updates = checkpoint["updates"]
            self.wall_seconds = checkpoint["wall_seconds"]
            self.evaluations = checkpoint["evaluations"]
            self.episodes = checkpoint["episodes"]
            self.wandb_id = checkpoint["wandb_id"]
            self.rng.bit_generator.state = checkpoint["numpy_rng"]
            torch.set_rng_state(checkpoint["torch_rng"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state_all(checkpoint["cuda_rng"][: torch.cuda.device_count()])
            for name, part in parts.items():
                if isinstance(part, optim.Optimizer):  # its settings follow from this run's device
                    checkpoint[name]["param_groups"] = part.state_dict()["param_groups"]
                part.load_state_dict(checkpoint[name])
            for name in ("result.json", f"{self.args.exp_name}.pt"):  # of a run that is made longer
                (self.dir / name).unlink(missing_ok=True)
        args = asdict(self.args)
        replace_file(self.dir / "args.json", {"algorithm": ALGORITHM, **args})
        replace_file(self.dir / "evaluations.csv", "\n".join(self.evaluations) + "\n")
        if self.args.track:
            wandb = importlib.import_module("wandb")
            wandb.init(name=self.dir.name, id=self.wandb_id, resume="allow", config=args, sync_tensorboard=True)
        threading.excepthook = hide_write_errors
        # Readers skip what older files have from this step on: what was logged after the checkpoint, or all.
        self.writer = SummaryWriter(self.dir, purge_step=self.global_step + 1 if resumed else 0)
        rows = "".join(f"|{name}|{value}|\n" for name, value in args.items())
        self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        self.first_step = self.global_step  # of this process
        self.saved_step = self.global_step
        self.logged_step = self.global_step
        self.logged_time = time.monotonic()
        self.started = time.monotonic() - self.wall_seconds
        self.over = self.global_step >= self.args.total_timesteps
        log(f"{ALGORITHM} trains {self.args.env_id} from step {self.global_step:,} to {self.args.total_timesteps:,}")
        log(f"on {self.device} ({torch.get_num_threads()} learner threads), in {self.dir}")
        log("Ctrl-C saves and stops; the same command with --resume goes on")

    def reset(self, envs: WorkerEnvs) -> np.ndarray:
        """Begins new episodes, from this step's own seeds: simulators are not saved, and play the evaluations too."""
        seeds = derive_seeds(self.args.seed, TRAINING, self.global_step, count=envs.num_envs)
        return envs.reset(seed=seeds)[0].copy()

    def log_scalars(self, scalars: dict[str, float]):
        """Writes scalars of the current step to TensorBoard, at once: a checkpoint relies on what is before it."""
        try:
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, self.global_step)
            self.writer.flush()
        except OSError as error:
            raise OSError(f"TensorBoard's log in {self.dir} can't be written: {error}") from error

    def evaluate(self, policy, envs: WorkerEnvs) -> bool:
        """Every --eval-frequency steps and at the end, plays the policy; returns whether the environments did so."""
        step = self.global_step
        args = self.args
        due = step % args.eval_frequency == 0 or step >= args.total_timesteps
        if not due or self.evaluations[-1].startswith(f"{step},"):
            return False
        result = evaluate(policy, envs, args.seed, args.eval_episodes, self.device, self.stop)
        if result is None:  # a signal came: the resumed run evaluates at this step
            self.save()
            return True
        seconds = time.monotonic() - self.started
        for episode, (episode_return, length) in enumerate(zip(*result, strict=True)):
            counters = f"{step},{step * args.num_envs},{self.updates},{seconds:.3f}"
            self.evaluations.append(f"{counters},{episode},{episode_return},{length}")
        replace_file(self.dir / "evaluations.csv", "\n".join(self.evaluations) + "\n")
        mean = result[0].mean()
        std = result[0].std()
        self.log_scalars({"eval/episodic_return": mean, "eval/episodic_return_std": std})
        self.evaluation = f"{mean:.1f}"
        log(f"step {step:,}: evaluation {mean:.1f} +/- {std:.1f}")
        return True

    def reading_is_due(self) -> bool:
        return self.global_step % self.args.log_frequency == 0 or self.global_step >= self.args.total_timesteps

    def log_step(self, infos: dict, metrics: dict[str, Tensor]):
        """Logs the episodes that ended in this step and, every --log-frequency steps, metrics and counters."""
        step = self.global_step
        self.metrics |= metrics
        if "final_info" in infos:
            ended = infos["_final_info"]
            returns = infos["final_info"]["episode"]["r"][ended]
            lengths = infos["final_info"]["episode"]["l"][ended]
            self.episodes += [[step, episode_return] for episode_return in returns.tolist()]
            self.training_return = f"{returns.mean():.1f}"
            self.log_scalars({"charts/episodic_return": returns.mean(), "charts/episodic_length": lengths.mean()})
        if not self.reading_is_due():
            return
        values = torch.tensor([metric.mean() for metric in self.metrics.values()]).tolist()
        scalars = dict(zip(self.metrics, values, strict=True))
        for tag, value in scalars.items():
            if not math.isfinite(value):
                fail(f"step {step}: {tag} is not finite; the checkpoint is left as it was", 1)
        sps = (step - self.logged_step) / (time.monotonic() - self.logged_time)
        self.logged_step = step
        self.logged_time = time.monotonic()
        scalars["charts/SPS"] = sps
        scalars["charts/frames"] = step * self.args.num_envs
        scalars["charts/updates"] = self.updates
        self.log_scalars(scalars)
        self.metrics = {}  # what no update has renewed by the next time is not logged again
        hours = (self.args.total_timesteps - step) / sps / 3600
        returns = f"return {self.training_return}, evaluation {self.evaluation}"
        log(f"step {step:,}: {returns}, SPS {sps:.0f}, {hours:.1f} h left")

    def save(self, now: bool = False):
        """Saves all that --resume needs every --checkpoint-frequency steps, at a signal, or `now`; sets `over`."""
        step = self.global_step
        finished = step >= self.args.total_timesteps
        self.over = finished or bool(self.stop)
        due = step % self.args.checkpoint_frequency == 0
        if finished:  # the result follows
            due = self.args.keep_checkpoint
        if step == self.saved_step or not (due or now or self.stop):
            return
        for name, value in self.parts["agent"].state_dict().items():
            if not value.isfinite().all():
                fail(f"step {step}: the network's {name} is not finite; the checkpoint is left as it was", 1)
        checkpoint = {
            "algorithm": ALGORITHM,
            "args": asdict(self.args),
            "global_step": step,
            "updates": self.updates,
            "wall_seconds": time.monotonic() - self.started,
            "evaluations": self.evaluations,
            "episodes": self.episodes,
            "wandb_id": self.wandb_id,
            "numpy_rng": self.rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        for name, part in self.parts.items():
            checkpoint[name] = part.state_dict()
        replace_file(self.dir / "checkpoint.pt", checkpoint)
        self.saved_step = step

    def finish(self, agent: "Agent") -> int:
        """Writes the networks and the result, or says what stopped the run; returns the exit status."""
        step = self.global_step
        args = self.args
        returns = [float(row.split(",")[5]) for row in self.evaluations if row.startswith(f"{step},")]
        if step < args.total_timesteps or not returns:
            log(f"stopped by {signal.Signals(self.stop[0]).name} at step {step:,}; --resume goes on")
            return 128 + self.stop[0]
        seconds = time.monotonic() - self.started
        mean = np.mean(returns)
        std = np.std(returns)
        last = [episode_return for at, episode_return in self.episodes if at > 0.9 * step]
        packages = ["torch", "numpy", "gymnasium", "shimmy", "dm_control", "mujoco"]
        saved = {"algorithm": ALGORITHM, "args": asdict(args), "global_step": step}
        result = {
            **saved,
            "exp_name": args.exp_name,
            "env_id": args.env_id,
            "seed": args.seed,
            "frames": step * args.num_envs,
            "updates": self.updates,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else f"cpu, {os.cpu_count()} cores",
            "threads": torch.get_num_threads(),
            "wall_seconds": seconds,
            "sps": step / seconds,
            "final_evaluation": {"mean": mean, "std": std, "returns": returns},
            "training_return_last_10_percent": np.mean(last) if last else None,
            "versions": {name: version(name) for name in packages if find_spec(name)},
            "python": sys.version.split()[0],
        }
        replace_file(self.dir / f"{args.exp_name}.pt", {**saved, "agent": agent.state_dict()})
        replace_file(self.dir / "result.json", result)
        if not args.keep_checkpoint:
            (self.dir / "checkpoint.pt").unlink(missing_ok=True)
        log(f"complete: evaluation {mean:.1f} +/- {std:.1f} over {len(returns)} episodes; all is in {self.dir}")
        log(f"to see it: python {ALGORITHM}.py --evaluate {self.dir} --capture-video")
        log(f"its curves: tensorboard --logdir {self.dir}, or python plot_curves.py {self.dir}")
        return 0


def hide_write_errors(failure):
    """Keeps TensorBoard's thread silent about what it can't write, since log_scalars raises the same."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


# ------------------------------------------------------------------------------------------------- command line


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def refuse_changes(path: Path, was: dict, now: dict, may_change: list[str]):
    """Ends the program if an argument is not as the run in `path` was trained with."""
    for name in now:
        if name not in may_change and was.get(name) != now[name]:
            fail(f"{path} was trained with {flag(name)} {was.get(name)}, not {now[name]}")


def check_args(args: Args):
    """Ends the program at the first argument that can't be right."""
    for name, value in vars(args).items():
        if type(value) not in (int, float):
            continue
        most = 1 if name in FRACTIONS else 2**63 - 1
        if not 0 <= value <= most:
            fail(f"{flag(name)} must be between 0 and {most}, not {value}")
        if value == 0 and name not in MAY_BE_ZERO:
            fail(f"{flag(name)} must be positive, not 0")
    rules = [
        *conflicts(args),
        (args.exp_name in ("", "checkpoint") or "/" in args.exp_name, "--exp-name must be good for a file name"),
        (args.resume and args.overwrite, "--resume goes on with a run and --overwrite deletes it: give one of them"),
        (args.capture_video and args.evaluate is None, "--capture-video goes with --evaluate RUN_DIR_OR_FILE"),
        (args.track and not find_spec("wandb"), "--track needs wandb: pip install wandb"),
        (args.device == "cuda" and not torch.cuda.is_available(), "--device cuda: PyTorch finds no CUDA device here"),
    ]
    for wrong, message in rules:
        if wrong:
            fail(message)
    if getattr(args, "learning_starts", 0) >= args.total_timesteps:
        log(f"warning: nothing is learned in {args.total_timesteps} steps: --learning-starts is {args.learning_starts}")


def set_handlers(handler):
    """Calls `handler(signum, frame)` at Ctrl-C, SIGTERM and SIGHUP, the last unless it is ignored, as under nohup."""
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handler)


def end_at_once(signum: int, frame):
    """The handler until the environments are made: there is nothing to save."""
    if multiprocessing.parent_process():  # a worker, before it leaves signals to the trainer
        return
    fail(f"stopped by {signal.Signals(signum).name} before the first step", 128 + signum)


def hear_signals(stop: list[int]):
    """From here on a signal is put into `stop`, at which training saves and ends; a second Ctrl-C ends it at once."""

    def hear(signum, frame):
        if signum == signal.SIGINT and signum in stop:
            set_handlers(signal.SIG_IGN)  # a third one would come in between
            for process in multiprocessing.active_children():
                kill(process)
            os._exit(128 + signum)
        stop.append(signum)

    set_handlers(hear)


def train_in_workers(args: Args, device: torch.device, stop: list[int]) -> int:
    """Trains, and saves the last whole step if an environment fails or hangs; returns the exit status."""
    spaces = find_spaces(args)
    run = Run(args, device, stop)  # before workers are started: a finished or busy run answers at once
    try:
        with contextlib.closing(WorkerEnvs(args, spaces, stop)) as envs:  # before threads and CUDA start
            return train(args, run, envs)
    except TimeoutError:  # a signal came, and an environment does not answer
        run.save(now=True)
        return run.finish(run.parts["agent"])
    except (ChildProcessError, ConnectionError, EOFError) as error:
        reason = f"step {run.global_step}: {what_failed(error)}"
        if run.global_step > run.first_step:
            run.save(now=True)
            reason += "; --resume goes on from the checkpoint"
        fail(reason, 1)


def main() -> int:
    """Reads the command line, and trains or plays; returns the exit status."""
    if os.name == "nt":
        fail("Linux or macOS is needed, or Windows by WSL")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # is there a GPU? It is not started before a fork
    args = tyro.cli(Args, description=__doc__)
    check_args(args)
    set_handlers(end_at_once)
    offscreen = "egl" if sys.platform == "linux" else "glfw"
    os.environ.setdefault("MUJOCO_GL", offscreen if args.capture_video else "disable")  # before MuJoCo is imported
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which deterministic algorithms need
    torch.use_deterministic_algorithms(args.torch_deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a replay buffer is large, and empty at first
    if "OMP_NUM_THREADS" not in os.environ:  # leave the workers' cores to them; small matrices gain nothing beyond 4
        torch.set_num_threads(max(1, min(4, torch.get_num_threads() - args.num_envs)))
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    stop = []  # the signals that come
    try:
        if args.evaluate is None:
            return train_in_workers(args, device, stop)
        return play(args, device, stop)
    except (OSError, EOFError) as error:
        fail(what_failed(error), 1)
    except (RuntimeError, MemoryError) as error:
        if "alloc" not in str(error).lower() and "state_dict" not in str(error):
            raise
        fail(f"memory is too small, or the networks are of another version: {str(error)[:250]}")


if __name__ == "__main__":
    sys.exit(main())

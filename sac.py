# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#     "dm_control==1.0.50",
#     "gymnasium==1.4.0",
#     "imageio==2.38.1",
#     "imageio-ffmpeg==0.8.1",
#     "mujoco==3.17.0",
#     "numpy==2.4.6",
#     "psutil==7.2.2",
#     "tensorboard==2.21.0",
#     "torch==2.13.0",
#     "tqdm==4.70.1",
#     "tyro==1.0.17",
# ]
# ///
"""SAC (Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905; first in arXiv 1801.01290),
with the hyperparameters of CleanRL. `diff sac.py ams_sac.py` shows what Action Manifold Smoothing adds.

    python sac.py --env-id dog-run                                # train; add --resume to go on after a kill
    python sac.py --env-id cheetah-run --total-timesteps 20000 --learning-starts 1000    # something in minutes
    python sac.py --evaluate runs/dog-run__sac__1 --capture-video                        # play what was trained

One step is one vector step: all environments advance once, and one gradient update is made (1M steps = 8M frames).

Deviations from CleanRL: the density of a squashed action is exact (no constant is added inside its logarithm), every
finished episode is logged, the update runs while the environments simulate (so it draws from the transitions up to the
step before).
"""

import contextlib
import copy
import ctypes
import difflib
import fcntl
import importlib
import io
import json
import logging
import math
import multiprocessing.connection
import os
import platform
import re
import signal
import sys
import threading
import time
import types
import warnings
import zipfile
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import tyro
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

ALGORITHM = "sac"

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class Args:
    env_id: str = "dog-run"
    """the task: a dm_control task such as dog-run or cheetah-run, or any Gymnasium id such as HalfCheetah-v5"""
    exp_name: str = ALGORITHM
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
    """go on from the newest checkpoint in the run directory, or start if there is none"""
    overwrite: bool = False
    """delete the run that is in the run directory, and start"""
    checkpoint_frequency: int = 50_000
    """steps between checkpoints; one is also saved on SIGTERM and SIGINT"""
    keep_checkpoint: bool = False
    """keep the last two checkpoints (with the replay buffer of their steps) when the run is complete"""
    log_frequency: int = 1000
    """steps between two readings of losses, counters and diagnostics"""
    eval_frequency: int = 10_000
    """steps between two evaluations"""
    eval_episodes: int = 10
    """deterministic episodes in an evaluation"""
    evaluate: str | None = None
    """play the trained policy in this run directory or .pt file, for --eval-episodes episodes, instead of training"""
    capture_video: bool = False
    """with --evaluate: write the first episode as an mp4 beside the networks"""
    track: bool = False
    """send the TensorBoard scalars to Weights & Biases too (pip install wandb; WANDB_PROJECT says where)"""

    policy_lr: float = 3e-4
    """step size of Adam, for the actor"""
    q_lr: float = 1e-3
    """step size of Adam, for the critics and the entropy coefficient"""
    buffer_size: int = 1_000_000
    """transitions in the replay buffer"""
    gamma: float = 0.99
    """discount factor, in [0, 1]"""
    tau: float = 0.005
    """part of the way that the target networks move towards the networks at each target update, in [0, 1]"""
    batch_size: int = 256
    """transitions in an update"""
    learning_starts: int = 5_000
    """steps of uniformly random actions, without updates, before learning"""
    updates_per_step: int = 1
    """gradient updates of the critics per step"""
    policy_frequency: int = 2
    """updates of the critics between two updates of the actor, which is then updated as many times in a row"""
    autotune: bool = True
    """learn the entropy coefficient, for an entropy of minus the action dimension; --no-autotune keeps --alpha"""
    alpha: float = 0.2
    """entropy coefficient (only with --no-autotune; a learned one starts at 1)"""


# Arguments that a resumed run may change, because they don't change what is learned.
MAY_CHANGE_ON_RESUME = """total_timesteps device cuda_graphs run_dir resume overwrite checkpoint_frequency
keep_checkpoint log_frequency eval_frequency evaluate capture_video track""".split()
POSITIVE = """total_timesteps num_envs checkpoint_frequency log_frequency eval_frequency eval_episodes policy_lr q_lr
buffer_size batch_size updates_per_step policy_frequency""".split()
NOT_NEGATIVE = "seed learning_starts alpha".split()


def fail(message: str, status: int = 2):
    """Ends the program with one line on stderr and an exit status."""
    print(f"{ALGORITHM}.py: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def parse_args() -> Args:
    """Reads the command line. What tyro says of a wrong flag or value, in a box, becomes one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(Args, description=__doc__)
    except SystemExit as ended:
        if ended.code:
            words = re.sub(r"\x1b\[[\d;]*m|[│─]", "", "".join(box.getvalue().splitlines(True)[1:-1])).split()
            fail(" ".join(words))
        raise


def check_args(args) -> None:
    """Ends the program, with one line, at the first argument that can't be right."""
    for name, value in vars(args).items():
        flag = "--" + name.replace("_", "-")
        if name in POSITIVE and not 0 < value < math.inf:
            fail(f"{flag} must be positive, not {value}")
        if name in NOT_NEGATIVE and not 0 <= value < math.inf:
            fail(f"{flag} must be zero or more, not {value}")
        if name in ("gamma", "tau") and not 0 <= value <= 1:
            fail(f"{flag} must be between 0 and 1, not {value}")
    if args.buffer_size < args.num_envs:
        fail(f"--buffer-size {args.buffer_size} does not hold one step of --num-envs {args.num_envs}")
    stored = min(args.learning_starts * args.num_envs, args.buffer_size)
    if args.batch_size > stored:
        where = (
            f"--learning-starts {args.learning_starts}, --num-envs {args.num_envs}, --buffer-size {args.buffer_size}"
        )
        fail(f"--batch-size {args.batch_size} is more than the {stored} transitions of the first update ({where})")
    if args.seed >= 2**63:
        fail(f"--seed must be less than 2**63, not {args.seed}")
    if not args.exp_name or "/" in args.exp_name or args.exp_name.startswith("checkpoint"):
        fail(f"--exp-name {args.exp_name!r} can't name the networks' file: not empty, no /, not checkpoint...")
    if args.resume and args.overwrite:
        fail("--resume goes on with a run and --overwrite deletes it: give one of them")
    if args.capture_video and args.evaluate is None:
        fail("--capture-video goes with --evaluate RUN_DIR_OR_FILE")
    if args.track and not getattr(find_spec("wandb"), "origin", None):
        fail("--track needs Weights & Biases: pip install wandb")
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto")
    if args.cuda_graphs and (args.device == "cpu" or not torch.cuda.is_available()):
        fail("--cuda-graphs needs a CUDA device")


# ----------------------------------------------------------------------------------------------------- environment

H1_TASKS = {f"h1-{task}": f"h1-{task}-v0" for task in ("slide", "walk", "run")} | {"h1-sit": "h1-sit_simple-v0"}
HUMANOID_BENCH_INSTALL = (
    "git clone https://github.com/carlosferrazza/humanoid-bench && git -C humanoid-bench checkout 791405f; "
    "pip install --no-deps -e humanoid-bench"
)


def register_humanoid_bench(env_id: str) -> bool:
    """Registers HumanoidBench's tasks if `env_id` is one of them, and says so; ends the program if it's missing.

    Two of its modules are replaced before the import. Its copy of dm_control's field table is frozen at mujoco 3.1.6,
    while dm_control's own fits the installed one; and flax_to_torch needs jax, for policies that no task here uses.
    """
    if env_id.split("-")[0] not in ("h1", "h1hand", "h1simplehand", "h1strong", "h1touch", "g1"):
        return False
    from dm_control.mujoco.wrapper.mjbindings import sizes

    policies = types.ModuleType("humanoid_bench.mjx.flax_to_torch")
    policies.TorchModel = policies.TorchPolicy = None
    sys.modules["humanoid_bench.dmc_deps.dmc_sizes"] = sizes
    sys.modules["humanoid_bench.mjx.flax_to_torch"] = policies
    try:
        importlib.import_module("humanoid_bench")
    except ImportError as error:
        fail(f"--env-id {env_id} needs HumanoidBench ({error}): {HUMANOID_BENCH_INSTALL}")
    return True


def find_env_id(env_id: str) -> str:
    """The id of a task here: `dog-run` for dm_control/dog-run-v0, `h1-walk` for h1-walk-v0, else a Gymnasium id as it
    is. An unknown id ends the program with the closest ones."""
    from dm_control import suite

    tasks = {f"dm_control/{domain}-{task}-v0": f"{domain}-{task}" for domain, task in suite.ALL_TASKS}
    tasks |= {full: short for short, full in H1_TASKS.items()}
    if env_id in tasks or env_id in tasks.values():
        register_humanoid_bench(env_id)
        return tasks.get(env_id, env_id)
    try:
        register_humanoid_bench(env_id)
        module, _, name = env_id.rpartition(":")  # module:Env-v0 is registered by importing the module
        if module:
            importlib.import_module(module)
        gym.spec(name)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        short = env_id.removeprefix("dm_control/").removesuffix("-v0")
        near = difflib.get_close_matches(short, [*tasks.values(), *gym.registry], n=3, cutoff=0.4)
        fail(f"--env-id {env_id} is unknown ({error}); the closest: {', '.join(near) or 'none'}")
    return env_id


class DMControlEnv(gym.Env):
    """A dm_control task as a Gymnasium environment, with nothing around dm_control's own step but one concatenation.

    Observations are the task's arrays, flattened and joined in the order of its `observation_spec()`, in float32.
    dm_control ends an episode with discount 0 when the task is over, and with discount 1 at the time limit.
    """

    def __init__(self, env_id: str, render_mode: str | None = None):
        from dm_control import suite
        from dm_control.rl.control import PhysicsError

        logging.getLogger("absl").setLevel(logging.ERROR)  # MuJoCo's remarks on dm_control's own models
        self.env = suite.load(*env_id.split("-", 1))
        self.physics_error = PhysicsError
        spec = self.env.action_spec()
        self.action_space = gym.spaces.Box(spec.minimum.astype(np.float32), spec.maximum.astype(np.float32))
        obs_dim = sum(math.prod(array.shape) for array in self.env.observation_spec().values())
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 1 / self.env.control_timestep()}
        self.render_mode = render_mode

    def flatten(self, time_step) -> np.ndarray:
        self.last_obs = np.concatenate([np.ravel(a) for a in time_step.observation.values()], dtype=np.float32)
        return self.last_obs

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.env.task.random.seed(seed)
        return self.flatten(self.env.reset()), {}

    def step(self, action: np.ndarray):
        try:
            time_step = self.env.step(action)
        except self.physics_error:
            # The simulation diverged and there is no next state: the episode stops at the last valid observation.
            return self.last_obs, 0.0, False, True, {"physics_error": True}
        terminated = time_step.last() and time_step.discount == 0
        return self.flatten(time_step), time_step.reward, terminated, time_step.last() and not terminated, {}

    def render(self) -> np.ndarray:
        return self.env.physics.render(480, 640, camera_id=0)

    def close(self) -> None:
        self.env.physics.free()


class GymnasiumEnv(gym.Wrapper):
    """A Gymnasium task with flat float32 observations, and without infos, which would cross processes at each step."""

    def __init__(self, env_id: str, render_mode: str | None = None):
        self.humanoid_bench = register_humanoid_bench(env_id)
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")  # that float32 is what is wanted
        # HumanoidBench makes an OpenGL context unless it is told None; other tasks need not know the word.
        rendering = {"render_mode": render_mode} if render_mode or self.humanoid_bench else {}
        env = gym.make(H1_TASKS.get(env_id, env_id), disable_env_checker=True, **rendering)
        super().__init__(gym.wrappers.DtypeObservation(gym.wrappers.FlattenObservation(env), np.float32))
        space = env.action_space
        if isinstance(space, gym.spaces.Box) and space.dtype == np.float64:
            self.action_space = gym.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if seed is not None:
            np.random.seed(seed)  # h1-sit_hard-v0 draws from the global stream
        return self.env.reset(seed=seed, options=options)[0], {}

    def step(self, action: np.ndarray):
        return *self.env.step(action)[:4], {}

    def render(self) -> np.ndarray:
        if self.humanoid_bench:
            return self.unwrapped.mujoco_renderer.render("rgb_array")  # its own call does not fit gymnasium 1.4
        return self.env.render()


def make_env(env_id: str, render_mode: str | None = None):
    """Returns a function that makes the task, in a worker process or in this one."""

    def thunk() -> gym.Env:
        if multiprocessing.parent_process() is not None:
            # Signals are for the trainer, which ends its workers itself; on Linux, a killed trainer takes them along.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            os.nice(5)  # where cores are scarce, a step is as long as the learner: workers take what it leaves
        known = register_humanoid_bench(env_id) or env_id in gym.registry or ":" in env_id
        env = (GymnasiumEnv if known else DMControlEnv)(env_id, render_mode)
        return gym.wrappers.RecordEpisodeStatistics(env)

    return thunk


class WorkerEnvs(gym.vector.AsyncVectorEnv):
    """Environments in worker processes, which hold nothing that must be saved and may be in the middle of a step when
    they are closed: then they are killed, since they ignore signals."""

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def make_envs(env_id: str, num_envs: int) -> WorkerEnvs:
    """Worker environments. One that ends is reset in the same step, so that every transition is a real one; its last
    observation is in infos["final_obs"]. Observations are overwritten by the next step."""
    try:
        same_step = gym.vector.AutoresetMode.SAME_STEP
        envs = WorkerEnvs([make_env(env_id)] * num_envs, copy=False, autoreset_mode=same_step)
    except Exception as error:
        fail(f"--env-id {env_id} can't be made: {error!r}")
    space = envs.single_action_space
    continuous = isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)
    if not (continuous and len(space.shape) == 1 and space.is_bounded()):
        envs.close()
        fail(f"--env-id {env_id} has the actions {space}; {ALGORITHM} needs a vector of bounded continuous actions")
    return envs


TRAINING, EVALUATION, WARM_UP = range(3)  # independent streams of random numbers


def derive_seeds(*key: int, count: int) -> list[int]:
    """`count` seeds for the stream that `key`, such as (seed, TRAINING), names."""
    return [int(seed) for seed in np.random.SeedSequence(key).generate_state(count)]


# --------------------------------------------------------------------------------------------------- replay buffer


class Batch(NamedTuple):
    """Transitions, B rows. `observations` and `next_observations` are [B, obs_dim], `actions` [B, action_dim],
    `rewards` and `terminations` [B]; a time limit is no termination."""

    observations: Tensor
    next_observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminations: Tensor


class ReplayBuffer:
    """The last `capacity` transitions, as rows of one tensor: a step is stored by one copy, a batch is one gather."""

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, device: torch.device):
        self.columns = [obs_dim, obs_dim, action_dim, 1, 1]
        needed = 4 * capacity * sum(self.columns)
        cuda = device.type == "cuda"
        available = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
        self.memory = (
            f"{capacity:,} transitions take {needed / 2**30:.2f} GiB of {available / 2**30:.1f} free ({device})"
        )
        if needed > available:
            fail(f"the replay buffer does not fit: {self.memory}; lower --buffer-size")
        self.rows = torch.empty(capacity, sum(self.columns), device=device)
        self.position = 0
        self.size = 0
        self.device_size = torch.zeros((), dtype=torch.int64, device=device)  # read by the update without the host

    def add(self, rows: Tensor) -> None:
        """Stores n transitions, [n, sum(columns)], n <= capacity, over the oldest ones."""
        capacity, end = len(self.rows), self.position + len(rows)
        room = capacity - self.position
        self.rows[self.position : end] = rows[:room]
        if end > capacity:
            self.rows[: end - capacity] = rows[room:]
        self.position = end % capacity
        self.size = min(self.size + len(rows), capacity)
        self.device_size.fill_(self.size)

    def sample(self, batch_size: int) -> Batch:
        """Draws a batch uniformly, with replacement."""
        # A captured graph would freeze a bound that the host passes; the bias of the remainder is below 1e-12.
        index = torch.randint(2**62, (batch_size,), device=self.rows.device) % self.device_size
        observations, next_observations, actions, rewards, terminations = self.rows[index].split(self.columns, dim=1)
        return Batch(observations, next_observations, actions, rewards.squeeze(1), terminations.squeeze(1))

    def state_dict(self) -> dict:
        """The filled part only, on the CPU; without a second copy of it, if it is there already."""
        rows = self.rows[: self.size].cpu().numpy()  # torch.save writes all that a slice is part of, and an array isn't
        return {"rows": torch.from_numpy(rows), "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        """Takes the rows of a checkpoint over."""
        self.size, self.position = len(state["rows"]), state["position"]
        self.rows[: self.size] = state["rows"]
        self.device_size.fill_(self.size)


# -------------------------------------------------------------------------------------------------------- networks


class QNetwork(nn.Module):
    """Critic."""

    def __init__(self, obs_dim: int, action_dim: int):
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


LOG_STD_MIN, LOG_STD_MAX = -5, 2


class Actor(nn.Module):
    """Gaussian policy, squashed by tanh onto the action space's own scale, per dimension."""

    def __init__(self, obs_dim: int, action_space: gym.spaces.Box):
        super().__init__()
        self.fc1 = nn.Linear(obs_dim, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc_mean = nn.Linear(256, action_space.shape[0])
        self.fc_logstd = nn.Linear(256, action_space.shape[0])
        low, high = torch.as_tensor(action_space.low), torch.as_tensor(action_space.high)
        self.register_buffer("action_scale", (high - low) / 2)
        self.register_buffer("action_bias", (high + low) / 2)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation [B, d], before tanh, for observations [B, obs_dim]."""
        x = F.relu(self.fc1(observations))
        x = F.relu(self.fc2(x))
        # A smooth bound keeps the gradient of the standard deviation where a clamp would cut it off.
        log_std = torch.tanh(self.fc_logstd(x))
        return self.fc_mean(x), LOG_STD_MIN + (LOG_STD_MAX - LOG_STD_MIN) / 2 * (log_std + 1)

    def get_action(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled actions [B, d], the logarithm of their density [B], and the actions at the policy's mean [B, d]."""
        mean, log_std = self(observations)
        noise = torch.randn_like(mean)
        x = mean + log_std.exp() * noise
        # Change of variables (arXiv 1812.05905, appendix C), with log(1 - tanh(x)^2) in a form that keeps its precision
        # where tanh(x) rounds to 1.
        log_prob = -noise.square() / 2 - log_std - math.log(2 * math.pi) / 2
        log_prob = log_prob - self.action_scale.log() - 2 * (math.log(2) - x - F.softplus(-2 * x))
        actions = torch.tanh(x) * self.action_scale + self.action_bias
        return actions, log_prob.sum(dim=1), torch.tanh(mean) * self.action_scale + self.action_bias


class Agent(nn.Module):
    """Actor, twin critics, their target networks and the entropy coefficient, in one state_dict."""

    def __init__(self, obs_dim: int, action_space: gym.spaces.Box, args: Args):
        super().__init__()
        self.actor = Actor(obs_dim, action_space)
        self.qf1 = QNetwork(obs_dim, action_space.shape[0])
        self.qf2 = QNetwork(obs_dim, action_space.shape[0])
        self.qf1_target = copy.deepcopy(self.qf1).requires_grad_(False)
        self.qf2_target = copy.deepcopy(self.qf2).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(1.0 if args.autotune else args.alpha).log())

    def critic_parameters(self) -> list[nn.Parameter]:
        return [*self.qf1.parameters(), *self.qf2.parameters()]

    @torch.no_grad()
    def explore(self, observations: Tensor) -> Tensor:
        """Actions [n, d] for training, sampled for each environment."""
        actions, _, _ = self.actor.get_action(observations)
        return actions

    @torch.no_grad()
    def policy(self, observations: Tensor) -> Tensor:
        """Actions [n, d] for evaluation, deterministic: at the policy's mean."""
        mean, _ = self.actor(observations)
        return torch.tanh(mean) * self.actor.action_scale + self.actor.action_bias


# ------------------------------------------------------------------------------------------------------ the method


@torch.no_grad()
def td_target(agent: Agent, batch: Batch, args: Args) -> Tensor:
    """The TD target y [B] (arXiv 1812.05905, eq. 5): the smaller value of a sampled action, plus its entropy."""
    next_actions, next_log_pi, _ = agent.actor.get_action(batch.next_observations)
    next_q = torch.min(
        agent.qf1_target(batch.next_observations, next_actions), agent.qf2_target(batch.next_observations, next_actions)
    )
    next_q_value = next_q - agent.log_alpha.exp() * next_log_pi
    return batch.rewards + args.gamma * (1 - batch.terminations) * next_q_value


# ---------------------------------------------------------------------------------------------------------- update


def update_critics(agent: Agent, q_optimizer: optim.Optimizer, batch: Batch, args: Args) -> dict[str, Tensor]:
    """One step of both critics towards the TD target (arXiv 1812.05905, Algorithm 1). Returns what to log."""
    next_q_value = td_target(agent, batch, args)
    qf1_values = agent.qf1(batch.observations, batch.actions)
    qf2_values = agent.qf2(batch.observations, batch.actions)
    qf1_loss = F.mse_loss(qf1_values, next_q_value)
    qf2_loss = F.mse_loss(qf2_values, next_q_value)
    qf_loss = qf1_loss + qf2_loss
    q_optimizer.zero_grad()
    qf_loss.backward()
    grad_norm = nn.utils.get_total_norm([parameter.grad for parameter in agent.critic_parameters()])
    q_optimizer.step()
    return {
        "losses/qf1_values": qf1_values.detach().mean(),
        "losses/qf2_values": qf2_values.detach().mean(),
        "losses/qf1_loss": qf1_loss.detach(),
        "losses/qf2_loss": qf2_loss.detach(),
        "losses/qf_loss": qf_loss.detach() / 2,
        "diagnostics/critic_grad_norm": grad_norm,
        "diagnostics/td_target_variance": next_q_value.var(correction=min(1, len(next_q_value) - 1)),
    }


def update_actor(agent: Agent, actor_optimizer: optim.Optimizer, batch: Batch) -> dict[str, Tensor]:
    """One step of the actor up the smaller of two critics and the entropy (the same paper, eq. 7)."""
    actions, log_pi, _ = agent.actor.get_action(batch.observations)
    min_qf_pi = torch.min(agent.qf1(batch.observations, actions), agent.qf2(batch.observations, actions))
    actor_loss = (agent.log_alpha.detach().exp() * log_pi - min_qf_pi).mean()
    actor_optimizer.zero_grad()
    # Only for the actor: a plain backward() would also compute the critics' gradients, to throw them away.
    actor_loss.backward(inputs=list(agent.actor.parameters()))
    actor_optimizer.step()
    return {"losses/actor_loss": actor_loss.detach()}


def update_alpha(agent: Agent, alpha_optimizer: optim.Optimizer, batch: Batch) -> dict[str, Tensor]:
    """One step of the entropy coefficient towards the target entropy -d (the same paper, eq. 18 and appendix D)."""
    with torch.no_grad():
        actions, log_pi, _ = agent.actor.get_action(batch.observations)
    target_entropy = -actions.shape[1]
    alpha_loss = (-agent.log_alpha.exp() * (log_pi + target_entropy)).mean()
    alpha_optimizer.zero_grad()
    alpha_loss.backward()
    alpha_optimizer.step()
    return {"losses/alpha_loss": alpha_loss.detach()}


@torch.no_grad()
def update_targets(agent: Agent, tau: float) -> None:
    """Moves every target parameter by tau towards its network's."""
    targets = [*agent.qf1_target.parameters(), *agent.qf2_target.parameters()]
    # target.lerp_(parameter, tau) for each pair, in one call
    torch._foreach_lerp_(targets, agent.critic_parameters(), tau)


def make_optimizers(agent: Agent, args: Args) -> tuple[optim.Optimizer, optim.Optimizer, optim.Optimizer]:
    """Adam for critics, actor and entropy coefficient, in one kernel each."""
    settings = {"fused": True, "capturable": args.cuda_graphs}
    q_optimizer = optim.Adam(agent.critic_parameters(), lr=args.q_lr, **settings)
    actor_optimizer = optim.Adam(agent.actor.parameters(), lr=args.policy_lr, **settings)
    return q_optimizer, actor_optimizer, optim.Adam([agent.log_alpha], lr=args.q_lr, **settings)


def make_update(agent: Agent, q_optimizer, actor_optimizer, alpha_optimizer, buffer: ReplayBuffer, args: Args):
    """Returns update(with_actor): draws a batch and updates critics and targets, and if asked actor and alpha."""

    def update(with_actor: bool) -> dict[str, Tensor]:
        batch = buffer.sample(args.batch_size)
        metrics = update_critics(agent, q_optimizer, batch, args)
        for _ in range(args.policy_frequency if with_actor else 0):  # as many updates as were left out
            metrics |= update_actor(agent, actor_optimizer, batch)
            if args.autotune:
                metrics |= update_alpha(agent, alpha_optimizer, batch)
        update_targets(agent, args.tau)
        return metrics | {"losses/alpha": agent.log_alpha.detach().exp()}

    return cuda_graphs(update) if args.cuda_graphs else update


# ----------------------------------------------------------------------------------------------------- CUDA graphs


def cuda_graphs(update):
    """`update(with_actor)`, replayed as one CUDA graph for each value of its argument.

    It must work on tensors that stay where they are. The first calls run as they are, on a side stream, so that cuBLAS,
    autograd and Adam have allocated what they keep. Each call is one real update, replayed or not. A capture that fails
    says why, once, and updates go on without.
    """
    warnings.filterwarnings("ignore", message=".*capturable=True")  # Adam's, of these first calls
    stream, graphs = torch.cuda.Stream(), [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
    calls, results, failed = [0, 0], [None, None], False

    def run(with_actor: bool):
        nonlocal failed
        calls[with_actor] += 1
        current = torch.cuda.current_stream()
        if calls[with_actor] > 3 and results[with_actor] is None and not failed:
            try:
                with torch.cuda.graph(graphs[with_actor], stream=stream):
                    captured = update(with_actor)
                results[with_actor] = captured  # only now: what breaks a capture may show at its end
            except RuntimeError as error:
                torch.cuda.set_stream(current)  # which a broken capture does not restore
                failed = True
                log(f"CUDA graphs are off, because the capture failed: {error}")
        if results[with_actor] is not None:
            graphs[with_actor].replay()
            return results[with_actor]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            eager_results = update(with_actor)
        current.wait_stream(stream)
        return eager_results

    return run


# ------------------------------------------------------------------------------------------------------ evaluation


def evaluate(policy, envs, seed: int, episodes: int, device, stop=()) -> tuple[np.ndarray, np.ndarray] | None:
    """Plays `policy` for `episodes` episodes; returns their returns and lengths, or None if `stop` fills meanwhile.

    Episode i always starts from the i-th evaluation seed, so the result depends on the policy alone (up to rounding,
    which differs between devices, numbers of threads and numbers of environments). Each environment plays one whole
    episode at a time, so that short episodes don't count more than long ones.
    """
    seeds = derive_seeds(seed, EVALUATION, count=episodes + envs.num_envs)
    returns, lengths = [], []
    while len(returns) < episodes:
        observations, _ = envs.reset(seed=seeds[len(returns) : len(returns) + envs.num_envs])
        episode_returns, episode_lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=int)
        running = np.ones(envs.num_envs, dtype=bool)
        while running.any():
            if stop:
                return None
            actions = policy(torch.as_tensor(observations, device=device)).cpu().numpy()
            observations, rewards, terminations, truncations, _ = envs.step(actions)
            episode_returns += running * rewards
            episode_lengths += running
            running &= ~(terminations | truncations)
        returns.extend(episode_returns)
        lengths.extend(episode_lengths)
    return np.array(returns[:episodes]), np.array(lengths[:episodes])


EGL_INSTALL = "offscreen rendering needs EGL (Debian: apt install libegl1 libgl1-mesa-dri)"


def record_video(policy, env_id: str, seed: int, path: Path, device) -> None:
    """Plays the first evaluation seed and writes the episode as an mp4 at real-time speed, near 30 frames a second."""
    import imageio

    env = make_env(env_id, "rgb_array")()
    stride = max(1, round(env.metadata["render_fps"] / 30))
    observation, _ = env.reset(seed=derive_seeds(seed, EVALUATION, count=1)[0])
    step, done = 0, False
    with imageio.get_writer(path, fps=env.metadata["render_fps"] / stride) as video:
        while not done:
            if step % stride == 0:
                video.append_data(env.render())
            action = policy(torch.as_tensor(observation, device=device).unsqueeze(0)).squeeze(0).cpu().numpy()
            observation, _, terminated, truncated, _ = env.step(action)
            step, done = step + 1, terminated or truncated
    env.close()  # while OpenGL is still there


def play(args: Args) -> None:
    """--evaluate: prints every return of a trained policy, their mean and standard deviation (over n)."""
    if args.capture_video:
        try:
            import mujoco

            mujoco.GLContext(64, 64).free()
        except Exception as error:
            fail(f"no video: {error}; {EGL_INSTALL}", 1)
    path = Path(args.evaluate)
    if path.is_dir():
        networks = [file for file in sorted(path.glob("*.pt")) if not file.name.startswith("checkpoint")]
        path = [*networks, path / CHECKPOINT][0]
    if not path.is_file():
        fail(f"--evaluate {args.evaluate}: there is no {path}")
    saved = load_file(path)
    if saved is None or saved["algorithm"] != ALGORITHM:
        found = f"written by {saved['algorithm']}.py" if saved else "damaged or something else"
        fail(f"--evaluate {path} is {found}; it takes a whole file that {ALGORITHM}.py wrote")
    trained, step, device = Args(**saved["args"]), saved["global_step"], choose_device(args)
    env_id = find_env_id(trained.env_id)
    with contextlib.closing(make_envs(env_id, min(args.eval_episodes, 10))) as envs:
        agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space, trained).to(device)
        load_state(agent, saved["agent"], path)
        returns, lengths = evaluate(agent.policy, envs, trained.seed, args.eval_episodes, device)
    for episode, (episode_return, length) in enumerate(zip(returns, lengths, strict=True)):
        log(f"episode {episode}: return {episode_return:.2f}, {length} steps")
    log(f"{path}, step {step:,}: mean {returns.mean():.2f}, std {returns.std():.2f} over {len(returns)} episodes")
    if args.capture_video:
        video = path.with_name(f"{path.stem}_step{step}.mp4")
        try:
            record_video(agent.policy, env_id, trained.seed, video, device)
        except Exception as error:
            fail(f"no video: {error}; {EGL_INSTALL}", 1)
        log(f"video of episode 0: {video}")


# ------------------------------------------------------------------------------------------------------ checkpoint

CHECKPOINT, PREVIOUS_CHECKPOINT = "checkpoint.pt", "checkpoint_previous.pt"


def log(message: str) -> None:
    """Prints a line above the progress bar, or into the log file."""
    try:
        tqdm.write(message)
        sys.stdout.flush()
    except OSError:  # a full disk, or a pipe that nobody reads any more: training goes on without these lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def replace_file(path: Path, write, previous: Path | None = None) -> None:
    """Writes a file beside `path`, flushes it to disk, and only then renames it, so that `path` is whole at any moment.

    `write` takes the open file; the old file becomes `previous`, if given. A full disk raises OSError or RuntimeError.
    """
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if previous and path.exists():
        os.replace(path, previous)
    os.replace(new, path)


def write_json(path: Path, content: dict) -> None:
    """Replaces a JSON file."""
    replace_file(path, lambda file: file.write(json.dumps(content, indent=2).encode()))


def load_file(path: Path) -> dict | None:
    """What these scripts saved in `path`, on the CPU; None if that is not whole (its checksums are verified)."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        saved = None if damaged else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return saved if isinstance(saved, dict) and "algorithm" in saved else None
    except Exception:  # what a damaged file raises is as varied as the damage
        return None


def load_state(part, state: dict, path: Path) -> None:
    """Loads a part of a checkpoint; ends the program if its tensors have other shapes."""
    if isinstance(part, optim.Optimizer):
        # Its settings follow from this run's device. It keeps the tensors it gets: a copy, or they would keep the file.
        state = copy.deepcopy(state) | {"param_groups": part.state_dict()["param_groups"]}
    try:
        part.load_state_dict(state)
    except RuntimeError as error:
        fail(f"{path} has networks of another shape: {' '.join(str(error).split())[:200]}")


class Run:
    """A run directory: lock, logs, evaluations, checkpoints and counters, from the first step to the result."""

    SAVED = "global_step updates physics_errors wall_seconds evaluations episodes log_sizes wandb_id".split()

    def __init__(self, args: Args, stop: list[int]):
        """Makes the directory, or opens it if --resume or --overwrite says so; ends the program if it is in use."""
        self.args, self.stop = args, stop
        self.dir = Path(args.run_dir or f"runs/{args.env_id.replace('/', '_')}__{args.exp_name}__{args.seed}")
        known = self.dir / "args.json"
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            is_run = known.exists() and '"algorithm"' in known.read_text()
            if not is_run and any(path.name not in (".lock", "args.json.new") for path in self.dir.iterdir()):
                fail(f"{self.dir} is neither a run directory nor empty; choose another --run-dir")
            if is_run and not args.resume and not args.overwrite:
                fail(f"{self.dir} exists; --resume goes on with it, --overwrite deletes it, --run-dir goes elsewhere")
            self.lock = open(self.dir / ".lock", "w")  # the lock ends with the process, however that ends
            try:
                fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fail(f"another process is training in {self.dir}", status=1)
            if args.resume and (self.dir / "result.json").exists():
                log(f"{self.dir} is complete")
                raise SystemExit(0)
        except OSError as error:
            fail(f"--run-dir {self.dir} can't be written: {error}")

    def load_checkpoint(self) -> dict | None:
        """The newest whole checkpoint, None if there is none yet; ends the program if it is of another run."""
        paths = [path for path in (self.dir / CHECKPOINT, self.dir / PREVIOUS_CHECKPOINT) if path.exists()]
        for path in paths:
            saved = load_file(path)
            if saved is None:
                log(f"warning: {path} is damaged; falling back to the one before")
                continue
            if saved["algorithm"] != ALGORITHM:
                fail(f"{path} was written by {saved['algorithm']}.py; this is {ALGORITHM}.py")
            was, now = saved["args"], asdict(self.args)
            different = [name for name in now if name not in MAY_CHANGE_ON_RESUME and was.get(name) != now[name]]
            if different:
                listed = ", ".join(f"--{name.replace('_', '-')} {was.get(name)}, not {now[name]}" for name in different)
                fail(f"{self.dir} was trained with {listed}; give the same arguments, or another --run-dir")
            return saved
        if paths:
            fail(f"no checkpoint in {self.dir} is whole; --overwrite starts the run again", status=1)
        return None

    def start(self, device: torch.device, **learned) -> None:
        """Restores counters, random states and each of `learned` from the checkpoint, if --resume finds one; opens the
        logs, cut back to that checkpoint: what was logged after it will be logged again."""
        self.device, self.learned = device, learned
        self.rng = np.random.default_rng(derive_seeds(self.args.seed, WARM_UP, count=1))
        self.global_step = self.updates = self.physics_errors = 0
        self.wall_seconds, self.log_sizes, self.wandb_id = 0.0, {}, f"{self.dir.name}-{int(time.time())}"
        self.evaluations, self.episodes = [], []  # rows of evaluations.csv; [step, return] of the training episodes
        if self.args.overwrite:  # only now that nothing can be wrong any more
            # The result first, the arguments last: killed at any moment, this leaves the folder of an unfinished run.
            for pattern in ("result.json", "*.pt", "events.out.tfevents.*", "*.csv", "*.mp4", "*.new", "args.json"):
                for path in self.dir.glob(pattern):
                    path.unlink()
        checkpoint = self.load_checkpoint() if self.args.resume else None
        if checkpoint:
            for name in self.SAVED:
                setattr(self, name, checkpoint[name])
            for name, part in learned.items():
                load_state(part, checkpoint[name], self.dir)
            torch.set_rng_state(checkpoint["torch_rng"])
            self.rng.bit_generator.state = checkpoint["numpy_rng"]
            if device.type == "cuda" and checkpoint["cuda_rng"] is not None:
                torch.cuda.set_rng_state(checkpoint["cuda_rng"])
        for path in self.dir.glob("events.out.tfevents.*"):
            if path.name in self.log_sizes:
                os.truncate(path, self.log_sizes[path.name])
            else:
                path.unlink()
        try:
            write_json(self.dir / "args.json", {"algorithm": ALGORITHM, **asdict(self.args)})
        except OSError as error:
            fail(f"{self.dir} can't be written: {error}", 1)
        self.write_evaluations()
        if self.args.track:
            import wandb

            config = {"config": asdict(self.args), "sync_tensorboard": True}
            wandb.init(name=self.dir.name, id=self.wandb_id, resume="allow", **config)
        # The writer's thread dies of a full disk; write_scalars() warns of it.
        threading.excepthook = lambda died: None if died.exc_type is OSError else threading.__excepthook__(died)
        self.writer = SummaryWriter(self.dir)
        self.first_step = self.logged_step = self.global_step
        self.started, self.logged_time = time.time() - self.wall_seconds, time.time()
        metrics = checkpoint["metrics"] if checkpoint else {}
        self.metrics: dict[str, Tensor] = {tag: torch.tensor(value, device=device) for tag, value in metrics.items()}
        last = [row[5] for row in self.evaluations if row[0] == self.evaluations[-1][0]]
        self.training_return, self.evaluation_return = math.nan, float(np.mean(last)) if last else math.nan
        hidden = not sys.stderr.isatty()
        self.bar = tqdm(total=self.args.total_timesteps, initial=self.first_step, unit="step", disable=hidden)
        log(f"{ALGORITHM} on {self.args.env_id}, seed {self.args.seed}, from step {self.first_step:,}: {self.dir}")

    def write_scalars(self, scalars: dict[str, float]) -> None:
        """Logs to TensorBoard at the current step; a full disk loses them, with a warning, and not the run."""
        try:
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, self.global_step)
        except OSError as error:
            log(f"warning: step {self.global_step:,} is not in TensorBoard's log: {error}")
            with contextlib.suppress(OSError):
                self.writer = SummaryWriter(self.dir)  # the old one does not recover

    def write_evaluations(self) -> None:
        """Replaces evaluations.csv; a row is one episode."""
        header = "step,frames,updates,wall_seconds,episode,return,length"
        text = "\n".join([header, *(",".join(str(field) for field in row) for row in self.evaluations)]) + "\n"
        try:
            replace_file(self.dir / "evaluations.csv", lambda file: file.write(text.encode()))
        except OSError as error:
            log(f"warning: evaluations.csv waits for the next evaluation: {error}")

    def read_metrics(self) -> dict[str, float]:
        """Waits for the learner and reads what it returned last; ends the run if that is not finite."""
        values = torch.stack(list(self.metrics.values())).tolist() if self.metrics else []
        values = dict(zip(self.metrics, values, strict=True))
        broken = [tag for tag, value in values.items() if not math.isfinite(value)]
        if broken:
            fail(f"step {self.global_step}: {', '.join(broken)} not finite; the checkpoints are left as they were", 1)
        return values

    def save_checkpoint(self) -> None:
        """Writes everything that --resume needs; a full disk leaves the checkpoint before, and training goes on."""
        metrics = self.read_metrics()
        self.wall_seconds = time.time() - self.started
        cuda_rng = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        try:
            with contextlib.suppress(OSError):
                self.writer.flush()
            for path in self.dir.glob("events.out.tfevents.*"):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())  # before the checkpoint that relies on it
                    self.log_sizes[path.name] = file.seek(0, os.SEEK_END)
            content = {
                "algorithm": ALGORITHM,
                "args": asdict(self.args),
                "metrics": metrics,
                "torch_rng": torch.get_rng_state(),
                "cuda_rng": cuda_rng,
                "numpy_rng": self.rng.bit_generator.state,
                **{name: getattr(self, name) for name in self.SAVED},
                **{name: part.state_dict() for name, part in self.learned.items()},
            }
            replace_file(self.dir / CHECKPOINT, partial(torch.save, content), self.dir / PREVIOUS_CHECKPOINT)
            log(f"step {self.global_step:,}: checkpoint")
        except (OSError, RuntimeError) as error:
            log(f"warning: no checkpoint at step {self.global_step:,}, the one before is kept: {error}")

    def goes_on(self, policy, eval_envs) -> bool:
        """Between two steps: evaluates and saves where that is due; False at the end of the budget or on a signal.

        What a signal interrupts is left out and done by the resumed run, so that it does the same as an uninterrupted.
        """
        step, args = self.global_step, self.args
        finished = step >= args.total_timesteps
        evaluated = bool(self.evaluations) and self.evaluations[-1][0] == step
        if (finished or step % args.eval_frequency == 0) and not evaluated:
            self.read_metrics()
            result = evaluate(policy, eval_envs, args.seed, args.eval_episodes, self.device, self.stop)
            if result is not None:
                counters = [step, step * args.num_envs, self.updates, round(time.time() - self.started, 3)]
                episodes = zip(range(args.eval_episodes), result[0].tolist(), result[1].tolist(), strict=True)
                self.evaluations += [[*counters, *episode] for episode in episodes]
                self.write_evaluations()
                self.evaluation_return, std = result[0].mean(), result[0].std()
                self.write_scalars({"eval/episodic_return": self.evaluation_return, "eval/episodic_return_std": std})
                log(f"step {step:,}: evaluation {self.evaluation_return:.1f} +/- {std:.1f}")
        self.stopped = bool(self.stop)
        if self.stopped or (step % args.checkpoint_frequency == 0 and step > self.first_step and not finished):
            self.save_checkpoint()
        return not self.stopped and not finished

    def count_step(self, metrics: dict[str, Tensor], infos: dict) -> None:
        """Counts a step, and logs the episodes that ended in it and, where that is due, metrics and counters."""
        self.global_step += 1
        self.metrics |= metrics
        if "final_info" in infos:
            final, ended = infos["final_info"], infos["_final_info"]
            self.physics_errors += int(np.sum(final.get("physics_error", 0)))
            returns, lengths = final["episode"]["r"][ended], final["episode"]["l"][ended]
            self.episodes += [[self.global_step, float(episode_return)] for episode_return in returns]
            self.training_return = returns.mean()
            charts = {"charts/episodic_return": self.training_return, "charts/episodic_length": lengths.mean()}
            self.write_scalars(charts)
        self.bar.update()
        if self.global_step % self.args.log_frequency == 0:
            sps = (self.global_step - self.logged_step) / (time.time() - self.logged_time)
            self.logged_step, self.logged_time = self.global_step, time.time()
            charts = {"charts/SPS": sps, "charts/frames": self.global_step * self.args.num_envs}
            charts |= {"charts/updates": self.updates, "charts/physics_errors": self.physics_errors}
            self.write_scalars(self.read_metrics() | charts)
            self.metrics = {}  # what no update has renewed by the next time is not logged again
            status = f"return {self.training_return:.1f}, evaluation {self.evaluation_return:.1f}, SPS {sps:.0f}"
            self.bar.set_postfix_str(status)
            if self.bar.disable:
                hours = (self.args.total_timesteps - self.global_step) / sps / 3600
                log(f"step {self.global_step:,}: {status}, {hours:.1f} h left")

    def finish(self, agent: nn.Module) -> int:
        """Writes the networks and the result, or says what stopped the run; returns the exit status."""
        self.bar.close()
        with contextlib.suppress(OSError):
            self.writer.close()
        if self.stopped:
            log(f"stopped by {signal.Signals(self.stop[0]).name} at step {self.global_step:,}; --resume goes on")
            return 128 + self.stop[0]
        returns = np.array([row[5] for row in self.evaluations if row[0] == self.global_step])
        tail = [episode_return for step, episode_return in self.episodes if step > 0.9 * self.global_step]
        seconds = time.time() - self.started
        cuda = self.device.type == "cuda"
        result = {
            "algorithm": ALGORITHM,
            "exp_name": self.args.exp_name,
            "env_id": self.args.env_id,
            "seed": self.args.seed,
            "args": asdict(self.args),
            "global_step": self.global_step,
            "frames": self.global_step * self.args.num_envs,
            "updates": self.updates,
            "final_evaluation": {"mean": returns.mean(), "std": returns.std(), "returns": returns.tolist()},
            "training_return_last_10_percent": float(np.mean(tail)) if tail else None,
            "physics_errors": self.physics_errors,
            "wall_seconds": seconds,
            "sps": self.global_step / seconds,
            "versions": {name: version(name) for name in ("torch", "numpy", "gymnasium", "dm_control", "mujoco")}
            | {"python": platform.python_version()},
            "device": torch.cuda.get_device_name(self.device) if cuda else f"cpu, {count_cores()} cores",
            "threads": torch.get_num_threads(),
        }
        networks = {"algorithm": ALGORITHM, "args": asdict(self.args), "global_step": self.global_step}
        networks |= {"agent": agent.state_dict()}
        try:
            replace_file(self.dir / f"{self.args.exp_name}.pt", partial(torch.save, networks))
            write_json(self.dir / "result.json", result)
        except (OSError, RuntimeError) as error:
            fail(
                f"the result can't be written: {error}; --resume ends the run again from its last checkpoint", status=1
            )
        if not self.args.keep_checkpoint:
            for path in self.dir.glob("checkpoint*"):
                path.unlink()
        log(f"complete: {self.dir}, evaluation {returns.mean():.1f} +/- {returns.std():.1f}")
        return 0


# ------------------------------------------------------------------------------------------------------- main loop


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def choose_device(args: Args) -> torch.device:
    """The device of --device, with the settings that belong to it."""
    if "OMP_NUM_THREADS" not in os.environ:  # leave the workers' cores to them; small matrices gain nothing beyond 4
        torch.set_num_threads(max(1, min(4, count_cores() - args.num_envs)))
    if args.torch_deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # which would write the whole replay buffer
    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def train(args: Args, run: Run, envs, eval_envs) -> int:
    """Trains up to --total-timesteps or a signal; returns the exit status."""
    device = choose_device(args)
    cuda = device.type == "cuda"
    torch.manual_seed(args.seed)
    action_space, obs_dim = envs.single_action_space, envs.single_observation_space.shape[0]
    agent = Agent(obs_dim, action_space, args).to(device)
    q_optimizer, actor_optimizer, alpha_optimizer = make_optimizers(agent, args)
    buffer = ReplayBuffer(args.buffer_size, obs_dim, action_space.shape[0], device)
    update = make_update(agent, q_optimizer, actor_optimizer, alpha_optimizer, buffer, args)
    optimizers = {"q_optimizer": q_optimizer, "actor_optimizer": actor_optimizer, "alpha_optimizer": alpha_optimizer}
    run.start(device, agent=agent, **optimizers, buffer=buffer)
    threads = torch.get_num_threads()
    workers = f"{args.num_envs} simulation workers at nice 5, {eval_envs.num_envs} for evaluations"
    log(f"{device}, {count_cores()} cores: {workers}; {threads} learner threads")
    log(f"replay buffer: {buffer.memory}")
    if args.learning_starts >= args.total_timesteps:
        log(f"warning: nothing is learned in {args.total_timesteps} steps: --learning-starts is {args.learning_starts}")

    # A step crosses to the device as one pinned block: its transitions, and behind them the observations to act on. On
    # the CPU, device_block is the block itself.
    block = torch.zeros(args.num_envs, sum(buffer.columns) + obs_dim, pin_memory=cuda)
    columns = np.split(block.numpy(), np.cumsum(buffer.columns), axis=1)
    observations, next_observations, stored_actions, rewards, terminations, current_observations = columns
    actions = torch.zeros(args.num_envs, *action_space.shape, pin_memory=cuda)
    # Simulators are not saved: a resumed run starts new episodes, from seeds of their own.
    seeds = derive_seeds(args.seed, TRAINING, run.global_step, count=args.num_envs)
    current_observations[:], _ = envs.reset(seed=seeds)
    device_block = block.to(device)

    while run.goes_on(agent.policy, eval_envs):
        learning = run.global_step >= args.learning_starts
        if learning:
            actions.copy_(agent.explore(device_block[:, -obs_dim:]))
        else:
            actions.numpy()[:] = run.rng.uniform(action_space.low, action_space.high, actions.shape)
        envs.step_async(actions.numpy())
        metrics = {}
        # While the environments simulate; none if a worker died in this step and they are in the checkpoint already.
        owed = (run.global_step + 1 - args.learning_starts) * args.updates_per_step - run.updates
        for _ in range(owed if learning else 0):
            run.updates += 1
            metrics |= update(with_actor=run.updates % args.policy_frequency == 0)
        new_observations, step_rewards, step_terminations, _, infos = envs.step_wait()

        observations[:] = current_observations
        next_observations[:] = current_observations[:] = new_observations
        stored_actions[:] = actions.numpy()
        rewards[:, 0], terminations[:, 0] = step_rewards, step_terminations
        if "final_obs" in infos:  # these environments are already reset: their last observation followed the action
            ended = infos["_final_obs"]
            next_observations[ended] = np.stack(infos["final_obs"][ended])
        # The block may be written again once the next actions have come down, which only learned ones do.
        device_block = block.to(device, non_blocking=learning)
        rows = device_block[:, :-obs_dim]
        diverged = infos.get("final_info", {}).get("physics_error")
        # A simulation that diverged has no next state: there is no transition to store.
        buffer.add(rows if diverged is None else rows[torch.as_tensor(~diverged.astype(bool), device=device)])
        run.count_step(metrics, infos)
    return run.finish(agent)


def main() -> int:
    """Reads the command line, and trains or plays; returns the exit status."""
    args = parse_args()
    check_args(args)
    # Before MuJoCo is imported: EGL renders offscreen (on Linux), and without a video there is no OpenGL at all.
    if sys.platform == "linux" or not args.capture_video:
        os.environ["MUJOCO_GL"] = "egl" if args.capture_video else "disable"
    if args.evaluate is not None:
        play(args)
        return 0
    args.env_id = find_env_id(args.env_id)
    stop: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: stop.append(number))
    run = Run(args, stop)
    # The workers are forked before anything here starts threads or computes on a GPU.
    training_envs = contextlib.closing(make_envs(args.env_id, args.num_envs))
    evaluation_envs = contextlib.closing(make_envs(args.env_id, min(args.eval_episodes, 10)))
    with training_envs as envs, evaluation_envs as eval_envs:
        try:
            return train(args, run, envs, eval_envs)
        except Exception as error:
            workers = [*envs.processes, *eval_envs.processes]
            if not multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1):
                raise
            if hasattr(run, "bar"):  # started
                run.save_checkpoint()
            dead = next(worker for worker in workers if not worker.is_alive())
            fail(f"{dead.name} died ({error!r}, exit code {dead.exitcode}); --resume goes on from the checkpoint", 1)


if __name__ == "__main__":
    sys.exit(main())

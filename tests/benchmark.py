"""How fast are the scripts, against a straightforward port and against what the machine could do at best?

    python tests/benchmark.py                                      # dog-run, on the CPU: a few minutes
    python tests/benchmark.py --env-id cheetah-run --threads 2
    python tests/benchmark.py --device cuda --cuda-graphs          # on a GPU

Prints one table and writes it as JSON. Every comparison is between things measured in turns in this one process, and
every number is a median over the turns: on a shared machine a single timing means little. The port below is AMS-TD3
written down in the obvious way; it is here to be compared with, and nobody trains with it.
"""

import copy
import importlib
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

os.environ["MUJOCO_GL"] = "disable"
import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import tyro  # noqa: E402
from tqdm import tqdm  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@dataclass
class BenchmarkArgs:
    env_id: str = "dog-run"
    """the task; its shapes are those of the update benchmark"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where networks and buffer live"""
    cuda_graphs: bool = False
    """measure the scripts with --cuda-graphs"""
    threads: int = 1
    """learner threads, for every candidate alike"""
    turns: int = 30
    """turns of the update benchmark; each candidate makes four updates a turn"""
    step_turns: int = 5
    """turns of the whole-training benchmark; each candidate makes 60 steps a turn"""
    output: str = "benchmark.json"
    """where the numbers are written"""


# ---------------------------------------------------------------------------------------------- straightforward port


class PortQNetwork(nn.Module):
    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(obs_dim + action_dim, 256), nn.Linear(256, 256), nn.Linear(256, 1)
        self.ln1, self.ln2 = nn.LayerNorm(256), nn.LayerNorm(256)

    def forward(self, x, a):
        x = F.relu(self.ln1(self.fc1(torch.cat([x, a], 1))))
        return self.fc3(F.relu(self.ln2(self.fc2(x))))


class PortActor(nn.Module):
    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.fc1, self.fc2, self.fc_mu = nn.Linear(obs_dim, 256), nn.Linear(256, 256), nn.Linear(256, action_dim)

    def forward(self, x):
        return torch.tanh(self.fc_mu(F.relu(self.fc2(F.relu(self.fc1(x))))))


class Port:
    """AMS-TD3, eager: states repeated K times, torch.linalg.qr per batch, unfused Adam, parameter-by-parameter
    averaging, one array a field in host memory, environments one after the other, through shimmy's wrappers."""

    def __init__(self, env_id, obs_dim, action_dim, device, capacity, num_envs=8, num_neighbors=8, epsilon=0.2):
        self.device, self.num_neighbors, self.epsilon, self.updates = device, num_neighbors, epsilon, 0
        self.actor = PortActor(obs_dim, action_dim).to(device)
        self.qf1, self.qf2 = (PortQNetwork(obs_dim, action_dim).to(device) for _ in range(2))
        self.pairs = [(net, copy.deepcopy(net)) for net in (self.actor, self.qf1, self.qf2)]
        critics = [*self.qf1.parameters(), *self.qf2.parameters()]
        self.q_optimizer = torch.optim.Adam(critics, lr=3e-4, foreach=False, fused=False)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4, foreach=False, fused=False)
        shapes = [(obs_dim,), (obs_dim,), (action_dim,), (), ()]
        self.fields = [np.random.rand(capacity, *shape).astype(np.float32) for shape in shapes]
        self.env_id, self.num_envs, self.envs = env_id, num_envs, None

    def update(self):
        rows = np.random.randint(0, len(self.fields[0]), 256)
        obs, next_obs, actions, rewards, dones = (
            torch.as_tensor(field[rows], device=self.device) for field in self.fields
        )
        (_, target_actor), (_, qf1_target), (_, qf2_target) = self.pairs
        batch, dim, k = len(rows), actions.shape[1], self.num_neighbors
        with torch.no_grad():
            mu = target_actor(next_obs)
            frames = [torch.linalg.qr(torch.randn(batch, dim, min(k, dim), device=self.device))]
            while sum(frame[0].shape[2] for frame in frames) < k:
                frames.append(torch.linalg.qr(torch.randn(batch, dim, dim, device=self.device)))
            signed = [q * torch.diagonal(r, dim1=1, dim2=2).sign().unsqueeze(1) for q, r in frames]
            directions = torch.cat(signed, 2)[:, :, :k].transpose(1, 2)
            neighbors = (mu.unsqueeze(1) + self.epsilon * directions).clamp(-1, 1).reshape(batch * k, dim)
            states = next_obs.repeat_interleave(k, 0)
            next_q = torch.min(qf1_target(states, neighbors), qf2_target(states, neighbors)).view(batch, k).mean(1)
            target = rewards + 0.99 * (1 - dones) * next_q
        loss1 = F.mse_loss(self.qf1(obs, actions).view(-1), target)
        loss2 = F.mse_loss(self.qf2(obs, actions).view(-1), target)
        self.q_optimizer.zero_grad()
        (loss1 + loss2).backward()
        self.q_optimizer.step()
        self.updates += 1
        if self.updates % 2 == 0:
            actor_loss = -self.qf1(obs, self.actor(obs)).mean()
            self.actor_optimizer.zero_grad()
            actor_loss.backward()
            self.actor_optimizer.step()
            for net, target_net in self.pairs:
                for parameter, target_parameter in zip(net.parameters(), target_net.parameters(), strict=True):
                    target_parameter.data.copy_(0.005 * parameter.data + 0.995 * target_parameter.data)

    def make_env(self):
        known = self.env_id in gym.registry
        env = gym.make(self.env_id if known else f"dm_control/{self.env_id}-v0")
        return gym.wrappers.RecordEpisodeStatistics(gym.wrappers.FlattenObservation(env))

    def steps(self, count):
        """Trains for `count` steps; returns seconds (whole, simulating, updating)."""
        if self.envs is None:
            import shimmy

            gym.register_envs(shimmy)
            self.envs = gym.vector.SyncVectorEnv([self.make_env] * self.num_envs)
            self.obs, self.position = self.envs.reset(seed=1)[0], 0
        simulating = updating = 0.0
        start = time.perf_counter()
        for _ in range(count):
            with torch.no_grad():
                actions = self.actor(torch.as_tensor(self.obs, dtype=torch.float32, device=self.device))
                actions = (actions + torch.randn_like(actions) * 0.1).clamp(-1, 1).cpu().numpy()
            before = time.perf_counter()
            next_obs, rewards, terminations, _, _ = self.envs.step(actions)
            simulating += time.perf_counter() - before
            where = np.arange(self.position, self.position + self.num_envs) % len(self.fields[0])
            for field, values in zip(self.fields, (self.obs, next_obs, actions, rewards, terminations), strict=True):
                field[where] = values
            self.obs, self.position = next_obs, self.position + self.num_envs
            before = time.perf_counter()
            self.update()
            updating += time.perf_counter() - before
        return time.perf_counter() - start, simulating, updating


# -------------------------------------------------------------------------------------------------------- measuring


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def in_turns(candidates, turns, device):
    """Median seconds a call of each of `candidates` {name: (function, calls a turn)}, which take turns."""
    times = {name: [] for name in candidates}
    for turn in tqdm(range(turns + 2), leave=False, disable=not sys.stderr.isatty()):
        for name, (function, calls) in candidates.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(calls):
                function()
            synchronize(device)
            if turn >= 2:  # two turns of warming up
                times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def script_args(module, args, **changes):
    known = {field.name for field in fields(module.Args)}
    settings = {"env_id": args.env_id, "device": args.device, "cuda_graphs": args.cuda_graphs, **changes}
    return module.Args(**{name: value for name, value in settings.items() if name in known})


def make_update(module, args, obs_dim, action_space, device):
    """A function that makes the script's next update, on a buffer of random transitions."""
    script = script_args(module, args)
    agent = module.Agent(obs_dim, action_space, script).to(device)
    buffer = module.ReplayBuffer(100_000, obs_dim, action_space.shape[0], device)
    for _ in range(10):
        buffer.add(torch.rand(10_000, sum(buffer.columns), device=device))
    update_networks = module.make_update(agent, *module.make_optimizers(agent, script), buffer, script)
    count = 0

    def update():
        nonlocal count
        count += 1
        update_networks(with_actor=count % script.policy_frequency == 0)

    return update


def ten_products(left, right):
    """A function that multiplies ten times; on CUDA as one graph, or it would be the launches that are measured."""

    def multiply():
        for _ in range(10):
            F.linear(left, right)

    if not left.is_cuda:
        return multiply
    multiply()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        multiply()
    return graph.replay


def matrix_products(obs_dim, action_dim, batch, neighbors, device):
    """Seconds that an AMS-TD3 update must spend in matrix products: each shape's product, timed alone, times its count.

    Target: actor on B states, first layers of two critics on B states and B K actions, second layers on B K rows.
    Critics: forward, gradients of weights, gradient of the second layer's input. Every second update, the actor's step.
    """
    wide = batch * neighbors
    forward_actor = [(batch, obs_dim, 256), (batch, 256, 256), (batch, 256, action_dim)]
    forward_critic = [(batch, obs_dim + action_dim, 256), (batch, 256, 256)]
    products = [(1.0, shape) for shape in forward_actor]
    products += [(2.0, (batch, obs_dim, 256)), (2.0, (wide, action_dim, 256)), (2.0, (wide, 256, 256))]
    products += [(2.0, shape) for shape in forward_critic]
    products += [(2.0, (obs_dim + action_dim, batch, 256)), (2.0, (256, batch, 256)), (2.0, (batch, 256, 256))]
    products += [(0.5, shape) for shape in forward_actor + forward_critic]
    products += [(0.5, (batch, 256, 256)), (0.5, (batch, 256, obs_dim + action_dim))]  # the critic's inputs
    products += [(0.5, (k, rows, n)) for rows, k, n in forward_actor]  # the actor's weights
    products += [(0.5, (batch, 256, 256)), (0.5, (batch, action_dim, 256))]  # the actor's inputs
    candidates, counts = {}, {}
    for count, shape in products:
        rows, inner, columns = shape
        left, right = torch.rand(rows, inner, device=device), torch.rand(columns, inner, device=device)
        candidates[shape] = ten_products(left, right), 1
        counts[shape] = counts.get(shape, 0) + count
    seconds = in_turns(candidates, 10, device)
    flops = sum(2 * count * math.prod(shape) for shape, count in counts.items())
    return sum(count * seconds[shape] / 10 for shape, count in counts.items()), flops


def simulator_alone(envs, steps=60):
    """Seconds a vector step when workers do nothing but simulate: random actions, no learner."""
    space = envs.single_action_space
    actions = np.random.uniform(space.low, space.high, (steps, envs.num_envs, *space.shape)).astype(np.float32)
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return (time.perf_counter() - start) / steps


class NullEnv(gym.Env):
    """Costs nothing: what a vector step of it takes are the messages and copies of the vector environment."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.observation = np.zeros(observation_space.shape, np.float32)

    def reset(self, *, seed=None, options=None):
        return self.observation, {}

    def step(self, action):
        return self.observation, 0.0, False, False, {}


def environment_step(module, env_id, steps=300):
    """Seconds of one environment's step in its worker, whole and without what this project puts around it."""
    env = module.make_env(env_id)()
    env.reset(seed=1)
    inner = env.unwrapped.env if isinstance(env.unwrapped, module.DMControlEnv) else env.unwrapped
    space, whole, own = env.action_space, [], []
    for _ in range(steps):
        action = np.random.uniform(space.low, space.high).astype(np.float32)
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        whole.append(time.perf_counter() - start)
        if terminated or truncated:
            env.reset()
        start = time.perf_counter()
        inner.step(action)
        own.append(time.perf_counter() - start)
    return statistics.median(whole), statistics.median(own)


def steps_of_ppo(module, args, envs):
    """Seconds (whole, simulating, updating) of 128 steps of ppo.py's own train().

    A rollout of 64 steps with one minibatch keeps PPO's default of 512 samples a minibatch and 10 of them for 64 steps.
    """
    timed, marks = TimedTraining(module, args, envs), {}
    saved = module.update_agent, module.evaluate, envs.step, module.Run.count_step, sys.stdout

    def count_step(run, metrics, infos):
        saved[3](run, metrics, infos)
        marks[run.global_step] = time.perf_counter(), timed.waiting, timed.updating

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as silent:
        changes = dict(run_dir=folder, total_timesteps=192, num_steps=64, num_minibatches=1, num_envs=envs.num_envs)
        script = script_args(module, args, **changes)
        module.update_agent, envs.step = timed.timed(saved[0], "updating"), timed.timed(envs.step, "waiting")
        module.evaluate = lambda *given: (np.zeros(script.eval_episodes), np.zeros(script.eval_episodes, dtype=int))
        module.Run.count_step, sys.stdout = count_step, silent
        try:
            module.train(script, module.Run(script, []), envs, envs)
        finally:
            module.update_agent, module.evaluate, envs.step, module.Run.count_step, sys.stdout = saved
    return tuple(after - before for before, after in zip(marks[64], marks[192], strict=True))


class TimedTraining:
    """The script's own train(), with a clock at its joints: the updates, the wait for the simulators, whole steps."""

    def __init__(self, module, args, envs):
        self.module, self.args, self.envs = module, args, envs
        self.updating = self.waiting = 0.0

    def timed(self, function, name):
        def call(*arguments, **named):
            start = time.perf_counter()
            result = function(*arguments, **named)
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)
            return result

        return call

    def steps(self, count, warm_up=20):
        """Trains for `count` steps after some of warming up; returns seconds (whole, waiting, updating)."""
        module, envs = self.module, self.envs
        starts = math.ceil(256 / envs.num_envs) + 1
        saved = module.make_update, module.evaluate, envs.step_wait, module.Run.count_step, sys.stdout
        marks = {}

        def count_step(run, metrics, infos):
            saved[3](run, metrics, infos)
            if run.global_step == starts + warm_up:
                marks["start"], self.updating, self.waiting = time.perf_counter(), 0.0, 0.0
            if run.global_step == starts + warm_up + count:
                marks["end"] = time.perf_counter()

        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as silent:
            changes = dict(run_dir=folder, learning_starts=starts, total_timesteps=starts + warm_up + count)
            script = script_args(module, self.args, **changes, buffer_size=100_000, num_envs=envs.num_envs)
            module.make_update = lambda *given: self.timed(saved[0](*given), "updating")
            module.evaluate = lambda *given: (np.zeros(script.eval_episodes), np.zeros(script.eval_episodes, dtype=int))
            envs.step_wait, module.Run.count_step, sys.stdout = (
                self.timed(envs.step_wait, "waiting"),
                count_step,
                silent,
            )
            try:
                module.train(script, module.Run(script, []), envs, envs)
            finally:
                module.make_update, module.evaluate, envs.step_wait, module.Run.count_step, sys.stdout = saved
        return marks["end"] - marks["start"], self.waiting, self.updating


def median_shares(turns, count):
    """Median seconds a step, and the median shares of its two parts and of the rest."""
    parts = [[part / whole for whole, *both in turns for part in (both[i],)] for i in range(2)]
    first, second = (statistics.median(part) for part in parts)
    return statistics.median(turn[0] for turn in turns) / count, first, second, 1 - first - second


def main():
    args = tyro.cli(BenchmarkArgs, description=__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))  # the scripts keep this number of threads
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    names = [name for name in ("td3", "ams_td3", "sac", "ams_sac") if (ROOT / f"{name}.py").exists()]
    modules = {name: importlib.import_module(name) for name in names}
    ams = modules["ams_td3"]
    ams.find_env_id(args.env_id)
    envs = ams.make_envs(args.env_id, 8)
    obs_dim, action_space = envs.single_observation_space.shape[0], envs.single_action_space
    action_dim = action_space.shape[0]
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    numbers = {"args": vars(args), "torch": torch.__version__, "cpu": platform.processor(), "gpu": gpu}
    numbers |= {"cores": ams.count_cores(), "machine": platform.platform()}

    print(f"{args.env_id} on {gpu or 'the CPU'}, {numbers['cores']} cores, {args.threads} learner threads")

    def row(name, value, unit, note=""):
        print(f"{name:48s} {value:10.3f} {unit:8s} {note}", flush=True)
        numbers[name] = value

    # Updates
    candidates = {
        name: (make_update(module, args, obs_dim, action_space, device), 4) for name, module in modules.items()
    }
    port = Port(args.env_id, obs_dim, action_dim, device, 100_000)
    candidates["port"] = port.update, 4
    seconds = in_turns(candidates, args.turns, device)
    for name, value in seconds.items():
        row(f"update {name}", 1e3 * value, "ms")
    for base in ("td3", "sac"):
        if base in seconds:
            row(f"update ams_{base} / {base}", seconds[f"ams_{base}"] / seconds[base], "x")
    row("update port / ams_td3", seconds["port"] / seconds["ams_td3"], "x", "how many times faster than the port")
    limit, flops = matrix_products(obs_dim, action_dim, 256, 8, device)
    row("limit: matrix products of ams_td3's update", 1e3 * limit, "ms", f"{flops / limit / 1e9:.0f} GFLOP/s")
    row("limit / update ams_td3", limit / seconds["ams_td3"], "x")
    directions = in_turns(
        {
            "directions": (lambda: ams.orthonormal_directions(256, 8, action_dim, device), 4),
            "qr": (lambda: torch.linalg.qr(torch.randn(256, action_dim, 8, device=device)), 4),
        },
        20,
        device,
    )
    row("directions, Gram-Schmidt", 1e3 * directions["directions"], "ms")
    row("directions, torch.linalg.qr without sign fix", 1e3 * directions["qr"], "ms")

    # Whole training
    envs.reset(seed=1)
    training = {name: TimedTraining(module, args, envs) for name, module in modules.items()}
    ppo = importlib.import_module("ppo") if (ROOT / "ppo.py").exists() else None
    turns = {name: [] for name in [*training, "port", *(["ppo"] if ppo else [])]}
    alone = []
    for _ in range(args.step_turns):
        for name, candidate in training.items():
            turns[name].append(candidate.steps(60))
        turns["port"].append(port.steps(60))
        if ppo:
            turns["ppo"].append([part * 60 / 128 for part in steps_of_ppo(ppo, args, envs)])
        alone.append(simulator_alone(envs))
    for name, measured in turns.items():
        step, waiting, updating, elsewhere = median_shares(measured, 60)
        first = "simulating" if name in ("port", "ppo") else "waiting"
        note = f"{first} {waiting:.0%}, updating {updating:.0%}, elsewhere {elsewhere:.0%}"
        if device.type == "cuda":
            note = ""  # a call that updates returns before the GPU has
        row(f"training {name}", 1 / step, "steps/s", note)
    row("training ams_td3 / port", numbers["training ams_td3"] / numbers["training port"], "x")
    row("limit: 8 workers simulating alone", 1 / statistics.median(alone), "steps/s")

    # The environment's side
    whole, own = environment_step(ams, args.env_id)
    row("environment step in a worker", 1e6 * whole, "us")
    row("share of it that is this project's", 1 - own / whole, "x")
    nothing = gym.vector.AsyncVectorEnv(
        [lambda: NullEnv(envs.single_observation_space, action_space)] * 8,
        copy=False,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    nothing.reset()
    row("messages and copies of a vector step", 1e6 * simulator_alone(nothing, 500), "us", "8 workers that do nothing")
    nothing.close()

    # Memory
    workers = [psutil.Process(process.pid).memory_full_info().uss / 2**20 for process in envs.processes]
    row("memory of a worker", statistics.median(workers), "MiB", "not shared with others")
    row(
        "memory of this process",
        psutil.Process().memory_info().rss / 2**20,
        "MiB",
        "with the buffers of every candidate",
    )
    if device.type == "cuda":
        row("memory on the device", torch.cuda.max_memory_allocated() / 2**20, "MiB", "peak, every candidate")
    envs.close()

    Path(args.output).write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()

"""How fast are the scripts: beside Stable-Baselines3, beside a straightforward port, and by themselves?

    python tests/benchmark.py                                # dog-run, on the CPU: a few minutes
    python tests/benchmark.py --env-id cheetah-run --threads 2
    python tests/benchmark.py --device cuda --cuda-graphs    # on a GPU
    pip install --no-deps stable-baselines3==2.9.2           # (needs nothing that requirements.txt does not install)
    python tests/benchmark.py --peers --threads 2            # beside Stable-Baselines3's TD3 and SAC

Prints ratios and numbers, and writes them as JSON. Everything that is compared is measured in turns in this one
process, on the same task with 8 environments, networks of 256 and 256 units, batches of 256 and one update per vector
step. A number is a median over the turns, and a ratio the median of the turns' ratios: on a shared machine a single
timing means little. The port below is AMS-TD3 written down in the obvious way; nobody trains with it.
"""

import contextlib
import copy
import importlib
import itertools
import json
import math
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
import psutil
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
OFF_POLICY = ["td3", "ams_td3", "sac", "ams_sac"]
NUM_ENVS = 8
STEPS = 64  # of warming up, and then of measuring, in a turn of the training benchmark: one rollout of PPO
CAPACITY = 100_000  # transitions in a replay buffer


@dataclass
class BenchmarkArgs:
    env_id: str = "dog-run"
    """the task; its shapes are those of the update benchmark"""
    peers: bool = False
    """measure whole training beside Stable-Baselines3's, each at its best number of threads, and nothing else"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where networks and buffer live"""
    cuda_graphs: bool = False
    """measure the scripts with --cuda-graphs"""
    threads: int = 1
    """learner threads, for every candidate alike; --peers tries all numbers up to this one"""
    turns: int = 30
    """turns of the update benchmark; each candidate makes four updates a turn"""
    step_turns: int = 5
    """turns of the training benchmark; each candidate makes 64 steps a turn, after 64 of warming up"""
    output: str = "benchmark.json"
    """where the numbers are written"""


def make_port_update(obs_dim, action_dim, device, k=8, epsilon=0.2):
    """A function that makes AMS-TD3's next update, eager: states repeated K times, torch.linalg.qr per batch, unfused
    Adam, parameter-by-parameter averaging, one array a field in host memory."""
    actor = nn.Sequential(
        nn.Linear(obs_dim, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, action_dim),
        nn.Tanh(),
    ).to(device)
    qf1 = nn.Sequential(
        nn.Linear(obs_dim + action_dim, 256),
        nn.LayerNorm(256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.LayerNorm(256),
        nn.ReLU(),
        nn.Linear(256, 1),
    ).to(device)
    qf2 = copy.deepcopy(qf1)
    networks = nn.ModuleList([actor, qf1, qf2])
    targets = copy.deepcopy(networks)
    adam = partial(torch.optim.Adam, lr=3e-4, foreach=False, fused=False)
    q_optimizer = adam([*qf1.parameters(), *qf2.parameters()])
    actor_optimizer = adam(actor.parameters())
    shapes = [(obs_dim,), (obs_dim,), (action_dim,), (), ()]
    buffer = [np.random.rand(CAPACITY, *shape).astype(np.float32) for shape in shapes]
    turns = itertools.cycle([False, True])

    def make_directions():
        frames = math.ceil(k / action_dim)
        normal = torch.randn(256, frames, action_dim, min(k, action_dim), device=device)
        q, r = torch.linalg.qr(normal)
        signs = r.diagonal(dim1=2, dim2=3).sign().unsqueeze(2)
        return (q * signs).mT.flatten(1, 2)[:, :k]

    @torch.no_grad()
    def make_target(next_obs, rewards, dones):
        target_actor, qf1_target, qf2_target = targets
        centers = target_actor(next_obs).unsqueeze(1)
        neighbors = (centers + epsilon * make_directions()).clamp(-1, 1)
        states = next_obs.repeat_interleave(k, dim=0)
        inputs = torch.cat([states, neighbors.reshape(256 * k, action_dim)], dim=1)
        next_q = torch.min(qf1_target(inputs), qf2_target(inputs))
        return rewards + 0.99 * (1 - dones) * next_q.view(256, k).mean(dim=1)

    def update():
        rows = np.random.randint(0, CAPACITY, 256)
        obs, next_obs, actions, rewards, dones = [torch.as_tensor(field[rows], device=device) for field in buffer]
        target = make_target(next_obs, rewards, dones)
        inputs = torch.cat([obs, actions], dim=1)
        loss = F.mse_loss(qf1(inputs).view(-1), target) + F.mse_loss(qf2(inputs).view(-1), target)
        q_optimizer.zero_grad()
        loss.backward()
        q_optimizer.step()
        if next(turns):
            actor_loss = -qf1(torch.cat([obs, actor(obs)], dim=1)).mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            for parameter, target in zip(networks.parameters(), targets.parameters(), strict=True):
                target.data.copy_(0.005 * parameter.data + 0.995 * target.data)

    return update


def now(device):
    """Seconds on a clock, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(candidates, turns):
    """What each of `candidates` {name: function} returns, seconds in most, when they take turns: {name: [turns]}."""
    results = {name: [] for name in candidates}
    for _ in range(turns):
        for name, function in candidates.items():
            results[name].append(function())
    return results


def script_args(module, args, **changes):
    """A script's arguments: of those of the benchmark and `changes`, the ones that it has."""
    changes |= {"env_id": args.env_id, "device": args.device, "cuda_graphs": args.cuda_graphs}
    return module.Args(**{name: value for name, value in changes.items() if hasattr(module.Args, name)})


def make_optimizers(agent, script):
    """Adam for each group of parameters, as the scripts' train() makes it but for the learning rate."""
    groups = [agent.critic_parameters(), agent.actor.parameters()]
    if hasattr(agent, "log_alpha"):
        groups.append([agent.log_alpha])
    return [torch.optim.Adam(group, lr=3e-4, fused=True, capturable=script.cuda_graphs) for group in groups]


def make_update(module, args, obs_dim, action_dim, rows):
    """A function that makes the script's next update as its train() does, on `rows` of random transitions."""
    script = script_args(module, args)
    device = torch.device(args.device)
    agent = module.Agent(obs_dim, action_dim, script).to(device)
    optimizers = make_optimizers(agent, script)
    with contextlib.redirect_stdout(None):
        rb = module.ReplayBuffer(1, obs_dim, action_dim, device)
    rb.rows = rows
    rb.size = len(rows)
    updates = []
    for with_actor in (False, True):
        updates.append(partial(module.update, agent, *optimizers, script, with_actor))
        if args.cuda_graphs:
            updates[-1] = module.CudaGraphModule(updates[-1])
    updates = itertools.cycle(updates)  # the default is an update of the actor for two of the critics
    directions = []

    def update():
        draws = [rb.sample(script.batch_size)]
        if hasattr(script, "ntd"):
            if not directions:
                directions.extend(module.draw_directions(script, action_dim, device))
            draws.append(directions.pop())
        next(updates)(*draws)

    return update


@contextlib.contextmanager
def meta_like_cuda():
    """Inside, PyTorch goes on the meta device where it goes on a GPU: to fused Adam, and to one call for all norms."""
    adam = patch("torch.optim.adam._device_dtype_check_for_fused")
    norms = patch("torch.nn.utils.clip_grad._has_foreach_support")
    with adam, norms:
        yield


class Counter(TorchDispatchMode):
    """Counts PyTorch's operations; views cost nothing and are left out, as is what only a profiler sees."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and not func.is_view:
            self.total += 1
        return func(*args, **(kwargs or {}))


def count_operations(module, obs_dim, action_dim, **changes):
    """Operations of an update that a GPU launches, without drawing the batch: {"critics": of an update of the critics,
    "with actor": of one that updates the actor too}. Directions are drawn for many updates at once, and each counts its
    part. Counted on the meta device, which a script treats as a GPU, and where nothing is computed."""
    meta = torch.device("meta")
    script = module.Args(**changes)
    agent = module.Agent(obs_dim, action_dim, script).to(meta)
    shapes = [(256, obs_dim), (256, obs_dim), (256, action_dim), (256,), (256,)]
    draws = [module.Batch(*[torch.empty(shape, device=meta) for shape in shapes])]
    drawing = 0
    if hasattr(script, "ntd"):
        with Counter() as counter:
            drawn = module.draw_directions(script, action_dim, meta)
        draws.append(drawn[0])
        drawing = counter.total / len(drawn)
    operations = {}
    with meta_like_cuda():
        optimizers = make_optimizers(agent, script)
        module.update(agent, *optimizers, script, True, *draws)  # the first one also makes Adam's moments
        for name, with_actor in (("critics", False), ("with actor", True)):
            with Counter() as counter:
                module.update(agent, *optimizers, script, with_actor, *draws)
            operations[name] = counter.total + drawing
    return operations


def train(module, args, envs):
    """Runs the script's own train() with a clock at its joints: for STEPS steps, after as many of warming up, seconds
    [3] of a step, of updating while the environments simulate (never PPO), and of waiting for them after that. On a GPU
    a call that updates returns before it is done."""
    changes = {
        "num_envs": NUM_ENVS,
        "total_timesteps": 2 * STEPS + 1,
        "learning_starts": 256 // NUM_ENVS + 1,
        "buffer_size": CAPACITY,
        "num_steps": STEPS,
        "num_minibatches": 1,
    }
    times = []  # four a step: actions are sent, waiting begins, waiting ends, the step is logged

    def clocked(function, before=False):
        def call(*given, **named):
            if before:
                times.append(time.perf_counter())
            result = function(*given, **named)
            times.append(time.perf_counter())
            return result

        return call

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        script = script_args(module, args, run_dir=folder, **changes)
        run = module.Run(script, torch.device(args.device), [])
        run.log_step = clocked(run.log_step)
        # Training is what is measured; there is no episode for a result.
        run.evaluate = lambda policy, envs: False
        run.finish = lambda agent: run.writer.close()
        envs.step_async = clocked(envs.step_async)
        envs.step_wait = clocked(envs.step_wait, before=True)
        try:
            module.train(script, run, envs)
        finally:
            del envs.step_async, envs.step_wait
    sent, begun, ended, logged = np.reshape(times, (-1, 4))[: 2 * STEPS].T
    whole = logged[-1] - logged[-1 - STEPS]
    updating = (begun - sent)[-STEPS:].sum()
    waiting = (ended - begun)[-STEPS:].sum()
    return np.array([whole, updating, waiting]) / STEPS


def make_peers(env_id, device):
    """Stable-Baselines3's TD3 and SAC as functions that train for STEPS vector steps, after as many of warming up, and
    return seconds of a step; and their environments, in worker processes."""
    from stable_baselines3 import SAC, TD3
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import SubprocVecEnv

    make_env = importlib.import_module("td3").make_env
    envs = SubprocVecEnv([partial(make_env, env_id)] * NUM_ENVS, start_method="fork")
    settings = {
        "learning_rate": 3e-4,
        "buffer_size": CAPACITY,
        "learning_starts": 256,
        "batch_size": 256,
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": [256, 256]},
        "device": device,
    }
    shape = envs.action_space.shape
    noise = NormalActionNoise(np.zeros(shape), np.full(shape, 0.1))
    models = {
        "sb3_td3": TD3("MlpPolicy", envs, policy_delay=2, action_noise=noise, **settings),
        "sb3_sac": SAC("MlpPolicy", envs, **settings),
    }

    def learn(model):
        for _ in range(2):
            updates = model._n_updates
            start = now(device)
            model.learn(NUM_ENVS * STEPS, reset_num_timesteps=False)  # it counts frames
        made = model._n_updates - updates
        if made != STEPS:
            raise RuntimeError(f"Stable-Baselines3 made {made} updates in {STEPS} vector steps")
        return (now(device) - start) / STEPS

    candidates = {name: partial(learn, model) for name, model in models.items()}
    return candidates, envs


def simulate(envs):
    """Seconds [1] of a vector step when workers only simulate: random actions, no learner."""
    actions = np.random.uniform(-1, 1, (STEPS, *envs.action_space.shape)).astype(np.float32)
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return np.array([time.perf_counter() - start]) / STEPS


def environment_step(module, env_id, steps=300):
    """Seconds of one environment's step in its worker: whole, and without what this project puts around it."""
    whole = module.make_env(env_id)
    whole.reset(seed=1)
    inner = whole.env.env  # without the statistics of episodes and Task
    times = []
    for step in range(2 * steps):
        env = whole if step % 2 == 0 else inner
        action = env.action_space.sample()
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        times.append(time.perf_counter() - start)
        if terminated or truncated:
            whole.reset()
    return statistics.median(times[::2]), statistics.median(times[1::2])


def compare(row, what, seconds, pairs):
    """Prints how many times as fast the first of each pair is: the median over the turns, and their quartiles."""
    for fast, slow in pairs:
        ratios = np.divide(seconds[slow], seconds[fast])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        row(f"{what}: speed of {fast} over {slow}", middle, "x", f"quartiles {low:.2f} and {high:.2f}")


def measure_updates(args, modules, obs_dim, action_dim, row):
    rows = torch.rand(CAPACITY, 2 * obs_dim + action_dim + 2, device=args.device)
    candidates = {name: make_update(modules[name], args, obs_dim, action_dim, rows) for name in OFF_POLICY}
    candidates["port"] = make_port_update(obs_dim, action_dim, args.device)

    def four_times(update):
        start = now(args.device)
        for _ in range(4):
            update()
        return (now(args.device) - start) / 4

    candidates = {name: partial(four_times, update) for name, update in candidates.items()}
    in_turns(candidates, 2)  # of warming up
    seconds = in_turns(candidates, args.turns)
    compare(row, "update", seconds, [("ams_td3", "port"), ("td3", "ams_td3"), ("sac", "ams_sac")])
    for name, values in seconds.items():
        row(f"update: {name}", 1e3 * statistics.median(values), "ms")
    for name in OFF_POLICY:
        operations = count_operations(modules[name], obs_dim, action_dim)
        note = f"{operations['with actor']:.1f} with the actor"
        row(f"update: {name}, launches on a GPU", operations["critics"], "", note)


def measure_training(args, modules, envs, row):
    candidates = {name: partial(train, module, args, envs) for name, module in modules.items()}
    parts = in_turns(candidates | {"simulators alone": partial(simulate, envs)}, args.step_turns)
    seconds = {name: [turn[0] for turn in turns] for name, turns in parts.items()}
    compare(row, "training", seconds, [("td3", "ams_td3"), ("sac", "ams_sac")])
    for name, turns in parts.items():
        note = ""
        if name in modules:
            _, updating, waiting = np.median([turn / turn[0] for turn in turns], axis=0)
            note = f"updating while they simulate {updating:.0%}, waiting {waiting:.0%}"
        row(f"training: {name}", 1 / statistics.median(seconds[name]), "steps/s", note)


def measure_peers(args, modules, envs, row):
    candidates, their_envs = make_peers(args.env_id, args.device)
    names = [*candidates, *OFF_POLICY]

    def step_seconds(name, threads):
        torch.set_num_threads(threads)
        if name in candidates:
            return candidates[name]()
        return train(modules[name], args, envs)[0]

    counts = range(1, args.threads + 1)
    cases = {}
    for name, threads in itertools.product(names, counts):
        cases[name, threads] = partial(step_seconds, name, threads)
    first = in_turns(cases, 1)
    for name, threads in first:
        fastest = min(first[name, count][0] for count in counts)
        if first[name, threads][0] > 2 * fastest:
            del cases[name, threads]  # hopeless
    seconds = in_turns(cases, args.step_turns)
    best = {}
    for (name, _), values in seconds.items():
        best[name] = min(best.get(name, values), values, key=statistics.median)
    compare(row, "training", best, [(name, f"sb3_{name.removeprefix('ams_')}") for name in OFF_POLICY])
    for (name, threads), values in seconds.items():
        row(f"training: {name}, {threads} threads", 1 / statistics.median(values), "steps/s")
    their_envs.close()


def check(args):
    """Ends the program with one line if an argument can't be right."""
    no_folder = not Path(args.output).absolute().parent.is_dir()
    no_peers = args.peers and not find_spec("stable_baselines3")
    rules = [
        (args.device == "cuda" and not torch.cuda.is_available(), "--device cuda: PyTorch finds no CUDA device here"),
        (args.cuda_graphs and args.device != "cuda", "--cuda-graphs needs --device cuda"),
        (min(args.threads, args.turns, args.step_turns) < 1, "--threads, --turns and --step-turns must be positive"),
        (no_folder, f"--output {args.output}: there is no such folder"),
        (no_peers, "--peers needs Stable-Baselines3: pip install --no-deps stable-baselines3==2.9.2"),
    ]
    for wrong, message in rules:
        if wrong:
            sys.exit(f"benchmark.py: error: {message}")


def cpu_name():
    """The processor's name, as Linux or Python gives it."""
    info = Path("/proc/cpuinfo")
    names = [platform.processor()]
    if info.exists():
        names = re.findall(r"model name\s*: (.*)", info.read_text()) + names
    return names[0]


def main():
    args = tyro.cli(BenchmarkArgs, description=__doc__)
    os.environ["MUJOCO_GL"] = "disable"
    check(args)
    modules = {name: importlib.import_module(name) for name in [*OFF_POLICY, "ppo"]}
    ams = modules["ams_td3"]
    settings = ams.Args(env_id=args.env_id, num_envs=NUM_ENVS)
    envs = ams.WorkerEnvs(settings, ams.find_spaces(settings), [])
    obs_dim = envs.single_observation_space.shape[0]
    action_dim = envs.single_action_space.shape[0]
    torch.set_num_threads(args.threads)
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    cpu = cpu_name()
    numbers = {"args": vars(args), "torch": torch.__version__, "cpu": cpu, "cores": os.cpu_count(), "gpu": gpu}
    print(f"{args.env_id} on {gpu or 'the CPU'}; {os.cpu_count()} cores of {cpu}")

    def row(name, value, unit, note=""):
        print(f"{name:42s} {value:9.2f} {unit:8s} {note}", flush=True)
        numbers[name] = value

    envs.reset(seed=1)
    if args.peers:
        measure_peers(args, modules, envs, row)
    else:
        measure_updates(args, modules, obs_dim, action_dim, row)
        measure_training(args, modules, envs, row)
        whole, inner = environment_step(ams, args.env_id)
        row("an environment's step in a worker", 1e6 * whole, "us")
        row("share of it that is this project's", 100 * (1 - inner / whole), "%")
        workers = [psutil.Process(process.pid).memory_full_info().uss / 2**20 for process in envs.processes]
        row("memory of a worker", statistics.median(workers), "MiB", "not shared with others")
    envs.close()
    Path(args.output).write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()

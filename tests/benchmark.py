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
import io
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro

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
    layers = [nn.Linear(obs_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, action_dim), nn.Tanh()]
    actor = nn.Sequential(*layers).to(device)
    layers = [nn.Linear(obs_dim + action_dim, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 256)]
    qf1 = nn.Sequential(*layers, nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 1)).to(device)
    qf2 = copy.deepcopy(qf1)
    target_actor, qf1_target, qf2_target = (copy.deepcopy(net) for net in (actor, qf1, qf2))
    adam = partial(torch.optim.Adam, lr=3e-4, foreach=False, fused=False)
    q_optimizer, actor_optimizer = adam([*qf1.parameters(), *qf2.parameters()]), adam(actor.parameters())
    shapes = [(obs_dim,), (obs_dim,), (action_dim,), (), ()]
    buffer = [np.random.rand(CAPACITY, *shape).astype(np.float32) for shape in shapes]
    with_actor = itertools.cycle([False, True])

    def update():
        rows = np.random.randint(0, CAPACITY, 256)
        obs, next_obs, actions, rewards, dones = (torch.as_tensor(field[rows], device=device) for field in buffer)
        with torch.no_grad():
            shape = 256, action_dim, min(k, action_dim)
            frames = [torch.linalg.qr(torch.randn(shape, device=device)) for _ in range(-(-k // action_dim))]
            signed = [q * torch.diagonal(r, dim1=1, dim2=2).sign().unsqueeze(1) for q, r in frames]
            directions = torch.cat(signed, 2)[:, :, :k].transpose(1, 2)
            neighbors = (target_actor(next_obs).unsqueeze(1) + epsilon * directions).clamp(-1, 1)
            inputs = torch.cat([next_obs.repeat_interleave(k, 0), neighbors.reshape(256 * k, action_dim)], 1)
            next_q = torch.min(qf1_target(inputs), qf2_target(inputs)).view(256, k).mean(1)
            target = rewards + 0.99 * (1 - dones) * next_q
        inputs = torch.cat([obs, actions], 1)
        loss = F.mse_loss(qf1(inputs).view(-1), target) + F.mse_loss(qf2(inputs).view(-1), target)
        q_optimizer.zero_grad()
        loss.backward()
        q_optimizer.step()
        if next(with_actor):
            actor_loss = -qf1(torch.cat([obs, actor(obs)], 1)).mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            for net, target_net in ((actor, target_actor), (qf1, qf1_target), (qf2, qf2_target)):
                for parameter, target_parameter in zip(net.parameters(), target_net.parameters(), strict=True):
                    target_parameter.data.copy_(0.005 * parameter.data + 0.995 * target_parameter.data)

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
    known = {field.name for field in fields(module.Args)}
    settings = {"env_id": args.env_id, "device": args.device, "cuda_graphs": args.cuda_graphs, **changes}
    return module.Args(**{name: value for name, value in settings.items() if name in known})


def make_update(module, args, obs_dim, action_dim, rows):
    """A function that makes the script's next update as its train() does, on `rows` of random transitions."""
    script, device = script_args(module, args), torch.device(args.device)
    agent = module.Agent(obs_dim, action_dim, script).to(device)
    adam = partial(torch.optim.Adam, lr=3e-4, fused=True, capturable=args.cuda_graphs)
    optimizers = [adam(agent.critic_parameters()), adam(agent.actor.parameters())]
    optimizers += [adam([agent.log_alpha])] if hasattr(agent, "log_alpha") else []
    with contextlib.redirect_stdout(io.StringIO()):
        rb = module.ReplayBuffer(1, obs_dim, action_dim, device)
    rb.rows, rb.size = rows, len(rows)
    updates = [partial(module.update, agent, *optimizers, script, with_actor) for with_actor in (False, True)]
    if args.cuda_graphs:
        updates = [module.CudaGraphModule(update) for update in updates]
    updates = itertools.cycle(updates)  # the default is an update of the actor for two of the critics

    def update():
        draws = [rb.sample(script.batch_size)]
        if hasattr(module, "sample_directions"):
            size = script.batch_size, script.num_neighbors, action_dim
            draws += [module.sample_directions(script.sampling, *size, device)]
        next(updates)(*draws)

    return update


def train(module, args, envs):
    """Runs the script's own train() with a clock at its joints: for STEPS steps, after as many of warming up, seconds
    [3] of a step, of updating while the environments simulate (never PPO), and of waiting for them after that. On a GPU
    a call that updates returns before it is done."""
    changes = {"num_envs": NUM_ENVS, "total_timesteps": 2 * STEPS + 1, "learning_starts": 256 // NUM_ENVS + 1}
    changes |= {"buffer_size": CAPACITY, "num_steps": STEPS, "num_minibatches": 1}
    times = []  # four a step: actions are sent, waiting begins, waiting ends, the step is logged

    def clocked(function, before=False):
        def call(*given, **named):
            times.extend([time.perf_counter()] * before)
            result = function(*given, **named)
            times.append(time.perf_counter())
            return result

        return call

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        script = script_args(module, args, run_dir=folder, **changes)
        run = module.Run(script, torch.device(args.device), [])
        run.log_step = clocked(run.log_step)
        # Training is what is measured; there is no episode for a result.
        run.evaluate, run.finish = lambda policy, envs: False, lambda agent: run.writer.close()
        envs.step_async, envs.step_wait = clocked(envs.step_async), clocked(envs.step_wait, before=True)
        try:
            module.train(script, run, envs)
        finally:
            del envs.step_async, envs.step_wait
    sent, begun, ended, logged = np.reshape(times, (-1, 4))[: 2 * STEPS].T
    parts = logged[-1] - logged[-1 - STEPS], (begun - sent)[-STEPS:].sum(), (ended - begun)[-STEPS:].sum()
    return np.array(parts) / STEPS


def make_peers(env_id, device):
    """Stable-Baselines3's TD3 and SAC as functions that train for STEPS vector steps, after as many of warming up, and
    return seconds of a step; and their environments, in worker processes."""
    from stable_baselines3 import SAC, TD3
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import SubprocVecEnv

    make_env = importlib.import_module("td3").make_env
    envs = SubprocVecEnv([partial(make_env, env_id)] * NUM_ENVS, start_method="fork")
    settings = dict(learning_rate=3e-4, buffer_size=CAPACITY, learning_starts=256, batch_size=256, device=device)
    settings |= dict(train_freq=1, gradient_steps=1, policy_kwargs={"net_arch": [256, 256]})
    noise = NormalActionNoise(np.zeros(envs.action_space.shape), np.full(envs.action_space.shape, 0.1))
    models = {"sb3_td3": TD3("MlpPolicy", envs, policy_delay=2, action_noise=noise, **settings)}
    models["sb3_sac"] = SAC("MlpPolicy", envs, **settings)

    def learn(model):
        for _ in range(2):
            updates, start = model._n_updates, now(device)
            model.learn(NUM_ENVS * STEPS, reset_num_timesteps=False)  # it counts frames
        if model._n_updates - updates != STEPS:
            raise RuntimeError(f"Stable-Baselines3 made {model._n_updates - updates} updates in {STEPS} vector steps")
        return (now(device) - start) / STEPS

    return {name: partial(learn, model) for name, model in models.items()}, envs


def simulate(envs):
    """Seconds [1] of a vector step when workers only simulate: random actions, no learner."""
    actions = np.random.uniform(-1, 1, (STEPS, *envs.action_space.shape)).astype(np.float32)
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return np.array([time.perf_counter() - start]) / STEPS


def environment_step(module, env_id, steps=300):
    """Seconds of one environment's step in its worker: whole, and without what this project puts around it."""
    whole, times = module.make_env(env_id), []
    whole.reset(seed=1)
    inner = whole.env.env  # without the statistics of episodes and Task
    for step in range(2 * steps):
        env = inner if step % 2 else whole
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
        ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
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


def measure_training(args, modules, envs, row):
    candidates = {name: partial(train, module, args, envs) for name, module in modules.items()}
    parts = in_turns(candidates | {"simulators alone": partial(simulate, envs)}, args.step_turns)
    seconds = {name: [turn[0] for turn in turns] for name, turns in parts.items()}
    compare(row, "training", seconds, [("td3", "ams_td3"), ("sac", "ams_sac")])
    for name, turns in parts.items():
        shares = np.median([turn / turn[0] for turn in turns], axis=0)[1:]
        note = "updating while they simulate {:.0%}, waiting {:.0%}".format(*shares) if len(shares) else ""
        row(f"training: {name}", 1 / statistics.median(seconds[name]), "steps/s", note)


def measure_peers(args, modules, envs, row):
    candidates, their_envs = make_peers(args.env_id, args.device)
    candidates |= {name: lambda name=name: train(modules[name], args, envs)[0] for name in OFF_POLICY}

    def with_threads(name, threads):
        torch.set_num_threads(threads)
        return candidates[name]()

    cases = {case: partial(with_threads, *case) for case in itertools.product(candidates, range(1, args.threads + 1))}
    first = {case: seconds for case, (seconds,) in in_turns(cases, 1).items()}
    best = {name: min(first[case] for case in cases if case[0] == name) for name in candidates}
    cases = {case: call for case, call in cases.items() if first[case] < 2 * best[case[0]]}  # the others are hopeless
    seconds = in_turns(cases, args.step_turns)
    best = {}
    for (name, _), values in seconds.items():
        best[name] = min(best.get(name, values), values, key=statistics.median)
    compare(row, "training", best, [(name, f"sb3_{name.removeprefix('ams_')}") for name in OFF_POLICY])
    for (name, threads), values in seconds.items():
        row(f"training: {name}, {threads} threads", 1 / statistics.median(values), "steps/s")
    their_envs.close()


def main():
    args = tyro.cli(BenchmarkArgs, description=__doc__)
    os.environ["MUJOCO_GL"] = "disable"
    install = "pip install --no-deps stable-baselines3==2.9.2"
    for wrong, message in [
        (args.device == "cuda" and not torch.cuda.is_available(), "--device cuda: PyTorch finds no CUDA device here"),
        (args.cuda_graphs and args.device != "cuda", "--cuda-graphs needs --device cuda"),
        (min(args.threads, args.turns, args.step_turns) < 1, "--threads, --turns and --step-turns must be positive"),
        (not Path(args.output).absolute().parent.is_dir(), f"--output {args.output}: there is no such folder"),
        (args.peers and not find_spec("stable_baselines3"), f"--peers needs Stable-Baselines3: {install}"),
    ]:
        if wrong:
            sys.exit(f"benchmark.py: error: {message}")
    modules = {name: importlib.import_module(name) for name in [*OFF_POLICY, "ppo"]}
    ams = modules["ams_td3"]
    envs = ams.WorkerEnvs(ams.Args(env_id=args.env_id, num_envs=NUM_ENVS))
    obs_dim, action_dim = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    torch.set_num_threads(args.threads)
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    info = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    cpu = next((line.split(": ")[1] for line in info.splitlines() if "model name" in line), platform.processor())
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

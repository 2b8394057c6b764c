"""What breaks or stalls on a GPU and passes on a CPU, looked for without a GPU.

On the `meta` device tensors have shapes and no numbers: what runs there never reads a number back to the host, and a
mode notices every tensor that is made or left on the CPU. CUDA graphs are tensordict's own CudaGraphModule on a
stand-in for torch.cuda, which records the operations of a capture without their effects and replays them on the same
storages.
"""

import contextlib
from functools import partial
from types import SimpleNamespace

import benchmark
import gymnasium as gym
import numpy as np
import pytest
import tensordict.nn.cudagraphs
import torch
from learners import ACTION_DIM, AMS, EVERY, EVERY_AMS, OBS_DIM, OFF_POLICY, TD3_FAMILY, make_batch, make_learner
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import ams_sac
import ams_td3
import sac
import td3

META = torch.device("meta")


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


# ------------------------------------------------------------------------- nothing leaves the device, nothing joins it


class OnlyMeta(TorchDispatchMode):
    """Fails on an operation that takes or gives a tensor of another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tensors((args, kwargs, result)):
            if tensor.device != META:
                raise RuntimeError(f"{func} has a tensor on the {tensor.device.type}")
        return result


def make_meta_buffer(module):
    buffer = module.ReplayBuffer(100, OBS_DIM, ACTION_DIM, META)
    buffer.size = 50
    return buffer


CASES = [(module, {}) for module in OFF_POLICY] + [(sac, {"autotune": False})]
CASES += [(module, {"action_projection": "normalize"}) for module in TD3_FAMILY]
for ams in AMS:
    CASES += [(ams, {"ntd": False}), (ams, {"layer_norm": False})]


@pytest.mark.parametrize("module, args", CASES)
@pytest.mark.parametrize("with_actor", [False, True])
def test_an_update_stays_on_its_device(module, args, with_actor):
    with META:
        agent, batch, args, directions = make_learner(module, **args, cuda_graphs=True)

    with benchmark.meta_like_cuda(), OnlyMeta():
        optimizers = benchmark.make_optimizers(agent, args)
        metrics = module.update(agent, *optimizers, args, with_actor, batch, *directions)

    assert not any(value.requires_grad for value in metrics.values())
    assert {value.device for value in metrics.values()} == {META}


@EVERY
def test_a_reading_of_diagnostics_stays_on_its_device(module):
    with META:
        agent, batch, args, _ = make_learner(module)

    with OnlyMeta():
        stages = module.pathway_diagnostics(agent, batch, args)

    assert {value.device for value in stages.values()} == {META}


@EVERY
def test_exploring_stays_on_its_device(module):
    with META:
        agent, batch, *_ = make_learner(module)

    with OnlyMeta():
        actions = agent.explore(batch.observations)

    assert actions.shape == batch.actions.shape


@EVERY
def test_sampling_a_batch_stays_on_its_device(module):
    buffer = make_meta_buffer(module)

    with OnlyMeta():
        batch = buffer.sample(16)

    assert [part.shape for part in batch] == [part.shape for part in make_batch(module)]


class OneTransfer(TorchDispatchMode):
    """Counts the operations that bring a tensor from the CPU; everything else has to be on the device."""

    transfers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {tensor.device.type for tensor in tensors((args, kwargs))}
        made = {tensor.device.type for tensor in tensors(result)}
        if given == {"cpu"} and made == {"meta"}:
            self.transfers += 1
        elif len(given | made) > 1:
            raise RuntimeError(f"{func} mixes devices")
        return result


@EVERY
def test_storing_a_step_is_one_transfer(module):
    buffer = make_meta_buffer(module)
    observations = np.zeros((8, OBS_DIM))
    actions = np.zeros((8, ACTION_DIM))
    numbers = np.zeros(8)

    with OneTransfer() as mode:
        buffer.add(observations, observations, actions, numbers, numbers)

    assert mode.transfers == 1
    assert buffer.size == 58


# ---------------------------------------------------------------------------------------------- directions drawn ahead


@EVERY_AMS
@pytest.mark.parametrize("sampling", ["orthogonal", "antithetic", "gaussian"])
def test_a_gpu_draws_the_directions_of_64_updates_at_once(module, sampling):
    with OnlyMeta():
        drawn = module.draw_directions(module.Args(sampling=sampling), ACTION_DIM, META)

    assert [directions.shape for directions in drawn] == [(256, 8, ACTION_DIM)] * 64


@EVERY_AMS
def test_a_cpu_draws_the_directions_of_one_update(module):
    (directions,) = module.draw_directions(module.Args(), ACTION_DIM, torch.device("cpu"))

    assert directions.shape == (256, 8, ACTION_DIM)


@EVERY_AMS
def test_directions_drawn_ahead_are_each_the_methods_own(module, monkeypatch):
    """A GPU's 64 slices, drawn on a CPU: orthonormal, and no two alike."""
    sample_directions = module.sample_directions
    monkeypatch.setattr(module, "sample_directions", lambda *size: sample_directions(*size[:-1]))

    drawn = module.draw_directions(module.Args(batch_size=4, num_neighbors=3), ACTION_DIM, META)

    frames = torch.cat(drawn)
    products = frames @ frames.mT
    assert_close(products, torch.eye(3).expand_as(products), rtol=0, atol=1e-5)
    assert len(frames.unique(dim=0)) == 64 * 4


@pytest.mark.parametrize("module, base, most, more", [(ams_td3, td3, 70, 1), (ams_sac, sac, 92, 5)])
def test_the_neighborhood_launches_hardly_more_than_the_base_algorithm(module, base, most, more):
    """On a GPU each operation is a kernel, and small ones cost the same as large ones."""
    ams = benchmark.count_operations(module, OBS_DIM, ACTION_DIM, layer_norm=False)
    plain = benchmark.count_operations(base, OBS_DIM, ACTION_DIM)

    assert 50 < plain["critics"] <= most
    for turn in ("critics", "with actor"):
        assert plain[turn] - 1 < ams[turn] < plain[turn] + more


@EVERY_AMS
def test_layer_norms_launch_once_forward_and_once_backward(module):
    """Two in each of two critics and two targets forward, and four backward."""
    ams = benchmark.count_operations(module, OBS_DIM, ACTION_DIM)
    bare = benchmark.count_operations(module, OBS_DIM, ACTION_DIM, layer_norm=False)

    assert ams["critics"] == bare["critics"] + 12


# --------------------------------------------------------------------------------------------------------- CUDA graphs


class Recorder(TorchDispatchMode):
    """Notes the operations of a capture; afterwards what they wrote into is as it was, since a capture runs nothing."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.made = {}  # storages of the capture's own, by their address; kept, so that no address is used again
        self.before = {}  # of the other storages that were seen: a tensor of theirs, and a copy of all their bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number is read back while the stream is capturing")
        kwargs = kwargs or {}
        for tensor in tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.made:
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = func(*args, **kwargs)
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.before:
                self.made[storage.data_ptr()] = storage
        args, kwargs, outputs = tree_map(self.alias, (args, kwargs, result))
        self.operations.append((func, args, kwargs, outputs))
        return result

    @staticmethod
    def alias(leaf):
        """A tensor of the same storage, without its history."""
        return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf

    def undo(self):
        for storage, copy in self.before.values():
            storage.copy_(copy)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, outputs in self.operations:
            results = func(*args, **kwargs)
            for output, result in zip(tensors(outputs), tensors(results), strict=True):
                if output.data_ptr() != result.data_ptr():
                    output.copy_(result)


@contextlib.contextmanager
def capture(graph, stream):
    """torch.cuda.graph: what runs inside is recorded. The generator is as it was, too: a replay draws anew."""
    with torch.random.fork_rng(), Recorder() as recorder:
        yield
    recorder.undo()
    graph.replay = recorder.replay


@pytest.fixture
def stand_in_cuda(monkeypatch):
    """For CudaGraphModule alone: CPU tensors are CUDA's, and all streams are one."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        Stream=lambda device: stream,
        stream=lambda stream: contextlib.nullcontext(),
        current_stream=lambda device: stream,
        CUDAGraph=SimpleNamespace,
        graph=capture,
    )
    module = tensordict.nn.cudagraphs
    monkeypatch.setattr(module, "torch", SimpleNamespace(**(vars(torch) | {"cuda": cuda})))
    monkeypatch.setattr(module.CudaGraphModule, "_check_device_and_clone", module.CudaGraphModule._clone)


class StandInEnvs(gym.vector.SyncVectorEnv):
    """Without workers; otherwise what train() needs."""

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        return self.step(self.actions)


class StandInRun:
    """What train() needs of a Run: it goes on from `saved`, a dictionary of states, if that holds any."""

    device = torch.device("cpu")
    over = False

    def __init__(self, steps, saved):
        self.rng = np.random.default_rng(0)
        self.steps = steps
        self.saved = saved
        self.metrics = []
        self.global_step = saved.get("global_step", 0)
        self.updates = saved.get("updates", 0)

    def restore(self, **parts):
        self.parts = parts
        for name, part in parts.items():
            if name in self.saved:
                part.load_state_dict(self.saved[name])

    def evaluate(self, policy, envs):
        return False

    def reset(self, envs):
        return envs.reset(seed=0)[0]

    def reading_is_due(self):
        return self.global_step % 7 == 0

    def log_step(self, infos, metrics):
        self.metrics.append({name: value.tolist() for name, value in metrics.items()})

    def save(self):
        self.over = self.global_step == self.steps

    def finish(self, agent):
        self.saved["global_step"] = self.global_step
        self.saved["updates"] = self.updates
        for name, part in self.parts.items():
            self.saved[name] = part.state_dict()


def train_twice(module, **args):
    """40 updates by the script's own train(), resumed after 20. Returns what a checkpoint and the logs hold."""
    args = module.Args(num_envs=2, learning_starts=10, batch_size=16, buffer_size=100, **args)
    saved = {}
    metrics = []
    makers = [partial(gym.make, "Reach-v0")] * 2
    for steps in (30, 50):
        run = StandInRun(steps, saved)
        module.train(args, run, StandInEnvs(makers, autoreset_mode="SameStep"))
        metrics += run.metrics
    return saved, metrics


@EVERY
@pytest.mark.parametrize("policy_frequency", [2, 3])
def test_graphs_make_the_updates_that_train_makes_without(stand_in_cuda, module, policy_frequency):
    """To the last bit, across the delayed updates of the actor and a resume."""
    eager, eager_metrics = train_twice(module, policy_frequency=policy_frequency)
    captured, captured_metrics = train_twice(module, policy_frequency=policy_frequency, cuda_graphs=True)

    assert eager["updates"] == captured["updates"] == 40
    assert captured_metrics == eager_metrics
    assert_close(captured["agent"], eager["agent"], rtol=0, atol=0)


def test_the_stand_in_replays_and_does_not_run_again(stand_in_cuda):
    calls = []
    total = torch.zeros(())

    def add(x):
        calls.append(x)
        return total.add_(x).clone()

    graph = tensordict.nn.CudaGraphModule(add)
    results = [graph(torch.tensor(float(i))).item() for i in range(5)]

    assert results == [0, 1, 3, 6, 10]
    assert len(calls) == 3  # the warm-up, and twice for the capture, once of them without effect


def test_the_stand_in_notices_a_host_read(stand_in_cuda):
    graph = tensordict.nn.CudaGraphModule(lambda x: x * x.sum().item())
    graph(torch.ones(2))

    with pytest.raises(RuntimeError, match="read back"):
        graph(torch.ones(2))

"""The demo learns, keeps what it learned, stops cleanly, and says what is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HAS_COMPILER, HAS_GPU

import dnnprims as dp
from dnnprims import demo, demo_convolution, demo_network
from dnnprims.__main__ import main
from dnnprims.conformance import bounds

pytest.importorskip("sklearn")

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")]
BACKENDS = ["numpy", pytest.param("cuda", marks=needs_gpu)]


def held_out_accuracy(printed: str) -> float:
    """Accuracy in the last lines of the demo, in percent."""
    (line,) = [line for line in printed.splitlines() if "reloaded" in line]
    return float(line.rsplit(" ", 1)[1].rstrip("%"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run the demo; give its exit code and what it printed."""

    def running(*arguments: str) -> tuple[int, str]:
        code = main(["demo", "--output", str(tmp_path), *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return running


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a few epochs."""
    monkeypatch.setattr(demo, "draw", lambda *_: [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_learns_the_digits(run: Callable[..., tuple[int, str]], tmp_path: Path, backend: str) -> None:
    """The default settings reach 97% on images that were held out, and leave weights and pictures."""
    code, printed = run("--backend", backend)
    assert code == 0
    assert printed.startswith(f"backend: {backend}")
    assert held_out_accuracy(printed) >= 97.0
    assert {path.name for path in tmp_path.iterdir()} == {"weights.npz", "curves.png", "predictions.png"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "least"),
    [
        (("--loss", "mse"), 85.0),
        (("--activation", "tanh"), 85.0),
        (("--activation", "maxout"), 85.0),
        (("--activation", "sigmoid"), 50.0),
        (("--dtype", "float64"), 85.0),
        (("--dtype", "float16"), 85.0),
        (("--dtype", "bfloat16"), 85.0),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("no_pictures")
def test_every_option_learns(
    run: Callable[..., tuple[int, str]], backend: str, options: tuple[str, ...], least: float
) -> None:
    """A few epochs of each loss, activation and dtype get far beyond the 10% of guessing."""
    code, printed = run("--backend", backend, "--epochs", "4", *options)
    assert code == 0
    assert held_out_accuracy(printed) >= least


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("no_pictures")
def test_the_convolutional_network_learns_better(run: Callable[..., tuple[int, str]], backend: str) -> None:
    """Some epochs reach 98.5%, by the running statistics of batch norm that were saved with the weights."""
    code, printed = run("--backend", backend, "--network", "cnn", "--epochs", "8")
    assert code == 0
    assert held_out_accuracy(printed) >= 98.5


@pytest.mark.parametrize("options", [("--loss", "mse"), ("--dtype", "bfloat16")])
@pytest.mark.usefixtures("no_pictures")
def test_the_convolutional_network_takes_the_other_options(
    run: Callable[..., tuple[int, str]], options: tuple[str, ...]
) -> None:
    """An epoch of each gets beyond guessing."""
    code, printed = run("--backend", "numpy", "--network", "cnn", "--epochs", "1", *options)
    assert code == 0
    assert held_out_accuracy(printed) >= 30.0


@pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++")
@pytest.mark.parametrize("kind", ["fc", "cnn"])
def test_one_step_on_the_emulator_is_the_step_of_numpy(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels, run on the CPU, train as the reference does.

    The bound is that of one sum over all that a step adds up for a weight, of terms below 1 in absolute sum.
    """
    monkeypatch.setattr(demo_convolution, "CHANNELS", (4, 8, 8))
    recipe = demo_network.Recipe("relu", "cross_entropy", "float32", lr=0.1, batch=4)
    data, (module, _, make) = demo.load_digits(), demo.NETWORKS[kind]
    trained = []
    for backend in ("numpy", "emulator"):
        with dp.create_handle(backend) as handle:
            network = make(handle, module.initial_parameters("relu", seed=0), recipe)
            network.set_batch(data.images[:4], data.labels[:4])
            network.step()
            trained.append(network.parameters())
    limit = bounds.sum_error(sum(demo_network.WIDTHS), 1.0, recipe.dtype)
    for expected, got in zip(*trained, strict=True):
        assert np.abs(got - expected).max() <= limit


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [("--activation", "relu"), ("--activation", "maxout"), ("--network", "cnn")])
@pytest.mark.usefixtures("no_pictures")
def test_captured_step_gives_the_same_bits(tmp_path: Path, dtype: str, options: tuple[str, ...]) -> None:
    """Weights trained by replaying one CUDA graph are those trained call by call, bit for bit."""
    weights = []
    for extra in ((), ("--graph",)):
        folder = tmp_path / f"run{len(extra)}"
        arguments = ["--backend", "cuda", "--epochs", "3", "--dtype", dtype, *options]
        assert demo.main([*arguments, "--output", str(folder), *extra]) == 0
        weights.append(demo.load_parameters(folder / "weights.npz"))
    for plain, captured in zip(*weights, strict=True):
        assert plain.tobytes() == captured.tobytes()


@pytest.mark.usefixtures("no_pictures")
def test_same_seed_same_weights(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """The bits of the weights depend on the seed alone."""
    arrays = []
    for seed in ("1", "1", "2"):
        assert run("--backend", "numpy", "--epochs", "1", "--batch", "200", "--seed", seed)[0] == 0
        arrays.append(np.concatenate([a.ravel() for a in demo.load_parameters(tmp_path / "weights.npz")]))
    assert arrays[0].tobytes() == arrays[1].tobytes()
    assert arrays[0].tobytes() != arrays[2].tobytes()


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Press Ctrl-C in the middle of the training."""
    step, calls = demo_network.Network.step, []

    def interrupted(self: demo_network.Network) -> None:
        calls.append(0)
        if len(calls) > steps:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(demo_network.Network, "step", interrupted)


@pytest.mark.usefixtures("no_pictures")
def test_interrupt_keeps_the_last_whole_epoch(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The weights are those after the first epoch, as if the second had never begun."""
    assert run("--backend", "numpy", "--epochs", "1", "--batch", "200")[0] == 0
    expected = demo.load_parameters(tmp_path / "weights.npz")
    interrupt_after(monkeypatch, 7 + 3)
    code, printed = run("--backend", "numpy", "--epochs", "5", "--batch", "200")
    assert code == 130
    assert str(tmp_path / "weights.npz") in printed.splitlines()[-1]
    for kept, wanted in zip(demo.load_parameters(tmp_path / "weights.npz"), expected, strict=True):
        assert kept.tobytes() == wanted.tobytes()


def test_interrupt_in_the_first_epoch(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is left, and it is said."""
    interrupt_after(monkeypatch, 2)
    code, printed = run("--backend", "numpy")
    assert code == 130
    assert "no epoch was finished" in printed
    assert list(tmp_path.iterdir()) == []


def test_interrupted_save_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Never half of a file, nor a temporary one."""
    path = tmp_path / "weights.npz"
    demo.save_parameters(path, [np.zeros(3)])

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.save_parameters(path, [np.ones(3)])
    assert demo.load_parameters(path)[0].tolist() == [0.0, 0.0, 0.0]
    assert list(tmp_path.iterdir()) == [path]


def test_without_scikit_learn(run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    code, printed = run("--backend", "numpy")
    assert code == 2
    assert printed.strip().splitlines() == ["demo: scikit-learn is not installed: pip install 'dnnprims[demo]'"]


def test_without_matplotlib_and_rich(run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains all the same."""
    for name in ("matplotlib.figure", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    code, printed = run("--backend", "numpy", "--epochs", "1")
    assert code == 0
    assert "matplotlib is not installed" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "numpy", "--graph"), "--graph needs the cuda backend"),
        (("--backend", "numpy", "--batch", "5000"), "--batch: got 5000, expected 1 to 1438"),
        (("--backend", "numpy", "--batch", "0"), "--batch: got 0"),
        (("--backend", "numpy", "--lr", "nan"), "lr"),
        (("--network", "cnn", "--activation", "tanh"), "--activation: got tanh, cnn has relu"),
        pytest.param(("--backend", "cuda"), "doctor", marks=pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")),
    ],
)
def test_wrong_use_is_one_line(run: Callable[..., tuple[int, str]], arguments: tuple[str, ...], words: str) -> None:
    """No traceback, and exit code 2."""
    code, printed = run(*arguments)
    assert code == 2
    assert words in printed.splitlines()[-1]


def test_split_is_fixed() -> None:
    """A fifth is held out, no image is in both parts, and pixels lie in [0, 1]."""
    data = demo.load_digits()
    assert (len(data.labels), len(data.held_out_labels)) == (1438, 359)
    assert data.images.min() == 0.0
    assert data.images.max() == 1.0
    assert data.labels[:8].tolist() == demo.load_digits().labels[:8].tolist()

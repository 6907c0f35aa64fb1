"""``python -m dnnprims demo``: train a classifier of handwritten digits, through the public names alone.

The data are the UCI handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import dnnprims as dp
from dnnprims import demo_convolution, demo_network
from dnnprims.demo_network import CapturedStep, Recipe, fill

HELD_OUT = 0.2

#: (loss, activation) -> a learning rate that trains the fully connected network well.
LEARNING_RATES = {
    ("cross_entropy", "relu"): 0.1,
    ("cross_entropy", "maxout"): 0.1,
    ("cross_entropy", "tanh"): 0.1,
    ("cross_entropy", "sigmoid"): 0.2,
    ("mse", "relu"): 0.02,
    ("mse", "maxout"): 0.02,
    ("mse", "tanh"): 0.02,
    ("mse", "sigmoid"): 0.02,
}


class Kind(NamedTuple):
    """A kind of network: its module, and a learning rate for each loss and activation that it has."""

    module: Any
    learning_rates: Mapping[tuple[str, str], float]
    network: type[demo_network.Network]


NETWORKS = {
    "fc": Kind(demo_network, LEARNING_RATES, demo_network.Network),
    "cnn": Kind(
        demo_convolution,
        {("cross_entropy", "relu"): 0.02, ("mse", "relu"): 0.001},
        demo_convolution.ConvolutionNetwork,
    ),
}


class DemoError(Exception):
    """The demo cannot run; the message is one line for the user."""


class Digits(NamedTuple):
    """Images in [0, 1], one to a row, and their labels."""

    images: np.ndarray
    labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray


def load_digits() -> Digits:
    """Load the images and split them; the split is the same in every run."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise DemoError("scikit-learn is not installed: pip install 'dnnprims[demo]'") from None
    data = load()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.data / 16.0)[order], data.target.astype(np.int32)[order]
    held_out = round(HELD_OUT * len(labels))
    return Digits(images[held_out:], labels[held_out:], images[:held_out], labels[:held_out])


def save_parameters(path: Path, parameters: Sequence[np.ndarray]) -> None:
    """Write the weights so that an interruption leaves the old file or the new one, never half of one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, **{f"array_{i}": array for i, array in enumerate(parameters)})
        os.replace(temporary, path)
    except BaseException:
        # Gone where the interruption came between the replacement and the return.
        Path(temporary).unlink(missing_ok=True)
        raise


def load_parameters(path: Path) -> list[np.ndarray]:
    """Read what `save_parameters` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return [file[f"array_{i}"] for i in range(len(file.files))]


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Share of the rows whose largest output is the label's."""
    return float(np.mean(outputs.argmax(axis=1) == labels))


def train(
    handle: dp.Handle, data: Digits, recipe: Recipe, options: argparse.Namespace, weights_file: Path
) -> list[tuple[float, float]]:
    """Train, say how it goes, and save the weights after each epoch; return loss and accuracy of each."""
    kind = NETWORKS[options.network]
    network = kind.network(handle, kind.module.initial_parameters(recipe.activation, options.seed), recipe)
    step = CapturedStep(network.step) if options.graph else network.step
    rng, history = np.random.default_rng(options.seed), []
    steps = len(data.labels) // recipe.batch
    with progress_bar(options.epochs * steps) as (advance, say):
        for epoch in range(1, options.epochs + 1):
            order = rng.permutation(len(data.labels))[: steps * recipe.batch]
            fill(network.total_loss, 0.0)
            for rows in order.reshape(steps, recipe.batch):
                network.set_batch(data.images[rows], data.labels[rows])
                step()
                advance()
            loss, parameters = float(handle.to_numpy(network.total_loss)) / steps, network.parameters()
            outputs = kind.module.predict(handle, parameters, data.held_out_images, recipe)
            history.append((loss, accuracy(outputs, data.held_out_labels)))
            save_parameters(weights_file, parameters)
            say(f"epoch {epoch:3d}  loss {loss:.5f}  held-out accuracy {history[-1][1]:.2%}")
    handle.check()
    return history


@contextmanager
def progress_bar(steps: int) -> Iterator[tuple[Callable[[], Any], Callable[[str], Any]]]:
    """Give (advance, say): with a bar on a terminal that has rich, else without."""
    say = partial(print, flush=True)
    try:
        from rich.progress import Progress
    except ImportError:
        yield (lambda: None), say
        return
    if not sys.stdout.isatty():
        yield (lambda: None), say
        return
    with Progress(transient=True) as bar:
        task = bar.add_task("training", total=steps)
        yield (lambda: bar.advance(task)), bar.console.print


def draw(directory: Path, history: Sequence[tuple[float, float]], data: Digits, outputs: np.ndarray) -> list[Path]:
    """Draw the curves, and some predictions, mistakes first; return the files."""
    from matplotlib.figure import Figure

    epochs, (losses, accuracies) = range(1, len(history) + 1), zip(*history, strict=True)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, values, title in zip(
        figure.subplots(1, 2), (losses, accuracies), ("training loss", "held-out accuracy"), strict=True
    ):
        axes.plot(epochs, values, marker=".")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.savefig(directory / "curves.png")

    figure, predicted = Figure(figsize=(8, 4.6), layout="constrained"), outputs.argmax(axis=1)
    order = np.argsort(predicted == data.held_out_labels, kind="stable")
    for axes, i in zip(figure.subplots(4, 8).flat, order, strict=False):
        right = predicted[i] == data.held_out_labels[i]
        axes.imshow(data.held_out_images[i].reshape(8, 8), cmap="gray_r")
        title = f"{predicted[i]}" if right else f"{predicted[i]}, is {data.held_out_labels[i]}"
        axes.set_title(title, color="black" if right else "crimson", fontsize=9)
        axes.set_axis_off()
    figure.savefig(directory / "predictions.png")
    return [directory / "curves.png", directory / "predictions.png"]


def backend_words(handle: dp.Handle) -> str:
    """Name the backend, and the device."""
    if handle.backend != "cuda":
        return f"backend: {handle.backend} (CPU)"
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(handle.device)["name"].decode()
    return f"backend: cuda ({name})"


def one_blas_thread() -> AbstractContextManager[Any]:
    """Keep NumPy's products on one thread: these are so small that a second one costs more than it does."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="blas")
    return limits


@contextmanager
def own_stream(handle: dp.Handle) -> Iterator[None]:
    """On CUDA, work on a stream of its own, CuPy's current one meanwhile: the default stream cannot be captured."""
    if handle.backend != "cuda":
        yield
        return
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as stream:
        handle.set_stream(stream)
        yield


def run(options: argparse.Namespace) -> int:
    """Train, reload the weights, and test what they predict."""
    began, data = time.perf_counter(), load_digits()
    if not 1 <= options.batch <= len(data.labels):
        raise DemoError(f"--batch: got {options.batch}, expected 1 to {len(data.labels)}")
    recipe = Recipe(options.activation, options.loss, options.dtype, options.lr, options.batch)
    options.output.mkdir(parents=True, exist_ok=True)
    weights_file = options.output / "weights.npz"
    with one_blas_thread(), dp.create_handle(options.backend) as handle, own_stream(handle):
        print(backend_words(handle), flush=True)
        if options.graph and handle.backend != "cuda":
            raise DemoError(f"--graph needs the cuda backend, this is {handle.backend}")
        weights_file.unlink(missing_ok=True)
        try:
            history = train(handle, data, recipe, options, weights_file)
        except KeyboardInterrupt:
            kept = f"the last whole epoch's weights are in {weights_file}"
            print(f"\ninterrupted: {kept if weights_file.exists() else 'no epoch was finished'}", flush=True)
            return 130
        predict = NETWORKS[options.network].module.predict
        outputs = predict(handle, load_parameters(weights_file), data.held_out_images, recipe)
    print(f"accuracy of the reloaded weights on held-out images: {accuracy(outputs, data.held_out_labels):.2%}")
    files = [weights_file]
    try:
        files += draw(options.output, history, data, outputs)
    except ImportError:
        print("no pictures, as matplotlib is not installed: pip install 'dnnprims[demo]'")
    print(f"wrote {', '.join(map(str, files))}")
    print(f"{time.perf_counter() - began:.1f} s")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m dnnprims demo",
        description="Train a classifier of handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--network", choices=tuple(NETWORKS), default="fc", help="fully connected, or convolutional")
    parser.add_argument("--loss", choices=("cross_entropy", "mse"), default="cross_entropy")
    parser.add_argument("--activation", choices=("relu", "tanh", "sigmoid", "maxout"), default="relu")
    parser.add_argument("--dtype", choices=("float32", "float64", "float16", "bfloat16"), default="float32")
    parser.add_argument("--backend", choices=("auto", "numpy", "emulator", "cuda"), default="auto")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64, help="images of a training step")
    parser.add_argument("--lr", type=float, help="learning rate; by default one that suits loss and activation")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and of the order of the images")
    parser.add_argument("--graph", action="store_true", help="capture the training step as one CUDA graph")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for weights and pictures")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs: got {options.epochs}, expected at least 1")
    rates = NETWORKS[options.network].learning_rates
    if (options.loss, options.activation) not in rates:
        known = ", ".join(dict.fromkeys(activation for _, activation in rates))
        raise DemoError(f"--activation: got {options.activation}, {options.network} has {known}")
    if options.lr is None:
        options.lr = rates[options.loss, options.activation]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    try:
        return run(parse(arguments))
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2

"""Which of cuBLASLt's algorithms is taken without timing."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import HAS_GPU

import dnnprims as dp
from dnnprims.runtime import blaslt
from dnnprims.runtime.algorithms import Algorithm, first_choice, missing


def hopper(tile: int, cluster: int, split_k: int = 1) -> Algorithm:
    return Algorithm(43, tile, 34, cluster, 0, split_k, 0, 1, 0)


@pytest.mark.parametrize(
    ("offered", "outputs", "across", "chosen"),
    [
        ([hopper(20, 3), hopper(20, 5), hopper(24, 3), hopper(24, 5)], 784 * 8192, 1, 2),
        ([hopper(20, 3), hopper(20, 5), hopper(24, 3), hopper(24, 5)], 784 * 8192, 0, 0),
        ([hopper(20, 3), hopper(20, 5), hopper(24, 3), hopper(24, 5)], 784 * 8192, 2, 0),
        ([hopper(20, 3), hopper(21, 5)], 784 * 8192, 1, 0),
        ([hopper(20, 12), hopper(24, 3), hopper(20, 3)], 6000 * 4608, 0, 2),
        ([hopper(20, 12), hopper(24, 3), hopper(20, 3)], 2048 * 4608, 0, 0),
        ([hopper(24, 12), hopper(24, 7), hopper(24, 5)], 8192 * 8192, 1, 2),
        ([hopper(20, 4), hopper(24, 8), hopper(24, 2)], 8192 * 8192, 1, 2),
        ([hopper(24, 12), hopper(20, 3)], 8192 * 8192, 0, 0),
        ([hopper(20, 12)._replace(id=66), hopper(20, 3)], 8192 * 8192, 1, 0),
        ([hopper(tile, 3)._replace(id=66) for tile in (92, 80, 13)], 128 * 2048, 0, 2),
        ([hopper(tile, 3)._replace(id=66) for tile in (92, 80, 13)], 128 * 2048, 1, 0),
        ([hopper(93, 3)._replace(id=66), hopper(20, 3)], 128 * 2048, 0, 0),
    ],
)
def test_the_first_choice_corrects_the_library_where_it_is_known_to_err(
    offered: list[Algorithm], outputs: int, across: int, chosen: int
) -> None:
    assert first_choice(offered, outputs, across) == chosen


@pytest.mark.parametrize(("trans_a", "trans_b", "across"), [(1, 0, 0), (0, 0, 1), (1, 1, 1), (0, 1, 2)])
def test_which_operands_lie_across_the_sum(trans_a: int, trans_b: int, across: int) -> None:
    """Column-major, so that the sum runs along the memory of a transposed A and of a B as it is."""
    problem = blaslt.MatmulProblem(2, 2, 2, bool(trans_a), bool(trans_b), 2, 2, 2, 0, 0, 68, 0)
    assert problem.across == across


@pytest.mark.parametrize(
    ("first", "m", "n", "across", "sm_count", "built"),
    [
        ((55, 17, 31, 0, 0, 5, 2, 2, 0), 1024, 4096, 2, 132, True),
        ((55, 17, 31, 0, 0, 5, 2, 2, 0), 1024, 4096, 2, 108, False),  # 128 tiles are two waves there
        ((55, 17, 31, 0, 0, 5, 2, 2, 0), 784, 2048, 2, 132, False),  # 56 tiles
        ((55, 17, 31, 0, 0, 1, 0, 0, 0), 1024, 4096, 2, 132, False),
        ((55, 17, 31, 0, 0, 5, 2, 2, 0), 1024, 4096, 1, 132, False),
        ((21, 17, 31, 0, 0, 5, 2, 2, 0), 1024, 4096, 2, 132, False),
    ],
)
def test_what_the_library_lacks_is_asked_for_where_it_fills_the_gpu(
    first: tuple[int, ...], m: int, n: int, across: int, sm_count: int, built: bool
) -> None:
    found = missing([Algorithm(*first)], m, n, across, sm_count)
    assert (found is not None) == built
    if found is not None:
        assert (found.tile, found.split_k) == (23, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")
@pytest.mark.parametrize("math", ["ieee", "tf32"])
def test_products_by_corrected_choices_are_exact(math: str) -> None:
    """Integers, whose sums fit into float32, at a size at which each correction takes effect on an NVIDIA H200."""
    rng = np.random.default_rng(2)
    dy, x, w = (rng.integers(-3, 4, s).astype(np.float32) for s in ((16384, 4096), (16384, 1024), (4096, 1024)))
    with dp.create_handle("cuda", math=math) as handle:
        dx, dw, _ = dp.fc_backward(handle, *map(handle.asarray, (dy, x, w)))
        np.testing.assert_array_equal(handle.to_numpy(dw), dy.T @ x)
        np.testing.assert_array_equal(handle.to_numpy(dx), dy @ w)

"""Zero-cost proxies: what an untrained network says about how good it will be once trained.

Higher is better for every one of them, but by assumption only: what a proxy is worth in a search space, sign
included, is for trained networks to say. A new proxy is a function of a `Bench` and a line in `PROXIES`.

Initialisation is part of a proxy's definition: see `lively_copy` and `positive_copy` in bench.py.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from evit_nas.accuracy.bench import BATCH, Bench
from evit_nas.arch import ArchConfig
from evit_nas.errors import MeasurementError, UsageError, did_you_mean
from evit_nas.network.model import EfficientViT


@dataclass(frozen=True)
class Proxy:
    """A line of the table: a function of a `Bench`, higher is better, and what it looks at.

    draws: random draws (of weights, images, labels and signs) that a score is the mean of.
    is_size: the proxy counts shapes and cannot see the weights.
    """

    score: Callable[[Bench], float]
    description: str
    draws: int = 1
    is_size: bool = False


def score_all(
    network: ArchConfig | EfficientViT, *, seed: int = 0, names: Iterable[str] | None = None
) -> dict[str, float]:
    """Scores of `network` by name of the proxy; higher is better.

    Proxies share their passes: all together cost less than twice what snip does alone. A proxy has the same value
    whichever others are asked for, and the same seed gives the same bits on one machine. The network and the
    global random state stay as they are.

    Args:
        network: an architecture, scored at random initialisations of its own; or a model, scored with its
            present weights (BatchNorm gammas apart).
        names: some of `PROXIES`; None for all.

    Raises:
        UsageError: a name is not in the table.
        MeasurementError: a proxy has no finite value for this network.
    """
    wanted = list(PROXIES if names is None else names)
    for name in wanted:
        if name not in PROXIES:
            raise UsageError(f"no proxy is called '{name}'. {did_you_mean(name, PROXIES)}")
    values: dict[str, list[float]] = {name: [] for name in wanted}
    with _one_thread(), torch.enable_grad():  # whoever asks may be under no_grad
        for draw in range(MAX_DRAWS):
            bench = Bench(network, seed=MAX_DRAWS * seed + draw)  # two seeds have no draw in common
            for name in wanted:
                if draw < PROXIES[name].draws:
                    values[name].append(_finite_score(name, bench))
    return {name: math.fsum(scores) / len(scores) for name, scores in values.items()}


def cpu_seconds(archs: Iterable[ArchConfig], names: Iterable[str]) -> float:
    """What these proxies cost together for a network, in CPU time of one thread: the median over `archs`."""
    taken, wanted = [], tuple(names)
    for arch in archs:
        start = time.thread_time()  # torch runs CPU backward passes in the thread that asks for them
        score_all(arch, names=wanted)
        taken.append(time.thread_time() - start)
    return statistics.median(taken)


def _finite_score(name: str, bench: Bench) -> float:
    try:
        value = PROXIES[name].score(bench)
    except RuntimeError as error:  # such as eigenvalues of a matrix with NaN
        raise MeasurementError(f"proxy '{name}' failed on network {bench.arch.key}: {error}") from error
    if not math.isfinite(value):
        raise MeasurementError(f"proxy '{name}' must be finite, got {value} on network {bench.arch.key}.")
    return value


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on how they are split, so bits on the number of threads.

    A second thread would save a fifth of the time at best, and where other programs run, threads wait for
    each other in busy loops: ten times the time was seen.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def snip(bench: Bench) -> float:
    """Sum of |w dL/dw| over all weights, for noise and random labels (SNIP, arXiv 1810.02340)."""
    return math.fsum(float(saliency(layer.weight, grad).sum()) for layer, grad in bench.loss_gradients)


def zico(bench: Bench) -> float:
    """Sum over layers of the log of the sum over weights of mean |g| / std g (ZiCo, arXiv 2301.11300).

    g is dL/dw for either half of the batch, normalised by the statistics of the whole. A weight with the same
    gradient for both, such as 0, does not count, nor does a layer of such weights.
    """
    pairs = zip(bench.half_loss_gradients, bench.loss_gradients, strict=True)
    sums = [float(steadiness(half, whole).sum()) for (_, half), (_, whole) in pairs]
    return math.fsum(math.log(total) for total in sums if total)


def naswot(bench: Bench) -> float:
    """Log-determinant of the matrix of the numbers of ReLUs that two images set alike (NASWOT, arXiv 2006.04647).

    The BATCH images of the shared forward are enough: 32 rank networks the same (correlation .999).
    """
    return float(agreements(bench.relus, BATCH).logdet())


def synflow_log(bench: Bench) -> float:
    """Log of the synaptic flow |w dR/dw| summed over all weights (SynFlow, arXiv 2006.05467).

    Not a sum of logs, layer by layer: a cascade would earn a term for each head, and heads that are computed
    together one term for all.
    """
    terms = (saliency(layer.weight, grad) for layer, grad in bench.flow.gradients)
    return float(bench.flow.log_scale + _log_sum(terms))


def dss(bench: Bench) -> float:
    """Log of the DSS index (TF-TAS, arXiv 2203.12217) over the mean output, for the flow of `synflow_log`.

    The qkv and the projection of an attention give the product of the nuclear norms of w and dR/dw, head by head
    so that heads count alike computed one by one or together; every other layer gives its sum of |w dR/dw|. The
    log of the sum over layers leaves each the weight in it that the definition gives. The index is proportional
    to the output, which the LayerNorms of TF-TAS's networks hold and nothing holds here. Undivided it would rank
    networks as synflow_log does (correlation .999 at 64, 96 and 224 px).
    """
    return float(
        _log_sum(
            nuclear_product(layer.weight, grad, layer.heads) if layer.heads else saliency(layer.weight, grad)
            for layer, grad in bench.flow.gradients
        )
    )


def az_expressivity(bench: Bench) -> float:
    """Sum over blocks of the entropy of their features (AZ-NAS, arXiv 2403.19232, section 3)."""
    return math.fsum(_entropies(bench))


def az_progressivity(bench: Bench) -> float:
    """Smallest gain of entropy from one block to the next (AZ-NAS, arXiv 2403.19232, section 3)."""
    return min(after - before for before, after in pairwise(_entropies(bench)))


def az_trainability(bench: Bench) -> float:
    """Mean over blocks of 2 - s - 1 / s, at most 0 (AZ-NAS, arXiv 2403.19232, section 3).

    s is the spectral norm of the correlation between random signs at the block's output and what the block's
    Jacobian makes of them at its input; s = 1 passes gradients on unchanged.
    """
    norms = [float(torch.linalg.matrix_norm(correlation(*pair), 2)) for pair in bench.pullbacks]
    # a block that passes nothing back makes the score infinite, and the network is refused
    return math.fsum(2 - s - 1 / s if s else -math.inf for s in norms) / len(norms)


def _log_sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack([term.double().sum() for term in terms]).sum().log()


def _entropies(bench: Bench) -> list[float]:
    return [entropy(feature) for feature in bench.features]


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B * H * W, C)."""
    return x.movedim(1, -1).flatten(0, 2)


def saliency(weight: Tensor, grad: Tensor) -> Tensor:
    """|w dR/dw|, weight by weight."""
    return (weight.detach() * grad).abs()


def steadiness(half: Tensor, whole: Tensor) -> Tensor:
    """mean |g| / std g of gradients of two halves, given that of the first and their mean; 0 where std g is 0."""
    std = (half - whole).abs()
    # the halves are whole + std and whole - std, so their mean magnitude is the greater of the two
    ratio = torch.maximum(whole.abs(), std) / std
    return ratio.where(std != 0, 0.0).double()


def agreements(relus: Iterable[Tensor], images: int) -> Tensor:
    """(images, images) numbers of units that two images both set or both leave at 0, in float64."""
    kernel = torch.zeros(images, images, dtype=torch.float64)
    for relu in relus:
        on = relu.sign().reshape(images, -1)  # attention takes windows for images: here they are one row again
        both = (on @ on.T).double()  # exact, since fewer than 2 ** 24
        count = both.diagonal()
        kernel += on.shape[1] - count[:, None] - count + 2 * both  # both on, and both off: n - a - b + both
    return kernel


def nuclear_product(weight: Tensor, grad: Tensor, heads: int) -> Tensor:
    """(heads,) nuclear norm of w times that of dR/dw, for the matrices side by side in a convolution's weight."""
    matrices = torch.stack([weight.detach(), grad]).view(2, heads, -1, weight.shape[1])  # (2, heads, out, in)
    norms: Tensor = torch.linalg.matrix_norm(matrices, "nuc")
    return norms.prod(dim=0)


def entropy(feature: Tensor) -> float:
    """Entropy, in nats, of a (B, C, H, W) map: of the shares of its principal components in the variance."""
    rows = _rows(feature)
    rows = rows - rows.mean(dim=0)
    # rounding makes some a little negative, and entr of these is -inf; the number of rows cancels in the shares
    variances = torch.linalg.eigvalsh(rows.T @ rows).clamp(min=0)  # (C,)
    return float(torch.special.entr(variances / variances.sum()).sum())


def correlation(at_output: Tensor, at_input: Tensor) -> Tensor:
    """(C_in, C_out) mean products of channels; positions merged by a stride become channels of the input."""
    rows, cols = at_output.shape[2:]
    if at_input.shape[2:] != at_output.shape[2:]:
        height, width = at_input.shape[2:]
        # odd sides are rounded up by a stride of 2: padded to twice the output, then (B, 4 * C, H, W)
        at_input = F.pixel_unshuffle(F.pad(at_input, (0, 2 * cols - width, 0, 2 * rows - height)), 2)
    return _rows(at_input).T @ _rows(at_output) / (at_output.shape[0] * rows * cols)


# Two draws where one is not enough: the rank correlation of single draws, over 24 networks at 64 and 96 px,
# is .8 to .9 for snip, .6 to .9 for az_progressivity, .86 for az_trainability, and about .99 for the others.
PROXIES: dict[str, Proxy] = {
    "params": Proxy(lambda bench: bench.cost.params, "number of parameters", is_size=True),
    "macs": Proxy(lambda bench: bench.cost.macs, "multiply-accumulates for one image", is_size=True),
    "depth": Proxy(lambda bench: bench.cost.depth, "number of convolutions and linear layers", is_size=True),
    "snip": Proxy(snip, "|weight x gradient of the loss|, summed, for noise and random labels", draws=2),
    "zico": Proxy(zico, "|gradient| over its deviation between two halves of a batch, log by layer"),
    "naswot": Proxy(naswot, "log-determinant of how many ReLUs images share"),
    "synflow_log": Proxy(synflow_log, "log of the flow from an image of ones through absolute weights"),
    "dss": Proxy(dss, "log of that flow over the output, by nuclear norms where there is attention"),
    "az_expressivity": Proxy(az_expressivity, "AZ-NAS: entropy of the features of each block, summed"),
    "az_progressivity": Proxy(az_progressivity, "AZ-NAS: smallest gain of that entropy by a block", draws=2),
    "az_trainability": Proxy(az_trainability, "AZ-NAS: how evenly blocks pass gradients back", draws=2),
}
MAX_DRAWS = max(proxy.draws for proxy in PROXIES.values())

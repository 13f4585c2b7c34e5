"""Part 1 of the assignment as a program: measure claims a to e about softmax attention.

The output of a query is c = sum_i alpha_i v_i with alpha = softmax over i of k_i . q; there is no factor
1/sqrt(d). Each claim is measured on real keys, queries and values in several dimensions. Each prediction is
a closed form or a one-dimensional integral that needs none of these vectors, so it has no dimension.

Source: Stanford CS224N (2021), assignment 5, part 1.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

DIMENSIONS = (16, 64, 256)
KEYS = (4, 10, 16)  # n, at most the smallest dimension: the keys or their means are orthonormal
NOISE = (1e-6, 1e-4, 1e-2)  # epsilon, the variance of each component of a key
BETA = 20.0  # length of the queries where keys are noisy; log n is at most 2.8
VARIANCE_ALONG_MEAN = 0.5  # of k_a in claims c ii and d ii
NORM = 5.0  # of u_a ... u_d in claim e
DRAWS = 4000  # sets of keys per setting
STANDARD_ERRORS = 4.0  # what a measured statistic may differ by
SD = "standard deviation of alpha_a"
A, B = 0, 1  # the keys whose values the query averages


class Prediction(NamedTuple):
    """What the theory says about a quantity, in any dimension."""

    claim: str
    quantity: str
    keys: int
    noise: float | None
    value: float
    tolerance: float


Measured = Iterator[tuple[Prediction, float]]


@dataclass(frozen=True)
class Check:
    """A prediction and what was measured in each dimension."""

    prediction: Prediction
    measured: dict[int, float]

    @property
    def passed(self) -> bool:
        expected = self.prediction
        return all(abs(value - expected.value) <= expected.tolerance for value in self.measured.values())


def check_claims(seed: int = 0) -> list[Check]:
    """Measure all claims. The same seed gives the same checks."""
    measured: dict[Prediction, dict[int, float]] = {}
    for claim in (copying, averaging, independent_noise, correlated_noise, value_constructions):
        for dimension in DIMENSIONS:
            for prediction, value in claim(dimension, seed):
                measured.setdefault(prediction, {})[dimension] = float(value)
    quantities = list(dict.fromkeys(prediction[:2] for prediction in measured))
    rows = sorted(measured, key=lambda row: (row.claim, quantities.index(row[:2])))
    return [Check(prediction, measured[prediction]) for prediction in rows]


def softmax(scores: Array) -> Array:
    """Softmax over the last axis."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attend(keys: Array, query: Array, values: Array) -> Array:
    """The output c (d,) of one query (d,), for keys and values (n, d)."""
    return softmax(keys @ query) @ values


def orthonormal(count: int, dimension: int, generator: np.random.Generator) -> Array:
    """Orthonormal vectors (count, dimension) in random directions."""
    return np.linalg.qr(generator.standard_normal((dimension, count)))[0].T


def copying(dimension: int, seed: int) -> Measured:
    """Claim a: c copies v_j when the score of key j exceeds all others by much more than log n."""
    for n in KEYS:
        generator = np.random.default_rng([seed, dimension, n])
        gaps = np.linspace(math.log(n) + 5, 25, 11)
        slope = np.polyfit(gaps, np.log(copying_errors(dimension, n, gaps, generator)), 1)[0]
        yield Prediction("a", "slope of log |c - v_j| over the gap", n, None, -1, 1e-3), slope

        keys = orthonormal(n, dimension, generator)
        half = softmax(keys @ (math.log(n - 1) * keys[0]))[0]
        yield Prediction("a", "alpha_j at gap log(n - 1)", n, None, 0.5, 1e-9), half

        keys = generator.standard_normal((n, dimension))
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        smallest = 1 - (keys[1:] @ keys[0]).max()  # gap of the query keys[0]
        exceeded = [
            softmax(keys @ (gap / smallest * keys[0]))[1:].sum() > (n - 1) * math.exp(-gap) * (1 + 1e-9)
            for gap in gaps
        ]
        quantity = "share of gaps with 1 - alpha_j > (n - 1) exp(-gap), random keys"
        yield Prediction("a", quantity, n, None, 0, 0), np.mean(exceeded)


def copying_errors(dimension: int, n: int, gaps: Array, generator: np.random.Generator) -> Array:
    """The error |c - v_0| for each gap between the score of key 0 and the others; keys orthonormal."""
    keys, values = orthonormal(n, dimension, generator), orthonormal(n, dimension, generator)
    return np.array([np.linalg.norm(attend(keys, gap * keys[0], values) - values[0]) for gap in gaps])


def averaging(dimension: int, seed: int) -> Measured:
    """Claim b: orthonormal keys and q = beta (k_a + k_b) give c = (v_a + v_b) / 2."""
    for n in KEYS:
        generator = np.random.default_rng([seed, dimension, n])
        keys, values = orthonormal(n, dimension, generator), orthonormal(n, dimension, generator)
        weights = softmax(keys @ (5 * (keys[A] + keys[B])))
        predicted = math.exp(5) / (2 * math.exp(5) + n - 2)
        for name, index in (("alpha_a", A), ("alpha_b", B)):
            yield Prediction("b", f"{name}, beta 5", n, None, predicted, 1e-12), weights[index]

        average = (values[A] + values[B]) / 2
        error = np.linalg.norm(attend(keys, BETA * (keys[A] + keys[B]), values) - average)
        others = (n - 2) / (2 * math.exp(BETA) + n - 2)  # their weight; their mean is sqrt(...) away
        predicted = others * math.sqrt(1 / (n - 2) + 1 / 2)
        quantity = f"|c - (v_a + v_b)/2|, beta {BETA:g}"
        yield Prediction("b", quantity, n, None, predicted, 1e-5 * predicted), float(error)


def independent_noise(dimension: int, seed: int) -> Measured:
    """Claims c i and d i: with k_i ~ N(mu_i, noise I), one head averages v_a and v_b, and so do two."""
    mean = "mean of alpha_a, two heads"
    for n, noise in [*((n, NOISE[0]) for n in KEYS), *((10, noise) for noise in NOISE[1:])]:
        draws = draw_weights(dimension, n, noise, 0, seed)
        spread = _one_head_spread(noise, 0)
        yield Prediction("c i", f"{SD}, one head", n, noise, *spread), draws.one_head.std()
        first_order = noise < NOISE[-1]  # beta sqrt(noise) is 2 there
        spread = _two_heads_first_order(n, noise) if first_order else (0.0, 1e-4)
        yield Prediction("d i", f"{SD}, two heads", n, noise, *spread), draws.two_heads.std()
        average = (math.exp(BETA) + 1) / (2 * (math.exp(BETA) + n - 1))
        tolerance = 1e-9 if first_order else 1e-4
        yield Prediction("d i", mean, n, noise, average, tolerance), draws.two_heads.mean()


def _two_heads_first_order(n: int, noise: float) -> tuple[float, float]:
    """Standard deviation of alpha_a with two heads for little independent noise, and its tolerance.

    Key j of the others has the weight exp(-beta (1 + e_a - e_j)) in head 1, and key a the weight
    exp(-beta (1 + e_b - e_a)) in head 2, where beta e is the noise of a score. To first order in e these
    weights, and so alpha_a, are normal.
    """
    value = 0.5 * math.exp(-BETA) * BETA * math.sqrt(noise * ((n - 1) ** 2 + (n - 1) + 2))
    return value, 0.15 * value


def correlated_noise(dimension: int, seed: int) -> Measured:
    """Claims c ii and d ii: k_a varies most along mu_a; one head flips between v_a and v_b, two do not."""
    two = f"{SD}, two heads"
    for n, noise in [*((n, NOISE[0]) for n in KEYS), (10, NOISE[1])]:  # the integral needs little noise
        draws = draw_weights(dimension, n, noise, VARIANCE_ALONG_MEAN, seed)
        spread = _one_head_spread(noise, VARIANCE_ALONG_MEAN)
        yield Prediction("c ii", f"{SD}, one head", n, noise, *spread), draws.one_head.std()

        spread = _two_heads_spread(n, noise, 0)
        positive = draws.two_heads[draws.positive]
        yield Prediction("d ii", f"{two}, where k_a . mu_a > 0", n, noise, *spread), positive.std()
        spread = _two_heads_spread(n, noise, -math.inf)
        yield Prediction("d ii", two, n, noise, *spread), draws.two_heads.std()
        share = normal_cdf(-1 / math.sqrt(VARIANCE_ALONG_MEAN + noise))
        tolerance = STANDARD_ERRORS * math.sqrt(share * (1 - share) / DRAWS)
        quantity = "share of draws where k_a . mu_a <= 0"
        yield Prediction("d ii", quantity, n, noise, share, tolerance), 1 - draws.positive.mean()


class Draws(NamedTuple):
    """alpha_a of each draw (DRAWS,) for one head and for two, and whether k_a . mu_a > 0."""

    one_head: Array
    two_heads: Array
    positive: NDArray[np.bool_]


def draw_weights(dimension: int, n: int, noise: float, along_mean: float, seed: int) -> Draws:
    """Draw keys k_i ~ N(mu_i, noise I), with the variance `along_mean` of k_a along mu_a on top.

    One head asks q = beta (mu_a + mu_b). Two heads ask beta mu_a and beta mu_b, and their outputs are
    averaged. The means mu are orthonormal.
    """
    generator = np.random.default_rng([seed, dimension, n, round(1e9 * noise), round(1e9 * along_mean)])
    means = orthonormal(n, dimension, generator).astype(np.float32)
    keys = generator.standard_normal((DRAWS, n, dimension), np.float32)
    keys *= np.float32(math.sqrt(noise))
    keys += means
    lengths = generator.standard_normal((DRAWS, 1), np.float32)
    keys[:, A] += np.float32(math.sqrt(along_mean)) * lengths * means[A]
    scores_a, scores_b = (BETA * (keys @ means[index]).astype(np.float64) for index in (A, B))
    heads = softmax(scores_a)[:, A], softmax(scores_b)[:, A]
    return Draws(softmax(scores_a + scores_b)[:, A], (heads[0] + heads[1]) / 2, scores_a[:, A] > 0)


def _one_head_spread(noise: float, along_mean: float) -> tuple[float, float]:
    """Standard deviation of alpha_a = sigmoid(k_a . q - k_b . q), a normal variable of mean 0."""
    deviation = BETA * math.sqrt(along_mean + 4 * noise)
    return _spread(lambda z: sigmoid(deviation * z), DRAWS)


def _two_heads_spread(n: int, noise: float, low: float) -> tuple[float, float]:
    """Standard deviation of alpha_a with two heads, and its tolerance.

    alpha_a is half of the weight of key a in head 1, because its weight in head 2 is negligible. The score x
    of key a in head 1 is normal with mean beta, and the other n - 1 scores are near 0. Only draws with
    x > `low` count.
    """
    deviation = BETA * math.sqrt(VARIANCE_ALONG_MEAN + noise)
    others = math.log(n - 1) + BETA**2 * noise / 2  # log of the mean of their summed exponentials
    least = (low - BETA) / deviation
    return _spread(
        lambda z: sigmoid(BETA + deviation * z - others) / 2, DRAWS * (1 - normal_cdf(least)), least
    )


def _spread(function: Callable[[Array], Array], draws: float, low: float = -math.inf) -> tuple[float, float]:
    """Standard deviation of function(z), z standard normal above `low`, and what a sample may differ by."""
    edges = np.linspace(max(low, -9), 9, 40_001)
    middles = (edges[1:] + edges[:-1]) / 2
    density = np.exp(-(middles**2) / 2)
    values = function(middles)
    centered = values - np.average(values, weights=density)
    variance, fourth = (float(np.average(centered**power, weights=density)) for power in (2, 4))
    standard_error = math.sqrt((fourth - variance**2) / (4 * variance * draws))
    return math.sqrt(variance), STANDARD_ERRORS * standard_error


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return (1 + np.tanh(x / 2)) / 2


def normal_cdf(x: float) -> float:
    """Probability that a standard normal variable is below x."""
    return (1 + math.erf(x / math.sqrt(2))) / 2


@dataclass(frozen=True)
class Construction:
    """Claim e: three inputs made of orthogonal vectors u of length NORM, and the matrices of e ii."""

    u: dict[str, Array]  # "a" to "d", each (d,)
    x: Array  # (3, d): u_d + u_b, u_a, u_c + u_b
    value: Array  # (d, d)
    query: Array  # (d, d)

    def outputs(self, x: Array, query: Array | None = None, value: Array | None = None) -> Array:
        """Self-attention outputs (3, d) of x (3, d). The key matrix is the identity; None means that too."""
        queries = x if query is None else x @ query.T
        return softmax(queries @ x.T) @ (x if value is None else x @ value.T)


def construct(dimension: int, seed: int = 0) -> Construction:
    """Make the inputs and matrices of claim e in random directions."""
    generator = np.random.default_rng([seed, dimension])
    u = dict(zip("abcd", NORM * orthonormal(4, dimension, generator), strict=True))
    x = np.stack([u["d"] + u["b"], u["a"], u["c"] + u["b"]])
    value = (np.outer(u["b"], u["b"]) - np.outer(u["c"], u["c"])) / NORM**2
    query = (np.outer(u["d"], u["a"]) + np.outer(u["c"], u["d"])) / NORM**2
    return Construction(u, x, value, query)


def value_constructions(dimension: int, seed: int) -> Measured:
    """Claim e: what self-attention over three inputs can output. Distances are in units of |u|."""
    made = construct(dimension, seed)
    u, x = made.u, made.x

    def distance(part: str, name: str, c: Array, target: Array, expected: float) -> tuple[Prediction, float]:
        measured = np.linalg.norm(c - target) / NORM
        return Prediction(f"e {part}", name, 3, None, expected, 1e-6), float(measured)

    yield distance("i", "|c_2 - u_a|", made.outputs(x)[1], u["a"], 0)
    hulls = {"": math.sqrt(2 / 5), "+ u_d": math.sqrt(1 / 2), "+ u_c": math.sqrt(1 / 2)}
    for added, hull in hulls.items():
        changed = x.copy()
        changed[1] += u[added[-1]] if added else 0
        name = f"x_2 = u_a {added}".strip()
        output = made.outputs(changed)[1]
        yield distance("i", f"|c_2 - u_b|, {name}", output, u["b"], math.sqrt(3 if added else 2))
        nearest = _nearest_mixture(changed, u["b"])
        yield distance("i", f"|best mixture of x - u_b|, {name}", nearest, u["b"], hull)
    for name, query, predicted in (
        ("Q", made.query, (0, 0)),
        ("Q transposed", made.query.T, (math.sqrt(2) / 3, math.sqrt(2))),
    ):
        c = made.outputs(x, query, made.value)
        yield distance("ii", f"|c_2 - u_b|, {name}", c[1], u["b"], predicted[0])
        yield distance("ii", f"|c_1 - (u_b - u_c)|, {name}", c[0], u["b"] - u["c"], predicted[1])


def _nearest_mixture(x: Array, target: Array, steps: int = 100) -> Array:
    """The convex combination of x (3, d) nearest to the target, by trying a grid of weights."""
    first, second = np.mgrid[: steps + 1, : steps + 1].reshape(2, -1)
    inside = first + second <= steps
    weights = np.stack([first, second, steps - first - second], 1)[inside] / steps
    mixtures = weights @ x
    return mixtures[np.linalg.norm(mixtures - target, axis=1).argmin()]

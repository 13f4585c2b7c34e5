"""Attention theory, against closed forms, torch's attention and the figures of the assignment's solution."""

import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, pstdev

import numpy as np
import pytest
import torch
from command_line import run_command
from html_page import Page
from torch.nn.functional import scaled_dot_product_attention

from birthplace_lm.analysis.explore import attention_theory as theory
from birthplace_lm.analysis.explore.attention_theory import Check, check_claims, construct
from birthplace_lm.analysis.explore.page import table_of_checks, write_page

SD = "standard deviation of alpha_a"
POSITIVE = f"{SD}, two heads, where k_a . mu_a > 0"
DOCS = Path(__file__).parents[2] / "docs" / "theory.md"
Checks = dict[tuple[str, str, int, float | None], Check]


@pytest.fixture(scope="module")
def seconds_and_checks() -> tuple[float, list[Check]]:
    start = time.process_time()  # of the processor: other work on the machine does not count
    checks = check_claims()
    return time.process_time() - start, checks


@pytest.fixture(scope="module")
def checks(seconds_and_checks: tuple[float, list[Check]]) -> Checks:
    return {check.prediction[:4]: check for check in seconds_and_checks[1]}


def values(check: Check) -> list[float]:
    assert set(check.measured) == {16, 64, 256}
    return list(check.measured.values())


def attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(queries, keys, values, scale=1.0)


def test_all_claims_hold_in_under_ten_seconds(seconds_and_checks: tuple[float, list[Check]]) -> None:
    seconds, checks = seconds_and_checks
    assert [check for check in checks if not check.passed] == []
    assert {check.prediction.claim for check in checks} == {
        "a",
        "b",
        "c i",
        "c ii",
        "d i",
        "d ii",
        "e i",
        "e ii",
    }
    assert all(len(values(check)) == 3 for check in checks)
    assert {check.prediction.noise for check in checks} == {None, 1e-6, 1e-4, 1e-2}
    assert seconds < 10


def test_checks_depend_on_the_seed_only() -> None:
    settings = [
        (claim, 16, seed) for claim in (theory.copying, theory.value_constructions) for seed in (0, 1)
    ]
    once, again = ([list(claim(d, seed)) for claim, d, seed in settings] for _ in range(2))
    assert once == again
    assert once[0] != once[1]


@pytest.mark.parametrize("n", [4, 10, 16])
def test_copying_and_averaging_follow_their_closed_forms(checks: Checks, n: int) -> None:
    assert values(checks["a", "slope of log |c - v_j| over the gap", n, None]) == pytest.approx(
        [-1] * 3, abs=1e-3
    )
    assert values(checks["a", "alpha_j at gap log(n - 1)", n, None]) == pytest.approx([0.5] * 3)
    shares = [1 / (2 + (n - 2) * math.exp(-5))] * 3
    for name in ("alpha_a", "alpha_b"):
        assert values(checks["b", f"{name}, beta 5", n, None]) == pytest.approx(shares, rel=1e-12)
    # orthonormal values: half of the others' weight is missing from v_a and from v_b
    other = 1 / (2 * math.exp(20) + n - 2)
    error = math.sqrt(2 * ((n - 2) * other / 2) ** 2 + (n - 2) * other**2)
    assert values(checks["b", "|c - (v_a + v_b)/2|, beta 20", n, None]) == pytest.approx(
        [error] * 3, rel=1e-5
    )


def test_error_of_copying_is_that_of_torchs_attention() -> None:
    """And lies below (n - 1) exp(-gap) sqrt(2), the bound for orthonormal values."""
    gaps = np.linspace(0, 20, 9)
    errors = theory.copying_errors(64, 10, gaps, np.random.default_rng(0))
    for gap, error in zip(gaps, errors, strict=True):
        identity = torch.eye(64, dtype=torch.float64)[:10]
        output = attention(float(gap) * identity[:1], identity, identity)
        assert error == pytest.approx(float((output - identity[0]).norm()), rel=1e-6)
        assert error <= 9 * math.exp(-gap) * math.sqrt(2)


def test_little_noise_moves_the_average_by_half_of_beta_times_its_root(checks: Checks) -> None:
    for n in (4, 10, 16):
        expected = [20 * math.sqrt(1e-6) / 2] * 3
        assert values(checks["c i", f"{SD}, one head", n, 1e-6]) == pytest.approx(expected, rel=0.06)
    assert values(checks["c i", f"{SD}, one head", 10, 1e-2])[0] > 0.3  # beta sqrt(noise) = 2 is not little


@pytest.mark.parametrize("n", [4, 10, 16])
def test_correlated_noise_flips_one_head_and_not_two(checks: Checks, n: int) -> None:
    """Against quantiles of e ~ N(1, 1/2), and for 10 keys against measured 0.47, 0.064 and 0.147."""
    lengths = [NormalDist(1, math.sqrt(0.5)).inv_cdf((i + 0.5) / 20_000) for i in range(20_000)]
    one = pstdev(1 / (1 + math.exp(-20 * (e - 1))) for e in lengths)
    two = {e: 0.5 / (1 + (n - 1) * math.exp(-20 * e)) for e in lengths}
    positive = pstdev(weight for e, weight in two.items() if e > 0)
    share = sum(e <= 0 for e in lengths) / len(lengths)
    expected = {
        ("c ii", f"{SD}, one head"): one,
        ("d ii", POSITIVE): positive,
        ("d ii", f"{SD}, two heads"): pstdev(two.values()),
        ("d ii", "share of draws where k_a . mu_a <= 0"): share,
    }
    for (claim, quantity), value in expected.items():
        check = checks[claim, quantity, n, 1e-6]
        assert check.prediction.value == pytest.approx(value, rel=1e-3)
        assert values(check) == pytest.approx([value] * 3, rel=0.15)
    if n == 10:
        assert one == pytest.approx(0.47, abs=0.005)
        assert positive == pytest.approx(0.064, abs=0.005)
        assert pstdev(two.values()) == pytest.approx(0.147, abs=0.005)
        assert share == pytest.approx(NormalDist().cdf(-math.sqrt(2)), abs=1e-4)


def test_draws_are_those_of_torch() -> None:
    """Another generator, torch's attention and identity values: the same distribution of alpha_a."""
    n, d, draws = 10, 16, 4000
    generator = torch.Generator().manual_seed(0)
    means = torch.eye(d)[:n]
    keys = means + 0.01 * torch.randn(draws, n, d, generator=generator)
    keys[:, 0] += math.sqrt(0.5) * torch.randn(draws, 1, generator=generator) * means[0]
    queries = 20 * torch.stack([means[0] + means[1], means[0], means[1]]).expand(draws, -1, -1)
    alpha = attention(queries, keys, torch.eye(n).expand(draws, -1, -1))[..., 0]
    measured = theory.draw_weights(d, n, 1e-4, 0.5, seed=0)
    for ours, reference in ((measured.one_head, alpha[:, 0]), (measured.two_heads, alpha[:, 1:].mean(1))):
        assert ours.mean() == pytest.approx(float(reference.mean()), abs=0.03)
        assert (ours > 0.25).mean() == pytest.approx(float((reference > 0.25).float().mean()), abs=0.04)
        assert ours.std() == pytest.approx(float(reference.std()), abs=0.015)


def test_value_constructions_are_exact_and_the_transpose_is_not(checks: Checks) -> None:
    expected = {
        ("e i", "|c_2 - u_a|"): 0,
        ("e i", "|c_2 - u_b|, x_2 = u_a"): math.sqrt(2),
        ("e i", "|c_2 - u_b|, x_2 = u_a + u_d"): math.sqrt(3),
        ("e i", "|c_2 - u_b|, x_2 = u_a + u_c"): math.sqrt(3),
        ("e ii", "|c_2 - u_b|, Q"): 0,
        ("e ii", "|c_1 - (u_b - u_c)|, Q"): 0,
        ("e ii", "|c_2 - u_b|, Q transposed"): math.hypot(1 / 3, 1 / 3),
        ("e ii", "|c_1 - (u_b - u_c)|, Q transposed"): math.sqrt(2),
    }
    for (claim, quantity), value in expected.items():
        assert values(checks[claim, quantity, 3, None]) == pytest.approx([value] * 3, abs=1e-6)
    made = construct(16)
    u = {name: torch.from_numpy(vector) for name, vector in made.u.items()}
    x, to_query, to_value = (torch.from_numpy(array) for array in (made.x, made.query, made.value))
    c = attention(x @ to_query.T, x, x @ to_value.T)
    assert torch.allclose(c[1], u["b"], atol=1e-6)
    assert torch.allclose(c[0], u["b"] - u["c"], atol=1e-6)


def test_no_mixture_comes_nearer_to_u_b_than_the_bound(checks: Checks) -> None:
    """Random mixtures of the inputs, with any multiple of u_d or u_c added to x_2, stay sqrt(2/5) away."""
    made = construct(16)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2000, 3, generator=generator, dtype=torch.float64).log().neg()
    weights /= weights.sum(1, keepdim=True)  # uniform over the simplex
    for name in "dc":
        for t in (0, 0.3, 1, 3, 30):
            x = torch.from_numpy(made.x).clone()
            x[1] += t * torch.from_numpy(made.u[name])
            for mixtures in (weights @ x, attention(x, x, x)):
                distances = (mixtures - torch.from_numpy(made.u["b"])).norm(dim=1)
                assert float(distances.min()) >= math.sqrt(0.4) * 5 - 1e-9
    for added, square in (("", 0.4), (" + u_d", 0.5), (" + u_c", 0.5)):
        check = checks["e i", f"|best mixture of x - u_b|, x_2 = u_a{added}", 3, None]
        assert values(check) == pytest.approx([math.sqrt(square)] * 3)


def test_a_claim_that_fails_is_shown_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attention with the factor 1/sqrt(d) is another one; a measurement that is no number fails too."""
    monkeypatch.setattr(theory, "DRAWS", 50)
    right = theory.softmax
    monkeypatch.setattr(theory, "softmax", lambda scores: right(scores / 4))
    assert run_command("explore") == 1
    output = capsys.readouterr().out
    rows = [re.split(r"\s{2,}", line) for line in output.splitlines()]
    slopes = [row for row in rows if row[1:2] == ["slope of log |c - v_j| over the gap"]]
    assert [row[-1] for row in slopes] == ["NO"] * 3
    assert re.search(r"^\d+ of \d+ checks pass", rows[-1][0])
    (check, *_) = [Check(prediction, {16: value}) for prediction, value in theory.value_constructions(16, 0)]
    assert not replace(check, measured={16: math.nan}).passed


def test_page_has_every_check_and_needs_nothing_else(
    seconds_and_checks: tuple[float, list[Check]], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    _, checks = seconds_and_checks
    write_page(checks, tmp_path / "page.html")
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(source)
    assert {link[:1] for link in page.links} <= {"#"}
    assert "script" not in page.tags
    assert "url(http" not in source
    assert page.tags.count("svg") == 3
    assert page.tags.count("table") == 8 + 9  # claims, matrices
    assert source.count("<td>yes</td>") == len(checks)
    assert "${" not in page.text
    text = " ".join(page.text.split())
    for figure in ("0.399", "0.0648", "0.143", "0.471", "0.632", "1.41", "7.9%"):
        assert figure in text
    # the rows of the matrix V, read off vectors in random directions
    (matrix,) = re.findall(r"<p><i>V</i></p><table>(.*?)</table>", source, re.DOTALL)
    entries = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in matrix.split("</tr>")[1:-1]]
    assert entries == [["0"] * 4, ["0", "1", "0", "0"], ["0", "0", "\u22121", "0"], ["0"] * 4]


@pytest.mark.parametrize("target", ["", "/missing/page.html"])
def test_a_page_that_cannot_be_written_is_one_line(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{tmp_path}{target}"
    assert run_command("explore", "--html", path) == 2
    output, error = capsys.readouterr()
    assert output == ""  # before anything is measured
    assert error == f"error: --html {path}: cannot be written; give a file name in an existing folder\n"


def test_without_matplotlib_the_page_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(theory, "DRAWS", 50)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_command("explore", "--html", tmp_path / "page.html") == 2
    assert capsys.readouterr().err == "error: a picture needs matplotlib: pip install 'birthplace-lm[plot]'\n"
    assert list(tmp_path.iterdir()) == []


def test_documented_table_is_that_of_the_program(checks: Checks) -> None:
    """Rows of each claim: settings and predictions letter by letter, measurements within the tolerance."""
    (block,) = re.findall(r"```text\n(claim .*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    head, *rows, dots = [re.split(r"\s{2,}", line) for line in block.split("\n\n")[0].splitlines()]
    expected_head, *expected = table_of_checks(list(checks.values()))
    assert (head, dots) == (expected_head, ["..."])
    assert {row[0] for row in rows} == {row[0] for row in expected}
    program = {
        tuple(filter(None, row[:-4])): check for row, check in zip(expected, checks.values(), strict=True)
    }
    for row in rows:
        check = program[tuple(row[:-4])]
        assert row[-1] == "yes"
        tolerance = 2 * check.prediction.tolerance + 1e-3 * abs(check.prediction.value)  # 4 digits are shown
        assert [float(cell) for cell in row[-4:-1]] == pytest.approx(values(check), abs=tolerance)

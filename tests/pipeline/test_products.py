"""Products by either library are those of numpy, however the matrices lie; the processor decides, or is told."""

import os
import subprocess
import sys
import timeit
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from temi.pipeline import products
from temi.pipeline.errors import UserError
from temi.pipeline.products import Library, arithmetic, batched_product, library, product

NEEDS_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(params=["blas", pytest.param("onednn", marks=NEEDS_ONEDNN)])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setattr(products, "library", lambda: request.param)
    return request.param


def laid_out(rows: int, columns: int, order: str, random: np.random.Generator) -> torch.Tensor:
    """A matrix whose rows, or columns, are contiguous, or every other row of a larger one."""
    if order == "columns":
        return torch.from_numpy(random.standard_normal((columns, rows), np.float32)).mT
    step = 2 if order == "strided" else 1
    return torch.from_numpy(random.standard_normal((rows * step, columns), np.float32))[::step]


SIZES, ORDERS = st.integers(1, 40), st.sampled_from(["rows", "columns", "strided"])


@NEEDS_ONEDNN
@given(sizes=st.tuples(SIZES, SIZES, SIZES), orders=st.tuples(ORDERS, ORDERS), seed=st.integers(0, 99))
def test_a_product_is_that_of_numpy(sizes: tuple[int, int, int], orders: tuple[str, str], seed: int) -> None:
    random = np.random.default_rng(seed)
    n, k, m = sizes
    a, b = laid_out(n, k, orders[0], random), laid_out(k, m, orders[1], random)
    for name in ("blas", "onednn"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "library", lambda name=name: name)
            np.testing.assert_allclose(product(a, b).numpy(), a.numpy() @ b.numpy(), rtol=1e-4, atol=1e-4)


def test_batched_products_are_those_of_each_pair(by: Library) -> None:
    a, b = torch.randn(3, 6, 5), torch.randn(3, 7, 5).mT
    expected = np.stack([left @ right for left, right in zip(a.numpy(), b.numpy(), strict=True)])
    np.testing.assert_allclose(batched_product(a, b).numpy(), expected, rtol=1e-4, atol=1e-5)


@NEEDS_ONEDNN
def test_every_other_row_takes_about_as_long_as_all_rows_in_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    # oneDNN takes a thousand times as long, so that no other work on the machine decides this.
    monkeypatch.setattr(products, "library", lambda: "onednn")
    a, rows = torch.randn(256, 128), torch.randn(1024, 128)

    def fastest(b: torch.Tensor) -> float:
        batch = a.expand(2, -1, -1), b.expand(2, -1, -1)
        return min(timeit.repeat(lambda: (product(a, b), batched_product(*batch)), number=1, repeat=5))

    assert fastest(rows[::2].mT) < 50 * fastest(rows[::2].contiguous().mT)


def test_a_wider_type_is_kept(by: Library) -> None:
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(product(a, b), a @ b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("maker", "capability", "mkl", "onednn", "chosen"),
    [
        ("AuthenticAMD", "AVX512", True, True, "onednn"),
        ("AuthenticAMD", "AVX512", True, False, "blas"),
        ("AuthenticAMD", "AVX512", False, True, "blas"),
        ("AuthenticAMD", "AVX2", True, True, "blas"),
        ("GenuineIntel", "AVX512", True, True, "blas"),
    ],
)
@pytest.mark.parametrize("linux", [True, False])
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    maker: str,
    capability: str,
    mkl: bool,
    onednn: bool,
    chosen: str,
    linux: bool,
) -> None:
    monkeypatch.delenv(products.CHOICE, raising=False)
    monkeypatch.setattr(products, "PROCESSOR", tmp_path / "cpuinfo")
    if linux:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {maker}\n")
    monkeypatch.setattr("platform.processor", lambda: f"Family 25 Model 17, {maker}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert library.__wrapped__() == chosen


@pytest.mark.long
def test_processes_of_a_busy_machine_choose_alike() -> None:
    """A run that goes on after a kill multiplies as it began."""
    environment = {name: value for name, value in os.environ.items() if name != products.CHOICE}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", "from temi.pipeline.products import library; print(library())"]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        asked = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = {process.communicate()[0].strip() for process in asked}
        assert len(said) == 1
        assert said <= {"blas", "onednn"}
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_the_environment_settles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_blas_is_slow", lambda: pytest.fail("not asked"))
    monkeypatch.setenv(products.CHOICE, "blas")
    assert library.__wrapped__() == "blas"
    monkeypatch.setenv(products.CHOICE, "atlas")
    with pytest.raises(UserError, match="TEMI_PRODUCTS=atlas is not a library of products; set it to auto, blas or"):
        library.__wrapped__()


def test_what_is_kept_says_by_what_it_was_computed(by: Library) -> None:
    assert arithmetic(torch.device("cpu")) == {"blas": "cpu", "onednn": "cpu onednn"}[by]
    assert arithmetic(torch.device("cuda")) == "cuda"


@NEEDS_ONEDNN
@pytest.mark.long
def test_a_run_by_onednn_finds_the_same_clusters_and_says_so(tmp_path: Path) -> None:
    script = Path(__file__).with_name("by_onednn.py")
    runs = {}
    for name in ("blas", "onednn"):
        environment = os.environ | {products.CHOICE: name, "PYTHONPATH": os.pathsep.join(sys.path)}
        made = subprocess.run(
            [sys.executable, script, tmp_path / name], env=environment, capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr
        runs[name] = made.stdout.splitlines()
    assert runs["blas"][:-1] == runs["onednn"][:-1]
    assert (runs["blas"][-1], runs["onednn"][-1]) == ("cpu", "cpu onednn")

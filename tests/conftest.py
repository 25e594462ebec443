"""What every test shares: where it runs, precision, reference posteriors, Hypothesis settings."""

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

# Before JAX is imported. Set JAX_PLATFORMS to run the suite on an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling takes most of the time: compile fast, not fast code. The processes that tests start
# inherit it; what the user's XLA_FLAGS say comes last, and so holds.
if os.environ["JAX_PLATFORMS"] == "cpu":
    FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    if version("jaxlib").startswith("0.10."):  # the older way to emit code takes half the time
        FAST += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{FAST} {os.environ.get('XLA_FLAGS', '')}"
else:
    FAST = ""

import hypothesis
import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run: a red test is red again. Compiling makes the first example slow,
# so time says nothing about an example.
hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("deterministic")

# Tracing makes many objects and little garbage: look for it thirty times less often.
gc.set_threshold(20_000, 10, 10)

MAPS, MOST_MAPS = Path("/proc/self/maps"), 20_000
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def few_memory_maps() -> Iterator[None]:
    """Forget compiled code before the process has too many memory maps.

    XLA maps each piece of compiled code, and Linux allows a process 65,530 maps: the compilation
    that comes to that many crashes.
    """
    yield
    if next(_tests) % 4 == 0 and MAPS.exists():
        with MAPS.open("rb") as lines:
            many = sum(1 for _ in lines)
        if many > MOST_MAPS:
            jax.clear_caches()
            gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """Give the test double precision.

    The suite runs in JAX's default single precision, as users do; exact comparisons (1e-10) ask
    for this fixture. It is a context: no test changes the precision of another.
    """
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def posteriordb() -> Callable[..., Path]:
    """Return `posteriordb(name=None)`: the folder of the reference posteriors, or of one of them.

    They lie beside the checkout in `../shared/posteriordb`, or where PPL_POSTERIORDB says. A test
    that asks for them is skipped where they are absent; a name they do not have is an error.
    """
    folder = Path(os.environ.get("PPL_POSTERIORDB", ROOT.parent / "shared" / "posteriordb"))

    def find(name: str | None = None) -> Path:
        if not folder.is_dir():
            pytest.skip(f"no reference posteriors at {folder}; set PPL_POSTERIORDB to their folder")
        if name is None:
            return folder
        if not (folder / name).is_dir():
            known = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
            raise FileNotFoundError(f"{folder} has no posterior {name!r}; it has {known}")
        return folder / name

    return find

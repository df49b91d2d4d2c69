"""What pytest leaves alone: the pieces that tests are made of, among them modules that fail when imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import scipy.linalg  # noqa: F401 - brings a library of its own, which is there to be held once imported
from hypothesis import settings

from onnxcomp.numerics.threads import single_threaded_blas

# It also turns off the telemetry of onnxruntime, which some tests import themselves.
from onnxcomp.runtime.sandbox import Probe

collect_ignore = ["support", "plugin/package"]


MOST_WORKERS = 4
"""Beyond these, threads of onnxruntime wait for each other, and the largest file for nobody."""


settings.register_profile("ci", deadline=None, database=None, max_examples=60)
settings.register_profile("thorough", deadline=None, database=None, max_examples=800)


def pytest_configure(config: pytest.Config) -> None:
    """Try more where slow tests are asked for; a test may still say how many examples it wants."""
    wanted = config.getoption("markexpr", "")
    settings.load_profile("ci" if "not slow" in wanted or "slow" not in wanted else "thorough")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker per core; none where files are named one by one: starting workers costs more than it saves."""
    if all(Path(argument.partition("::")[0]).is_file() for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS) if cores > 1 else 0


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep results of commands out of the developer's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Compute as the commands do, by one thread of BLAS, also where a test calls what lies below them."""
    with single_threaded_blas():
        yield


@pytest.fixture
def no_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load files without a process of their own, which costs a second each and is tested elsewhere."""
    seen = Probe(None, True, True, "", {}, {}, 17, None, None, ())
    monkeypatch.setattr("onnxcomp.compiler.run.loading.probe", lambda *_, **__: seen)

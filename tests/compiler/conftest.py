"""What the tests of the compiler share."""

from __future__ import annotations

import pytest

from onnxcomp.runtime.sandbox import Probe


@pytest.fixture
def no_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load files without a process of their own, which costs a second each and is tested elsewhere."""
    seen = Probe(None, True, True, "", {}, {}, 17, None, None, ())
    monkeypatch.setattr("onnxcomp.compiler.run.loading.probe", lambda *_, **__: seen)

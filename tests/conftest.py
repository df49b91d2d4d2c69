"""What pytest leaves alone: the pieces that tests are made of, among them modules that fail when imported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

collect_ignore = ["support", "plugin/package"]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep results of commands out of the developer's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield

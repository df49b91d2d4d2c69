"""Real architectures reach a budget of MACs and equal the original with the removed channels zeroed where they are read."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis import cut as cutting
from tools.bench import prune_zoo as prune_light_zoo
from tools.bench.prune_zoo import MODELS, main, prune_light
from tools.light_zoo import light_paths

PATHS = {path.stem: path for path in light_paths()}
SMALL = ("light_shufflenet", "light_squeezenet")


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=[] if m in SMALL else [pytest.mark.slow]) for m in MODELS]
)
def test_a_real_architecture_reaches_sixty_percent_of_its_macs_and_equals_its_oracle(name: str) -> None:
    outcome = prune_light(PATHS[name])
    assert outcome.shortfall is None
    assert 0.59 <= outcome.macs <= 0.6
    assert outcome.error < 1e-5
    assert outcome.masked > 0.05, "the masks change what comes out"
    assert outcome.removable > 0.4
    assert outcome.met(0.6)


def test_a_cut_of_the_wrong_channels_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool itself: one weight that loses the mirrored channels, and nothing is met any more."""
    honest = cutting.mask_consumers

    def mirrored(model: object, labels: object, classes: object, removed: np.ndarray) -> None:
        honest(model, labels, classes, removed[::-1])  # type: ignore[arg-type]

    monkeypatch.setattr("onnxcomp.analysis.channels.mask_consumers", mirrored)
    outcome = prune_light(PATHS["light_squeezenet"])
    assert outcome.error > 0.01
    assert not outcome.met(0.6)


def test_the_command_says_what_stays_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "light_squeezenet", "--macs", "0.8"]) == 0
    said = capsys.readouterr().out
    assert "light_squeezenet" in said
    assert "1 group(s) with 1000 channels stay: Softmax 'n65' mixes the channels" in said


def test_a_budget_out_of_reach_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "light_shufflenet", "--macs", "0.01"]) == 1
    assert "cannot be reached" in capsys.readouterr().out


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prune_light_zoo.main(["--rows", "light_lenet"])
    assert "there is no row 'light_lenet'" in capsys.readouterr().err

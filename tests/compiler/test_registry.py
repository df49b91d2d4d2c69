"""Which passes there are, and that a bad one is named and harms no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onnxcomp.compiler.commands.catalogue import describe, list_passes
from onnxcomp.compiler.registry import Entry, Registry
from onnxcomp.errors import UsageError
from onnxcomp.passes import BUILTIN

OURS = [Entry(name, target, "onnxcomp") for name, target in BUILTIN.items()]


def flawed(kind: str) -> Entry:
    return Entry("flawed", f"tests.support.flawed:{kind}", "parts 1.2")


def test_every_built_in_pass_is_a_pass_under_its_name() -> None:
    registry = Registry(OURS)
    for name in BUILTIN:
        assert registry.resolve(name).name == name


def test_an_unknown_pass_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"^unknown pass 'remove-ded'; did you mean 'remove-dead'\?$"):
        Registry(OURS).resolve("remove-ded")


def test_two_passes_of_one_name_are_both_refused_naming_their_owners() -> None:
    registry = Registry([*OURS, Entry("remove-dead", "other:RemoveDead", "other 2.0")])
    with pytest.raises(UsageError, match=r"offered by onnxcomp and other 2\.0; uninstall one of them"):
        registry.resolve("remove-dead")
    assert registry.resolve("fold-constants").name == "fold-constants"


def test_an_entry_point_that_is_found_twice_is_one_pass() -> None:
    registry = Registry([flawed("Whole"), flawed("Whole")])
    assert registry.resolve("flawed").name == "flawed"


REASONS = {
    "NoPass": "it is not a subclass of onnxcomp.Pass",
    "Unfinished": "it has no run method",
    "NotADataclass": "it is not a @dataclass(frozen=True)",
    "OtherName": "its class calls itself 'another'",
    "OtherStage": "its stage 'someday' is none of cleanup, structure, numbers, quantization, coding",
    "NoDefault": "its option 'size' has no default",
    "StrangeType": "its option 'sizes' has a type that no option can have",
    "UnknownType": "NameError: name 'Nowhere' is not defined",
    "Nothing": "AttributeError: module 'tests.support.flawed' has no attribute 'Nothing'",
}


@pytest.mark.parametrize(("kind", "reason"), REASONS.items())
def test_a_flawed_pass_is_refused_with_package_and_reason(kind: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        Registry([flawed(kind)]).resolve("flawed")
    assert str(caught.value) == (
        f"pass 'flawed' of parts 1.2 is broken: {reason}; update or uninstall the package"
    )


def test_a_plug_in_that_exits_on_import_does_not_end_the_program() -> None:
    entry = Entry("flawed", "tests.support.exits_on_import:Any", "parts 1.2")
    with pytest.raises(UsageError, match="SystemExit: not on this machine"):
        Registry([entry]).resolve("flawed")


def test_a_broken_pass_is_listed_as_broken_and_stops_no_other() -> None:
    listed = {p.name: p for p in list_passes(Registry([flawed("NoPass"), *OURS]))}
    assert "not a subclass" in (listed["flawed"].broken or "")
    assert [p.broken for name, p in listed.items() if name != "flawed"] == [None] * len(OURS)


def test_a_pass_is_described_by_its_docstring_and_its_fields() -> None:
    facts = describe("prune-filters", Registry(OURS))
    assert facts.owner == "onnxcomp"
    assert facts.exact is False
    assert facts.summary
    assert facts.summary == facts.doc.split("\n")[0]
    options = {o.name: o for o in facts.options}
    assert options["scope"].kind == "global | uniform"
    assert options["min-channels"].default == "1"
    assert all(o.help for o in facts.options)


def test_nothing_is_imported_before_it_is_resolved() -> None:
    script = (
        "import sys\n"
        "from onnxcomp.compiler.registry import Registry\n"
        "names = Registry.installed().names()\n"
        "assert 'prune-filters' in names\n"
        "print([m for m in sys.modules if m.startswith('onnxcomp.passes.') or m in ('onnx', 'onnxruntime')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

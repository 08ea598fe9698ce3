"""Reading params.yaml into dataclasses (unseg/core/params.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from annotated_types import Interval, Len

from unseg.core import params
from unseg.core.console import InputError


@dataclass(frozen=True)
class Inner:
    size: int
    fraction: float

    def __post_init__(self) -> None:
        if self.size < self.fraction:
            raise ValueError(f"outer.inner.size is {self.size}; it must be at least fraction")


@dataclass(frozen=True)
class Outer:
    name: str
    on: bool
    rate: float
    sizes: list[int]
    init: str | None
    inner: Inner


GOOD: dict[str, Any] = {"name": "a", "on": True, "rate": 0.5, "sizes": [1, 2], "init": None, "inner": {"size": 3, "fraction": 1}}


def written(folder: Path, content: Any) -> Path:
    file = folder / "params.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def refused(folder: Path, key: str, kind: type, content: Any) -> str:
    """The message, without the file's name, of reading content's `key` as kind."""
    file = written(folder, content)
    with pytest.raises(InputError) as error:
        params.group(key, kind, file) if hasattr(kind, "__dataclass_fields__") else params.value(key, kind, file)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{file}")
    return str(error.value).removeprefix(f"{file}").removeprefix(": ")


def test_a_group_with_all_that_a_group_can_hold(tmp_path: Path) -> None:
    file = written(tmp_path, {"outer": GOOD})
    group = params.group("outer", Outer, file)
    assert group == Outer("a", True, 0.5, [1, 2], None, Inner(3, 1.0))
    assert isinstance(group.inner.fraction, float)  # an int is a float too
    assert params.group("outer", Outer, written(tmp_path, {"outer": GOOD | {"init": "x"}})).init == "x"
    assert params.value("outer.inner.size", int, file) == 3
    assert params.group("outer.inner", Inner, file) == Inner(3, 1.0)


@dataclass(frozen=True)
class Choice:
    threshold: float | Literal["otsu", "mean"]


def test_a_number_or_a_word(tmp_path: Path) -> None:
    for content, want in (("otsu", "otsu"), ("mean", "mean"), (1, 1.0), (0.5, 0.5), ("1e-05", 1e-5)):
        read = params.group("c", Choice, written(tmp_path, {"c": {"threshold": content}})).threshold
        assert read == want
        assert type(read) is type(want)
    for content in ("otso", "", None, True, [1]):
        message = refused(tmp_path, "c", Choice, {"c": {"threshold": content}})
        assert message == f"c.threshold is {content!r}; it must be float, otsu or mean"


def test_the_default_file_is_the_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"params\.yaml: no such file; run from the root of the repository"):
        params.value("seed", int)
    written(tmp_path, {"seed": 3})
    assert params.value("seed", int) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": 3}, "outer.name is 3; it must be str"),
        ({"on": 1}, "outer.on is 1; it must be bool"),
        ({"on": "yes"}, "outer.on is 'yes'; it must be bool"),
        ({"rate": True}, "outer.rate is True; it must be float"),
        ({"rate": "0.5"}, "outer.rate is '0.5'; it must be float"),
        ({"rate": None}, "outer.rate is None; it must be float"),
        ({"sizes": 3}, "outer.sizes is 3; it must be list[int]"),
        ({"sizes": [1, 2.5]}, "outer.sizes[1] is 2.5; it must be int"),
        ({"sizes": [True]}, "outer.sizes[0] is True; it must be int"),
        ({"init": 3}, "outer.init is 3; it must be str"),
        ({"inner": 3}, "outer.inner is 3; it must be Inner"),
        ({"inner": {"size": 3}}, "outer.inner.fraction is missing; profiles/base.yaml has every key"),
        ({"inner": {"size": 3, "fraction": 1, "x": 0}}, "outer.inner.x is not a parameter; outer.inner has size, fraction"),
        ({"inner": {"size": 0, "fraction": 2.5}}, "outer.inner.size is 0; it must be at least fraction"),
        ({"inner": {"size": 3.0, "fraction": 1}}, "outer.inner.size is 3.0; it must be int"),
        ({"more": 1}, "outer.more is not a parameter; outer has name, on, rate, sizes, init, inner"),
    ],
)
def test_what_a_group_refuses(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    assert refused(tmp_path, "outer", Outer, {"outer": GOOD | changed}) == message


@pytest.mark.parametrize("key", list(GOOD))
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    content = {"outer": {k: v for k, v in GOOD.items() if k != key}}
    assert refused(tmp_path, "outer", Outer, content) == f"outer.{key} is missing; profiles/base.yaml has every key"


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "1e-03", "0.001"])
def test_a_number_may_be_written_as_dvc_writes_it(tmp_path: Path, number: str) -> None:
    text = yaml.safe_dump({"outer": GOOD}).replace("rate: 0.5", f"rate: {number}")
    assert params.group("outer", Outer, written(tmp_path, text)).rate == 0.001


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("cluster.k", {"cluster": {}}, "cluster.k is missing"),
        ("cluster.k", {"cluster": 3}, "cluster.k is missing"),
        ("cluster.k", {}, "cluster.k is missing"),
        ("self_train.threshold", {"adopt": {}}, "adopt is now called self_train; rename it"),
        ("cluster.k", "", "cluster.k is missing"),
        ("cluster.k", {"cluster": {"k": "8"}}, "cluster.k is '8'; it must be int"),
        ("cluster.k", {"cluster": {"k": False}}, "cluster.k is False; it must be int"),
        ("cluster.k", "cluster: [1", " is not YAML: while parsing a flow sequence"),
        ("cluster.k", "cluster: {k: 1", " is not YAML: "),
    ],
)
def test_what_a_value_refuses(tmp_path: Path, key: str, content: Any, message: str) -> None:
    assert refused(tmp_path, key, int, content).startswith(message)


@dataclass(frozen=True)
class Declared:
    count: params.PositiveInt
    rate: params.PositiveFloat
    decay: params.NonNegativeFloat
    ratio: params.Fraction
    keep: params.PositiveFraction
    precision: params.Precision
    levels: Annotated[int, Interval(ge=2, lt=5)] | None
    sizes: Annotated[list[params.PositiveInt], Len(1, 2)]


DECLARED: dict[str, Any] = {"count": 1, "rate": 0.1, "decay": 0, "ratio": 1, "keep": 1}
DECLARED |= {"precision": "auto", "levels": 4, "sizes": [1]}


@pytest.mark.parametrize("changed", [{}, {"ratio": 0}, {"levels": None}, {"levels": 2}, {"sizes": [1, 2]}, {"precision": "bf16"}])
def test_declared_limits_are_inclusive(tmp_path: Path, changed: dict[str, Any]) -> None:
    params.group("g", Declared, written(tmp_path, {"g": DECLARED | changed}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count": 0}, "g.count is 0; it must be at least 1"),
        ({"count": 1.5}, "g.count is 1.5; it must be int"),
        ({"rate": 0}, "g.rate is 0; it must be above 0"),
        ({"rate": float("nan")}, "g.rate is nan; it must be above 0"),
        ({"decay": -1}, "g.decay is -1; it must be at least 0"),
        ({"ratio": 1.1}, "g.ratio is 1.1; it must be at least 0 and at most 1"),
        ({"keep": 0}, "g.keep is 0; it must be above 0 and at most 1"),
        ({"precision": "fp16"}, "g.precision is 'fp16'; it must be one of auto, fp32, bf16"),
        ({"levels": 5}, "g.levels is 5; it must be at least 2 and below 5"),
        ({"sizes": []}, "g.sizes is []; it must have at least 1 and at most 2 values"),
        ({"sizes": [1, 2, 3]}, "g.sizes is [1, 2, 3]; it must have at least 1 and at most 2 values"),
        ({"sizes": [1, 0]}, "g.sizes[1] is 0; it must be at least 1"),
    ],
)
def test_values_outside_declared_limits(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    assert refused(tmp_path, "g", Declared, {"g": DECLARED | changed}) == message


def test_a_choice_of_another_type(tmp_path: Path) -> None:
    assert refused(tmp_path, "k", Literal[1, 2], {"k": True}) == "k is True; it must be one of 1, 2"  # type: ignore[arg-type]


def test_a_group_that_is_no_group(tmp_path: Path) -> None:
    assert refused(tmp_path, "outer", Outer, {"outer": 3}) == "outer is 3; it must be Outer"


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes("name: Ä".encode("latin-1"))
    with pytest.raises(InputError, match="is not YAML"):
        params.value("name", str, file)


def test_earlier_names_in_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "RENAMED", {"sets[].share": "fraction", "inners[].inner.width": "size"})
    sets, inners = [{"size": 3, "fraction": 1}, {"size": 3, "share": 1}], [{"inner": {"width": 3}}]
    message = "sets[1].share is now called sets[1].fraction; rename it"
    assert refused(tmp_path, "sets", list[Inner], {"sets": sets}) == message
    message = "inners[0].inner.width is now called inners[0].inner.size; rename it"
    assert refused(tmp_path, "inners", list[Outer], {"inners": [GOOD | inners[0]]}) == message

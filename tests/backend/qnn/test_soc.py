"""The table of SoCs: names people use, names phones give, and what the compiler knows of each."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from powerserve.backend.qnn.soc import Soc, find_soc, load_socs, soc_by_model, soc_of_phone
from powerserve.core.errors import ConfigError, UsageError


@pytest.fixture(scope="module")
def socs() -> tuple[Soc, ...]:
    return load_socs()


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, 57) for name in ("8650", "8gen3", "8G3", "SM8650", "57", "Snapdragon 8 Gen 3")),
        *((name, 69) for name in ("8750", "8gen4", "8G4", "8 Elite", "8elite", "sm8750")),
        *((name, 39) for name in ("8295", "SA8295P")),
        *((name, 42) for name in ("8+ Gen 1", "8plusgen1")),
        ("8s Gen 3", 68),
        ("7+Gen3", 70),
        ("SA8775P", 52),
        ("8 Elite Gen 5", 87),
    ],
)
def test_a_name_in_any_spelling(socs: tuple[Soc, ...], name: str, model: int) -> None:
    assert find_soc(name, socs).model == model


def test_no_name_means_two_socs(socs: tuple[Soc, ...]) -> None:
    for one, other in combinations(socs, 2):
        names = (str(one.model), one.part, one.title, *one.names)
        assert not [name for name in names if other.answers_to(name)]


def test_the_figures_of_the_original(socs: tuple[Soc, ...]) -> None:
    for name, htp_arch, model in (("8650", 75, 57), ("8750", 79, 69), ("8295", 68, 39)):
        soc = find_soc(name, socs)
        assert (soc.htp_arch, soc.model, soc.vtcm_mb) == (htp_arch, model, 8)


def test_an_unknown_soc_gets_advice(socs: tuple[Soc, ...]) -> None:
    with pytest.raises(UsageError, match=r"'9000' is not known.*SM8650.*--soc-table"):
        find_soc("9000", socs)


def test_a_file_of_ones_own_adds_a_soc(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        '[[soc]]\nmodel = 103\npart = "SM8975"\ntitle = "New"\nnames = ["8975"]\n'
        "htp_arch = 85\nvtcm_mb = 12\nhvx_threads = 6\n"
    )
    socs = load_socs(own)
    assert find_soc("8975", socs) == soc_by_model(103, socs)
    assert find_soc("8650", socs).htp_arch == 75


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[soc]]\nmodel = 'x'\n", "an entry of"),
        ("[[soc]]\nmodel = 1\n", "missing required field"),
        ("[[soc\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_of_ones_own(tmp_path: Path, text: str, message: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_socs(own)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_socs(tmp_path / "none.toml")


def test_a_phone_is_known_by_its_part_rather_than_its_platform(socs: tuple[Soc, ...]) -> None:
    # Three SoCs of different abilities report the platform "pineapple".
    models = [
        soc.model if (soc := soc_of_phone(part, platform, socs)) else None
        for part, platform in (
            ("SM8650", "pineapple"),
            ("SM8635", "pineapple"),
            ("SM7675", "pineapple"),
            ("SM8750P", "sun"),
            ("", "pineapple"),
            ("", "sun"),
            ("", "exynos"),
            ("SM7000", "pineapple"),
        )
    ]
    assert models == [57, 68, 70, 69, 57, 69, None, None]


def test_the_compiler_takes_another_number_where_it_lacks_the_soc(socs: tuple[Soc, ...]) -> None:
    assert find_soc("8s Gen 3", socs).compiler_model == find_soc("8 Gen 2", socs).model

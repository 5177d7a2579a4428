"""Bundles and models get to a device whole or not at all, and nothing is sent twice."""

from __future__ import annotations

import os
from pathlib import Path, PurePath, PurePosixPath

import pytest

from deploy.fake_phone.phone import FakePhone, PhoneSettings, PlugIn, adb, connect
from deploy.stand_in import write_bundle
from powerserve.core.errors import DeviceError
from powerserve.deploy.contents import FolderContents, folder_contents
from powerserve.deploy.device import Device
from powerserve.deploy.installation import Bundle, install
from powerserve.deploy.layout import CONTENTS_FILE, INCOMING, ROOT, WORKSPACE
from powerserve.deploy.selection import choose_device
from powerserve.storage.copying import FileCopy
from powerserve.storage.progress import SILENT

MEBIBYTE = 1 << 20
SIZE = 5 * MEBIBYTE


def contents(folder: Path, name: str = "it's a model", seed: int = 0) -> FolderContents:
    """A folder with one large file and two small ones, of which one is made up here."""
    large, small = folder / f"large {seed}", folder / "small"
    if not large.exists():
        large.write_bytes(os.urandom(SIZE))
        small.write_bytes(b"small")
    copies = [
        FileCopy(large, PurePath("ggml/weights.gguf"), SIZE),
        FileCopy(small, PurePath("sub folder/$file"), 5),
    ]
    return folder_contents(WORKSPACE / name, copies, {"model.json": b"{}"}, SILENT)


def put(device: Device, bundle: Path, *folders: FolderContents) -> None:
    install(device, Bundle.open(bundle, SILENT), folders, SILENT, piece_bytes=2 * MEBIBYTE)


def on_phone(phone: FakePhone, path: PurePosixPath) -> Path:
    return phone.data / path.relative_to("/data")


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_complete(phone: FakePhone, folder: FolderContents, tmp_path: Path, seed: int = 0) -> None:
    found = files_below(on_phone(phone, folder.target))
    assert found.pop(CONTENTS_FILE).decode() == folder.listing
    assert found == {
        "ggml/weights.gguf": (tmp_path / f"large {seed}").read_bytes(),
        "sub folder/$file": b"small",
        "model.json": b"{}",
    }


def test_everything_gets_there_once(
    device: Device, phone: FakePhone, bundle: Path, tmp_path: Path
) -> None:
    folder = contents(tmp_path)
    put(device, bundle, folder)
    check_complete(phone, folder, tmp_path)
    program = Bundle.open(bundle, SILENT).program
    assert on_phone(phone, program).read_text().startswith("#!")
    assert list(on_phone(phone, INCOMING).iterdir()) == []
    sent = phone.pushed_bytes
    assert sent >= SIZE
    put(device, bundle, folder)
    assert phone.pushed_bytes == sent


def test_a_pulled_cable_costs_a_piece(
    plug_in: PlugIn, bundle: Path, tmp_path: Path, adb_variables: dict[str, str]
) -> None:
    folder = contents(tmp_path)
    phone = plug_in(PhoneSettings(cut_after_bytes=3 * MEBIBYTE))
    with pytest.raises(DeviceError, match=r"what has been sent is kept|is offline"):
        put(choose_device(), bundle, folder)
    phone.wait_for_death()
    assert not on_phone(phone, WORKSPACE).exists()
    phone.start()
    connect(adb_variables, phone)
    put(choose_device(), bundle, folder)
    check_complete(phone, folder, tmp_path)
    assert SIZE - 2 * MEBIBYTE < phone.pushed_bytes < SIZE - 1 * MEBIBYTE


def test_a_changed_beginning_is_noticed(
    device: Device, phone: FakePhone, bundle: Path, tmp_path: Path
) -> None:
    folder = contents(tmp_path)
    partial = on_phone(phone, INCOMING) / f"{folder.large['ggml/weights.gguf'].sha256}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(2 * MEBIBYTE))
    with pytest.raises(DeviceError, match=r"weights.gguf arrived damaged on 127.* run the command"):
        put(device, bundle, folder)
    assert not partial.exists()
    put(device, bundle, folder)
    check_complete(phone, folder, tmp_path)


def test_only_what_changed_is_sent_again(
    device: Device, phone: FakePhone, bundle: Path, tmp_path: Path
) -> None:
    put(device, bundle, contents(tmp_path))
    sent = phone.pushed_bytes
    (tmp_path / "small").write_bytes(b"other")
    put(device, bundle, contents(tmp_path))
    found = files_below(on_phone(phone, WORKSPACE / "it's a model"))
    assert found["sub folder/$file"] == b"other"
    assert len(found["ggml/weights.gguf"]) == SIZE
    assert phone.pushed_bytes - sent < MEBIBYTE


def test_a_new_model_replaces_the_old_one(
    device: Device, phone: FakePhone, bundle: Path, tmp_path: Path
) -> None:
    put(device, bundle, contents(tmp_path))
    newer = contents(tmp_path, seed=1)
    put(device, bundle, newer)
    check_complete(phone, newer, tmp_path, seed=1)


def test_models_stand_side_by_side_and_share_what_is_equal(
    device: Device, phone: FakePhone, bundle: Path, tmp_path: Path
) -> None:
    first, second = contents(tmp_path, "a"), contents(tmp_path, "b")
    put(device, bundle, first, second)
    check_complete(phone, first, tmp_path)
    check_complete(phone, second, tmp_path)


def test_equal_files_of_one_folder(
    device: Device, phone: FakePhone, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(SIZE))
    copies = [FileCopy(tmp_path / "file", PurePath(place), SIZE) for place in ("a/1", "b/2")]
    put(device, bundle, folder_contents(WORKSPACE / "m", copies, {}, SILENT))
    found = files_below(on_phone(phone, WORKSPACE / "m"))
    assert found["a/1"] == found["b/2"] == (tmp_path / "file").read_bytes()
    assert phone.pushed_bytes < 1.5 * SIZE


def test_an_update_that_was_broken_off_is_not_taken_for_whole(
    device: Device, phone: FakePhone, bundle: Path, tmp_path: Path
) -> None:
    put(device, bundle, contents(tmp_path))
    (tmp_path / "small").write_bytes(b"other")
    device.check("mv /system/bin/chmod /system/bin/gone")  # used after files were moved over
    with pytest.raises(DeviceError, match="chmod"):
        put(device, bundle, contents(tmp_path))
    device.check("mv /system/bin/gone /system/bin/chmod")
    (tmp_path / "small").write_bytes(b"small")
    put(device, bundle, contents(tmp_path))
    check_complete(phone, contents(tmp_path), tmp_path)


def test_old_versions_go_unless_a_server_runs_from_them(
    device: Device, phone: FakePhone, tmp_path: Path
) -> None:
    versions = on_phone(phone, ROOT) / "versions"
    bundles = [write_bundle(tmp_path / f"{number}.tar.gz", f"# {number}") for number in range(3)]
    names = [Bundle.open(each, SILENT).folder.name for each in bundles]
    put(device, bundles[0])
    server = on_phone(phone, ROOT) / "server"
    server.mkdir()
    (server / "version").write_text(f"{names[0]}\n")
    put(device, bundles[1])
    put(device, bundles[2])
    assert {path.name for path in versions.iterdir()} == {names[0], names[2]}
    (server / "version").unlink()
    put(device, bundles[2])
    assert {path.name for path in versions.iterdir()} == {names[2]}


def test_too_little_space_is_told_before_anything_is_sent(
    plug_in: PlugIn, bundle: Path, tmp_path: Path
) -> None:
    phone = plug_in(PhoneSettings(disk_mib=6))
    with pytest.raises(
        DeviceError, match=r"has \d+\.\d MB free, but 7\.\d MB are needed: delete something"
    ):
        put(choose_device(), bundle, contents(tmp_path))
    assert phone.pushed_bytes == 0


def test_a_disk_that_fills_meanwhile(
    plug_in: PlugIn, bundle: Path, tmp_path: Path, adb_variables: dict[str, str]
) -> None:
    phone = plug_in(PhoneSettings(disk_mib=20))
    device = choose_device()
    file = FileCopy(tmp_path / "file", PurePath("large"), 12 * MEBIBYTE)
    (tmp_path / "file").write_bytes(os.urandom(file.size_bytes))
    folder = folder_contents(WORKSPACE / "m", [file], {}, SILENT)
    shell = ("-s", phone.serial, "shell")
    fill = "head -c 15000000 /dev/zero > /data/other"
    adb(adb_variables, *shell, f"mkdir -p {ROOT}")
    device_put = device.push
    device.push = lambda source, target: (  # type: ignore[method-assign]
        adb(adb_variables, *shell, fill),
        device_put(source, target),
    )[1]
    with pytest.raises(DeviceError, match=r"127.* has no space left: delete something there"):
        put(device, bundle, folder)
    assert device.run(["ls", str(WORKSPACE)]).status != 0
    adb(adb_variables, *shell, "rm /data/other")
    put(choose_device(), bundle, folder)
    assert device.check(f"wc -c < {WORKSPACE}/m/large").strip() == str(file.size_bytes)


def test_a_bundle_that_is_none_is_refused(device: Device, tmp_path: Path) -> None:
    (tmp_path / "bundle.tar.gz").write_bytes(b"no archive at all")
    with pytest.raises(DeviceError, match=r"failed: the bundle has no bin/powerserve"):
        put(device, tmp_path / "bundle.tar.gz")
    assert device.run(["ls", str(ROOT / "versions")]).output.split() == []

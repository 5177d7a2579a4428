"""From an order to a device on which everything is in place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from powerserve.core.errors import DeviceError
from powerserve.deploy.contents import FolderContents, folder_contents
from powerserve.deploy.device import Device
from powerserve.deploy.installation import Bundle, install
from powerserve.deploy.jobs import Program
from powerserve.deploy.layout import QNN_LIBS, WORKSPACE
from powerserve.deploy.model_choice import ChosenModels, Wish, choose_models
from powerserve.deploy.model_table import load_model_table
from powerserve.deploy.npu import ENVIRONMENT, Npu, detect_soc, find_npu
from powerserve.storage.cache_folder import cache_folder
from powerserve.storage.copying import file_errors
from powerserve.storage.lock import exclusive_lock
from powerserve.storage.model_contents import ModelContents
from powerserve.storage.progress import Progress


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be deployed. `qnn_sdk` is the folder of Qualcomm's SDK, if there is one."""

    wish: Wish
    bundle: Path
    use_npu: bool = True
    qnn_sdk: str | None = None


@dataclass(frozen=True, slots=True)
class Deployed:
    """A device on which a model can run."""

    device: Device
    program: Program
    model: str  # its name
    flags: tuple[str, ...]  # of `run` and `serve`: which model, draft and backend
    template: str | None  # the prompt format that the model table names


def deploy(device: Device, order: Order, progress: Progress) -> Deployed:
    """Bring the program and the models to the device; what is there already stays.

    Raises a PowerServeError.
    """
    _check_processor(device)
    npu = _npu(device, order)
    wish = replace(order.wish, soc=None if npu.obstacle else npu.soc)
    models = choose_models(wish, progress)
    uses_npu = models.is_for_npu and not npu.obstacle
    if models.is_for_npu and order.use_npu and npu.obstacle:
        progress.note(f"the CPU is used: {npu.obstacle}")
    bundle = Bundle.open(order.bundle, progress)
    folders = _folders(models, npu if uses_npu else None, progress)
    with (
        file_errors(f"cannot deploy to {device.serial}"),
        exclusive_lock(_lock_file(device), waiting=lambda: progress.note(_waiting(device))),
    ):
        install(device, bundle, folders, progress)
    program = Program(bundle.program, ENVIRONMENT if uses_npu else {})
    flags = _flags(models, wish.speculate, uses_npu)
    return Deployed(device, program, models.main.name, flags, models.template)


def _check_processor(device: Device) -> None:
    """Refuse devices that no bundle is for, such as emulators on x86; trust those that say nothing.

    Without this, the device's shell would complain of a syntax error in a program.
    """
    abi = device.property(device.abi_property)
    if abi and "arm64" not in abi:
        raise DeviceError(
            f"{device.serial} has a processor of the kind {abi}, but bundles are for 64-bit ARM "
            "(arm64)"
        )


def _npu(device: Device, order: Order) -> Npu:
    if not order.use_npu:
        return Npu(obstacle="the CPU was asked for")
    soc = detect_soc(device)
    known = load_model_table().socs
    return find_npu(known.get(soc.part) if soc else None, order.qnn_sdk, order.bundle)


def _folders(models: ChosenModels, npu: Npu | None, progress: Progress) -> list[FolderContents]:
    folders = [_model_folder(models.main, progress)]
    if models.draft is not None:
        folders.append(_model_folder(models.draft, progress))
    if npu is not None:
        folders.append(folder_contents(QNN_LIBS, list(npu.libraries), {}, progress))
    return folders


def _model_folder(model: ModelContents, progress: Progress) -> FolderContents:
    return folder_contents(WORKSPACE / model.name, model.copies, model.written, progress)


def _flags(models: ChosenModels, speculate: bool, uses_npu: bool) -> tuple[str, ...]:
    flags = ["--model", str(WORKSPACE / models.main.name)]
    if speculate and models.draft is not None:
        flags += ["--use-spec", "--draft-model", str(WORKSPACE / models.draft.name)]
    flags += ["--lib-folder", str(QNN_LIBS)] if uses_npu else ["--no-qnn"]
    return tuple(flags)


def _lock_file(device: Device) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in device.serial)
    return cache_folder() / "deploy" / f"{name}.lock"


def _waiting(device: Device) -> str:
    return f"waiting for another deployment to {device.serial}"

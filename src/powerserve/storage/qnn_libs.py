"""The Qualcomm libraries of a workspace: copied from an installed QNN (QAIRT) SDK.

The SDK's licence does not let others distribute them, so they come from the user's own SDK.
"""

from __future__ import annotations

from pathlib import Path, PurePath

from powerserve.storage.copying import FileCopy, copy_files, file_errors
from powerserve.storage.progress import SILENT, Progress

# Below the SDK: the phone's side, and the code for the signal processor of each generation.
PATTERNS = (
    "lib/aarch64-android/libQnnHtp.so",
    "lib/aarch64-android/libQnnSystem.so",
    "lib/aarch64-android/libQnnHtpV*Stub.so",
    "lib/hexagon-v*/unsigned/libQnnHtpV*",
    "lib/hexagon-v79/unsigned/libQnnHexagonSkel_dspApp.so",
)


def copy_qnn_libs(sdk: Path, target: Path, progress: Progress = SILENT) -> list[str]:
    """Copy the NPU libraries into the folder `target`, made if need be.

    Returns the patterns (below the SDK) that match no file: SDKs differ in what they contain, and
    a workspace without some of it may still be complete for its phone. Raises UsageError.
    """
    with file_errors(f"cannot copy the QNN libraries to {target}"):
        found = {pattern: sorted(sdk.glob(pattern)) for pattern in PATTERNS}
        paths = [path for matches in found.values() for path in matches if path.is_file()]
        copies = [FileCopy(path, PurePath(path.name), path.stat().st_size) for path in paths]
        target.mkdir(parents=True, exist_ok=True)
        size_bytes = sum(copy.size_bytes for copy in copies)
        with progress.transfer("QNN libraries", size_bytes, 0) as advance:
            copy_files(copies, target, advance)
    return [pattern for pattern, matches in found.items() if not matches]

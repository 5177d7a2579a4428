"""Where things are on a device: one folder, which a shell may write to and run programs from.

/data/local/tmp/powerserve/
  versions/<hash>/     unpacked bundles: the program
  workspace/<model>/   model folders, as in any workspace, each with a list of its files
  qnn_libs/            Qualcomm's NPU libraries
  incoming/            what is being sent: <sha256>.partial, then <sha256>
  jobs/<id>/           prompt and script of a run, as long as it lasts
  server/              the server's log and process id
"""

from __future__ import annotations

from pathlib import PurePosixPath

ROOT = PurePosixPath("/data/local/tmp/powerserve")
VERSIONS = ROOT / "versions"
WORKSPACE = ROOT / "workspace"
QNN_LIBS = ROOT / "qnn_libs"
INCOMING = ROOT / "incoming"
JOBS = ROOT / "jobs"
SERVER = ROOT / "server"

PROGRAM = PurePosixPath("bin/powerserve")  # below a version
CONTENTS_FILE = "deployed.json"  # in what was installed: the SHA-256 of each file, by place

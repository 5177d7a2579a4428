"""Bundles: everything that PowerServe needs on a device, in one archive built here.

build.py               puts it together, `build_bundle`; archive.py writes it
target.py              the kinds of devices; toolchain.py the compilers for them
cross_ggml.py          ggml for each level of instructions; ggml_source.py fetches its source
python_runtime.py      Python and its libraries, out of Debian's packages (debian.py)
wheels.py              the other Python packages; bytecode.py compiles all of them
elf.py, elf_check.py   what a loader would complain about
start/                 the scripts that start it on the device
"""

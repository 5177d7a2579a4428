"""PowerServe on phones: bundles, and how they get to a device and run there.

bundle/          what is sent: Python, the package, ggml for several kinds of processors
device.py        what a device must be able to do · adb.py, hdc.py the two ways to reach one
selection.py     which device · programs.py how adb and hdc are called
layout.py        where things are on a device
contents.py      what is to be there · digests.py by which SHA-256
sending.py       files, continued where the cable was pulled · installation.py whole or not at all
model_choice.py  what the user calls a model · model_table.py, models.toml those with short names
npu.py           whether the NPU can be used
deployment.py    all of this together
jobs.py          one run of the program · server.py a server · status.py what is there
"""

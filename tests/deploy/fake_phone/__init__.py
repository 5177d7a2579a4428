"""A phone without a phone: an adb daemon in front of a private root with Android's shell.

phone.py      starts one for a test, with an adb server of its own
adbd.py       the daemon as a program: sets up the root, listens
protocol.py   packets and streams of adb's transport
services.py   what a stream can be: shell, sync, tcp
root.py       the phone's file system, from the host's programs
"""

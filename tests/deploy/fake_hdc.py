"""A small hdc for tests: its words and habits in front of a fake phone, which adb reaches.

As the real one it exits with 0 whatever happens, tells failures by `[Fail]`, joins both outputs
and puts words with blanks into double quotes.
"""

from __future__ import annotations

import os
import subprocess
import sys

ANSWERS_OK = 0


def main(words: list[str]) -> int:
    serial = os.environ["FAKE_HDC_SERIAL"]
    state = os.environ.get("FAKE_HDC_STATE", "Connected")
    if words == ["list", "targets", "-v"]:
        print(f"{serial}\t\tUSB\t{state}\tlocalhost\thdc" if serial else "[Empty]")
        print("COM1\t\tUART\tReady\tlocalhost\thdc")
        return ANSWERS_OK
    if words[:2] != ["-t", serial] or state != "Connected":
        print("[Fail]ExecuteCommand need connect-key? please confirm a device by help info")
        return ANSWERS_OK
    return command(serial, words[2:])


def command(serial: str, words: list[str]) -> int:
    match words:
        case ["shell", *rest]:
            text = " ".join(f'"{word}"' if " " in word else word for word in rest)
            adb(serial, "shell", f"( {text} ) 2>&1")
        case ["file", "send", source, target]:
            done = adb(serial, "push", source, target, quiet=True)
            size = os.path.getsize(source)
            finished = f"FileTransfer finish, Size:{size}, File count = 1, time:1ms rate:1kB/s"
            print(f"[Fail]{done.stderr.strip()}" if done.returncode else finished)
        case ["fport", "ls"]:
            listing = adb(serial, "forward", "--list", quiet=True).stdout.split()
            pairs = zip(listing[1::3], listing[2::3], strict=True)
            print("\n".join(f"{serial}    {a} {b}    [Forward]" for a, b in pairs) or "[Empty]")
        case ["fport", "rm", local, _]:
            adb(serial, "forward", "--remove", local, quiet=True)
            print(f"Remove forward ruler success, ruler:{local}")
        case ["fport", local, remote]:
            done = adb(serial, "forward", local, remote, quiet=True)
            failed = f"[Fail]TCP Port listen failed at {local[4:]}"
            print(failed if done.returncode else "Forwardport result:OK")
        case _:
            print("Unknown operation command...")
    return ANSWERS_OK


def adb(serial: str, *words: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    sys.stdout.flush()
    return subprocess.run(["adb", "-s", serial, *words], capture_output=quiet, text=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

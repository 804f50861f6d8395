#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times the whole fix of a Debian that does not boot from virtio, against Debian's virt-v2v-in-place where that is
installed: wall time, peak memory of the tree of processes, growth of the disk; their ratios.

    guest.py HYPER2KVM APPLIANCE_PROGRAM CACHE [rounds]

Both fix the same disk without KVM, in turns. CACHE is what tests/guests/debian.sh keeps; needs root, for that.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent.parent


def tree(root):
    """The process and all that descend from it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path("/proc", entry, "stat").read_text()
                parents.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(entry))
            except (OSError, IndexError):
                pass
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += parents.get(pid, [])
    return found


def memory(pids):
    """KiB of proportional memory: what several processes share counts once."""
    total = 0
    for pid in pids:
        try:
            for line in pathlib.Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        except OSError:
            pass
    return total


def measured(command, **more):
    """Seconds, and the peak in MiB, of a command that must succeed."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    peak = [0]

    def watch():
        while process.poll() is None:
            peak[0] = max(peak[0], memory(tree(process.pid)))
            time.sleep(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    out, err = process.communicate()
    seconds = time.monotonic() - start
    thread.join()
    if process.returncode:
        sys.exit(f"{command[0]} ended with {process.returncode}: {err[-2000:]}")
    return seconds, peak[0] / 1024, out


def allocated(path):
    return os.stat(path).st_blocks * 512


def main():
    program, init, cache = map(pathlib.Path, sys.argv[1:4])
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    rival = shutil.which("virt-v2v-in-place")
    if not rival:
        print("LEFT OUT: virt-v2v-in-place is not installed (Debian: virt-v2v, nbdkit): no ratios", flush=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as place:
        place = pathlib.Path(place)
        subprocess.run([HERE / "tests/guests/debian.sh", cache, place, "bios", "broken"], check=True)
        files = cache / "tree"
        kernel = next(files.glob("boot/vmlinuz-*"))
        modules = next(files.glob("lib/modules/*"))
        (place / "appliance").mkdir()
        subprocess.run(
            [program, "appliance", "build", "--output", place / "appliance", "--init", init, "--kernel", kernel, "--modules", modules],
            check=True, stdout=subprocess.DEVNULL)
        words = ["convert", "--json", "--progress", "none", "--guest-limit", "60", "--force"]
        plain = place / "plain.qcow2"
        subprocess.run([program, *words, "-o", plain, place / "system.raw"], check=True, stdout=subprocess.DEVNULL)
        ours, theirs = [], []
        for _ in range(rounds):
            fixed = place / "fixed.qcow2"
            fix = ["--fix-guest=require", "--appliance", place / "appliance", "--accelerator", "tcg"]
            _, peak, out = measured([program, *words, *fix, "-o", fixed, place / "system.raw"])
            guest = json.loads(out)["guest"]
            assert guest["outcome"] == "fixed", guest
            ours.append((guest["durationMs"] / 1000, peak, (allocated(fixed) - allocated(plain)) / 2**20))
            if rival:
                copy = place / "theirs.qcow2"
                shutil.copyfile(plain, copy)
                before = allocated(copy)
                environment = {**os.environ, "LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
                seconds, peak, _ = measured([rival, "-i", "disk", copy], env=environment)
                theirs.append((seconds, peak, (allocated(copy) - before) / 2**20))
        report(ours, theirs)


def report(ours, theirs):
    names = ["seconds of the fix", "peak memory, MiB", "growth of the disk, MiB"]
    for n, name in enumerate(names):
        own = statistics.median(row[n] for row in ours)
        line = f"{name:26} {own:8.1f}"
        if theirs:
            other = statistics.median(row[n] for row in theirs)
            line += f"   virt-v2v {other:8.1f}   ratio {own / max(other, 0.01):.3f}"
        print(line)
    print(f"median of {len(ours)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


main()

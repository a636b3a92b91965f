"""Runs a command and says what it cost: time, processor, memory."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def out(*command, **more):
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def processor_seconds(pid):
    """What a process that is not our child has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Watcher(threading.Thread):
    """Looks at the memory of a process and of all its descendants, ten times a second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.over = pid, threading.Event()
        self.peak, self.peak_all = 0, 0
        self.start()

    def run(self):
        while not self.over.wait(0.1):
            self.look()

    def look(self):
        family, parents = {self.pid}, {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                parents[int(entry)] = int(fields[1])
        grown = True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in family} - family
            grown = bool(more)
            family |= more
        sizes = {pid: resident(pid) for pid in family}
        self.peak = max(self.peak, sizes[self.pid][0])
        self.peak_all = max(self.peak_all, sum(now for _, now in sizes.values()))


def resident(pid):
    """The most and the present resident memory of a process, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    values = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
    return int(values.get("VmHWM", 0)) * 1024, int(values.get("VmRSS", 0)) * 1024


def run(command, helpers=(), **more):
    """Runs a command to its end. `helpers` are processes that work for it without being its children, such as QEMU.

    Memory is that of the command itself (`peak`) and of it with all its children (`peak_all`); processor time is that of
    all of them, helpers included.
    """
    before = {pid: processor_seconds(pid) for pid in helpers}
    begun = time.monotonic()
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    watcher = Watcher(child.pid)
    output = {}
    readers = [threading.Thread(target=lambda name=name, stream=stream: output.__setitem__(name, stream.read()))
               for name, stream in (("out", child.stdout), ("err", child.stderr))]
    for reader in readers:
        reader.start()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - begun
    watcher.over.set()
    for thread in [*readers, watcher]:
        thread.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    # 3 and, of Borg, 1 are "done, with warnings".
    if child.returncode not in (0, 1 if Path(command[0]).name == "borg" else 3):
        sys.exit(f"bench: {' '.join(map(str, command))} ended with {child.returncode}:\n{output['out']}\n{output['err']}")
    return {
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime + sum(processor_seconds(pid) - used for pid, used in before.items()),
        "peak": watcher.peak,
        "peak_all": watcher.peak_all,
    }, output["out"]


def size_of(path):
    """Bytes that a file or directory takes."""
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())

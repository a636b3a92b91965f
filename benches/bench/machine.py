"""What the machine is that the numbers were taken on, in general terms."""

import os
import re
import subprocess
from pathlib import Path

from .measure import out


def describe():
    cpu = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpu)
    flags = set(re.search(r"flags\s*: (.*)", cpu).group(1).split())
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text()).group(1))
    return {
        "cpu": model.group(1) if model else "unknown",
        "cores": os.cpu_count(),
        "instructions": sorted(flags & {"aes", "vaes", "sha_ni", "avx2", "avx512f"}),
        "memory_gib": round(memory / (1 << 20)),
        "kernel": os.uname().release.split("-")[0],
        "load_before": os.getloadavg()[0],
    }


def versions():
    def first(*command):
        return out(*command).splitlines()[0].strip()

    return {
        "borg": first("borg", "--version"),
        "restic": first("restic", "version"),
        "virtnbdbackup": first("virtnbdbackup", "--version"),
        "qemu": first("qemu-img", "--version"),
        "libvirt": first("virsh", "--version"),
        "libnbd": first("nbdcopy", "--version"),
        "strongroom": revision(),
    }


def revision():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() or "unknown"

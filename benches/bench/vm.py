"""Virtual machines whose disks change exactly as told.

A domain runs, but paused: no guest is needed for libvirt's checkpoints to track a disk. To change the disk the domain is
stopped, the image served by `qemu-nbd`, which keeps the stored bitmaps up to date, and written to; then it is started again.
"""

import os
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from xml.sax.saxutils import escape

from .measure import out

MIB = 1 << 20


class Noise:
    """Bytes that cannot be told from ciphertext, without end."""

    def __init__(self):
        # A fresh key for each run; the stream is AES in counter mode over zeroes.
        key, iv = os.urandom(32).hex(), os.urandom(16).hex()
        self.process = subprocess.Popen(["openssl", "enc", "-aes-256-ctr", "-K", key, "-iv", iv, "-in", "/dev/zero"],
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def take(self, length):
        return self.process.stdout.read(length)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Nbd:
    """Just enough of the NBD protocol to write: fixed newstyle, one request at a time."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.read(18)
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
        self.read(10)

    def read(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise EOFError("the NBD server has gone")
            data += more
        return data

    def request(self, kind, offset=0, data=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 0, offset, len(data)) + data)
        _, error, _ = struct.unpack(">IIQ", self.read(16))
        if error:
            raise OSError(error, f"NBD request {kind} at {offset}")

    def write(self, offset, data):
        self.request(1, offset, data)

    def close(self):
        self.request(3)
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        self.socket.close()


class Vm:
    def __init__(self, name, image, size):
        self.name, self.image, self.size = name, Path(image), size
        if not self.image.exists():
            out("qemu-img", "create", "-q", "-f", "qcow2", self.image, size)
        xml = f"""<domain type='qemu'>
  <name>{escape(name)}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{escape(str(self.image))}'/>
    <target dev='vda' bus='virtio'/></disk></devices>
</domain>"""
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write(xml)
            file.flush()
            virsh("define", file.name)

    def start(self):
        virsh("start", "--paused", self.name)

    def stop(self):
        virsh("destroy", "--graceful", self.name)

    def process(self):
        """QEMU's process."""
        return int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())

    def forget(self):
        """Drops all checkpoints: the next backup of any program is a full one."""
        for name in reversed(virsh("checkpoint-list", "--name", "--topological", self.name).split()):
            virsh("checkpoint-delete", self.name, name)

    def write(self, places):
        """Writes ciphertext to (offset, length) places. The domain runs, paused, before and after it."""
        running = virsh("domstate", self.name).strip() != "shut off"
        if running:
            self.stop()
        noise = Noise()
        with tempfile.TemporaryDirectory(prefix="strongroom-bench-") as directory:
            path = Path(directory) / "nbd"
            server = subprocess.Popen(["qemu-nbd", "--socket", path, "--format", "qcow2", "--cache", "writeback", self.image])
            while not path.exists():
                time.sleep(0.01)
            nbd = Nbd(path)
            for offset, length in places:
                for start in range(offset, offset + length, 4 * MIB):
                    nbd.write(start, noise.take(min(4 * MIB, offset + length - start)))
            nbd.close()
            if server.wait():
                raise OSError("qemu-nbd failed")
        noise.close()
        if running:
            self.start()

    def remove(self):
        for arguments in (["destroy", self.name], ["undefine", "--checkpoints-metadata", self.name]):
            subprocess.run(["virsh", "-q", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.image.unlink(missing_ok=True)


def virsh(*arguments):
    return out("virsh", "-q", "-c", "qemu:///system", *arguments)

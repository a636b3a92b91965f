"""What the workloads share: a directory, virtual machines, and the subjects that are measured in turns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import measure
from .vm import Vm

ROOT = Path(__file__).resolve().parents[2]
STRONGROOM = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "strongroom"
GIB = 1 << 30
# Who has stored more than this by an incremental backup forgets the older ones after it, unmeasured: disks are finite.
MUCH = GIB


class Lab:
    def __init__(self, directory, options):
        self.directory, self.options = directory, options
        self.runs, self.vms, self.state = [], [], {}
        if not STRONGROOM.exists():
            sys.exit(f"bench: {STRONGROOM} is missing: make build")
        os.environ.update({
            "BORG_BASE_DIR": str(directory / "borg-base"),
            "BORG_PASSPHRASE": "bench",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(directory / "restic-cache"),
            "LIBVIRT_DEFAULT_URI": "qemu:///system",
        })
        os.environ.pop("BORG_REPO", None)

    @property
    def rounds(self):
        return self.options.rounds

    def data(self, gib=4):
        """Bytes of data, by the scale; whole chunks of 4 MiB."""
        return max(int(gib * GIB * self.options.scale) >> 22, 16) << 22

    def vm(self, tag, size, image=None):
        path = self.directory / f"{tag}.qcow2"
        if image:
            shutil.copyfile(image, path)
        vm = Vm(f"strongroom-bench-{os.getpid()}-{tag}", path, size)
        self.vms.append(vm)
        return vm

    def path(self, *parts):
        return self.directory.joinpath(*parts)

    def turns(self, workload, subjects, prepare=None, rounds=None):
        """Measures each subject once a round, in an order that turns. A subject returns (measured, more facts)."""
        names = list(subjects)
        for number in range(rounds or self.rounds):
            if prepare:
                prepare(number)
            for name in names[number % len(names):] + names[:number % len(names)]:
                measured, facts = subjects[name]()
                self.record(workload, name, measured, **facts)

    def record(self, workload, subject, measured, **facts):
        entry = {"workload": workload, "subject": subject, **measured, **facts}
        self.runs.append(entry)
        shown = "  ".join(f"{key} {value}" for key, value in facts.items())
        print(f"  {subject:32} {entry['seconds']:8.2f} s  {entry['cpu']:7.2f} cpu-s  "
              f"{entry['peak'] / (1 << 20):6.0f} MiB  {shown}", flush=True)

    def close(self):
        for vm in self.vms:
            vm.remove()


def fresh(path):
    """A path at which nothing is."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


class Strongroom:
    """Our own program, with a configuration and a repository of its own."""

    def __init__(self, lab, vm, tag, encryption="repokey-blake2"):
        self.lab, self.vm, self.home, self.encryption = lab, vm, lab.path(f"strongroom-{tag}"), encryption
        self.environment = os.environ | {"STRONGROOM_CONFIG": str(self.home / "strongroom.toml")}
        self.reset()

    def reset(self):
        """No repository, no records, no checkpoints: as before the first backup."""
        self.vm.forget()
        fresh(self.home).mkdir()
        # The guest is paused, so no guest needs a gentle reader.
        (self.home / "strongroom.toml").write_text(
            f'repository = "{self.home}/repo"\nstate = "{self.home}/state"\nimages = "{self.home}"\n'
            f'compression = "none"\n[reader]\ndepth = 16\nlimit_mib = 0\n[signing]\nkey = "{self.home}/key"\n'
            f'allowed_signers = "{self.home}/allowed"\n')
        measure.out("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.home / "key")
        (self.home / "allowed").write_text("bench " + (self.home / "key.pub").read_text())
        self.run("init", "--encryption", self.encryption, self.vm.name)

    def run(self, *arguments):
        return measure.run([STRONGROOM, "--json", *arguments], env=self.environment, helpers=[self.vm.process()])

    def backup(self):
        before = measure.size_of(self.home / "repo")
        measured, output = self.run("backup", self.vm.name)
        document = json.loads(output)
        if document["warnings"]:
            sys.exit(f"bench: {document['warnings']}")
        report = document["backups"][0]["backup"]
        disk = report["manifest"]["disks"][0]
        return measured, {
            "read": disk["bytes_read"],
            "stored": measure.size_of(self.home / "repo") - before,
            "data_stored": disk["bytes_stored"],
            "metadata_stored": report["bytes_stored"] - disk["bytes_stored"],
            "chunks": disk["chunks"],
            "mode": disk["mode"],
        }

    def restore(self, to):
        measured, _ = self.run("restore", self.vm.name, "--disk", "vda", "--format", "raw", "--to", fresh(to))
        return measured, {}

    def verify(self):
        measured, _ = self.run("verify", self.vm.name, "--data")
        return measured, {}

    def archive(self):
        """The newest archive, for the stock client."""
        return f"{self.home}/repo::" + measure.out("borg", "list", "--short", "--last", "1", self.home / "repo").strip()


class Borg:
    """The stock client, over the image file."""

    def __init__(self, lab, image, tag, encryption="repokey-blake2"):
        self.lab, self.image, self.repository = lab, image, lab.path(f"borg-{tag}")
        self.encryption, self.count = encryption, 0
        self.reset()

    def reset(self):
        measure.out("borg", "init", "--encryption", self.encryption, fresh(self.repository), stderr=subprocess.DEVNULL)

    def create(self):
        os.utime(self.image)  # The image of a VM that runs is always newer than at the last backup.
        self.count += 1
        before = measure.size_of(self.repository)
        measured, _ = measure.run(["borg", "create", "--sparse", "--compression", "none", "--chunker-params", "fixed,4194304",
                                   f"{self.repository}::{self.count}", self.image])
        stored = measure.size_of(self.repository) - before
        if self.count > 1 and stored > MUCH:
            measure.out("borg", "prune", "--keep-last", "1", self.repository)
            measure.out("borg", "compact", self.repository)
        return measured, {"stored": stored}


def extract(archive, directory):
    """`borg extract` of one of our archives: the same bytes from the same repository."""
    fresh(directory).mkdir()
    measured, _ = measure.run(["borg", "extract", "--sparse", archive, "disks/vda.raw"], cwd=directory)
    return measured, {}


class Restic:
    def __init__(self, lab, image, tag):
        self.lab, self.image, self.repository = lab, image, lab.path(f"restic-{tag}")
        self.reset()

    def reset(self):
        measure.out("restic", "-q", "-r", fresh(self.repository), "init")

    def backup(self):
        os.utime(self.image)
        before = measure.size_of(self.repository)
        measured, _ = measure.run(["restic", "-q", "-r", self.repository, "backup", self.image])
        stored = measure.size_of(self.repository) - before
        if before > MUCH and stored > MUCH:
            measure.out("restic", "-q", "-r", self.repository, "forget", "--keep-last", "1", "--prune")
        return measured, {"stored": stored}

    def restore(self, directory):
        measured, _ = measure.run(["restic", "-q", "-r", self.repository, "restore", "latest", "--target", fresh(directory)])
        return measured, {}

    def check(self):
        measured, _ = measure.run(["restic", "-q", "-r", self.repository, "check", "--read-data"])
        return measured, {}


class VirtNbdBackup:
    """virtnbdbackup over a twin of the VM: checkpoints of two programs on one VM get into each other's way."""

    def __init__(self, lab, vm, tag):
        self.lab, self.vm, self.target = lab, vm, lab.path(f"virtnbdbackup-{tag}")

    def backup(self, level):
        if level == "full":
            self.vm.forget()
            fresh(self.target)
        before = measure.size_of(self.target) if self.target.exists() else 0
        measured, _ = measure.run(["virtnbdbackup", "-n", "-d", self.vm.name, "-l", level, "-o", self.target],
                                  helpers=[self.vm.process()])
        return measured, {"stored": measure.size_of(self.target) - before}

    def full(self):
        return self.backup("full")

    def incremental(self):
        return self.backup("inc")

    def restore(self, directory):
        measured, _ = measure.run(["virtnbdrestore", "-n", "-i", self.target, "-o", fresh(directory)])
        return measured, {}


class Ceiling:
    """The bare server: see benches/ceiling."""

    def __init__(self, lab):
        self.lab, self.repository = lab, lab.path("ceiling")

    def put(self, size):
        measure.out("borg", "init", "--encryption", "none", fresh(self.repository))
        measured, _ = measure.run([ROOT / "benches/ceiling", "put", self.repository, size])
        return measured, {"stored": size}

    def get(self, repository):
        measured, output = measure.run([ROOT / "benches/ceiling", "get", repository])
        return measured, {"read": int(output)}


def nbdcopy(image):
    """Nothing but reading: the image through qemu-nbd into the void."""
    node = f"driver=qcow2,read-only=on,force-share=on,file.driver=file,file.filename={image}"
    measured, _ = measure.run(["nbdcopy", "--", "[", "qemu-nbd", "-r", "--image-opts", node, "]", "null:"])
    return measured, {}

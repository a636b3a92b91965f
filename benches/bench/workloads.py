"""The workloads. Each prepares its disks, and measures the subjects in turns.

first      first backup of a disk full of ciphertext
dirty      then 1 % of it changes: in runs of 4 MiB, in 64 KiB at random places, in 4 KiB at random places
unchanged  then nothing changes
restore    the disk comes back as a raw file
verify     every byte is read and checked
sparse     a disk of 1 TiB with as much in it: first backup, nothing changed, restore
days       a month of small changes: what is stored, and how the archive's own metadata grow
"""

import random

from . import lab as parts
from .lab import GIB, Borg, Ceiling, Restic, Strongroom, VirtNbdBackup, extract, nbdcopy

MIB = 1 << 20


def first(lab):
    size = lab.data()
    vm = lab.vm("a", size)
    vm.write([(0, size)])
    twin = lab.vm("b", size, image=vm.image)
    vm.start()
    twin.start()
    ours, borg, restic = Strongroom(lab, vm, "a"), Borg(lab, vm.image, "a"), Restic(lab, vm.image, "a")
    other, ceiling = VirtNbdBackup(lab, twin, "b"), Ceiling(lab)
    lab.state["main"] = (vm, twin, ours, borg, restic, other, ceiling, size)

    def prepare(number):
        if number:
            ours.reset()
            borg.reset()
            restic.reset()

    lab.turns("first", {
        "strongroom backup": ours.backup,
        "borg create": borg.create,
        "restic backup": restic.backup,
        "virtnbdbackup": other.full,
        "limit: borg serve put": lambda: ceiling.put(size),
        "limit: nbdcopy": lambda: nbdcopy(vm.image),
    }, prepare)
    parts.fresh(ceiling.repository)


def main(lab):
    """What `first` left behind."""
    if "main" not in lab.state:
        first(lab)
    return lab.state["main"]


def places(size, share, length, seed):
    """So many runs of a length at random places that do not overlap."""
    count = max(int(size * share) // length, 1)
    return [(slot * length, length) for slot in random.Random(seed).sample(range(size // length), count)]


def dirty(lab):
    vm, twin, ours, borg, restic, other, _, size = main(lab)
    for name, length in (("4 MiB", 4 * MIB), ("64 KiB", 64 << 10), ("4 KiB", 4 << 10)):
        def change(number, length=length):
            changes = places(size, 0.01, length, seed=number * 1000 + length)
            vm.write(changes)
            twin.write(changes)

        lab.turns(f"1 % in {name}", {
            "strongroom backup": ours.backup,
            "borg create": borg.create,
            "restic backup": restic.backup,
            "virtnbdbackup": other.incremental,
        }, change)


def unchanged(lab):
    _, _, ours, borg, _, other, _, _ = main(lab)
    lab.turns("unchanged", {
        "strongroom backup": ours.backup,
        "borg create": borg.create,
        "virtnbdbackup": other.incremental,
    })


def restore(lab):
    _, _, ours, _, restic, other, ceiling, _ = main(lab)
    archive = ours.archive()
    lab.turns("restore", {
        "strongroom restore": lambda: ours.restore(lab.path("restored.raw")),
        "borg extract": lambda: extract(archive, lab.path("extracted")),
        "restic restore": lambda: restic.restore(lab.path("restic-restored")),
        "virtnbdrestore": lambda: other.restore(lab.path("nbd-restored")),
        "limit: borg serve get": lambda: ceiling.get(ours.home / "repo"),
    })
    for name in ("restored.raw", "extracted", "restic-restored", "nbd-restored"):
        parts.fresh(lab.path(name))


def verify(lab):
    _, _, ours, _, restic, _, _, _ = main(lab)
    repository = ours.home / "repo"
    lab.turns("verify", {
        "strongroom verify --data": ours.verify,
        "borg check --verify-data": lambda: (parts.measure.run(["borg", "check", "--verify-data", repository])[0], {}),
        "restic check --read-data": restic.check,
    })


def clear(lab):
    """Room for the next workload."""
    if "main" in lab.state:
        vm, twin, ours, borg, restic, other, _, _ = lab.state.pop("main")
        for one in (vm, twin):
            one.remove()
        for path in (ours.home, borg.repository, restic.repository, other.target):
            parts.fresh(path)


def sparse(lab):
    clear(lab)
    size, data = lab.data(1024), lab.data()
    vm = lab.vm("sparse", size)
    runs = data // (4 * MIB)
    vm.write([(number * (size // runs), 4 * MIB) for number in range(runs)])
    vm.start()
    ours = Strongroom(lab, vm, "sparse")
    borg = Borg(lab, vm.image, "sparse")
    label = f"{size / GIB:.0f} GiB sparse"
    lab.turns(f"{label}, first", {"strongroom backup": ours.backup, "borg create": borg.create}, rounds=1)
    lab.turns(f"{label}, unchanged", {"strongroom backup": ours.backup, "borg create": borg.create})
    # Not `borg extract`: it fetches, decrypts and checks a chunk of zeroes for each cell of the holes, for an hour.
    lab.turns(f"{label}, restore", {"strongroom restore": lambda: ours.restore(lab.path("sparse.raw"))}, rounds=1)
    for path in (lab.path("sparse.raw"), ours.home, borg.repository):
        parts.fresh(path)
    vm.remove()


def days(lab):
    """Each day 500 writes of 4 KiB (for a disk of 1 GiB), four of five into a twentieth of the disk.

    `dirtied` are the bytes written, `tracked` what QEMU's bitmap makes of them, which knows blocks of 64 KiB.
    """
    clear(lab)
    size = lab.data(1)
    vm = lab.vm("days", size)
    vm.write([(0, size)])
    vm.start()
    ours, borg = Strongroom(lab, vm, "days"), Borg(lab, vm.image, "days")
    for subject in (ours.backup, borg.create):
        subject()
    chance = random.Random(1)
    blocks, hot = size >> 12, (size >> 12) // 20
    for day in range(1, lab.options.days + 1):
        count = max(int(500 * size / GIB), 8)
        written = {chance.randrange(hot) if chance.random() < 0.8 else chance.randrange(blocks) for _ in range(count)}
        vm.write([(block << 12, 4096) for block in sorted(written)])
        for name, subject in (("strongroom backup", ours.backup), ("borg create", borg.create)):
            measured, facts = subject()
            lab.record("days", name, measured, day=day, dirtied=len(written) * 4096,
                       tracked=len({block >> 4 for block in written}) << 16, **facts)
    for path in (ours.home, borg.repository):
        parts.fresh(path)
    vm.remove()


ALL = {function.__name__: function for function in (first, dirty, unchanged, restore, verify, sparse, days)}

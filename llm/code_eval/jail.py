"""Layers that confine an untrusted program, each set up by the process about to run it.

Only Python's standard library is used, as the processes that run programs import nothing else. It is for
Linux on x86-64 or ARM64. Layers that the system does not permit are left out and reported, see `enter` and
docs/humaneval.md.
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LAYERS = {
    "files": "sees Python's own files, read-only, and an empty folder in memory",
    "network": "no network: a namespace of its own, and no new sockets",
    "processes": "a process namespace of its own, which ends as a whole",
    "user": "an unprivileged user, without capabilities",
    "calls": "no sockets, signals to others, tracing, namespaces, shared memory, queues (system call filter)",
}

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (1 << bit for bit in (17, 26, 27, 28, 29, 30))
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, SET_CHILD_SUBREAPER, SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
MOUNT_SETATTR, AT_RECURSIVE, AT_FDCWD = 442, 0x8000, -100

# Forbidden system calls, by their numbers on x86-64 and on ARM64.
FORBIDDEN = {
    "socket": (41, 198), "ptrace": (101, 117), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "io_uring_setup": (425, 425), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "pidfd_getfd": (438, 438),
    # memory that no limit counts, and System V and POSIX objects that would outlive the program
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
}  # fmt: skip
CLONE, CLONE3 = (56, 220), (435, 435)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of FORBIDDEN, AUDIT_ARCH

# What a program sees of the file system, and where that is mounted, apart from these.
PLACES = {"/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom", sys.base_prefix}
MOUNT_POINTS = ("/mnt", "/media", "/srv", "/run", "/boot", "/sys", "/proc")

libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Limits:
    """Resource limits of a program."""

    seconds: float = 3.0  # wall-clock time from its start to its last answer
    memory: int = 512 << 20  # bytes of address space of each of its processes
    disk: int = 16 << 20  # bytes of its folder, which is in memory
    processes: int = 4  # processes and threads, together
    files: int = 64  # open files


def call(name: str, *arguments: object) -> int:
    """Call a function of the C library; raise OSError if it returns -1."""
    result = int(getattr(libc, name)(*arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def enter() -> list[str]:
    """Move this process, and those that it starts, into new namespaces and a file system of their own.

    Returns:
        The LAYERS in force for programs that `start` runs from now on.
    """
    layers = ["calls"] if platform.machine() in MACHINES else []
    privileged = os.geteuid() == 0
    try:
        if privileged:
            call("unshare", NEWNS | NEWNET | NEWIPC | NEWUTS)
        else:
            uid, gid = os.getuid(), os.getgid()
            call("unshare", NEWUSER | NEWNS | NEWNET | NEWIPC | NEWUTS)
            maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
            for name, text in maps.items():
                Path(f"/proc/self/{name}").write_text(text)
    except OSError:
        return [*layers, *(["user"] if privileged else [])]
    layers += ["user", "network"]
    if _child(lambda: call("unshare", NEWPID)):
        layers.append("processes")
    with contextlib.suppress(OSError):
        _own_root()
        layers.append("files")
    return layers


def _own_root() -> None:
    """Reduce the file system to what Python needs, read-only, and /tmp.

    It is mounted on a folder that every system has. Only this namespace sees it: nothing has to be removed.
    """
    needed = [f"{os.path.realpath(place)}/" for place in PLACES]
    root = next(
        point
        for point in MOUNT_POINTS
        if os.path.isdir(point) and not any(place.startswith(f"{point}/") for place in needed)
    )
    call("mount", None, b"/", None, REC | PRIVATE, None)
    call("mount", b"tmpfs", root.encode(), b"tmpfs", NOSUID | NODEV, b"size=1m,mode=0755")
    for place in sorted(PLACES):
        here = root + place
        if os.path.lexists(here) or not os.path.lexists(place):  # inside another place, or not on this system
            continue
        os.makedirs(os.path.dirname(here), mode=0o755, exist_ok=True)
        if os.path.islink(place):
            os.symlink(os.readlink(place), here)
            continue
        os.mkdir(here) if os.path.isdir(place) else os.close(os.open(here, os.O_CREAT, 0o644))
        call("mount", place.encode(), here.encode(), None, BIND | REC, None)
        flags = RDONLY | NOSUID | (0 if place.startswith("/dev/") else NODEV)
        read_only = struct.pack("QQQQ", flags, 0, 0, 0)
        call("syscall", MOUNT_SETATTR, AT_FDCWD, here.encode(), AT_RECURSIVE, read_only, len(read_only))
    os.mkdir(root + "/tmp")
    call("mount", None, root.encode(), None, REMOUNT | BIND | RDONLY | NOSUID | NODEV, None)
    os.chroot(root)
    os.chdir("/")


def _child(work: Callable[[], object]) -> bool:
    """Tell whether `work` succeeds in a child process."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def keep(program: Callable[[], None], descriptors: list[int], layers: list[str], limits: Limits) -> bool:
    """Run `program` in a child process under all limits, and end all processes that it started.

    This process waits meanwhile; SIGTERM to it ends the program early. It must serve only this purpose, with
    SIGTERM and SIGCHLD blocked.

    Args:
        descriptors: stay open for the program, as its descriptors 3, 4, ...
        layers: as returned by `enter`.

    Returns:
        Whether the program ran out of time.
    """
    parent = os.getppid()
    call("prctl", SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # not SIGKILL: it has to clean up
    call("prctl", SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become its children
    if os.getppid() != parent:
        os._exit(1)
    uid = 0x70000000 + os.getpid() if os.geteuid() == 0 else os.getuid()  # an unused user ID
    if "network" in layers:
        call("unshare", NEWNS | NEWIPC | (NEWPID if "processes" in layers else 0))
    folder = "/tmp"
    if "files" in layers:
        gid = uid if os.geteuid() == 0 else os.getgid()
        options = f"size={limits.disk},nr_inodes=1000,mode=0700,uid={uid},gid={gid}"
        call("mount", b"tmpfs", folder.encode(), b"tmpfs", NOSUID | NODEV, options.encode())
    else:
        import tempfile

        folder = tempfile.mkdtemp()
        os.chown(folder, uid, -1)
    pid = os.fork()
    if pid == 0:
        try:
            start(program, descriptors, folder, uid, layers, limits)
        finally:
            os._exit(1)
    os.closerange(3, 1 << 16)  # or readers of the program's pipes would wait for this process to end
    deadline = time.monotonic() + limits.seconds
    ended = False
    while not ended and (left := deadline - time.monotonic()) > 0:
        found = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, left)
        if found is None:
            break
        ended = (
            found.si_signo == signal.SIGTERM
            or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        )
    if "processes" in layers:
        os.kill(pid, signal.SIGKILL)  # the first process of its namespace, with which all others end
        os.waitpid(pid, 0)
    else:
        end_all(uid)
    if "files" not in layers:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    return not ended


def _kill_as(uid: int) -> None:
    os.setresuid(uid, uid, uid)
    os.kill(-1, signal.SIGKILL)


def end_all(uid: int) -> None:
    """Kill all descendants of this process, which adopts those that escape their parents."""
    while True:
        if os.geteuid() == 0:  # all processes of that user at once
            _child(lambda: _kill_as(uid))
        for text in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            os.kill(int(text), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def start(
    program: Callable[[], None],
    descriptors: list[int],
    folder: str,
    uid: int,
    layers: list[str],
    limits: Limits,
) -> None:
    """Apply all limits that a process can set on itself, and run the program. It does not return."""
    call("prctl", SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME=folder, TMPDIR=folder, OMP_NUM_THREADS="1")
    _only(descriptors)
    os.umask(0o077)
    for what, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, int(limits.seconds) + 1),
        (resource.RLIMIT_FSIZE, limits.disk),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NPROC, limits.processes + (8 if os.geteuid() else 0)),  # with its guards
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    nothing = struct.pack("IIIIII", 0, 0, 0, 0, 0, 0)
    call("capset", struct.pack("Ii", 0x20080522, 0), nothing)
    call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", SET_DUMPABLE, 0, 0, 0, 0)
    call("prctl", SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # again, as changing the user has reset it
    if "calls" in layers:
        _filter_calls()
    program()
    os._exit(0)


def _only(descriptors: list[int]) -> None:
    """Close all descriptors but these, which become 3, 4, ...; 0, 1 and 2 lead to /dev/null."""
    copies = [os.dup(descriptor) for descriptor in descriptors]
    nowhere = os.open("/dev/null", os.O_RDWR)
    high = [os.dup2(copy, 100 + place) for place, copy in enumerate(copies)]
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    for place, descriptor in enumerate(high):
        os.dup2(descriptor, 3 + place)
    os.closerange(3 + len(high), 1 << 16)


def _filter_calls() -> None:
    """Make FORBIDDEN system calls fail with EPERM, in this process and those that it starts."""
    column, machine = MACHINES[platform.machine()]
    load, equal, above, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF
    allow, refuse, missing, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    rules = [(load, 0, 0, 4), (equal, 1, 0, machine), (answer, 0, 0, kill), (load, 0, 0, 0)]
    rules += [(above, 0, 1, 0x40000000), (answer, 0, 0, refuse)]  # x32's numbers
    for numbers in FORBIDDEN.values():
        rules += [(equal, 0, 1, numbers[column]), (answer, 0, 0, refuse)]
    rules += [
        (equal, 0, 1, CLONE3[column]),
        (answer, 0, 0, missing),
    ]  # its flags cannot be checked: programs fall back to clone
    rules += [(equal, 0, 3, CLONE[column]), (load, 0, 0, 16), (any_bit, 0, 1, NEWUSER)]
    rules += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code))
    call("prctl", SET_SECCOMP, 2, ctypes.create_string_buffer(program), 0, 0)

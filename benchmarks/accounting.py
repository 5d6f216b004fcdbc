"""What the kernel knows of processes and of the whole machine: CPU-seconds, peak memory, page cache.

Linux only, by way of /proc. A server is counted with all its descendants (nginx workers, the
Varnish child), and never by what it says of itself.
"""

import contextlib
import os
import time
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def process_tree(pid: int) -> list[int]:
    """Return `pid` and all its living descendants."""
    tree = [pid]
    for parent in tree:  # grows while it is walked
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                tree += [int(child) for child in children.read_text().split()]
    return tree


def process_cpu(pid: int) -> float:
    """CPU-seconds, user and system, that `pid` and its descendants have used, children already gone included."""
    ticks = 0
    for process in process_tree(pid):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{process}/stat").read_text()
            # The command name in parentheses may hold spaces; fields 14 to 17 are utime, stime, cutime, cstime.
            ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
    return ticks / _TICKS_PER_SECOND


def machine_cpu() -> float:
    """CPU-seconds the whole machine has been busy since boot: all but idle, waiting for disks, and stolen."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split(None, 8)[1:8])
    return (user + nice + system + irq + softirq) / _TICKS_PER_SECOND


def busy_fraction(seconds: float) -> float:
    """Watch the machine for `seconds` and return how busy it was, from 0 (idle) to 1 (every core)."""
    before = machine_cpu()
    time.sleep(seconds)
    return (machine_cpu() - before) / (seconds * (os.cpu_count() or 1))


def reset_peak_memory(pid: int) -> None:
    """Let the peak of `peak_memory` begin anew, from what is resident now."""
    for process in process_tree(pid):
        with contextlib.suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")  # proc(5): resets VmHWM


def peak_memory(pid: int) -> int:
    """Bytes resident at the peak since `reset_peak_memory`, summed over `pid` and its descendants.

    It is the kernel's own high-water mark, so no peak falls between two samples. Mapped file pages count.
    """
    total = 0
    for process in process_tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
    return total


def drop_page_cache(directory: Path) -> None:
    """Make what is stored in `directory` cold: the next read of it goes to the disk.

    Asks for each file by itself, which needs no privilege, and as root for the whole page cache as well.
    """
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # read-only in an unprivileged container
            _DROP_CACHES.write_text("1")
